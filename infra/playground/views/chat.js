// The conversation: asked here, answered here, and told to every other tab.
import { answers, seen } from '../answers.js'
import { button, errorState, skeleton } from '../components.js'
import { composer } from '../composer.js'
import { h, icon } from '../dom.js'
import { rename } from '../router.js'
import { EXPIRED, at, expire, supabase } from '../session.js'
import { sourcesPanel } from '../sources.js'
import { callSupabaseAI, loadConversation, loadThread } from '../supabase-ai.js'
import { isOpen, newTurn, settle, storedTurn, turnView } from '../turns.js'

const PAGE = 20
const POLL_MS = 4000
const SUGGESTIONS = ['What is TON token?', 'What have I swapped lately?', 'What is slippage, and how do I limit it?', 'How do I recognise a scam token?']

export async function show(place, { params, user, signal, session }) {
  const views = []
  let threadId = params[0]
  let asking = null
  let oldest = 0 // what is older isn't loaded yet
  const list = h('ol', { class: 'turns' })
  const older = h('div', { class: 'older' })
  const welcome = h('div', { class: 'welcome' })
  const told = h('p', { class: 'hidden', 'aria-live': 'polite' })
  const scroller = h('div', { class: 'scroller', tabindex: '0', role: 'region', 'aria-label': 'Conversation' }, welcome, older, list)
  const panel = sourcesPanel(signal)
  const input = composer({ name: () => `draft:${user.id}:${threadId ?? ''}`, send: ask, stop: () => asking?.abort(), signal })

  place.append(h('h1', { class: 'hidden' }, 'Chat'), h('div', { class: 'conversation' }, scroller, told, h('div', { class: 'composer-place' }, input.element)), panel.element)
  const act = { retry, edit: (turn) => { input.fill(turn.message); input.focus() }, showSources: panel.open }

  /** Its view, where its id belongs; a new question is the last. */
  function add(turn) {
    const view = turnView(turn, act)
    const next = turn.id ? views.findIndex((each) => each.turn.id > turn.id) : -1
    list.insertBefore(view.element, views[next]?.element ?? null)
    views.splice(next < 0 ? views.length : next, 0, view)
    welcome.replaceChildren()
    return view
  }

  function ask(message) {
    const view = add(newTurn(message))
    scroller.scrollTop = scroller.scrollHeight
    return answer(view)
  }

  function retry(turn) {
    const view = views.find((each) => each.turn === turn)
    if (!turn.key) return ask(turn.message)
    Object.assign(turn, { status: 'asking', text: '', error: undefined, sources: undefined })
    view.draw()
    return answer(view)
  }

  async function answer(view) {
    const { turn } = view
    asking?.abort()
    const own = (asking = Object.assign(new AbortController(), { turn }))
    const drawSoon = eachFrame(() => keepingDown(scroller, view.draw))
    input.busy(true)
    told.textContent = 'Answering…'
    try {
      const answered = await callSupabaseAI(supabase, turn.message, {
        ...at, threadId, signal: AbortSignal.any([own.signal, session]), idempotencyKey: turn.key,
        onSources: (sources, ids) => {
          Object.assign(turn, { sources, id: ids?.conversationId ?? turn.id, threadId: ids?.threadId })
          if (!signal.aborted) seen.add(turn.id)
          drawSoon()
        },
        onToken: (_, text) => { Object.assign(turn, { text, status: 'streaming' }); drawSoon() },
        onRestart: () => { turn.status = 'waiting'; drawSoon() },
      })
      settle(turn, { ...answered, status: 'complete' })
      told.textContent = `Answer: ${answered.response}`
    } catch (error) {
      if (session.aborted) return session.reason === EXPIRED && input.fill(turn.message)
      told.textContent = fail(turn, error) ?? ''
    }
    adopt(turn.threadId)
    drawSoon.cancel()
    keepingDown(scroller, view.draw)
    if (asking === own) { asking = null; input.busy(false) }
  }

  /** What a failed turn is to look like; its words for readers, unless an alert says them. */
  function fail(turn, error) {
    turn.status = 'stopped'
    if (error.name === 'AbortError') return 'Stopped.'
    Object.assign(turn, { status: 'failed', error })
    if (error.code === 'secret_in_message') turn.message = '(not shown: it held a secret)'
    if (error.status === 401) { input.fill(turn.message); expire() }
  }

  function adopt(id) {
    if (threadId || !id) return
    threadId = id
    if (!signal.aborted) rename(`chat/${id}`)
  }

  /** A stored conversation, of this tab's turn or of another tab's. */
  function hear(stored) {
    const mine = views.find(({ turn }) => turn.id === stored.id) ?? views.find(({ turn }) => !turn.id && turn.message === stored.message && turn.status !== 'failed')
    if (!mine && (stored.threadId !== threadId || stored.id < oldest)) return
    if (mine && asking && isOpen(mine.turn)) return // its own stream says the same, with more
    const view = mine ?? add(storedTurn(stored))
    seen.add(stored.id)
    if (mine) settle(mine.turn, stored)
    adopt(stored.threadId)
    if (!mine) told.textContent = `New answer: ${stored.response}`
    keepingDown(scroller, view.draw)
  }

  async function load(before) {
    older.replaceChildren(skeleton(before ? 2 : 6))
    try {
      const page = await loadThread(supabase, threadId, { limit: PAGE, before, signal, ...at })
      const height = scroller.scrollHeight
      for (const stored of page.conversations) if (!views.some(({ turn }) => turn.id === stored.id)) add(storedTurn(stored))
      older.replaceChildren(...(page.next ? [button({ label: 'Load older', kind: 'ghost small', onclick: () => load(page.next) })] : []))
      oldest = page.next ?? 0
      scroller.scrollTop = before ? scroller.scrollTop + scroller.scrollHeight - height : scroller.scrollHeight
    } catch (error) {
      if (signal.aborted) return
      older.replaceChildren(errorState(error, () => load(before)))
      if (error.status === 401) expire()
    }
  }

  /** Answers may have been missed: the newest are looked at again. */
  async function resume() {
    const page = threadId && await loadThread(supabase, threadId, { limit: PAGE, signal, ...at }).catch(() => null)
    for (const stored of page?.conversations.toReversed() ?? []) hear({ ...stored, threadId })
  }

  /** A worker's failure is no event: what is pending is asked after. */
  async function poll() {
    const isAsked = (turn) => turn === asking?.turn // its own call settles it
    for (const { turn, draw } of views.filter(({ turn }) => turn.status === 'waiting' && turn.id && !isAsked(turn))) {
      const stored = await loadConversation(supabase, turn.id, { signal, ...at }).catch(() => null)
      if (stored && stored.status !== 'pending' && !isAsked(turn)) { settle(turn, stored); keepingDown(scroller, draw) }
    }
    if (!signal.aborted) setTimeout(poll, POLL_MS)
  }

  signal.addEventListener('abort', () => views.filter(({ turn }) => isOpen(turn)).forEach(({ turn }) => seen.delete(turn.id)))
  answers.addEventListener('answer', ({ detail }) => hear(detail), { signal })
  answers.addEventListener('resumed', resume, { signal })
  input.settle()
  if (matchMedia('(hover: hover)').matches) input.focus()
  setTimeout(poll, POLL_MS)
  if (threadId) await load()
  else welcome.replaceChildren(...greeting(ask))
}

function greeting(ask) {
  return [
    h('span', { class: 'logo' }, icon('bolt')),
    h('h2', {}, 'What would you like to know?'),
    h('p', {}, 'Answers come from the knowledge base and your own swaps, and show what they stand on.'),
    h('ul', { class: 'suggestions' }, SUGGESTIONS.map((question) => h('li', {}, h('button', { type: 'button', onclick: () => ask(question) }, question)))),
  ]
}

/** Draw, and stay at the end where the reader was there. */
function keepingDown(scroller, draw) {
  const wasDown = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 80
  draw()
  if (wasDown) scroller.scrollTop = scroller.scrollHeight
}

/** `draw` once before the next frame, however often it is called. */
function eachFrame(draw) {
  let frame = 0
  const soon = () => { frame ||= requestAnimationFrame(() => { frame = 0; draw() }) }
  soon.cancel = () => cancelAnimationFrame(frame)
  return soon
}
