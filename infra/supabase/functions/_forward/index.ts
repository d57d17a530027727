// An Edge Function that hands `supabase.functions.invoke` on to the gateway at GATEWAY_URL, and to nothing else.
//
// ../../config.toml deploys it once under each function's name. Its secrets are GATEWAY_URL, the HTTP API's address, and
// GATEWAY_URL_AI_FINANCE and GATEWAY_URL_AI_WITH_RAG where these have Function URLs: API Gateway collects a stream.

const NAMES = ["ai-finance", "ai-with-rag", "deploy-model", "export-training-data"];
// What the gateway reads. The rest, with whatever Supabase's own edge has added, stays here.
const FORWARDED = [
  ...["authorization", "apikey", "content-type", "accept", "prefer", "idempotency-key", "x-request-id", "traceparent"],
  ...["cache-control", "x-client-info", "origin"],
];
// What is about the upstream's connection: the body arrives here decoded, and goes on in pieces.
const DROPPED = ["connection", "keep-alive", "transfer-encoding", "content-encoding", "content-length"];
// Longer than API Gateway waits and a stream pauses, shorter than the 150 s after which Supabase answers in its own words.
const SILENCE_SECONDS = Number(Deno.env.get("FORWARD_SILENCE_SECONDS") ?? 60);

class Refusal extends Error {
  constructor(public status: number, public code: string, message: string, public retryable = false) {
    super(message);
  }
}

Deno.serve(async (request) => {
  const requestId = request.headers.get("x-request-id") ?? crypto.randomUUID();
  try {
    return request.method === "OPTIONS" ? preflight(request) : await forward(request, requestId);
  } catch (error) {
    return refused(error as Error, requestId);
  }
});

async function forward(request: Request, requestId: string): Promise<Response> {
  const target = targetOf(new URL(request.url));
  const headers = new Headers({ "x-request-id": requestId, "accept-encoding": "identity" });
  for (const name of FORWARDED) {
    const value = request.headers.get(name);
    if (value) headers.set(name, value);
  }
  // Whole, for its length goes before it then; Lambda takes 6 MB at most.
  const body = request.body && (await request.arrayBuffer());
  const silence = watch(request.signal);
  try {
    // A redirect is the client's to follow, or not: nothing is sent elsewhere from here.
    const sent = { method: request.method, headers, body, signal: silence.signal, redirect: "manual" as const };
    return passedOn(await fetch(target, sent), silence);
  } catch (error) {
    silence.over();
    throw unanswered(error as Error);
  }
}

// Only the path and the query are the caller's; setting them can't change the origin, whatever is in them.
function targetOf(url: URL): URL {
  const path = url.pathname.replace(/^\/functions\/v1(?=\/)/, "");
  const name = path.split("/")[1];
  if (!NAMES.includes(name)) throw new Refusal(404, "not_found", `There is nothing at ${url.pathname}.`);
  const own = `GATEWAY_URL_${name.toUpperCase().replaceAll("-", "_")}`;
  const target = URL.parse(Deno.env.get(own) || Deno.env.get("GATEWAY_URL") || "");
  if (!target || (target.protocol !== "https:" && target.hostname !== "127.0.0.1")) {
    throw new Refusal(500, "misconfigured", "GATEWAY_URL is missing, or no https address.");
  }
  // With the prefix, by which the gateway says where an answer will be.
  target.pathname = target.pathname.replace(/\/$/, "") + "/functions/v1" + path;
  target.search = url.search;
  return target;
}

function passedOn(answer: Response, silence: Silence): Response {
  const headers = new Headers(answer.headers);
  DROPPED.forEach((name) => headers.delete(name));
  const init = { status: answer.status, headers };
  if (!answer.body) {
    silence.over();
    return new Response(null, init);
  }
  const pieces = new TransformStream({
    transform(piece, out) {
      silence.broken();
      out.enqueue(piece);
    },
    flush: silence.over,
  });
  return new Response(answer.body.pipeThrough(pieces), init);
}

type Silence = ReturnType<typeof watch>;

// A signal that aborts the upstream when the client hangs up, or when nothing has come for too long.
function watch(client: AbortSignal) {
  const tooLong = new AbortController();
  const start = () => setTimeout(() => tooLong.abort(new DOMException("", "TimeoutError")), SILENCE_SECONDS * 1000);
  let timer = start();
  const over = () => clearTimeout(timer);
  const broken = () => {
    over();
    timer = start();
  };
  client.addEventListener("abort", over);
  return { signal: AbortSignal.any([client, tooLong.signal]), broken, over };
}

function unanswered(error: Error): Error {
  if (error.name === "TimeoutError") {
    return new Refusal(504, "deadline_exceeded", "The gateway took too long.", true);
  }
  console.error("the gateway can't be reached", error.name); // its words hold the address
  return new Refusal(502, "unavailable", "The gateway can't be reached.", true);
}

function refused(error: Error, requestId: string): Response {
  if (!(error instanceof Refusal)) console.error("unforeseen", error.name);
  const known = error instanceof Refusal ? error : new Refusal(500, "internal", "Something went wrong on our side.");
  const body = { error: known.message, code: known.code, requestId, retryable: known.retryable };
  const headers = {
    "access-control-allow-origin": "*", // or a browser would hide the error
    "access-control-expose-headers": "x-request-id",
    "x-request-id": requestId,
  };
  return Response.json(body, { status: known.status, headers });
}

// Answered here: a page learns of an unreachable gateway too. Which origins may read an answer is the gateway's to say.
function preflight(request: Request): Response {
  const headers = {
    "access-control-allow-origin": "*",
    "access-control-allow-methods": "GET, POST, PUT, PATCH, DELETE, OPTIONS",
    "access-control-allow-headers": request.headers.get("access-control-request-headers") ?? "*",
    "access-control-max-age": "86400",
  };
  return new Response(null, { status: 204, headers });
}
