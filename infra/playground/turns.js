// A question and its answer, in every state they can be in.
import { ADVICE, TITLES, badge, button, requestId, toast } from './components.js'
import { h, icon } from './dom.js'
import { dateTime, usd } from './format.js'
import { markdown } from './markdown.js'
import { at, supabase } from './session.js'
import { loadConversation, sendFeedback } from './supabase-ai.js'

/**
 * A turn as it is kept here. `status` is asking, streaming, waiting (for the connection or a worker), then complete,
 * partial, stopped or failed; `id` is its conversation's, once it is known.
 */
export const newTurn = (message) => ({ message, text: '', status: 'asking', key: crypto.randomUUID(), flags: [], createdAt: new Date().toISOString(), loadSources: sourcesOf })

/** A stored conversation as a turn. */
export const storedTurn = ({ response, status, ...stored }) => ({ ...stored, text: response ?? '', status: status === 'pending' ? 'waiting' : status, loadSources: sourcesOf })

/** Whether it will still change by itself. */
export const isOpen = ({ status }) => ['asking', 'streaming', 'waiting'].includes(status)

/** What the server says of a turn goes into it. */
export function settle(turn, { id, conversationId, response, ...told }) {
  const wasStopped = turn.status === 'stopped' && told.status === 'partial'
  const status = wasStopped ? 'stopped' : told.status === 'pending' ? 'waiting' : told.status
  Object.assign(turn, told, { id: id ?? conversationId, text: response, status, error: undefined })
}

async function sourcesOf() {
  if (!this.sources && this.id) this.sources = (await loadConversation(supabase, this.id, at)).sources
  return this.sources ?? []
}

/** Its element, and `draw()`, which brings it up to date. `act` has `retry`, `edit`, `showSources`. */
export function turnView(turn, act) {
  const body = h('div', { class: 'answer-text' })
  const below = h('div', { class: 'answer-below' })
  const answer = h('section', { class: 'answer', 'aria-label': 'Answer' }, body, below)
  const question = h('p', { class: 'question-text' })
  const element = h('li', { class: 'turn' }, h('section', { class: 'question', 'aria-label': 'Question', title: dateTime(turn.createdAt) }, question), answer)
  const draw = () => {
    const focused = element.contains(document.activeElement) && document.activeElement.title
    question.textContent = turn.message
    element.dataset.status = turn.status
    answer.setAttribute('aria-busy', String(isOpen(turn)))
    body.replaceChildren(turn.text ? cited(markdown(turn.text), turn, act) : isOpen(turn) ? thinking(turn) : '')
    below.replaceChildren(...[note(turn, act), warning(turn), !isOpen(turn) && turn.text && actions(turn, act, draw)].filter(Boolean))
    if (focused) below.querySelector(`[title="${focused}"]`)?.focus() // what was pressed is a new button now
  }
  draw()
  return { turn, element, draw }
}

const thinking = (turn) => h('p', { class: 'thinking' }, h('span', { class: 'dots', 'aria-hidden': 'true' }, h('i'), h('i'), h('i')), turn.status === 'waiting' ? 'Still being answered…' : turn.sources?.length ? `Reading ${turn.sources.length === 1 ? 'a passage' : `${turn.sources.length} passages`}…` : 'Looking it up…')

/** `[1]` in the answer as a button that shows its source. */
function cited(fragment, turn, act) {
  const texts = document.createTreeWalker(fragment, NodeFilter.SHOW_TEXT)
  for (const node of [...nodes(texts)]) {
    if (node.parentElement?.closest('code, a')) continue
    const parts = node.data.split(/\[(\d{1,2})\]/)
    if (parts.length === 1) continue
    node.replaceWith(...parts.map((part, at) => (at % 2 ? marker(Number(part), turn, act) : part)))
  }
  return fragment
}

function* nodes(walker) {
  while (walker.nextNode()) yield walker.currentNode
}

function marker(number, turn, act) {
  if (turn.sources ? number < 1 || number > turn.sources.length : !turn.id) return `[${number}]`
  return h('button', { type: 'button', class: 'citation', 'aria-label': `Source ${number}`, onclick: () => act.showSources(turn, number) }, String(number))
}

/** Why the answer isn't whole, and what to do. */
function note(turn, act) {
  const again = button({ label: 'Try again', symbol: 'retry', kind: 'plain small', onclick: () => act.retry(turn) })
  if (turn.status === 'waiting' && turn.text) return h('p', { class: 'hint' }, 'Connection lost; the rest is on its way.')
  if (turn.status === 'stopped') return h('p', { class: 'answer-note' }, badge('Stopped'), again)
  if (turn.status === 'partial') return h('p', { class: 'answer-note' }, badge('Broke off', 'warn'), 'This is as far as it got.', again)
  if (turn.status !== 'failed') return null
  const error = turn.error ?? { message: 'No answer was given.', code: turn.errorCode, retryable: true }
  return h(
    'div', { class: 'failure', role: 'alert' },
    h('p', { class: 'failure-title' }, icon('warning'), TITLES[error.code] ?? 'That didn’t work'),
    h('p', {}, error.message, ' ', ADVICE[error.code]),
    h('div', { class: 'actions' }, error.retryable !== false && again, error.code !== 'secret_in_message' && button({ label: 'Edit', kind: 'ghost small', onclick: () => act.edit(turn) })),
    requestId(error),
  )
}

/** Addresses and links that stand in nothing the model was told. */
function warning({ flags }) {
  if (!flags?.length) return null
  return h('div', { class: 'notice', role: 'note' }, icon('warning'), h('div', {}, 'In none of the sources; check before you use it: ', flags.map(({ text }, at) => [at > 0 && ', ', h('code', {}, text)])))
}

function actions(turn, act, draw) {
  const thumb = (worth, title, symbol) => button({ title, symbol, kind: 'ghost small', 'aria-pressed': String(turn.feedback === worth), onclick: () => rate(turn, worth, draw) })
  const copy = () => navigator.clipboard.writeText(turn.text).then(() => toast('Answer copied'))
  return h(
    'div', { class: 'answer-actions' },
    turn.id && [
      button({ label: turn.sources ? `Sources · ${turn.sources.length}` : 'Sources', symbol: 'book', kind: 'ghost small', onclick: () => act.showSources(turn) }),
      thumb(1, 'Good answer', 'up'), thumb(-1, 'Bad answer', 'down'),
    ],
    button({ title: 'Copy the answer', symbol: 'copy', kind: 'ghost small', onclick: copy }),
    h('span', { class: 'answer-facts' }, [turn.model, turn.usage && `${turn.usage.estimated ? '≈ ' : ''}${usd(turn.usage.costUsd)}`].filter(Boolean).join(' · ')),
  )
}

async function rate(turn, worth, draw) {
  const before = turn.feedback
  turn.feedback = before === worth ? 0 : worth
  draw()
  try {
    await sendFeedback(supabase, turn.id, turn.feedback, at)
  } catch (error) {
    turn.feedback = before
    draw()
    toast(`Your rating wasn’t kept: ${error.message}`, { kind: 'error' })
  }
}
