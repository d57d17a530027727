// The user's conversations in the navigation, the latest first; those with an answer that wasn't looked at have a dot.
import { answers, seen } from './answers.js'
import { errorState, older, skeleton } from './components.js'
import { h } from './dom.js'
import { ago, dateTime } from './format.js'
import { current } from './router.js'
import { at, supabase } from './session.js'
import { listThreads } from './supabase-ai.js'

/** The list, kept true until `signal` is aborted. */
export function threadList(signal) {
  const list = h('ul', {})
  const more = h('div', {})
  const unseen = new Set()
  let threads = []
  let next
  const draw = () => {
    const opened = shownThread()
    unseen.delete(opened)
    list.replaceChildren(...threads.map((thread) => item(thread, thread.threadId === opened, unseen.has(thread.threadId))))
  }
  const load = async (before) => {
    const page = await listThreads(supabase, { limit: 20, before, signal, ...at }).catch((error) => ({ error }))
    if (signal.aborted) return
    if (page.error) return more.replaceChildren(errorState(page.error, () => load(before)))
    const known = new Set(page.threads.map(({ threadId }) => threadId))
    threads = before ? [...threads, ...page.threads] : [...page.threads, ...threads.filter(({ threadId }) => !known.has(threadId))]
    draw()
    if (before || threads.length === page.threads.length) next = page.next
    more.replaceChildren(...footer(next, threads, load))
  }
  more.append(skeleton(4))
  const hear = ({ detail }) => {
    if (detail.feedback !== null) unseen.delete(detail.threadId) // whoever rates it has looked at it
    else if (!seen.has(detail.id)) unseen.add(detail.threadId)
    load()
  }
  answers.addEventListener('answer', hear, { signal })
  answers.addEventListener('resumed', () => load(), { signal })
  addEventListener('hashchange', draw, { signal })
  addEventListener('addressrenamed', draw, { signal })
  load()
  return h('section', { class: 'threads', 'aria-label': 'Conversations' }, h('h2', { class: 'nav-name' }, 'Conversations'), list, more)
}

function shownThread() {
  const { view, params } = current()
  return view.path === 'chat' ? params[0] : undefined
}

function item({ threadId, title, lastMessageAt }, isShown, isUnseen) {
  return h(
    'li', {},
    h('a', { class: 'thread', href: `#/chat/${threadId}`, 'aria-current': isShown && 'true' }, h('span', { class: 'thread-title' }, title),
      h('span', { class: 'thread-time', title: dateTime(lastMessageAt) }, isUnseen && h('span', { class: 'dot' }, h('span', { class: 'hidden' }, 'New answer, ')), ago(lastMessageAt))),
  )
}

function footer(next, threads, load) {
  if (!threads.length) return [h('p', { class: 'hint' }, 'What you ask is kept here.')]
  return next ? [older(() => load(next))] : []
}
