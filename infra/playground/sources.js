// The passages an answer was given from, beside it; over it on a narrow screen. A passage is text and never more.
import { badge, button, emptyState, errorState, skeleton } from './components.js'
import { h } from './dom.js'
import { percent } from './format.js'
import { highlights } from './highlights.js'
import { supabase } from './session.js'

const WIDE = matchMedia('(width >= 1100px)')

/** A panel: `open(turn, number)` shows a turn's sources, the one with that number first; `close()`. */
export function sourcesPanel(signal) {
  const list = h('ol', {})
  const body = h('div', { class: 'sources-body', tabindex: '0', role: 'region', 'aria-label': 'Passages' }, list)
  const title = h('h2', { id: 'sources-title', tabindex: '-1' })
  const element = h('dialog', { class: 'sources', 'aria-labelledby': 'sources-title' }, h('header', {}, title, button({ title: 'Close the sources', symbol: 'close', kind: 'ghost', onclick: () => close() })), body)
  let opener
  let shown

  async function open(turn, number) {
    opener = document.activeElement
    shown = turn
    if (!element.open) WIDE.matches ? element.show() : element.showModal()
    title.textContent = 'Sources'
    title.focus()
    list.replaceChildren(skeleton(6))
    try {
      const sources = await described(await turn.loadSources())
      if (shown !== turn || signal.aborted) return
      title.textContent = sources.length === 1 ? '1 source' : `${sources.length} sources`
      list.replaceChildren(...sources.map((source, at) => passage(source, at + 1, turn)))
      if (!sources.length) list.replaceChildren(emptyState({ symbol: 'book', title: 'No passage', text: 'Nothing in the knowledge base was near enough to the question.' }))
      point(list, number)
    } catch (error) {
      if (!signal.aborted) list.replaceChildren(errorState(error, () => open(turn, number)))
    }
  }
  function close() {
    if (!element.open) return
    element.close()
  }
  element.addEventListener('close', () => { shown = undefined; opener?.focus() })
  element.addEventListener('click', (event) => event.target === element && close())
  addEventListener('keydown', (event) => event.key === 'Escape' && close(), { signal })
  WIDE.addEventListener('change', close, { signal })
  return { element, open, close }
}

/** With title and origin, which the answer leaves out; without them where they can't be had. */
async function described(sources) {
  const ids = sources.map(({ id }) => id)
  const { data } = ids.length ? await supabase.from('finance_knowledge').select('id, title, source').in('id', ids) : {}
  const rows = new Map(data?.map((row) => [row.id, row]))
  return sources.map((source) => ({ ...rows.get(source.id), ...source }))
}

function passage({ title, source, content, similarity, tokenSymbol }, number, { message, text }) {
  return h(
    'li', { class: 'passage', tabindex: '-1', dataset: { number } },
    h('div', { class: 'passage-head' }, h('span', { class: 'passage-number', 'aria-hidden': 'true' }, String(number)), h('h3', {}, title ?? tokenSymbol ?? `Passage ${number}`), tokenSymbol && badge(tokenSymbol)),
    h('div', { class: 'similarity' }, h('span', { class: 'bar', 'aria-hidden': 'true' }, h('span', { style: { width: percent(Math.max(0, similarity)).replace(' ', '') } })), h('span', {}, `${percent(similarity)} similar`)),
    h('p', { class: 'passage-text' }, highlights(content, message, text).map(([words, isMarked]) => (isMarked ? h('mark', {}, words) : words))),
    source && h('p', { class: 'passage-origin' }, origin(source)),
  )
}

/** A link only where it is one of the web's. */
const origin = (source) => (/^https?:\/\//i.test(source) ? h('a', { href: source, target: '_blank', rel: 'noopener noreferrer' }, source) : source)

function point(list, number) {
  const meant = number && list.querySelector(`[data-number="${number}"]`)
  if (!meant) return
  meant.classList.add('pointed')
  meant.scrollIntoView({ block: 'nearest' })
  meant.focus()
}
