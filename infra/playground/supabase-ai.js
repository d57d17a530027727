/**
 * ai-finance from the browser: an answer that types itself, and is found again where the connection drops.
 *
 * However often a question is sent with its idempotency key, it is one conversation. An answer that can't be streamed,
 * or breaks off, is left to the server; Realtime tells when it is there.
 *
 * @import * as T from './supabase-ai.types'
 */

/** What the server says of a failure; `status` is 0 where it says nothing, 200 amid an answer. */
export class SupabaseAIError extends Error {
  name = "SupabaseAIError";

  /** @param {any} [told] */
  constructor(status = 0, told = { error: "The connection was lost.", code: "network" }, retryAfterSeconds = 0) {
    super(told.error ?? told.message ?? `The server answered ${status}.`);
    this.status = status;
    this.code = String(told.code ?? status);
    this.retryable = Boolean(told.retryable ?? (!status || status >= 500));
    this.requestId = String(told.requestId ?? "");
    this.retryAfterSeconds = retryAfterSeconds;
  }
}

/** Aborting `signal` rejects with an AbortError, and stops a model that streams. @type {T.CallSupabaseAI} */
export async function callSupabaseAI(supabase, message, options = {}) {
  const { threadId, model, fields, idempotencyKey = crypto.randomUUID(), signal, timeoutMs = 120_000 } = options;
  const limit = AbortSignal.timeout(timeoutMs), both = AbortSignal.any([limit, signal ?? limit]);
  const body = { ...fields, message, threadId, model };
  const call = { ...options, supabase, body, headers: { "idempotency-key": idempotencyKey }, signal: both };
  try {
    return await streamed(call).catch((error) => {
      if (both.aborted || !(isLost(error) || error.code === "turn_running")) throw error;
      options.onRestart?.();
      return later(call);
    });
  } catch (error) {
    signal?.throwIfAborted();
    throw limit.aborted ? new SupabaseAIError(0, { error: "The answer took too long.", code: "timeout" }) : error;
  }
}

/** Calls back with each answer's row, new or changed; gives what ends it. @type {T.SubscribeToAnswers} */
export function subscribeToAnswers(supabase, userId, callback, { onStatus } = {}) {
  let end = () => {}, failures = 0;
  const begin = () => {
    end = watch(supabase, `user_id=eq.${userId}`, ({ new: row }) => row.response && callback(row), (status) => {
      if (status === "SUBSCRIBED") failures = 0;
      else {
        end();
        const timer = setTimeout(begin, Math.min(1000 * 2 ** failures++, 30_000));
        end = () => clearTimeout(timer);
      }
      onStatus?.(status);
    });
  };
  begin();
  return () => end();
}

/** @type {T.SendFeedback} */
export const sendFeedback = (supabase, conversationId, feedback, at) =>
  request({ ...at, supabase, body: { conversationId, feedback } }, "/feedback");

/** @type {T.ListThreads} */
export const listThreads = (supabase, page) => request({ ...page, supabase }, "/threads" + query(page));

/** @type {T.LoadThread} */
export const loadThread = (supabase, id, page) => request({ ...page, supabase }, `/threads/${id}${query(page)}`);

/** @type {T.LoadConversation} */
export const loadConversation = (supabase, id, at) => request({ ...at, supabase }, `/conversations/${id}`);

/** Server-sent events. @param {ReadableStream<Uint8Array>} stream */
export async function* readEvents(stream) {
  const reader = stream.getReader(), decoder = new TextDecoder();
  let rest = "", event = "message", data = "";
  try {
    for (;;) {
      const { done, value } = await reader.read().catch(lose);
      rest += decoder.decode(value, { stream: !done });
      const lines = rest.split(done ? /\r\n?|\n/ : /\r\n|\n|\r(?!$)/); // the last \r may be half of a \r\n
      rest = lines.pop() ?? "";
      for (const line of lines) {
        const [field, value = ""] = line.split(/: ?(.*)/s);
        if (field === "event") event = value;
        if (field === "data") data += value + "\n";
        if (line) continue;
        if (data) yield { event, data: data.slice(0, -1) };
        [event, data] = ["message", ""];
      }
      if (done) return;
    }
  } finally {
    reader.cancel().catch(() => {}); // hangs up
  }
}

/** @param {T.Call} call */
const streamed = (call) =>
  request({ ...call, body: { ...call.body, stream: true } }, "", async (response, beat) => {
    if (!response.headers.get("content-type")?.includes("event-stream")) return whole(call, await response.json().catch(lose));
    let text = "", opened = {};
    for await (const { event, data } of readEvents(response.body ?? lose())) {
      const told = JSON.parse(data);
      beat();
      if (event === "sources") call.onSources?.((opened = told).sources, told);
      if (event === "token") call.onToken?.(told.token, (text += told.token));
      if (event === "error") throw new SupabaseAIError(200, told);
      if (event === "done") return { response: text.trim(), ...opened, ...told };
    }
    lose();
  });

