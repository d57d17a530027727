// supabase-ai.js with a user's session, driven by lines of JSON on its input; each thing it hears is a line of output.
import { createClient } from "@supabase/supabase-js";

import * as ai from "../../infra/playground/supabase-ai.js";

const { url, key, email, password, functionsUrl, polls = true, isOld, ...app } = JSON.parse(process.argv[2]);
const say = (heard, more) => console.log(JSON.stringify({ heard, ...more }));

// What a browser has and Node hasn't.
const page = new EventTarget();
Object.defineProperty(globalThis, "navigator", { value: { onLine: true }, configurable: true });
globalThis.addEventListener = page.addEventListener.bind(page);
const request = globalThis.fetch;
globalThis.fetch = async (...asked) => {
  if (navigator.onLine) return request(...asked);
  say("asked offline");
  throw new TypeError("Failed to fetch");
};

const kept = new Map();
const storage = {
  getItem: (name) => kept.get(name) ?? null,
  setItem: (name, value) => kept.set(name, value),
  removeItem: (name) => kept.delete(name),
};
const mint = async () => {
  const { token } = app;
  await new Promise((done) => setTimeout(done, 300));
  say("minted");
  return token;
};
const supabase = createClient(url, key, {
  ...(app.token && { accessToken: mint }),
  auth: { autoRefreshToken: false, persistSession: true, storage },
  realtime: { transport: WebSocket },
});
if (isOld) supabase.functionsUrl = `${url}/functions/v1`; // as supabase-js has it up to 2.49.4
if (email) {
  const { error } = await supabase.auth.signInWithPassword({ email, password });
  if (error) throw error;
}

if (!polls) {
  const wait = globalThis.setTimeout; // the pauses between looks at a conversation never end
  globalThis.setTimeout = (f, ms, ...more) => wait(f, [1000, 2000, 4000, 8000].includes(ms) ? 2 ** 30 : ms, ...more);
}

let stop = new AbortController(), unsubscribe = () => {};
const commands = {
  async ask({ message, ...options }) {
    stop = new AbortController();
    const answer = await ai.callSupabaseAI(supabase, message, {
      functionsUrl,
      signal: stop.signal,
      onToken: (token, text) => say("token", { token, text }),
      onSources: (sources, { conversationId, threadId }) => say("sources", { sources, conversationId, threadId }),
      onRestart: () => say("restart"),
      ...options,
    });
    say("answer", { answer });
  },
  abort: () => stop.abort(),
  subscribe({ userId }) {
    unsubscribe = ai.subscribeToAnswers(supabase, userId, (row) => say("row", { row }), {
      onStatus: (status) => say("status", { status }),
    });
  },
  unsubscribe: () => unsubscribe(),
  async call({ name, args }) {
    say("told", { told: await ai[name](supabase, ...args) });
  },
  online({ is }) {
    navigator.onLine = is;
    page.dispatchEvent(new Event(is ? "online" : "offline"));
  },
  mint: ({ token }) => (app.token = token),
  spoil({ tokens = [], expires_at }) {
    for (const [name, value] of kept) {
      const session = { ...JSON.parse(value), ...(expires_at && { expires_at }) };
      for (const token of tokens) session[token] = `${session[token].slice(0, -5)}AAAAA`;
      kept.set(name, JSON.stringify(session));
    }
  },
};

say("ready");
let rest = "";
process.stdin.setEncoding("utf8").on("data", (text) => {
  const lines = (rest + text).split("\n");
  rest = lines.pop();
  for (const line of lines) {
    const { command, ...options } = JSON.parse(line);
    Promise.resolve(commands[command](options)).catch((error) =>
      say("failure", { kind: error.name, message: error.message, stack: error.stack, ...error }),
    );
  }
});
process.stdin.on("end", () => process.exit());
