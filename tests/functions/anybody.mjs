// ai-with-rag through functions.invoke: asked by a visitor, by the same one signed in, and wrongly once.
import { createClient } from "@supabase/supabase-js";

const [url, functionsUrl, key, email, password, options] = process.argv.slice(2);
const redirected = (target, init) => fetch(String(target).replace(`${url}/functions/`, `${functionsUrl}/functions/`), init);
const supabase = createClient(url, key, {
  auth: { autoRefreshToken: false },
  realtime: { transport: WebSocket },
  global: { fetch: redirected },
});
const body = { query: "What is Notcoin?", ...JSON.parse(options) };

async function ask() {
  const { data, error } = await supabase.functions.invoke("ai-with-rag", { body });
  if (error) throw error;
  return data;
}

const answers = [await ask()];
const { error: refused } = await supabase.auth.signInWithPassword({ email, password });
if (refused) throw refused;
answers.push(await ask());
const { error: hidden } = await supabase.functions.invoke("ai-with-rag", { body: { query: "" } });

console.log(JSON.stringify({ answers, refusal: await hidden.context.json() }));
process.exit();
