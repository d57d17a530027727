// What views are made of: buttons, fields, states, tables, dialogs, toasts, meters.
import { h, icon, uniqueId } from './dom.js'

/** `kind` is primary, plain, ghost or danger; a button without `label` on it needs one in `title`. */
export function button({ label, title, symbol, kind = 'plain', type = 'button', ...attributes }) {
  const named = label ? {} : { 'aria-label': title, title }
  return h('button', { type, class: `button ${kind}${label ? '' : ' square'}`, ...named, ...attributes }, symbol && icon(symbol), label && h('span', {}, label))
}

/** A labelled input; `hint` stands under it. `input` is its input. */
export function field({ label, hint, ...attributes }) {
  const id = uniqueId('field')
  const input = h(attributes.rows ? 'textarea' : 'input', { id, 'aria-describedby': hint && `${id}-hint`, ...attributes })
  const element = h('div', { class: 'field' }, h('label', { for: id }, label), input, hint && h('p', { class: 'hint', id: `${id}-hint` }, hint))
  return Object.assign(element, { input })
}

/** A labelled choice among `options`, `[value, label]` each. */
export function choice({ label, options, value, onchange }) {
  const id = uniqueId('choice')
  const select = h('select', { id, onchange }, options.map(([worth, words]) => h('option', { value: worth, selected: worth === value }, words)))
  return Object.assign(h('div', { class: 'field' }, h('label', { for: id }, label), select), { input: select })
}

/** A switch with its label and what it means; `onchange(on)` may be asynchronous, and puts it back by throwing. */
export function toggle({ label, hint, on, onchange }) {
  const id = uniqueId('toggle')
  const input = h('input', { type: 'checkbox', role: 'switch', id, checked: on, 'aria-describedby': `${id}-hint` })
  input.addEventListener('change', async () => {
    input.disabled = true
    try {
      await onchange(input.checked)
    } catch (error) {
      input.checked = !input.checked
      toast(error.message, { kind: 'error' })
    }
    input.disabled = false
  })
  return h('div', { class: 'toggle' }, input, h('div', {}, h('label', { for: id }, label), h('p', { class: 'hint', id: `${id}-hint` }, hint)))
}

/** A view's heading with what it is for, and its actions at the side. */
export const heading = (title, text, ...actions) =>
  h('header', { class: 'heading' }, h('div', {}, h('h1', { tabindex: '-1' }, title), text && h('p', {}, text)), actions.length ? h('div', { class: 'actions' }, actions) : null)

/** A card with a title of the second rank. */
export const card = (title, ...children) => h('section', { class: 'card' }, title && h('h2', {}, title), children)

/** Nothing there yet: what would be, and what to do. */
export const emptyState = ({ symbol, title, text, action }) =>
  h('div', { class: 'state' }, icon(symbol), h('h2', {}, title), h('p', {}, text), action)

/** What went wrong, in the server's words, what to do about it, and the request's id for who looks it up. */
export function errorState(error, retry) {
  return h(
    'div', { class: 'state error', role: 'alert' },
    icon(error.code === 'unreachable' ? 'offline' : 'warning'),
    h('h2', {}, TITLES[error.code] ?? 'That didn’t work'),
    h('p', {}, error.message), ADVICE[error.code] && h('p', {}, ADVICE[error.code]),
    retry && button({ label: 'Try again', symbol: 'retry', onclick: retry }),
    requestId(error),
  )
}

export const TITLES = {
  unreachable: 'You seem to be offline',
  network: 'The connection was lost',
  timeout: 'That took too long',
  model_unavailable: 'The model isn’t answering',
  deadline_exceeded: 'That took too long',
  rate_limited: 'A little too fast',
  quota_exhausted: 'Your budget is used up',
  forbidden: 'Not allowed',
  not_found: 'Nothing here',
  secret_in_message: 'That looks like a secret',
}
export const ADVICE = {
  unreachable: 'Check the connection; what you wrote is still here.',
  network: 'Check the connection, then try again: nothing is asked twice.',
  model_unavailable: 'Your question is kept.',
  embedding_unavailable: 'Your question is kept.',
  deadline_exceeded: 'Try again, or ask something shorter.',
  rate_limited: 'Wait a moment, then try again.',
  quota_exhausted: 'See Usage for when it starts anew.',
  secret_in_message: 'Never share a seed phrase or a private key. Nothing was kept of it.',
}

/** The request's id, to be copied. */
export function requestId(error) {
  if (!error.requestId) return null
  const copy = () => navigator.clipboard.writeText(error.requestId).then(() => toast('Request id copied'))
  return h('p', { class: 'request' }, 'Request ', h('code', {}, error.requestId), ' ', button({ title: 'Copy the request id', symbol: 'copy', kind: 'ghost small', onclick: copy }))
}

/** Lines in the place of what is still loading. */
export const skeleton = (lines = 3) =>
  h('div', { class: 'skeleton', role: 'status' }, h('span', { class: 'hidden' }, 'Loading'), Array.from({ length: lines }, () => h('span', { 'aria-hidden': 'true' })))

/**
 * What `load` gives, drawn by `draw(found)` into `into`: a skeleton until then, an error with “Try again” instead.
 * Nothing is drawn once `signal` (a view's own) is aborted.
 */
