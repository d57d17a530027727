"""The guide's ai-finance in Python, step after step in its own order, for its time to be compared with ours.

Ported from the Edge Function supabase/functions/ai-finance/index.ts of the guide's section on routing requests to
models: the caller's client over PostgREST with his own token, the question's embedding, `match_finance_embeddings`
with three rows, `swap_history` with ten, one POST to the model, one INSERT into `conversations`, each awaited before
the next begins; CORS and the last catch as there. What differs, because it must:

- The model is asked on OpenAI's wire and not Replicate's, so that both ask the same stand-in; `generateEmbedding`
  and `buildPrompt`, which the guide leaves out, ask the same stand-in for the vector and join the same parts.
- Here nobody but the gateway may write answers: the INSERT goes with the secret key, and names the columns this
  schema wants besides (`thread_id`, `status`).
- One HTTP client for all requests, as Deno's fetch keeps its connections.

Like the guide's it verifies no token of its own, retries nothing, bounds nothing and counts nothing.
"""

import json
import os
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import httpx
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Headers": "authorization, x-client-info, apikey, content-type",
}
app = FastAPI()
http = httpx.AsyncClient(timeout=60)
rest, model_url = f"{os.environ['SUPABASE_URL']}/rest/v1", os.environ["MODEL_BASE_URL"]


@app.options("/functions/v1/ai-finance")
async def preflight() -> Response:
    """What a browser asks first."""
    return Response("ok", headers=CORS)


@app.post("/functions/v1/ai-finance")
async def answer(request: Request) -> Response:
    """The guide's `serve` callback."""
    try:
        asked = await request.json()
        message, user_id = asked["message"], asked["userId"]
        caller = {
            "apikey": os.environ["SUPABASE_PUBLISHABLE_KEY"],
            "Authorization": request.headers["authorization"],
        }
        query_embedding = await generate_embedding(message)
        context = await matched(caller, query_embedding)
        swap_history = await swaps(caller, user_id)
        output = await generated(build_prompt(message, context, swap_history))
        await store(user_id, message, output, context)
        return JSONResponse({"response": output}, headers=CORS)
    except Exception as error:
        return JSONResponse({"error": str(error)}, status_code=500, headers=CORS)


async def generate_embedding(message: str) -> list[float]:
    """`generateEmbedding(message)`."""
    body = {"model": os.environ["EMBEDDING_MODEL"], "input": message}
    embedding: list[float] = (await _post(f"{model_url}/embeddings", body, {}))["data"][0]["embedding"]
    return embedding


async def matched(caller: Mapping[str, str], query_embedding: list[float]) -> list[dict[str, Any]]:
    """`supabase.rpc('match_finance_embeddings', …)`."""
    body = {"query_embedding": query_embedding, "match_count": 3}
    rows: list[dict[str, Any]] = await _post(f"{rest}/rpc/match_finance_embeddings", body, caller)
    return rows


async def swaps(caller: Mapping[str, str], user_id: int) -> list[dict[str, Any]]:
    """`supabase.from('swap_history').select('*').eq(…).order(…).limit(10)`."""
    query = {"select": "*", "user_id": f"eq.{user_id}", "order": "created_at.desc", "limit": "10"}
    response = await http.get(f"{rest}/swap_history", params=query, headers=caller)
    rows: list[dict[str, Any]] = response.raise_for_status().json()
    return rows


async def generated(prompt: str) -> str:
    """The one POST to the model, `max_length: 500`."""
    messages = [{"role": "user", "content": prompt}]
    body = {"model": os.environ["MODEL_NAME"], "messages": messages, "max_tokens": 500}
    output: str = (await _post(f"{model_url}/chat/completions", body, {}))["choices"][0]["message"]["content"]
    return output


async def store(user_id: int, message: str, output: str, context: Sequence[Mapping[str, Any]]) -> None:
    """`supabase.from('conversations').insert(…)`."""
    row = {
        "user_id": user_id,
        "message": message,
        "response": output,
        "context_used": [passage["id"] for passage in context],
        "created_at": datetime.now(UTC).isoformat(),
        "thread_id": str(uuid.uuid4()),
        "status": "complete",
    }
    key = {"apikey": os.environ["SUPABASE_SECRET_KEY"]}
    response = await http.post(f"{rest}/conversations", json=row, headers={**key, "Prefer": "return=minimal"})
    response.raise_for_status()


def build_prompt(message: str, context: Sequence[Mapping[str, Any]], swap_history: Sequence[Mapping[str, Any]]) -> str:
    """`buildPrompt(message, context, swapHistory)`."""
    passages = "\n".join(str(passage["content"]) for passage in context)
    return f"Context:\n{passages}\n\nThe user's swaps:\n{json.dumps(swap_history)}\n\nUser question: {message}"


async def _post(url: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> Any:
    return (await http.post(url, json=body, headers=headers)).raise_for_status().json()
