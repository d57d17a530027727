// Who is signed in: supabase-js keeps the session, and the app's own user id is read once.
import config from './config.js'

export const supabase = window.supabase.createClient(config.supabaseUrl, config.publishableKey)
/** Where the functions are, as supabase-ai.js takes it. */
export const at = { functionsUrl: config.functionsUrl ?? undefined }
export const functionsUrl = config.functionsUrl ?? `${config.supabaseUrl}/functions/v1`

/** @type {{id: string, email: string, userId: number, isOwner: boolean} | null} */
export let user = null

/** The session, null without one; throws where it has run out and Auth can’t be reached for a new one. */
export async function readSession() {
  const { data, error } = await supabase.auth.getSession()
  if (error?.name !== 'AuthRetryableFetchError') return data.session
  throw Object.assign(new Error('The server can’t be reached.'), { code: 'unreachable', retryable: true })
}

/** Read who is signed in; null for nobody. */
export async function readUser() {
  const session = await readSession()
  if (!session) return (user = null)
  if (user?.id === session.user.id) return user
  const { data: row } = await supabase.from('users').select('user_id').eq('auth_user_id', session.user.id).maybeSingle().throwOnError()
  const isOwner = session.user.app_metadata?.role === 'admin'
  return (user = { id: session.user.id, email: session.user.email, userId: row?.user_id, isOwner })
}

/** Why what is under way ends, where the server has ended the session. */
export const EXPIRED = 'expired'

let isLeaving = false

/** End the session, here only. */
export async function signOut() {
  isLeaving = true
  history.replaceState(null, '', '#/chat') // whoever comes next isn't led to what was shown
  try {
    await expire()
  } finally {
    sessionStorage.clear() // what was written and not sent
    isLeaving = false
  }
}

/** The server takes the session no more: end it, as one that has expired. */
export async function expire() {
  const { error } = await supabase.auth.signOut({ scope: 'local' })
  if (!error) return
  // Auth can't be reached, and supabase-js has kept the session.
  localStorage.removeItem(supabase.storageKey)
  location.reload()
}

/** Call `began(id)` when somebody signs in, `ended(hasExpired)` when the session is over, by whatever tab. */
export function onSession(began, ended) {
  supabase.auth.onAuthStateChange((event, session) => {
    const hasExpired = !isLeaving
    if (event === 'SIGNED_OUT') user = null
    // What is awaited in here would wait for supabase-js's own lock.
    if (event === 'SIGNED_OUT') setTimeout(() => ended(hasExpired))
    if (event === 'SIGNED_IN') setTimeout(() => began(session.user.id))
  })
}
