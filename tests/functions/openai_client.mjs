// ai-with-rag through OpenAI's client: asked whole and in chunks, what models it has, and wrongly twice.
import OpenAI from "openai";

const [baseURL, apiKey, options] = process.argv.slice(2);
const openai = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const body = {
  model: "ai-with-rag",
  messages: [
    { role: "user", content: "What is Notcoin?" },
    { role: "assistant", content: "A jetton [1]." },
    { role: "user", content: [{ type: "text", text: "Where did it come from?" }] },
  ],
  ...JSON.parse(options),
};

const whole = await openai.chat.completions.create(body);

const chunks = [];
const stream = await openai.chat.completions.create({ ...body, stream: true, stream_options: { include_usage: true } });
for await (const chunk of stream) chunks.push(chunk);

const runner = openai.chat.completions.stream(body);
const collected = await runner.finalContent();

const models = [];
for await (const model of openai.models.list()) models.push(model.id);

async function refusal(call) {
  try {
    await call;
  } catch (error) {
    return { name: error.constructor.name, status: error.status, code: error.code, param: error.param };
  }
}
const refusals = [
  await refusal(openai.chat.completions.create({ ...body, model: "nobody's" })),
  await refusal(new OpenAI({ baseURL, apiKey: "wrong", maxRetries: 0 }).models.list()),
];

console.log(JSON.stringify({ whole, chunks, collected, models, refusals }));
