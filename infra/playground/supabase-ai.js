/**
 * The browser's side of `ai-finance`: an answer that types itself, and is found again where the connection drops.
 *
 * A question travels with an idempotency key, so however often it is sent it is one conversation. The answer is
 * streamed; where there is no streaming, or it breaks off, the same question is left to the server (202), and
 * Realtime says when its answer is there.
 *
 * @typedef {import('@supabase/supabase-js').SupabaseClient<any, any, any>} Supabase
 * @typedef {{ id: number, content: string, similarity: number, tokenSymbol: string | null }} Source
 * @typedef {{ kind: string, text: string }} Flag  An address or link of the answer that stands in no source.
 * @typedef {{ inputTokens: number, cachedTokens: number, outputTokens: number, reasoningTokens: number,
 *   costUsd: number, estimated: boolean }} Usage
 * @typedef {{ response: string, conversationId: number, threadId: string, sources: Source[], flags: Flag[],
 *   model: string | null, usage: Usage }} Answer
 * @typedef {{ id: number, threadId?: string, message: string, response: string,
 *   status: 'pending' | 'complete' | 'partial' | 'failed', flags: Flag[], feedback: number | null,
 *   model: string | null, createdAt: string }} Conversation
 * @typedef {Conversation & { threadId: string, sources: Source[], usage: Usage,
 *   errorCode: string | null }} WholeConversation
 * @typedef {{ threadId: string, title: string, conversationCount: number, lastConversationId: number,
 *   createdAt: string, lastMessageAt: string }} Thread
 * @typedef {{ functionsUrl?: string, functionName?: string, signal?: AbortSignal }} Endpoint  Where the function is,
 *   if not where `functions.invoke` finds it: `https://…/functions/v1`, and `ai-finance`.
 * @typedef {{ limit?: number, before?: number }} Page  `before` is the `next` of the page before.
 *
 * @typedef {object} Asking
 * @property {string} [threadId]  continues a thread
 * @property {string} [model]  asked first, if it is one of those allowed
 * @property {(token: string, text: string) => void} [onToken]  the next piece, and all that was said with it
 * @property {(sources: Source[]) => void} [onSources]
 * @property {() => void} [onRestart]  streaming ended early: the text will come again from its start
 * @property {string} [idempotencyKey]  one question's own, for asking it again after a reload; else a new one
 * @property {number} [timeoutMs]  for all of it: two minutes
 * @property {number} [stallMs]  how long a connection may be silent before it counts as lost: 35 seconds
 * @property {Record<string, unknown>} [fields]  more of the body, such as `matchCount`
 */

const TRIES = 5; // without a word from the server, while the browser is online

/** What the server says of a failure; `status` is 0 where there was no answer, 200 in the middle of one. */
export class SupabaseAIError extends Error {
  /**
   * @param {string} message
   * @param {{ status?: number, code?: string, requestId?: string, retryable?: boolean,
   *   retryAfterSeconds?: number }} [told]
   */
  constructor(message, told = {}) {
    super(message);
    this.name = "SupabaseAIError";
    this.status = told.status ?? 0;
    this.code = told.code ?? "network";
    this.requestId = told.requestId;
    this.retryable = told.retryable ?? true;
    this.retryAfterSeconds = told.retryAfterSeconds;
  }
}

/**
 * The answer to `message`, said through `onToken` as it comes. Aborting `signal` stops the model, too, while it is
 * streamed, and rejects with an AbortError.
 *
 * @param {Supabase} supabase
 * @param {string} message
 * @param {Asking & Endpoint} [options]
 * @returns {Promise<Answer>}
 * @throws {SupabaseAIError}
 */
