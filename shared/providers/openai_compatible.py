"""Chat and embeddings on the OpenAI wire shape: OpenAI itself, Together, Groq, vLLM, llama.cpp, Ollama and others."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Any, TypedDict

import httpx
import openai
from openai import AsyncOpenAI
from openai.types.completion_usage import CompletionUsage
from pydantic import SecretStr

from shared.errors import DeadlineExceeded, GatewayError, ModelUnavailable

# What the SDK raises over an answer that isn't the API's: it doesn't validate what it parses.
GARBAGE = (AttributeError, LookupError, TypeError, ValueError)


class Message(TypedDict):
    """One message of a chat completion."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one call; `estimated` where the server didn't report them."""

    input_tokens: int
    output_tokens: int
    estimated: bool = False


def connect(http: httpx.AsyncClient, base_url: str, key: SecretStr) -> AsyncOpenAI:
    """A client of one server; when to ask again is ours to say, not the SDK's."""
    return AsyncOpenAI(base_url=base_url, api_key=key.get_secret_value(), http_client=http, max_retries=0)


async def generate(
    client: AsyncOpenAI, model: str, messages: Sequence[Message], max_tokens: int, timeout_seconds: float
) -> tuple[str, bool, Usage | None]:
    """The whole answer, whether `max_tokens` cut it off, and its usage as reported."""
    try:
        answer = await client.chat.completions.create(**_request(model, messages, max_tokens, timeout_seconds))
        if not answer.choices:
            raise ModelUnavailable("The model gave no answer: try again.")
        choice = answer.choices[0]
        return clean(choice.message.content), choice.finish_reason == "length", _usage(answer.usage)
    except (openai.OpenAIError, *GARBAGE) as error:
        raise _ours(error) from error


async def stream(
    client: AsyncOpenAI, model: str, messages: Sequence[Message], max_tokens: int, timeout_seconds: float
) -> AsyncGenerator[str | Usage, None]:
    """The answer's pieces as they come, then its usage where the server reports it.

    A stream that ends without a finish reason was cut off: `ModelUnavailable`.
    """
    request = _request(model, messages, max_tokens, timeout_seconds)
    finished = False
    try:
        async with await client.chat.completions.create(
            **request, stream=True, stream_options={"include_usage": True}
        ) as chunks:
            async for chunk in chunks:
                if chunk.choices and (piece := clean(chunk.choices[0].delta.content)):
                    yield piece
                finished = finished or bool(chunk.choices and chunk.choices[0].finish_reason)
                if usage := _usage(chunk.usage):
                    yield usage
    except (openai.OpenAIError, httpx.HTTPError, *GARBAGE) as error:  # the SDK leaves errors in mid-stream as they are
        raise _ours(error) from error
    if not finished:
        raise ModelUnavailable("The model broke off in the middle of its answer.")


def embedder(
    http: httpx.AsyncClient, base_url: str, key: SecretStr
) -> Callable[[str, Sequence[str], Mapping[str, Any]], Awaitable[list[Any]]]:
    """`embed` for one server and key."""
    return partial(embed, connect(http, base_url, key))


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


def _request(model: str, messages: Sequence[Message], max_tokens: int, timeout_seconds: float) -> dict[str, Any]:
    return {
        "model": model,
        "messages": list(messages),
        "max_tokens": max_tokens,
        "temperature": 0,
        "timeout": timeout_seconds,
    }


def _usage(reported: CompletionUsage | None) -> Usage | None:
    """The tokens as reported; servers have been seen to report null, which is no report."""
    counts = (reported.prompt_tokens, reported.completion_tokens) if reported else ()
    if not counts or not all(isinstance(count, int) and count >= 0 for count in counts):
        return None
    return Usage(*counts)


def _ours(error: Exception) -> GatewayError:
    if isinstance(error, openai.APITimeoutError | httpx.TimeoutException):
        return DeadlineExceeded("The model took too long: try again, or ask something shorter.")
    return ModelUnavailable("The model doesn't answer: try again.")
