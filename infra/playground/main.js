// The page's course: who is signed in, which view the address names, and what is shown of it.
import { errorState } from './components.js'
import { h } from './dom.js'
import { current } from './router.js'
import { onSession, readUser, user } from './session.js'
import { shell } from './shell.js'
import { signIn } from './views/sign-in.js'

const app = document.getElementById('app')
let frame = null
let leaving = new AbortController()

async function show() {
  leaving.abort()
  leaving = new AbortController()
  const { signal } = leaving
  await readUser()
  if (signal.aborted) return
  app.classList.remove('booting')
  app.setAttribute('aria-busy', 'false')
  if (!user) return showSignIn()
  if (frame?.userId !== user.id) {
    frame?.leave()
    frame = shell(app, user)
  }
  const { view, params } = current()
  document.title = `${view.title} · Supabase AI gateway`
  const place = frame.enter(view)
  if (view.for === 'owner' && !user.isOwner) return place.replaceChildren(errorState({ code: 'forbidden', message: 'This is for the owner of the project.' }))
  try {
    const { show } = await view.load()
    if (!signal.aborted) await show(place, { params, user, signal })
  } catch (error) {
    if (!signal.aborted) place.replaceChildren(errorState(error, show))
  }
}

function showSignIn(notice) {
  frame?.leave()
  frame = null
  document.title = 'Sign in · Supabase AI gateway'
  signIn(app, { notice })
}

addEventListener('hashchange', show)
onSession(
  () => (frame && frame.userId === user?.id) || show(),
  (hasExpired) => {
    if (!frame) return
    leaving.abort()
    showSignIn(hasExpired ? 'Your session has ended. Sign in again, and you are back where you were.' : undefined)
  },
)
show()
