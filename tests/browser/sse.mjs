// Prints the events that supabase-ai.js reads from its input, in pieces of as many bytes as its argument says.
import { readEvents } from "../../infra/playground/supabase-ai.js";

const size = Number(process.argv[2]), chunks = [];
for await (const chunk of process.stdin) chunks.push(chunk);
const bytes = new Uint8Array(Buffer.concat(chunks));
const stream = new ReadableStream({
  start(controller) {
    for (let at = 0; at < bytes.length; at += size) controller.enqueue(bytes.slice(at, at + size));
    controller.close();
  },
});
for await (const event of readEvents(stream)) console.log(JSON.stringify(event));
