// The account: how the page looks, whether models may learn, and signing out.
import { unwrapped } from '../api.js'
import { button, card, choice, heading, loaded, toast, toggle } from '../components.js'
import { h } from '../dom.js'
import { day } from '../format.js'
import { signOut, supabase } from '../session.js'

const THEMES = [['', 'As the system'], ['light', 'Light'], ['dark', 'Dark']]

export async function show(place, { user, signal }) {
  const learning = h('div', {})
  const theme = choice({ label: 'Theme', options: THEMES, value: window.theme.chosen ?? '', onchange: ({ target }) => window.theme.choose(target.value) })
  place.append(
    heading('Settings'),
    card('Learning from your conversations', learning),
    card('Appearance', theme),
    card('Account', h('p', { class: 'account-line' }, 'Signed in as ', h('strong', {}, user.email)), button({ label: 'Sign out', symbol: 'leave', onclick: signOut })),
  )
  await loaded(learning, () => consent(user), drawn, { lines: 2, signal })
}

const consent = async (user) => unwrapped(await supabase.from('users').select('training_consent, training_consent_at').eq('user_id', user.userId).single())

function drawn({ training_consent, training_consent_at }) {
  const since = h('p', { class: 'hint' })
  const say = (on, at) => since.replaceChildren(...(at ? [`${on ? 'Allowed' : 'Taken back'} on ${day(at)}.`] : []))
  say(training_consent, training_consent_at)
  const change = async (on) => {
    const told = unwrapped(await supabase.rpc('set_training_consent', { consent: on }))
    say(told.training_consent, told.training_consent_at)
    toast(on ? 'Thank you: models may learn from what you rate.' : 'Models no longer learn from you.')
  }
  return [
    toggle({
      label: 'Models may learn from answers that I rate', on: training_consent, onchange: change,
      hint: 'Names, wallets, keys, addresses and the like are removed first. Switched off, what was collected of you goes at once.',
    }),
    since,
  ]
}
