// A supabase-js subscriber: prints what it hears as lines of JSON, answers a ping, and ends with its input.
import { createClient } from "@supabase/supabase-js";

const [url, key, token, table] = process.argv.slice(2);
const print = (value) => console.log(JSON.stringify(value));

// Of a connection that never opens Node 20 fires `error` alone, where browsers and later ones fire `close` too.
class Transport extends WebSocket {
  constructor(...args) {
    super(...args);
    this.addEventListener("error", () => this.dispatchEvent(new Event("close")));
  }
}

const client = createClient(url, key, { realtime: { transport: Transport, reconnectAfterMs: () => 100 } });
await client.realtime.setAuth(token);

const channel = client.channel("javascript", { config: { broadcast: { ack: true } } });
channel
  .on("postgres_changes", { event: "*", schema: "public", table }, (change) => print(change))
  .on("broadcast", { event: "ping" }, async ({ payload }) => {
    print({ sent: await channel.send({ type: "broadcast", event: "pong", payload }) });
    print({ posted: await channel.httpSend("pong over REST", payload) });
  })
  .on("system", {}, ({ status, message }) => print({ status, message }))
  .subscribe((status, error) => print({ status, message: error?.message }));

process.stdin.resume().on("end", async () => {
  await client.removeAllChannels();
  process.exit();
});