/** @param {T.Call} call */
async function later({ body, headers, ...call }) {
  const asked = await insist({ ...call, body, headers: { ...headers, prefer: "respond-async" } });
  if (asked.status !== "pending") return whole(call, asked);
  let isNews = false, wake = () => {};
  const poke = () => ((isNews = true), wake());
  const leave = watch(call.supabase, `id=eq.${asked.conversationId}`, poke, poke);
  try {
    for (let ms = 1000; ; ms = Math.min(2 * ms, 8000)) {
      isNews = false;
      const told = await insist(call, `/conversations/${asked.conversationId}`);
      if (told.status === "complete") return whole(call, told);
      if (told.status !== "pending") {
        throw new SupabaseAIError(200, { error: "The answer failed.", code: told.errorCode, retryable: true });
      }
      if (!isNews) await pause(call, (done) => setTimeout((wake = done), ms));
    }
  } finally {
    leave();
  }
}

/** @param {T.Asking} asking @param {any} told */
function whole({ onSources, onToken }, { id, ...told }) {
  const answer = { conversationId: id, ...told };
  onSources?.(answer.sources, answer);
  onToken?.(answer.response, answer.response);
  return answer;
}

/** Asks again where nobody answers, or an answer is under way. @param {T.Call} call */
async function insist(call, path = "") {
  for (let failures = 0; ; ) {
    if (globalThis.navigator?.onLine === false) await pause(call, (done) => addEventListener("online", done, { once: true }));
    try {
      return await request(call, path);
    } catch (/** @type {any} */ error) {
      const isAway = isLost(error) || (path && error.retryable);
      if (error.code !== "turn_running" && !(isAway && failures++ < 5)) throw error;
      await pause(call, (done) => setTimeout(done, 1000 * (error.retryAfterSeconds || 2 ** failures / 4)));
    }
  }
}

/** @type {T.Request} */
async function request({ supabase, body, headers, stallMs = 35_000, ...at }, path = "", take) {
  const key = supabase["supabaseKey"], line = new AbortController(), drop = () => line.abort();
  const signal = AbortSignal.any([line.signal, at.signal ?? line.signal]);
  const tokenInTime = (isNew = false) => Promise.race([tokenOf(supabase, isNew), pause({ signal }).catch(lose)]);
  const send = (token = "") =>
    fetch(`${at.functionsUrl ?? supabase["functionsUrl"]}/${at.functionName ?? "ai-finance"}${path}`, {
      method: body ? "POST" : "GET",
      headers: { ...headers, apikey: key, authorization: `Bearer ${token || key}`, "content-type": "application/json" },
      body: body && JSON.stringify(body),
      signal,
    }).catch(lose);
  let timer = 0;
  const beat = () => (clearTimeout(timer), (timer = setTimeout(drop, stallMs)));
  beat();
  globalThis.addEventListener?.("offline", drop, { signal });
  try {
    let token = await tokenInTime(), response = await send(token);
    if (response.status === 401 && token && (token = await tokenInTime(true))) response = await send(token);
    if (!response.ok) {
      const told = await response.json().catch(() => ({}));
      throw new SupabaseAIError(response.status, told, Number(response.headers.get("retry-after")) || 0);
    }
    return await (take ? take(response, beat) : response.json().catch(lose));
  } finally {
    clearTimeout(timer);
    drop();
  }
}

/** The user's, if any; an app that mints them has no sessions. @param {T.Supabase} supabase */
async function tokenOf(supabase, isNew = false) {
  if (supabase["accessToken"]) return supabase["accessToken"]();
  const { data, error } = await supabase.auth[isNew ? "refreshSession" : "getSession"]();
  if (error?.name === "AuthRetryableFetchError") lose();
  return data.session?.access_token;
}

/** @returns {never} */
const lose = () => {
  throw new SupabaseAIError();
};

/** Whether the function itself has not answered. @param {any} error */
const isLost = ({ requestId, status }) => requestId === "" && (!status || status >= 500);

/** @type {T.Watch} */
function watch(supabase, filter, onRow, onStatus) {
  let isLeft = false;
  const note = (status = "") => isLeft || onStatus(status);
  const channel = supabase
    .channel(`ai-${crypto.randomUUID()}`)
    .on("postgres_changes", { event: "*", schema: "public", table: "conversations", filter }, onRow)
    // A joined channel hears of no row until the system says so.
    .on("system", {}, ({ status }) => note(status === "ok" ? "SUBSCRIBED" : "CHANNEL_ERROR"));
  const join = () => isLeft || channel.subscribe((status) => status === "SUBSCRIBED" || note(status));
  // Realtime would keep the first token that an app mints.
  supabase["accessToken"] ? supabase.realtime.setAuth().then(join, join) : join();
  return () => ((isLeft = true), supabase.removeChannel(channel));
}

/** @type {T.Pause} */
const pause = ({ signal }, begin) =>
  new Promise((resolve, reject) => {
    signal?.throwIfAborted();
    signal?.addEventListener("abort", reject);
    begin?.(resolve);
  });

/** @param {T.Page} [page] */
const query = ({ limit = 20, before } = {}) => `?limit=${limit}${before ? `&before=${before}` : ""}`;
