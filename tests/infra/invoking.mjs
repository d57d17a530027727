// ai-finance through functions.invoke, as an Edge Function at `forward` serves it: asked, asked wrongly, then in events.
// One line of JSON for each of these; an event is told as it comes, and a line on stdin hangs up.
import { createInterface } from "node:readline";
import { createClient } from "@supabase/supabase-js";

const [url, forward, key, email, password, message] = process.argv.slice(2);
// A hosted project's edge takes /functions/v1 off the path.
const hosted = (target, init) => fetch(String(target).replace(`${url}/functions/v1`, forward), init);
const supabase = createClient(url, key, {
  auth: { autoRefreshToken: false },
  realtime: { transport: WebSocket },
  global: { fetch: hosted },
});
const { error: refused } = await supabase.auth.signInWithPassword({ email, password });
if (refused) throw refused;
const tell = (told) => console.log(JSON.stringify(told));

const { data, error } = await supabase.functions.invoke("ai-finance", { body: { message } });
if (error) throw error;
tell(data);
const { error: hidden } = await supabase.functions.invoke("ai-finance", { body: { message: "" } });
tell(await hidden.context.json());

const hangUp = new AbortController();
createInterface({ input: process.stdin }).once("line", () => hangUp.abort());
const body = { message: `${message} [gated]`, stream: true };
const { data: events } = await supabase.functions.invoke("ai-finance", { body, signal: hangUp.signal });
const pieces = events.body.pipeThrough(new TextDecoderStream());
try {
  for await (const piece of pieces) for (const [, token] of piece.matchAll(/"token":"([^"]*)"/g)) tell(token);
} catch {
  tell("hung up");
}
process.exit();
