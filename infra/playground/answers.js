// The user's answers as Realtime tells them: of this tab and of every other.
import { supabase } from './session.js'
import { subscribeToAnswers } from './supabase-ai.js'

/** Gets `answer` with a conversation for `detail`, and `resumed` when answers may have been missed. */
export const answers = new EventTarget()

/** The ids of the conversations that were seen as they were answered in this tab. */
export const seen = new Set()

/** Listen for `user` until `signal` is aborted. */
export function listen(user, signal) {
  if (user.userId === undefined) return // no user of the app
  let subscriptions = 0
  const onStatus = (status) => {
    document.documentElement.dataset.realtime = status
    if (status === 'SUBSCRIBED' && subscriptions++) answers.dispatchEvent(new Event('resumed'))
  }
  const tell = ({ thread_id: threadId, model_version: model, created_at: createdAt, error_code: errorCode, id, message, response, status, flags, feedback }) =>
    answers.dispatchEvent(new CustomEvent('answer', { detail: { id, threadId, message, response, status, flags, feedback, model, createdAt, errorCode } }))
  signal.addEventListener('abort', subscribeToAnswers(supabase, user.userId, tell, { onStatus }))
}
