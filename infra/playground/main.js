// The page's course: who is signed in, which view the address names, and what is shown of it.
import { errorState } from './components.js'
import { h } from './dom.js'
import { current } from './router.js'
import { EXPIRED, onSession, readUser, user } from './session.js'
import { shell } from './shell.js'
import { signIn } from './views/sign-in.js'

const app = document.getElementById('app')
let frame = null
let leaving = new AbortController()

async function show(event) {
  closeDialogs()
  leaving.abort()
  leaving = new AbortController()
  const { signal } = leaving
  let place = app
  try {
    await readUser().finally(booted)
    if (signal.aborted) return
    if (!user) return showSignIn()
    const { view, params } = current()
    place = enter(view)
    if (view.for === 'owner' && !user.isOwner) throw { code: 'forbidden', message: 'This is for the owner of the project.' }
    const { show: draw } = await view.load()
    if (signal.aborted) return
    await draw(place, { params, user, signal, session: frame.signal })
    if (event) place.querySelector('h1[tabindex]')?.focus({ preventScroll: true })
  } catch (error) {
    if (signal.aborted) return
    if (place === app) leave()
    place.replaceChildren(h('div', { class: 'lonely' }, errorState(error, show)))
  }
}

/** The view's place in the frame of who is signed in. */
function enter(view) {
  if (frame?.userId !== user.id) {
    leave()
    frame = shell(app, user)
  }
  document.title = `${view.title} · Supabase AI gateway`
  return frame.enter(view)
}

/** The frame ends, and what is under way for who was in it. */
function leave(reason) {
  frame?.leave(reason)
  frame = null
}

function booted() {
  app.classList.remove('booting')
  app.setAttribute('aria-busy', 'false')
}

function closeDialogs() {
  for (const open of document.querySelectorAll('dialog[open]')) open.close()
}

function showSignIn(notice) {
  closeDialogs()
  leave()
  document.title = 'Sign in · Supabase AI gateway'
  signIn(app, { notice })
}

addEventListener('hashchange', show)
onSession(
  (id) => {
    if (frame?.userId === id) return
    leave()
    show()
  },
  (hasExpired) => {
    if (!frame) return
    leaving.abort()
    leave(hasExpired ? EXPIRED : undefined)
    showSignIn(hasExpired ? 'Your session has ended. Sign in again, and you are back where you were.' : undefined)
  },
)
show()
