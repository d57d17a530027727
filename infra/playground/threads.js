// The user's conversations in the navigation.
import { h } from './dom.js'

export function threadList(user, signal) {
  return h('section', { class: 'threads', 'aria-label': 'Conversations' })
}
