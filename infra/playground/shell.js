// What stands around every view: navigation, conversations, the account, and whether the page is offline.
import { listen } from './answers.js'
import { button } from './components.js'
import { h, icon } from './dom.js'
import { go } from './router.js'
import { signOut } from './session.js'
import { threadList } from './threads.js'
import { views } from './views.js'

const GROUPS = { user: null, owner: 'Owner' }

/** The frame in `app` for `user`; `enter(view)` gives a view's place, `leave(reason)` ends what the frame does, and with it its `signal`. */
export function shell(app, user) {
  const leaving = new AbortController()
  const { signal } = leaving
  listen(user, signal)
  const shown = views.filter((view) => view.for === 'user' || user.isOwner)
  const links = new Map(shown.map((view) => [view, link(view)]))
  const title = h('span', { class: 'topbar-title' })
  const place = h('main', { id: 'view', tabindex: '-1' })
  const openMenu = button({ title: 'Menu', symbol: 'menu', kind: 'ghost', 'aria-expanded': 'false', 'aria-controls': 'sidebar', onclick: () => drawer(true) })
  const sidebar = h(
    'div', { id: 'sidebar', class: 'sidebar' },
    h('div', { class: 'sidebar-top' }, h('a', { class: 'brand', href: '#/chat' }, h('span', { class: 'logo' }, icon('bolt')), 'AI gateway'), button({ title: 'Close the menu', symbol: 'close', kind: 'ghost drawer-close', onclick: () => drawer(false) })),
    button({ label: 'New chat', symbol: 'plus', kind: 'plain wide', onclick: () => go('chat') }),
    h('nav', { 'aria-label': 'Views' }, Object.entries(GROUPS).map(([audience, name]) => group(name, shown.filter((view) => view.for === audience).map((view) => links.get(view))))),
    threadList(signal),
    account(user),
  )
  const content = h('div', { class: 'content' }, offlineBanner(signal), place)
  const drawer = (open, isLeft = false) => {
    app.classList.toggle('drawer-open', open)
    content.inert = open
    openMenu.setAttribute('aria-expanded', String(open))
    if (!isLeft) (open ? sidebar.querySelector('.drawer-close') : openMenu).focus()
  }
  sidebar.addEventListener('click', ({ target }) => target.closest('a') && drawer(false, true))
  app.className = 'shell'
  app.replaceChildren(
    h('a', { class: 'skip', href: '#view', onclick: (event) => { event.preventDefault(); place.focus() } }, 'Skip to the content'),
    h('header', { class: 'topbar' }, openMenu, title, button({ title: 'New chat', symbol: 'plus', kind: 'ghost', onclick: () => go('chat') })),
    sidebar, h('div', { class: 'scrim', onclick: () => drawer(false) }), content,
  )
  addEventListener('keydown', (event) => event.key === 'Escape' && app.classList.contains('drawer-open') && drawer(false), { signal })
  return {
    userId: user.id,
    signal,
    enter(view) {
      for (const [each, anchor] of links) anchor[each === view ? 'setAttribute' : 'removeAttribute']('aria-current', 'page')
      drawer(false, true)
      title.textContent = view.title
      place.className = `view view-${view.path}`
      place.replaceChildren()
      place.scrollTop = 0
      return place
    },
    leave(reason) {
      leaving.abort(reason)
      app.className = ''
    },
  }
}

const link = (view) => h('a', { class: 'nav-link', href: `#/${view.path}` }, icon(view.icon), view.title)

const group = (name, links) => links.length > 0 && h('div', { class: 'nav-group' }, name && h('p', { class: 'nav-name' }, name), links)

function account(user) {
  return h(
    'div', { class: 'account' },
    h('span', { class: 'avatar', 'aria-hidden': 'true' }, (user.email || '?')[0].toUpperCase()),
    h('span', { class: 'account-name', title: user.email }, user.email),
    themeButton(),
    button({ title: 'Sign out', symbol: 'leave', kind: 'ghost', onclick: signOut }),
  )
}

function themeButton() {
  const is = () => document.documentElement.dataset.theme
  const toggled = button({ title: 'Light or dark', symbol: is() === 'dark' ? 'sun' : 'moon', kind: 'ghost', onclick: () => {
    window.theme.choose(is() === 'dark' ? 'light' : 'dark')
    toggled.replaceChildren(icon(is() === 'dark' ? 'sun' : 'moon'))
  } })
  return toggled
}

function offlineBanner(signal) {
  const banner = h('p', { class: 'offline', role: 'status' })
  const say = () => banner.replaceChildren(...(navigator.onLine ? [] : [icon('offline'), 'You’re offline. An answer on its way is fetched when the connection is back.']))
  addEventListener('online', say, { signal })
  addEventListener('offline', say, { signal })
  say()
  return banner
}
