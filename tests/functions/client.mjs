// The guide's client with a user's own session: listens for answers, asks through functions.invoke, asks wrongly once.
import { createClient } from "@supabase/supabase-js";

const [url, key, email, password, userId, message] = process.argv.slice(2);
const supabase = createClient(url, key, { auth: { autoRefreshToken: false }, realtime: { transport: WebSocket } });
const { error: refused } = await supabase.auth.signInWithPassword({ email, password });
if (refused) throw refused;

const pushed = {};
pushed.promise = new Promise((resolve) => (pushed.resolve = resolve));
const channel = supabase
  .channel("ai-responses")
  .on(
    "postgres_changes",
    { event: "INSERT", schema: "public", table: "conversations", filter: `user_id=eq.${userId}` },
    (payload) => pushed.resolve(payload.new.response),
  );
await new Promise((resolve) => channel.on("system", {}, resolve).subscribe());

const { data, error } = await supabase.functions.invoke("ai-finance", { body: { message, userId } });
if (error) throw error;
const { error: hidden } = await supabase.functions.invoke("ai-finance", { body: { message: "" } });

console.log(JSON.stringify({ answer: data, pushed: await pushed.promise, refusal: await hidden.context.json() }));
process.exit();
