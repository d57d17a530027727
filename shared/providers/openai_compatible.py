"""Chat and embeddings on the OpenAI wire shape: OpenAI itself, Together, Groq, vLLM, llama.cpp, Ollama and others."""

import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from email.utils import parsedate_to_datetime
from functools import partial
from operator import itemgetter
from time import time
from typing import Any, TypeGuard

import httpx
import openai
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionChunk
from openai.types.completion_usage import CompletionUsage
from pydantic import SecretStr

from shared.providers.chat import Ask, Chat, Failure, ProviderFailed, Said, Usage

# What the SDK raises over an answer that isn't the API's: it doesn't validate what it parses.
GARBAGE = (AttributeError, LookupError, TypeError, ValueError)
REFUSED, TOO_MUCH, CONTENT = {401, 402, 403, 404}, {400, 413, 422}, {"content_filter", "content_policy_violation"}
REASONING = re.compile(r"o\d|gpt-5")
TOO_LONG = re.compile(r"context|too (?:long|large)|maximum|tokens", re.IGNORECASE)


def connect(http: httpx.AsyncClient, base_url: str, key: SecretStr) -> Chat:
    """Chat with one server."""
    client = _client(http, base_url, key)
    return Chat(partial(generate, client), partial(stream, client))


async def generate(client: AsyncOpenAI, ask: Ask) -> Said:
    """The whole answer."""
    try:
        answer = await client.chat.completions.create(**_request(ask))
        if not answer.choices:
            raise ProviderFailed(Failure.FAILING, "no choices")
        choice = answer.choices[0]
        if choice.finish_reason == "content_filter":
            raise ProviderFailed(Failure.UNACCEPTABLE, "filtered")
        model = answer.model if isinstance(answer.model, str) else None
        return Said(clean(choice.message.content), choice.finish_reason == "length", _usage(answer.usage), model)
    except (openai.OpenAIError, *GARBAGE) as error:
        raise _failed(error) from error


async def stream(client: AsyncOpenAI, ask: Ask) -> AsyncGenerator[str | Usage, None]:
    """The answer's pieces as they come, then its usage where the server reports it.

    A stream that ends without a finish reason was cut off: it failed.
    """
    finish: str | None = None
    try:
        async with await client.chat.completions.create(
            **_request(ask), stream=True, stream_options={"include_usage": True}
        ) as chunks:
            async for chunk in chunks:
                if chunk.choices and (piece := clean(chunk.choices[0].delta.content)):
                    yield piece
                finish = finish or (chunk.choices[0].finish_reason if chunk.choices else None)
                if usage := _usage(chunk.usage or _groqs(chunk)):
                    yield usage
    except (openai.OpenAIError, httpx.HTTPError, *GARBAGE) as error:  # the SDK leaves errors in mid-stream as they are
        raise _failed(error) from error
    if not finish or finish == "content_filter":
        raise ProviderFailed(Failure.UNACCEPTABLE if finish else Failure.FAILING, "broken off")


def embedder(
    http: httpx.AsyncClient, base_url: str, key: SecretStr
) -> Callable[[str, Sequence[str], Mapping[str, Any]], Awaitable[list[Any]]]:
    """`embed` for one server and key."""
    return partial(embed, _client(http, base_url, key))


async def embed(client: AsyncOpenAI, model: str, texts: Sequence[str], options: Mapping[str, Any]) -> list[Any]:
    """The texts' vectors in their order, as they came: nobody has looked at their numbers.

    Raises the SDK's errors, and those of `GARBAGE`. The body is read past the SDK's own types, into which it
    takes 6 ms to put a vector of 1536 numbers.
    """
    answer = await client.embeddings.with_raw_response.create(
        model=model, input=list(texts), encoding_format="float", extra_body=dict(options)
    )
    entries = sorted(answer.http_response.json()["data"], key=itemgetter("index"))
    if [entry["index"] for entry in entries] != list(range(len(entries))):
        raise ValueError("nobody can tell whose vectors these are")
    return [entry["embedding"] for entry in entries]


def clean(text: str | None) -> str:
    """Without what no database stores and no JSON carries: NUL, and halves of surrogate pairs."""
    return (text or "").replace("\0", "").encode("utf-8", "replace").decode()


def _client(http: httpx.AsyncClient, base_url: str, key: SecretStr) -> AsyncOpenAI:
    """A client of one server; when to ask again is ours to say, not the SDK's."""
    return AsyncOpenAI(base_url=base_url, api_key=key.get_secret_value(), http_client=http, max_retries=0)


def _request(ask: Ask) -> dict[str, Any]:
    """OpenAI's reasoning models refuse `max_tokens`, and any temperature but their own."""
    limits = {"max_tokens": ask.max_tokens, "temperature": 0}
    if REASONING.match(ask.model):
        limits = {"max_completion_tokens": ask.max_tokens}
    return {"model": ask.model, "messages": list(ask.messages), "timeout": ask.timeout_seconds, **limits}


def _usage(reported: CompletionUsage | None) -> Usage | None:
    """The tokens as reported; servers have been seen to report null, which is no report."""
    if reported is None or not (_is_count(reported.prompt_tokens) and _is_count(reported.completion_tokens)):
        return None
    spent, made = reported.prompt_tokens, reported.completion_tokens
    cached = _part(reported.prompt_tokens_details, "cached_tokens", spent)
    return Usage(spent, made, False, cached, _part(reported.completion_tokens_details, "reasoning_tokens", made))


def _groqs(chunk: ChatCompletionChunk) -> CompletionUsage | None:
    """Groq tells a stream's usage in a field of its own where `include_usage` isn't heeded."""
    own = (chunk.model_extra or {}).get("x_groq")
    usage = own.get("usage") if isinstance(own, dict) else None
    return CompletionUsage.construct(**usage) if isinstance(usage, dict) else None


def _part(details: Any, name: str, whole: int) -> int:
    """The tokens of one kind among the whole; what can't be is none."""
    count = getattr(details, name, None)
    return count if _is_count(count) and count <= whole else 0


def _is_count(value: Any) -> TypeGuard[int]:
    return type(value) is int and value >= 0


def _failed(error: Exception) -> ProviderFailed:
    if isinstance(error, openai.APITimeoutError | httpx.TimeoutException):
        return ProviderFailed(Failure.LATE)
    if not isinstance(error, openai.APIStatusError):
        return ProviderFailed(Failure.FAILING, type(error).__name__)
    status, code = error.status_code, str(error.code)
    if status in REFUSED or code == "insufficient_quota":  # which is no matter of waiting, though OpenAI says 429
        return ProviderFailed(Failure.REFUSED, code)
    if status in TOO_MUCH:
        is_long = code not in CONTENT and (code == "context_length_exceeded" or TOO_LONG.search(error.response.text))
        return ProviderFailed(Failure.TOO_LONG if is_long else Failure.UNACCEPTABLE, code)
    failure = Failure.BUSY if status in (408, 409, 429) else Failure.FAILING
    return ProviderFailed(failure, code, retry_after(error.response))


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
