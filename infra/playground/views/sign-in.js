// Signing in and up: one form, two verbs.
import { button, field } from '../components.js'
import { h, icon } from '../dom.js'
import { supabase } from '../session.js'

const WORDS = {
  in: { title: 'Welcome back', action: 'Sign in', other: 'New here?', link: 'Create an account', password: 'current-password' },
  up: { title: 'Create your account', action: 'Create account', other: 'Have an account?', link: 'Sign in', password: 'new-password' },
}

/** Draw the form into `place`; what follows a session is told by supabase-js. */
export function signIn(place, { notice, mode = 'in', email: known = '' }) {
  const words = WORDS[mode]
  const email = field({ label: 'Email', type: 'email', name: 'email', autocomplete: 'username', required: true, value: known, placeholder: 'you@example.com' })
  const password = field({
    label: 'Password', type: 'password', name: 'password', autocomplete: words.password, required: true, minlength: 8,
    hint: mode === 'up' ? 'At least 8 characters.' : undefined,
  })
  const told = h('p', { class: 'form-error', role: 'alert' })
  const submit = button({ label: words.action, kind: 'primary wide', type: 'submit' })
  const other = () => signIn(place, { mode: mode === 'in' ? 'up' : 'in', email: email.input.value })
  const send = async (event) => {
    event.preventDefault()
    submit.disabled = true
    submit.setAttribute('aria-busy', 'true')
    told.textContent = await refusal(mode, email.input.value.trim(), password.input.value)
    submit.disabled = false
    submit.removeAttribute('aria-busy')
  }
  place.replaceChildren(
    h('main', { class: 'gate' },
      h('div', { class: 'gate-pitch' },
        h('p', { class: 'brand' }, h('span', { class: 'logo' }, icon('bolt')), 'Supabase AI gateway'),
        h('p', { class: 'pitch' }, 'Answers from your knowledge base, with their sources, about your own swaps.'),
        h('ul', {}, ['Every answer shows the passages it stands on', 'Your data is read as you, and nobody else’s', 'You decide whether models may learn from it'].map((line) => h('li', {}, icon('check'), line))),
      ),
      h('div', { class: 'gate-form' },
        h('form', { onsubmit: send, 'aria-labelledby': 'gate-title' },
          h('h1', { id: 'gate-title' }, words.title),
          notice && h('p', { class: 'notice', role: 'status' }, icon('lock'), notice),
          email, password, told, submit,
        ),
        h('p', { class: 'hint' }, words.other, ' ', h('button', { type: 'button', class: 'link', onclick: other }, words.link)),
      ),
    ),
  )
  email.input[known ? 'blur' : 'focus']()
}

/** Empty where it went well; else what to tell. */
async function refusal(mode, email, password) {
  const ask = mode === 'in' ? 'signInWithPassword' : 'signUp'
  const { data, error } = await supabase.auth[ask]({ email, password })
  if (error?.name === 'AuthRetryableFetchError') return 'The server can’t be reached. Check the connection and try again.'
  if (error?.code === 'invalid_credentials') return 'No account has this email and password. Check both, or create an account.'
  if (error?.code === 'user_already_exists') return 'There is an account with this email already: sign in instead.'
  if (error) return error.message
  return data.session ? '' : 'Almost there: open the link in the mail we have sent you, then sign in.'
}
