// A supabase-js client that is present: prints what it hears of the others as lines of JSON, and does what it is told.
import { createInterface } from "node:readline";
import { createClient } from "@supabase/supabase-js";

const [url, key, token, topic, presenceKey] = process.argv.slice(2);
const print = (value) => console.log(JSON.stringify(value));
// The references are the server's own.
const said = (presences) => presences.map(({ presence_ref: _, ...says }) => says);
const everybody = () =>
  Object.fromEntries(Object.entries(channel.presenceState()).map(([name, presences]) => [name, said(presences)]));

const client = createClient(url, key, {
  realtime: { transport: WebSocket, reconnectAfterMs: () => 100 },
});
await client.realtime.setAuth(token);

const channel = client.channel(topic, { config: { presence: { key: presenceKey } } });
channel
  .on("presence", { event: "sync" }, () => print({ sync: everybody() }))
  .on("presence", { event: "join" }, ({ key, newPresences }) => print({ join: key, says: said(newPresences) }))
  .on("presence", { event: "leave" }, ({ key, leftPresences }) => print({ leave: key, says: said(leftPresences) }))
  .subscribe((status) => print({ status }));

for await (const line of createInterface({ input: process.stdin })) {
  const { track, untrack } = JSON.parse(line);
  if (track) print({ track: await channel.track(track) });
  if (untrack) print({ untrack: await channel.untrack() });
}
await client.removeAllChannels();
process.exit();