export async function loaded(into, load, draw, { lines = 4, signal } = {}) {
  into.replaceChildren(skeleton(lines))
  into.setAttribute('aria-busy', 'true')
  let drawn
  try {
    drawn = draw(await load())
  } catch (error) {
    if (!signal?.aborted) console.debug(error)
    drawn = errorState(error, () => loaded(into, load, draw, { lines, signal }))
  }
  if (signal?.aborted) return
  into.setAttribute('aria-busy', 'false')
  into.replaceChildren(...[drawn].flat().filter(Boolean))
}

const POLL_MS = 2500
const followers = new WeakMap()

/**
 * As `loaded`, and from then on what has changed of it, every few seconds while it `runs`. Who is in it with the keyboard
 * isn't thrown out by figures. To begin anew, call it again.
 */
export async function followed(place, read, draw, runs, signal) {
  const mine = {}
  let shown
  let polling
  const redraw = (told) => { shown = told; polling ??= poll(); return draw(told) }
  const isOver = () => signal.aborted || followers.get(place) !== mine
  async function poll() {
    while (runs(shown) && !isOver()) {
      await new Promise((resolve) => setTimeout(resolve, POLL_MS))
      if (document.hidden || isOver()) continue
      const told = await read().catch(() => null)
      const isUsed = place.contains(document.activeElement) && told && runs(told)
      if (told && !isUsed && !isOver() && JSON.stringify(told) !== JSON.stringify(shown)) place.replaceChildren(...[redraw(told)].flat().filter(Boolean))
    }
  }
  followers.set(place, mine)
  await loaded(place, read, redraw, { lines: 6, signal })
}

/** The button under a list that goes on. */
export const older = (load) => button({ label: 'Older', kind: 'ghost small wide', onclick: load })

/** Rows under columns `{title, cell: (row) => node or text, align: 'end'}`; `caption` is for readers. It scrolls sideways by itself. */
export function table({ caption, columns, rows }) {
  const aligned = (column) => ({ class: column.align === 'end' ? 'end' : false })
  return h(
    'div', { class: 'table', tabindex: '0', role: 'region', 'aria-label': caption },
    h(
      'table', {}, h('caption', { class: 'hidden' }, caption),
      h('thead', {}, h('tr', {}, columns.map((column) => h('th', { scope: 'col', ...aligned(column) }, column.title)))),
      h('tbody', {}, rows.map((row) => h('tr', {}, columns.map((column) => h('td', aligned(column), column.cell(row)))))),
    ),
  )
}

/** How much of a limit is used; without a limit only the figure. */
export function meter({ label, used, limit, format }) {
  const share = limit ? Math.min(1, used / limit) : 0
  const words = limit ? `${format(used)} of ${format(limit)}` : format(used)
  const bar = limit ? h('div', { class: `bar${share > 0.9 ? ' full' : ''}`, role: 'meter', 'aria-label': label, 'aria-valuemin': '0', 'aria-valuemax': String(limit), 'aria-valuenow': String(used), 'aria-valuetext': words }, h('span', { style: { width: `${100 * share}%` } })) : null
  return h('div', { class: 'meter' }, h('div', {}, h('span', {}, label), h('span', { class: 'figure' }, words, !limit && h('small', {}, ' no limit'))), bar)
}

/** A small word with a colour: kind is good, bad, warn or plain. */
export const badge = (text, kind = 'plain') => h('span', { class: `badge ${kind}` }, text)

/** A message that goes by itself; `kind: 'error'` stays longer. */
export function toast(message, { kind = 'plain', action } = {}) {
  const close = () => shown.remove()
  const shown = h('div', { class: `toast ${kind}` }, icon(kind === 'error' ? 'warning' : 'check'), h('p', {}, message), action && button({ kind: 'ghost small', ...action }), button({ title: 'Dismiss', symbol: 'close', kind: 'ghost small', onclick: close }))
  document.getElementById('toasts').append(shown)
  setTimeout(close, kind === 'error' ? 10000 : 4000)
}

/**
 * A modal dialog, closed by Esc, its cross, a click beside it, or `close(value)`, which its `body(close)` and
 * `actions(close)` get. Resolves with that value, undefined when it was dismissed.
 */
export function dialog({ title, body, actions }) {
  return new Promise((resolve) => {
    let answer
    const id = uniqueId('dialog')
    const close = (value) => { answer = value; element.close() }
    const element = h(
      'dialog', { class: 'dialog', 'aria-labelledby': id, onclose: () => { element.remove(); resolve(answer) }, onclick: (event) => event.target === element && close() },
      h('div', { class: 'sheet' }, h('header', {}, h('h2', { id }, title), button({ title: 'Close', symbol: 'close', kind: 'ghost', onclick: () => close() })), h('div', { class: 'body' }, body(close)), actions && h('footer', {}, actions(close))),
    )
    document.body.append(element)
    element.showModal()
  })
}

/** Asks before something that can't be undone; resolves true where it is meant. */
export const confirm = ({ title, text, label }) =>
  dialog({
    title,
    body: () => h('p', {}, text),
    actions: (close) => [button({ label: 'Cancel', onclick: () => close(false) }), button({ label, kind: 'danger', onclick: () => close(true) })],
  })
