"""Stand-ins for the providers on OpenAI's wire, on loopback: one server, whose odd ways are rows of a table."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

Body = dict[str, Any]
ANSWER = "TON is the native coin of The Open Network, on which Toncoin pays for every message and contract in it."
KEY = "sk-made-up"
USAGE = {"prompt_tokens": 40, "completion_tokens": 20, "total_tokens": 60}
REASONING = (
    "o1",
    "o3-mini",
    "o4-mini-2025-04-16",
    "ft:o4-mini:acme::1",
    "gpt-5",
    "gpt-5-mini",
    "gpt-5.6",
    "gpt-6-astra",
)
FIELDS = frozenset({"role", "content"})  # of a message, the ones that every provider takes


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer that is none, as one provider words it."""

    status: int
    body: Any
    headers: Mapping[str, str] = field(default_factory=dict)

    def __call__(self) -> Response:
        content = "" if self.body is None else self.body if isinstance(self.body, str) else json.dumps(self.body)
        kind = "application/json" if isinstance(self.body, dict) else "text/html"
        return Response(content, self.status, dict(self.headers), media_type=kind)


def error(message: str, kind: str, code: Any = None, param: str | None = None) -> Body:
    """An error in OpenAI's shape."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def usage_apart(usage: Any) -> tuple[Body, list[Body]]:
    """Nothing in the last piece, then a chunk without choices, as OpenAI does when asked to include it."""
    return {"usage": None}, [{"choices": [], "usage": usage}]


def usage_within(usage: Any) -> tuple[Body, list[Body]]:
    """In the last piece."""
    return {"usage": usage}, []


def usage_twice(usage: Any) -> tuple[Body, list[Body]]:
    """In the last piece under Groq's own name, then in a chunk without choices."""
    times = {"queue_time": 0.01, "prompt_time": 0.002, "completion_time": 0.03, "total_time": 0.032}
    own = usage | times if isinstance(usage, dict) else usage
    return {"x_groq": {"id": "req_01", "usage": own}}, [{"choices": [], "usage": usage}]