export async function callSupabaseAI(supabase, message, options = {}) {
  const { threadId, model, fields, signal, onRestart, timeoutMs = 120_000 } = options;
  const limit = AbortSignal.timeout(timeoutMs);
  const call = {
    ...options,
    supabase,
    signal: signal ? AbortSignal.any([signal, limit]) : limit,
    body: { ...fields, message, threadId, model },
    headers: { "idempotency-key": options.idempotencyKey ?? crypto.randomUUID() },
  };
  try {
    return await streamed(call).catch((error) => {
      if (call.signal.aborted || !(isLost(error) || error.code === "turn_running")) throw error;
      onRestart?.();
      return later(call);
    });
  } catch (error) {
    signal?.throwIfAborted();
    if (limit.aborted) throw new SupabaseAIError("The answer took too long.", { code: "timeout" });
    throw error;
  }
}

/**
 * Calls back with each of the user's answers, as it is written or changes: rated, or more of it. `userId` is that of
 * the table `users`. What is written while the connection is away is not told: load the thread when `onStatus` hears
 * SUBSCRIBED again. Gives the function that ends it.
 *
 * @param {Supabase} supabase
 * @param {number | string} userId
 * @param {(conversation: Conversation & { threadId: string }) => void} callback
 * @param {{ onStatus?: (status: string) => void }} [options]
 */
export function subscribeToAnswers(supabase, userId, callback, { onStatus } = {}) {
  /** @type {import('@supabase/supabase-js').RealtimeChannel} */
  let channel;
  let ended = false, failures = 0;
  /** @type {ReturnType<typeof setTimeout>} */
  let timer;
  const listen = () => {
    const own = (channel = supabase.channel(`ai-responses-${crypto.randomUUID()}`));
    own
      .on(
        "postgres_changes",
        { event: "*", schema: "public", table: "conversations", filter: `user_id=eq.${userId}` },
        ({ eventType, new: row }) => {
          if (eventType !== "DELETE" && /complete|partial/.test(row.status)) callback(conversationOf(row));
        },
      )
      .subscribe((status) => {
        if (ended || own !== channel) return;
        onStatus?.(status);
        if (status === "SUBSCRIBED") return void (failures = 0);
        clearTimeout(timer);
        timer = setTimeout(again, Math.min(1000 * 2 ** failures++, 30_000));
      });
  };
  const again = () => {
    const old = channel;
    listen();
    supabase.removeChannel(old);
  };
  listen();
  return () => {
    ended = true;
    clearTimeout(timer);
    return supabase.removeChannel(channel);
  };
}

/**
 * Sets the user's thumb on an answer.
 *
 * @param {Supabase} supabase
 * @param {number} conversationId
 * @param {1 | 0 | -1} feedback
 * @param {Endpoint} [at]
 * @returns {Promise<{ conversationId: number, feedback: number }>}
 */
export const sendFeedback = (supabase, conversationId, feedback, at) =>
  json({ ...at, supabase, body: { conversationId, feedback } }, "/feedback");

/**
 * The user's threads, the latest first.
 *
 * @param {Supabase} supabase
 * @param {Page & Endpoint} [options]
 * @returns {Promise<{ threads: Thread[], next: number | null }>}
 */
export const listThreads = (supabase, options = {}) => json({ ...options, supabase }, "/threads" + query(options));

/**
 * A thread's conversations, the latest first.
 *
 * @param {Supabase} supabase
 * @param {string} threadId
 * @param {Page & Endpoint} [options]
 * @returns {Promise<{ threadId: string, conversations: Conversation[], next: number | null }>}
 */
export const loadThread = (supabase, threadId, options = {}) =>
  json({ ...options, supabase }, `/threads/${threadId}${query(options)}`);

/**
 * One conversation with its sources.
 *
 * @param {Supabase} supabase
 * @param {number} conversationId
 * @param {Endpoint} [at]
 * @returns {Promise<WholeConversation>}
 */
export const loadConversation = (supabase, conversationId, at) =>
  json({ ...at, supabase }, `/conversations/${conversationId}`);

/**
 * The events of a stream of server-sent events; one that isn't finished when the stream ends is left out.
 *
 * @param {ReadableStream<Uint8Array>} stream
 * @param {() => void} [onBytes]
 */
