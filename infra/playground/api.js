// The functions' plain routes: JSON in and out, in the signed-in user's name.
import { expire, functionsUrl, readSession } from './session.js'

/** What a function refused, with the server's words; `code`, `requestId` and `retryable` as it says them. */
export class ApiError extends Error {
  constructor(said, status) {
    super(said.error ?? said.message ?? `The server answered with status ${status}.`)
    Object.assign(this, { code: said.code ?? 'unknown', requestId: said.requestId, retryable: said.retryable ?? status >= 500, status, body: said })
  }
}

/**
 * `call('GET', 'ai-finance/usage')` gives the answer's JSON. Throws `ApiError`; where the session is over, the page
 * goes to sign in besides.
 */
export async function call(method, path, { body, headers, signal } = {}) {
  const session = await readSession()
  const sent = { ...(session && { Authorization: `Bearer ${session.access_token}` }), ...headers }
  if (body !== undefined) sent['Content-Type'] = 'application/json'
  const answer = await fetch(`${functionsUrl}/${path}`, { method, signal, headers: sent, body: JSON.stringify(body) }).catch(unreachable)
  const said = await answer.json().catch(() => ({}))
  if (answer.ok) return said
  if (answer.status === 401) expire()
  throw new ApiError(said, answer.status)
}

/** What supabase-js gave, or its error as one of ours. */
export function unwrapped({ data, error, status }) {
  if (!error) return data
  if (status === 401) expire()
  throw new ApiError({ message: error.message, code: error.code, retryable: !status || status >= 500 }, status)
}

function unreachable(error) {
  if (error.name === 'AbortError') throw error
  throw new ApiError({ error: 'The server can’t be reached.', code: 'unreachable', retryable: true }, 0)
}
