// Views by the address's hash, `#/chat/THREAD`: any static host serves them.
import { views } from './views.js'

const HOME = 'chat'

/** The view that the address names, and what stands behind its name: `{view, params}`. */
export function current() {
  const [path, ...params] = decoded(location.hash.replace(/^#\/?/, '').split('/'))
  return { view: views.find((view) => view.path === path) ?? views.find((view) => view.path === HOME), params }
}

function decoded(parts) {
  try {
    return parts.map(decodeURIComponent)
  } catch {
    return [HOME] // a % with nothing behind it
  }
}

/** Go to `#/path`. */
export function go(path) {
  if (location.hash === `#/${path}`) dispatchEvent(new HashChangeEvent('hashchange'))
  else location.hash = `#/${path}`
}

/** The address says `#/path` from now on; what is shown stays. */
export function rename(path) {
  history.replaceState(null, '', `#/${path}`)
  dispatchEvent(new Event('addressrenamed'))
}