export async function* readEvents(stream, onBytes) {
  const reader = stream.getReader(), decoder = new TextDecoder();
  let rest = "", event = "message", data = /** @type {string[]} */ ([]);
  try {
    for (let done = false; !done; ) {
      const read = await reader.read().catch(lose);
      done = read.done;
      onBytes?.();
      rest += decoder.decode(read.value, { stream: !done });
      const lines = rest.split(done ? /\r\n|\n|\r/ : /\r\n|\n|\r(?!$)/); // the last \r may be half of a \r\n
      rest = lines.pop() ?? "";
      for (const line of lines) {
        const [, field, value] = /^([^:]*):? ?(.*)$/s.exec(line) ?? [];
        if (field === "event") event = value;
        if (field === "data") data.push(value);
        if (line) continue;
        if (data.length) yield { event, data: data.join("\n") };
        event = "message";
        data = [];
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // hangs up
  }
}

/**
 * @typedef {Endpoint & { supabase: Supabase, stallMs?: number, body?: object, headers?: Record<string, string> }} Call
 * @typedef {Call & Asking & { signal: AbortSignal }} AskingCall
 * @param {AskingCall} call
 */
async function streamed(call) {
  return request({ ...call, body: { ...call.body, stream: true } }, "", async (response, onBytes) => {
    if (!response.headers.get("content-type")?.startsWith("text/event-stream")) return whole(call, await read(response));
    let text = "", sources = [];
    for await (const { event, data } of readEvents(response.body ?? new ReadableStream(), onBytes)) {
      const told = JSON.parse(data);
      if (event === "sources") call.onSources?.((sources = told.sources));
      if (event === "token") call.onToken?.(told.token, (text += told.token));
      if (event === "error") throw new SupabaseAIError(told.error, { status: response.status, ...told });
      if (event === "done") return { response: text.trim(), sources, ...told };
    }
    return lose();
  });
}

/** The same question, left to the server. @param {AskingCall} call */
async function later(call) {
  const asked = { ...call, headers: { ...call.headers, prefer: "respond-async" } };
  const told = await persistently(call.signal, () => json(asked));
  return whole(call, told.status === "pending" ? await arrived(call, told.conversationId) : told);
}

/** @param {AskingCall} call @param {any} told @returns {Answer} */
function whole({ onSources, onToken }, { id, ...told }) {
  onSources?.(told.sources);
  onToken?.(told.response, told.response);
  return { conversationId: id, ...told };
}

/** A pending conversation, once it is answered: Realtime tells when to look. @param {AskingCall} call @param {number} id */
async function arrived({ supabase, signal, functionsUrl, functionName }, id) {
  let looked = 0, poked = 0, live = false, wake = () => {};
  const poke = () => (poked++, wake());
  const channel = supabase
    .channel(`ai-answer-${id}-${crypto.randomUUID()}`)
    .on("postgres_changes", { event: "UPDATE", schema: "public", table: "conversations", filter: `id=eq.${id}` }, poke)
    .on("system", {}, poke)
    .subscribe((status) => void (live = status === "SUBSCRIBED"));
  try {
    for (let ms = 1000; ; ms = Math.min(ms * 2, live ? 10_000 : 3000)) {
      looked = poked;
      const told = await persistently(signal, () => loadConversation(supabase, id, { signal, functionsUrl, functionName }));
      if (told.status === "complete") return told;
      if (told.status !== "pending") {
        const code = told.errorCode ?? "internal";
        const retryable = /unavailable$|^deadline_exceeded$|^lost$/.test(code);
        throw new SupabaseAIError("The answer failed: ask again.", { status: 200, code, retryable });
      }
      if (looked === poked) await pause(signal, (done) => (wake = done, setTimeout(done, ms)));
    }
  } finally {
    supabase.removeChannel(channel);
  }
}

/**
 * What `work` gives, tried again while the answer's first request is still at work, the server can't be reached, or
 * the browser is offline.
 *
 * @template T @param {AbortSignal} signal @param {() => Promise<T>} work @returns {Promise<T>}
 */
async function persistently(signal, work) {
  for (let failures = 0; ; ) {
    if (globalThis.navigator?.onLine === false) {
      await pause(signal, (done) => globalThis.addEventListener?.("online", done, { once: true }));
    }
    try {
      return await work();
    } catch (error) {
      signal.throwIfAborted();
      const { code, retryAfterSeconds = 1 } = /** @type {SupabaseAIError} */ (error);
      const isRunning = code === "turn_running";
      const isAway = isLost(error) || /^(database_)?unavailable$/.test(code);
      if (!isRunning && !(isAway && ++failures < TRIES)) throw error;
      await pause(signal, (done) => setTimeout(done, isRunning ? 1000 * retryAfterSeconds : 250 * 2 ** failures));
    }
  }
}

/** @param {Call} call @param {string} [path] @returns {Promise<any>} */
const json = (call, path = "") => request(call, path, read);

/**
 * What `take` makes of the function's answer, as long as its connection isn't lost.
 *
 * @template T @param {Call} call @param {string} path
 * @param {(response: Response, onBytes: () => void) => Promise<T>} take @returns {Promise<T>}
 */
async function request({ supabase, signal, body, headers, stallMs = 35_000, ...at }, path, take) {
  const line = new AbortController(), drop = () => line.abort();
  const url = `${at.functionsUrl ?? supabase["functionsUrl"].href}/${at.functionName ?? "ai-finance"}${path}`;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let timer;
  const onBytes = () => (clearTimeout(timer), (timer = setTimeout(drop, stallMs)));
  const send = (/** @type {string | undefined} */ token) =>
    fetch(url, {
      method: body ? "POST" : "GET",
      headers: {
        ...headers,
        apikey: supabase["supabaseKey"],
        ...(token && { authorization: `Bearer ${token}` }),
        ...(body && { "content-type": "application/json" }),
      },
      body: body && JSON.stringify(body),
      signal: signal ? AbortSignal.any([signal, line.signal]) : line.signal,
    }).catch(lose);
  globalThis.addEventListener?.("offline", drop);
  try {
    onBytes();
    const { data, error } = await supabase.auth.getSession();
    if (error?.name === "AuthRetryableFetchError") lose();
    let response = await send(data.session?.access_token);
    if (response.status === 401 && data.session) {
      const renewed = await supabase.auth.refreshSession();
      if (renewed.data.session) response = await send(renewed.data.session.access_token);
    }
    if (!response.ok) throw await refusal(response);
    return await take(response, onBytes);
  } finally {
    clearTimeout(timer);
    globalThis.removeEventListener?.("offline", drop);
  }
}

/** @param {Response} response */
async function refusal(response) {
  const { status } = response, told = await response.json().catch(() => ({}));
  return new SupabaseAIError(told.error ?? told.message ?? `The server answered ${status}.`, {
    status,
    code: told.code ?? `http_${status}`,
    requestId: told.requestId,
    retryable: told.retryable ?? status >= 500,
    retryAfterSeconds: Number(response.headers.get("retry-after")) || undefined,
  });
}

/** @param {Response} response */
const read = (response) => response.json().catch(lose);

/** @returns {never} */
function lose() {
  throw new SupabaseAIError("The connection was lost.");
}

/** Whether nobody of ours has answered: the network failed, or a gateway on the way. @param {unknown} error */
const isLost = (error) =>
  error instanceof SupabaseAIError && !error.requestId && (error.status === 0 || error.status >= 500);

/** @param {AbortSignal} signal @param {(done: () => void) => void} begin @returns {Promise<void>} */
const pause = (signal, begin) =>
  new Promise((resolve, reject) => {
    signal.throwIfAborted();
    const fail = () => reject(signal.reason);
    signal.addEventListener("abort", fail, { once: true });
    begin(() => (signal.removeEventListener("abort", fail), resolve()));
  });

/** @param {Page} page */
const query = ({ limit, before }) =>
  `?${new URLSearchParams(Object.entries({ limit, before }).flatMap(([k, v]) => (v ? [[k, `${v}`]] : [])))}`;

/** A row of the table. @param {any} row */
const conversationOf = ({ thread_id, model_version, created_at, id, message, response, status, flags, feedback }) => ({
  id, threadId: thread_id, message, response, status, flags, feedback, model: model_version, createdAt: created_at,
});
