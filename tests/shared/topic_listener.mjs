// A supabase-js subscriber to a private topic: prints its state and each message as lines of JSON, ends with its input.
import { createClient } from "@supabase/supabase-js";

const [url, key, token, topic] = process.argv.slice(2);
const print = (value) => console.log(JSON.stringify(value));

const client = createClient(url, key, { realtime: { transport: WebSocket } });
if (token) await client.realtime.setAuth(token);

client
  .channel(topic, { config: { private: true } })
  .on("broadcast", { event: "*" }, ({ event, payload }) => print({ event, payload }))
  .subscribe((status, error) => print({ status, message: error?.message }));

process.stdin.resume().on("end", async () => {
  await client.removeAllChannels();
  process.exit();
});
