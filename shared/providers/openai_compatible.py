"""Chat and embeddings on the OpenAI wire shape: OpenAI itself, Together, Groq, vLLM, llama.cpp, Ollama and others.

https://platform.openai.com/docs/api-reference/chat, without OpenAI's SDK: its import is half of a function's cold
start, its types take 6 ms for a vector, and when to ask again is ours to say.
"""

import json
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from functools import partial
from operator import itemgetter
from time import time
from typing import Any, TypeGuard

import httpx
from pydantic import SecretStr

from shared.providers.chat import Ask, Chat, Failure, ProviderFailed, Said, Usage
from shared.providers.event_streams import events

# What is raised over an answer that isn't the API's, or an address that isn't one.
GARBAGE = (AttributeError, LookupError, TypeError, ValueError, RecursionError, httpx.InvalidURL)
# What a model's name says of how it is asked, the first that fits: its name for the limit of an answer, and settings.
# OpenAI's models that reason refuse `max_tokens`, and any temperature but their own.
PARAMETERS: tuple[tuple[re.Pattern[str], str, dict[str, Any]], ...] = (
    (re.compile(r"(ft:)?gpt-5-chat"), "max_completion_tokens", {"temperature": 0}),
    (re.compile(r"(ft:)?(o[1-9]|gpt-[5-9])(?=[-.:]|$)"), "max_completion_tokens", {}),
    (re.compile(r""), "max_tokens", {"temperature": 0}),
)
# A code says more than its status: no money is no matter of waiting, though OpenAI says 429, and a model that isn't
# served, or not so, is nothing the caller could put in other words, though the status is 400.
CODES = {
    "insufficient_quota": Failure.REFUSED,
    "model_decommissioned": Failure.REFUSED,
    "model_not_available": Failure.REFUSED,
    "model_not_found": Failure.REFUSED,
    "model_not_supported": Failure.REFUSED,
    "unsupported_parameter": Failure.REFUSED,
    "unsupported_value": Failure.REFUSED,
    "context_length_exceeded": Failure.TOO_LONG,
    "content_filter": Failure.UNACCEPTABLE,
    "content_policy_violation": Failure.UNACCEPTABLE,
    "rate_limit_exceeded": Failure.BUSY,
}
STATUSES = {
    400: Failure.UNACCEPTABLE,
    401: Failure.REFUSED,
    402: Failure.REFUSED,
    403: Failure.REFUSED,
    404: Failure.REFUSED,
    408: Failure.BUSY,
    409: Failure.BUSY,
    413: Failure.UNACCEPTABLE,
    422: Failure.UNACCEPTABLE,
    429: Failure.BUSY,
}
TOO_LONG = re.compile(r"context|too (?:long|large)|maximum|tokens", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Server:
    """A server by its key."""

    http: httpx.AsyncClient
    base_url: str
    headers: Mapping[str, str] = field(repr=False)

    @classmethod
    def open(cls, http: httpx.AsyncClient, base_url: str, key: SecretStr) -> "Server":
        return cls(http, base_url.rstrip("/"), {"authorization": f"Bearer {key.get_secret_value()}"})

    async def post(self, path: str, body: Mapping[str, Any], timeout_seconds: float | None = None) -> Any:
        """The answer's JSON. Raises httpx's errors, for a status that is none of success too, and `GARBAGE`."""
        limit = httpx.USE_CLIENT_DEFAULT if timeout_seconds is None else timeout_seconds
        response = await self.http.post(self.base_url + path, json=body, headers=self.headers, timeout=limit)
        return response.raise_for_status().json()

    async def stream(self, path: str, body: Mapping[str, Any], timeout_seconds: float) -> AsyncGenerator[Any, None]:
        """The JSON of each event, up to `[DONE]`. Raises what `post` does."""
        url, headers = self.base_url + path, {**self.headers, "accept": "text/event-stream"}
        async with self.http.stream("POST", url, json=body, headers=headers, timeout=timeout_seconds) as response:
            if not response.is_success:
                await response.aread()
                response.raise_for_status()
            async with aclosing(events(response)) as told:
                async for _, data in told:
                    if data.startswith("[DONE]"):
                        return
                    if data:
                        yield json.loads(data)


def connect(http: httpx.AsyncClient, base_url: str, key: SecretStr) -> Chat:
    """Chat with one server."""
    server = Server.open(http, base_url, key)
    return Chat(partial(generate, server), partial(stream, server))


async def generate(server: Server, ask: Ask) -> Said:
    """The whole answer."""
    try:
        answer = await server.post("/chat/completions", _request(ask), ask.timeout_seconds)
        if not answer.get("choices"):
            raise _error(answer)
        choice = answer["choices"][0]
        finish, text = choice.get("finish_reason"), choice["message"].get("content")
        if finish == "content_filter":
            raise ProviderFailed(Failure.UNACCEPTABLE, "filtered")
        model = answer.get("model")
        named = model if isinstance(model, str) else None
        return Said(clean(text), finish == "length", read_usage(answer.get("usage")), named)
    except (httpx.HTTPError, *GARBAGE) as error:
        raise _failed(error) from error


async def stream(server: Server, ask: Ask) -> AsyncGenerator[str | Usage, None]:
    """The answer's pieces as they come, then its usage where the server reports it: of several the last counts.

    A stream that ends without a finish reason was cut off: it failed.
    """
    finish: str | None = None
    usage: Usage | None = None
    body = {**_request(ask), "stream": True, "stream_options": {"include_usage": True}}
    try:
        async with aclosing(server.stream("/chat/completions", body, ask.timeout_seconds)) as chunks:
            async for chunk in chunks:
                if chunk.get("error"):
                    raise _error(chunk)
                choice = chunk["choices"][0] if chunk["choices"] else {}
                if piece := clean((choice.get("delta") or {}).get("content")):
                    yield piece
                finish = finish or choice.get("finish_reason")
                usage = read_usage(chunk.get("usage")) or _groqs_usage(chunk) or usage
    except (httpx.HTTPError, *GARBAGE) as error:
        raise _failed(error) from error
    if not finish or finish == "content_filter":
        raise ProviderFailed(Failure.UNACCEPTABLE if finish else Failure.FAILING, "broken off")
    if usage:
        yield usage


def embedder(
    http: httpx.AsyncClient, base_url: str, key: SecretStr
) -> Callable[[str, Sequence[str], Mapping[str, Any]], Awaitable[list[Any]]]:
    """`embed` for one server and key."""
    return partial(embed, Server.open(http, base_url, key))


async def embed(server: Server, model: str, texts: Sequence[str], options: Mapping[str, Any]) -> list[Any]:
    """The texts' vectors in their order, as they came: nobody has looked at their numbers.

    Raises what `Server.post` does.
    """
    body = {"model": model, "input": list(texts), "encoding_format": "float", **options}
    answer = await server.post("/embeddings", body)
    entries = sorted(answer["data"], key=itemgetter("index"))
    if [entry["index"] for entry in entries] != list(range(len(entries))):
        raise ValueError("nobody can tell whose vectors these are")
    return [entry["embedding"] for entry in entries]


def clean(text: str | None) -> str:
    """Without what no database stores and no JSON carries: NUL, and halves of surrogate pairs."""
    return (text or "").replace("\0", "").encode("utf-8", "replace").decode()


def read_usage(reported: Any) -> Usage | None:
    """The tokens as reported; None where that is null or no counts, which servers have been seen to report."""
    counts = _fields(reported)
    spent, made = counts.get("prompt_tokens"), counts.get("completion_tokens")
    if not (is_count(spent) and is_count(made)):
        return None
    hits = counts.get("prompt_cache_hit_tokens")  # DeepSeek's name for them
    cached = _fields(counts.get("prompt_tokens_details")).get("cached_tokens", hits)
    reasoning = _fields(counts.get("completion_tokens_details")).get("reasoning_tokens")
    return Usage(spent, made, cached_tokens=_part(cached, spent), reasoning_tokens=_part(reasoning, made))


def is_count(value: Any) -> TypeGuard[int]:
    """Whether it may be a number of tokens: one that the ledger's columns hold."""
    return type(value) is int and 0 <= value < 2**31


def retry_after(response: httpx.Response) -> float | None:
    """Seconds the server asks to wait, given as seconds or as a date, an hour at most; None where it asks for none."""
    value = response.headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time()
        except (ValueError, OverflowError):
            return None
    return min(3600.0, max(0.0, seconds))


def _request(ask: Ask) -> dict[str, Any]:
    limit, settings = next((limit, settings) for name, limit, settings in PARAMETERS if name.match(ask.model))
    return {"model": ask.model, "messages": list(ask.messages), limit: ask.max_tokens, **settings}


def _groqs_usage(chunk: Mapping[str, Any]) -> Usage | None:
    """Groq's older place for it, in the last piece."""
    return read_usage(_fields(chunk.get("x_groq")).get("usage"))


def _fields(value: Any) -> dict[str, Any]:
    """An object's fields; none where it is no object."""
    return value if isinstance(value, dict) else {}


def _part(count: Any, whole: int) -> int:
    """A part of a count, never more than the whole; 0 where it is no count."""
    return min(count, whole) if is_count(count) else 0


def _failed(error: Exception) -> ProviderFailed:
    if isinstance(error, httpx.TimeoutException):
        return ProviderFailed(Failure.LATE)
    if isinstance(error, httpx.HTTPStatusError):
        response = error.response
        return _refusal(response.status_code, str(_code(response)), response.text, retry_after(response))
    return ProviderFailed(Failure.FAILING, type(error).__name__)


def _code(response: httpx.Response) -> Any:
    """An error's code; None where its body is none of the API's."""
    try:
        told = response.json()
    except (ValueError, RecursionError):
        return None
    return _fields(_fields(told).get("error") or told).get("code")


def _error(body: Any) -> ProviderFailed:
    """An error in an answer's place: in mid-stream, or under a status of 200. Its code may be a status."""
    error = _fields(body).get("error") or body
    code = _fields(error).get("code")
    return _refusal(code if type(code) is int else 500, str(code), str(error))


def _refusal(status: int, code: str, words: str, wait_seconds: float | None = None) -> ProviderFailed:
    failure = CODES.get(code) or STATUSES.get(status, Failure.FAILING)
    if failure is Failure.UNACCEPTABLE and code not in CODES and TOO_LONG.search(words):
        failure = Failure.TOO_LONG
    if failure is Failure.BUSY and status == 413:  # Groq's, of more than the account may ask in a minute: it never fits
        failure = Failure.REFUSED
    return ProviderFailed(failure, code, wait_seconds if failure in (Failure.BUSY, Failure.FAILING) else None)