def usage_in_each(usage: Any) -> tuple[Body, list[Body]]:
    """In the last piece and in a chunk without choices, the former with half of it, as vLLM counts on the way."""
    half = {name: count // 2 for name, count in usage.items()} if isinstance(usage, dict) else usage
    return {"usage": half}, [{"choices": [], "usage": usage}]


def takes_anything(_: Body) -> Refusal | None:
    """Refuses no field."""
    return None


def refused_by_openai(body: Body) -> Refusal | None:
    """What models that reason refuse."""
    if body["model"] not in REASONING:
        return None
    if "max_tokens" in body:
        words = (
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
        )
        return Refusal(400, error(words, "invalid_request_error", "unsupported_parameter", "max_tokens"))
    if body.get("temperature", 1) != 1:
        words = "Unsupported value: 'temperature' does not support 0 with this model. Only 1 is."
        return Refusal(400, error(words, "invalid_request_error", "unsupported_value", "temperature"))
    return None


def refused_by_groq(body: Body) -> Refusal | None:
    """Fields that Groq doesn't take, of the body and of each message."""
    for name in ("logprobs", "top_logprobs", "logit_bias"):
        if name in body:
            return Refusal(400, error(f"property '{name}' is unsupported", "invalid_request_error"))
    if body.get("n", 1) != 1:
        return Refusal(400, error("'n' : number must be at most 1", "invalid_request_error"))
    for number, message in enumerate(body["messages"]):
        for name in message.keys() - FIELDS:
            words = f"'messages.{number}' : for 'role:{message['role']}' : property '{name}' is unsupported"
            return Refusal(400, error(words, "invalid_request_error"))
    return None


@dataclass(frozen=True, slots=True)
class Provider:
    """What is a provider's own: its path, where it puts the usage of a stream, and how it words what it refuses."""

    prefix: str
    models: Sequence[str]
    unauthorized: Refusal
    unknown_model: Refusal
    busy: Refusal
    too_long: Refusal
    usage: Callable[[Any], tuple[Body, list[Body]]] = usage_apart
    refused: Callable[[Body], Refusal | None] = takes_anything
    default_max_tokens: int = 4096
    starting: Refusal | None = None


PROVIDERS = {
    "openai": Provider(
        prefix="/v1",
        models=("gpt-4o", "gpt-5-chat-latest", "ft:gpt-4o:acme::1", *REASONING),
        unauthorized=Refusal(
            401, error("Incorrect API key provided: sk-w****ng.", "invalid_request_error", "invalid_api_key")
        ),
        unknown_model=Refusal(404, error("The model `x` does not exist", "invalid_request_error", "model_not_found")),
        busy=Refusal(
            429,
            error("Rate limit reached for gpt-4o on tokens per min (TPM).", "tokens", "rate_limit_exceeded"),
            {"retry-after": "7", "retry-after-ms": "6596", "x-ratelimit-remaining-tokens": "0"},
        ),
        too_long=Refusal(
            400,
            error(
                "This model's maximum context length is 128000 tokens.",
                "invalid_request_error",
                "context_length_exceeded",
            ),
        ),
        refused=refused_by_openai,
    ),
    "together": Provider(
        prefix="/v1",
        models=("meta-llama/Llama-3.3-70B-Instruct-Turbo",),
        unauthorized=Refusal(
            401, {"id": "o1"} | error("Invalid API key provided.", "invalid_request_error", "invalid_api_key")
        ),
        unknown_model=Refusal(
            400,
            {"id": "o1"}
            | error("Unable to access non-serverless model x.", "invalid_request_error", "model_not_available"),
        ),
        busy=Refusal(429, error("You have been rate limited.", "credit_limit"), {"x-ratelimit-reset": "1"}),
        too_long=Refusal(
            422,
            error(
                "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 8193.", "invalid_request_error"
            ),
        ),
        usage=usage_within,
    ),
    "groq": Provider(
        prefix="/openai/v1",
        models=("llama-3.3-70b-versatile", "openai/gpt-oss-20b"),
        unauthorized=Refusal(401, error("Invalid API Key", "invalid_request_error", "invalid_api_key")),
        unknown_model=Refusal(
            400, error("The model `x` has been decommissioned", "invalid_request_error", "model_decommissioned")
        ),
        busy=Refusal(
            429,
            error("Rate limit reached for model `x` on tokens per minute.", "tokens", "rate_limit_exceeded"),
            {"retry-after": "5.289", "x-ratelimit-reset-tokens": "5.289s"},
        ),
        too_long=Refusal(
            400, error("Please reduce the length of the messages.", "invalid_request_error", "context_length_exceeded")
        ),
        usage=usage_twice,
        refused=refused_by_groq,
    ),
    "huggingface": Provider(
        prefix="/v1",
        models=("openai/gpt-oss-120b", "openai/gpt-oss-120b:fastest", "openai/gpt-oss-120b:groq"),
        unauthorized=Refusal(401, {"error": "Invalid username or password."}),
        unknown_model=Refusal(
            400,
            error(
                "The requested model 'x' is not supported by any provider you have enabled.",
                "invalid_request_error",
                "model_not_supported",
                "model",
            ),
        ),
        busy=Refusal(429, {"error": "We had to rate limit you."}),
        too_long=Refusal(400, {"error": "This model's maximum context length is 131072 tokens."}),
    ),
    "dedicated": Provider(
        prefix="/v1",
        models=("tgi",),
        unauthorized=Refusal(401, {"error": "Unauthorized"}),
        unknown_model=Refusal(404, {"error": "Not Found"}),
        busy=Refusal(429, {"error": "Model is overloaded", "error_type": "overloaded"}),
        too_long=Refusal(
            422,
            {
                "error": "Input validation error: `inputs` must have less than 4095 tokens. Given: 5000",
                "error_type": "validation",
            },
        ),
        starting=Refusal(503, {"error": "503 Service Temporarily Unavailable"}),
    ),
    "runpod": Provider(
        prefix="/v2/abc123/openai/v1",
        models=("mistralai/Mistral-7B-Instruct-v0.2",),
        unauthorized=Refusal(401, None),
        unknown_model=Refusal(404, {"object": "error", "message": "The model `x` does not exist.", "code": 404}),
        busy=Refusal(429, "<html>429 Too Many Requests</html>"),
        too_long=Refusal(
            400,
            {
                "object": "error",
                "message": "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens.",
                "type": "BadRequestError",
                "param": None,
                "code": 400,
            },
        ),
        usage=usage_in_each,
        default_max_tokens=16,
    ),
}


@dataclass(slots=True)
class LikeOpenAI:
    """A provider that answers with `answer`, a word a token, and reports `usage`.

    `instead` holds answers to give in its place, each once; the first `starts` requests find it starting. In a stream
    `before` are the lines that come first, `interrupted` one that comes after the second piece and ends it.
    """

    provider: Provider
    answer: str = ANSWER
    usage: Any = field(default_factory=lambda: {**USAGE})
    instead: list[Callable[[], Response]] = field(default_factory=list)
    starts: int = 0
    before: Sequence[str] = ()
    interrupted: str | None = None
    says_done: bool = True
    pause_seconds: float = 0
    asked: list[Body] = field(default_factory=list)

    def app(self) -> ASGIApp:
        return Starlette(routes=[Route(f"{self.provider.prefix}/chat/completions", self.complete, methods=["POST"])])

    async def complete(self, request: Request) -> Response:
        body: Body = await request.json()
        self.asked.append(body)
        if refusal := self._refusal(request, body):
            return refusal()
        if self.instead:
            return self.instead.pop(0)()
        limit: int = body.get("max_completion_tokens") or body.get("max_tokens") or self.provider.default_max_tokens
        words = self.answer.split(" ")
        pieces = [word + " " * (number < len(words)) for number, word in enumerate(words[:limit], start=1)]
        finish = "length" if len(words) > limit else "stop"
        if body.get("stream"):
            return StreamingResponse(self._lines(body, pieces, finish), media_type="text/event-stream")
        message = {"role": "assistant", "content": "".join(pieces)}
        return JSONResponse(_envelope([{"index": 0, "message": message, "finish_reason": finish}], usage=self.usage))

    def _refusal(self, request: Request, body: Body) -> Refusal | None:
        if request.headers.get("authorization") != f"Bearer {KEY}":
            return self.provider.unauthorized
        if self.starts and self.provider.starting:
            self.starts -= 1
            return self.provider.starting
        return self.provider.unknown_model if body["model"] not in self.provider.models else self.provider.refused(body)

    async def _lines(self, body: Body, pieces: list[str], finish: str) -> AsyncIterator[str]:
        for line in self.before:
            yield line
        yield chunk({"role": "assistant", "content": ""})
        for number, piece in enumerate(pieces):
            if number == 2 and self.interrupted is not None:
                yield self.interrupted
                return
            yield chunk({"content": piece})
            await asyncio.sleep(self.pause_seconds)
        included = body.get("stream_options", {}).get("include_usage")
        last, more = self.provider.usage(self.usage) if included else ({}, [])
        yield chunk({}, finish, **last)
        for rest in more:
            yield event(_envelope(**rest))
        if self.says_done:
            yield "data: [DONE]\n\n"


def chunk(delta: Body, finish: str | None = None, **more: Any) -> str:
    """A piece of a stream."""
    return event(_envelope([{"index": 0, "delta": delta, "finish_reason": finish}], **more))


def event(body: Body) -> str:
    """A line of a stream."""
    return f"data: {json.dumps(body)}\n\n"


def saying(content: str, kind: str = "application/json") -> Callable[[], Response]:
    """This body."""
    return lambda: Response(content, media_type=kind)


def _envelope(choices: list[Body], **more: Any) -> Body:
    return {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m", "choices": choices} | more
