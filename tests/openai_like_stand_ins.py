"""Stand-ins for the providers on OpenAI's wire, each with the ways of its own that its documentation names."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

KEY = "a key that is known"
WORDS = ["TON ", "is ", "the ", "native ", "coin ", "of ", "The ", "Open ", "Network."] * 3
USAGE = {"prompt_tokens": 40, "completion_tokens": 27, "total_tokens": 67}
DEFAULT_TOKENS = 100


@dataclass(frozen=True, slots=True)
class Kind:
    """A provider: where its API begins, how it refuses a key, and what else is its own.

    `refuses` gives the answer to a body it doesn't take, None for one it does. `default_tokens` is how much it says
    where no limit is sent. `usage_in` says where a stream tells its usage: in a chunk of its own, in the last chunk
    with a choice, or in a field of that one.
    """

    prefix: str
    unauthorized: Any
    refuses: Callable[[dict[str, Any]], Response | None] = lambda body: None
    default_tokens: int = DEFAULT_TOKENS
    usage_in: str = "own chunk"
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Server:
    """One provider; `script` is answered first, a request each, and `before_stream` is sent ahead of any stream."""

    kind: Kind
    script: list[Response] = field(default_factory=list)
    before_stream: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)

    def app(self) -> ASGIApp:
        return Starlette(routes=[Route(f"{self.kind.prefix}/chat/completions", self.complete, methods=["POST"])])

    async def complete(self, request: Request) -> Response:
        body = await request.json()
        self.asked.append(body)
        if request.headers["authorization"] != f"Bearer {KEY}":
            return JSONResponse(self.kind.unauthorized, 401)
        if self.script:
            return self.script.pop(0)
        if refusal := self.kind.refuses(body):
            return refusal
        limit = body.get("max_tokens") or body.get("max_completion_tokens") or self.kind.default_tokens
        finish = "length" if limit < len(WORDS) else "stop"
        if body.get("stream"):
            chunks = "".join(self._chunks(body, WORDS[:limit], finish))
            return Response(self.before_stream + chunks, media_type="text/event-stream")
        message = {"role": "assistant", "content": "".join(WORDS[:limit])}
        choice = {"index": 0, "message": message, "finish_reason": finish, "logprobs": None}
        return JSONResponse(envelope("chat.completion", body, [choice]) | {"usage": USAGE | dict(self.kind.details)})

    def _chunks(self, body: dict[str, Any], words: list[str], finish: str) -> Iterator[str]:
        usage = USAGE | dict(self.kind.details)
        yield chunk(body, {"role": "assistant", "content": ""})
        for word in words:
            yield chunk(body, {"content": word})
        last = {"last chunk": {"usage": usage}, "x_groq": {"x_groq": {"id": "req_1", "usage": usage}}}
        yield chunk(body, {}, finish, **last.get(self.kind.usage_in, {}))
        if self.kind.usage_in == "own chunk" and body.get("stream_options", {}).get("include_usage"):
            yield event(envelope("chat.completion.chunk", body, []) | {"usage": usage})
        yield "data: [DONE]\n\n"


def envelope(kind: str, body: Mapping[str, Any], choices: list[Any]) -> dict[str, Any]:
    return {"id": "chatcmpl-1", "object": kind, "created": 1700000000, "model": body["model"], "choices": choices}


def event(data: Any) -> str:
    return f"data: {json.dumps(data)}\n\n"


def chunk(body: Mapping[str, Any], delta: Mapping[str, Any], finish: str | None = None, **more: Any) -> str:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return event(envelope("chat.completion.chunk", body, [choice]) | more)


def error(status: int, message: str, code: str | None = None, kind: str = "invalid_request_error") -> Response:
    """OpenAI's shape, which most of the others have."""
    return JSONResponse({"error": {"message": message, "type": kind, "param": None, "code": code}}, status)


def _openai(body: dict[str, Any]) -> Response | None:
    if body["model"].startswith(("o1", "o3", "o4", "gpt-5")):
        for name, instead in (("max_tokens", "max_completion_tokens"), ("temperature", "the default")):
            if name in body:
                words = f"Unsupported parameter: '{name}' is not supported with this model. Use {instead} instead."
                return error(400, words, "unsupported_parameter")
    return None


def _groq(body: dict[str, Any]) -> Response | None:
    """400 for what its compatibility page lists."""
    unsupported = {"logprobs", "top_logprobs", "logit_bias"} & body.keys()
    if unsupported or body.get("n", 1) != 1 or any("name" in message for message in body["messages"]):
        return error(400, "property is unsupported", "invalid_request")
    return None


def _vllm(body: dict[str, Any]) -> Response | None:
    """vLLM has a shape of its own for errors."""
    if sum(len(message["content"]) for message in body["messages"]) < 4096:
        return None
    words = "This model's maximum context length is 1024 tokens. However, you requested 1100 tokens."
    return JSONResponse({"object": "error", "message": words, "type": "BadRequestError", "code": 400}, 400)


INCORRECT = {"error": {"message": "Incorrect API key provided.", "type": "auth", "code": "invalid_api_key"}}
KINDS = {
    "openai": Kind(
        prefix="/v1",
        unauthorized=INCORRECT,
        refuses=_openai,
        details={
            "prompt_tokens_details": {"cached_tokens": 32, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 7, "audio_tokens": 0},
        },
    ),
    "together": Kind(prefix="/v1", unauthorized=INCORRECT, usage_in="last chunk"),
    "groq": Kind(prefix="/openai/v1", unauthorized=INCORRECT, refuses=_groq, usage_in="x_groq"),
    "huggingface": Kind(prefix="/v1", unauthorized={"error": "Invalid username or password."}),
    "dedicated": Kind(prefix="/v1", unauthorized={"error": "Unauthorized"}, usage_in="last chunk"),
    "runpod vllm": Kind(prefix="/v2/abc123/openai/v1", unauthorized={}, refuses=_vllm, default_tokens=16),
}
