"""A provider's fine-tuning API with its key, and what is said over it, whatever the provider."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx
from pydantic import SecretStr

from shared.errors import InvalidRequest, Misconfigured, Unavailable
from shared.providers.openai_compatible import retry_after
from shared.training_formats import Name, Split

Method = Literal["supervised", "dpo"]
Course = Literal["training", "ready", "failed", "cancelled"]

CALL_SECONDS = 20
UPLOAD_TIMEOUT = httpx.Timeout(60, connect=5)  # each read and write; how long all of it may take is the caller's
WORDS = 300  # characters of a provider's own


@dataclass(frozen=True, slots=True)
class File:
    """A file that is sent; `chunks` gives its bytes, from the beginning each time it is called, and blocks."""

    split: Split
    rows: int
    size_bytes: int
    sha256: str
    chunks: Callable[[], Iterator[bytes]] = field(repr=False)

    async def stream(self) -> AsyncIterator[bytes]:
        """The bytes, read in a thread. Raises what reading does."""
        async for chunk in in_thread(self.chunks()):
            yield chunk


@dataclass(frozen=True, slots=True)
class Order:
    """A job as it is ordered; `reference` is nobody else's, and stands in the names of what is made for it."""

    reference: str
    namespace: str | None
    base_model: str
    model_name: str
    method: Method
    params: Mapping[str, Any]

    def file_name(self, split: Split) -> str:
        return f"{self.reference}.{split}.jsonl"


@dataclass(frozen=True, slots=True)
class Progress:
    """How it stands with a job; `status` is the provider's own word.

    A job that is ready has a model: `provider_model`, where the provider serves it under this name, or an `address` of
    its weights, as `sources` has them.
    """

    course: Course
    status: str
    failure: str | None = None
    provider_model: str | None = None
    address: str | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    finished_at: str | None = None


@dataclass(frozen=True, slots=True)
class Api:
    """A provider's API; what it answers is checked by whoever asks."""

    http: httpx.AsyncClient
    name: str
    base_url: str
    key: SecretStr
    key_name: str

    async def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        absent: int | None = None,
        params: Mapping[str, str] | None = None,
    ) -> Any:
        """The JSON it answers to JSON; None under the status `absent`. Raises what `checked` does."""
        response = await self.send(method, self.base_url + path, json=body, params=params, headers=self.headers())
        return None if response.status_code == absent else read(self, response)

    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.key.get_secret_value()}"}

    async def send(self, method: str, url: str, **what: Any) -> httpx.Response:
        """What it answers, whatever that is. Redirects are the caller's. Raises `Unavailable`."""
        try:
            return await self.http.request(
                method, url, follow_redirects=False, **{"timeout": CALL_SECONDS, "params": None, **what}
            )
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise Unavailable(f"{self.name} can't be reached: try again.") from error

    async def put(self, url: str, content: AsyncIterator[bytes] | bytes, size_bytes: int) -> httpx.Response:
        """Send bytes to an address that the provider has signed, which its key is nothing to."""
        headers = {"content-length": str(size_bytes), "content-type": "application/octet-stream"}
        response = await self.send("PUT", url, content=content, headers=headers, timeout=UPLOAD_TIMEOUT)
        if not response.is_success:  # a signature that has run out, too: with the next run it is a fresh one
            raise Unavailable(f"{self.name}'s storage answered {response.status_code}: try again.")
        return response

    def checked(self, response: httpx.Response) -> httpx.Response:
        """An answer that is none of failure.

        Raises `Misconfigured` for a key that isn't taken, `InvalidRequest` for what it refuses, with its words, and
        `Unavailable`.
        """
        if response.is_success:
            return response
        words = self._words(response)
        if response.status_code in (401, 403):
            raise Misconfigured(f"{self.key_name}: {self.name} doesn't accept this key{words}.")
        if response.status_code in (408, 409, 425, 429) or not response.is_client_error:
            wait_seconds = int(retry_after(response) or 0) or None
            raise Unavailable(f"{self.name} is busy or failing: try again.", wait_seconds)
        raise InvalidRequest(f"{self.name} refuses this{words}.")

    def unreadable(self) -> Unavailable:
        """For an answer that isn't the API's."""
        return Unavailable(f"{self.name} can't be understood: try again.")

    def said(self, words: Any) -> str:
        """The provider's words, on one line and without the key."""
        told = " ".join(str(words).replace(self.key.get_secret_value(), "…").split())
        return told[:WORDS].rstrip(".")

    def _words(self, response: httpx.Response) -> str:
        try:
            body = response.json()
        except (ValueError, RecursionError):
            return ""
        fields = body if isinstance(body, dict) else {}
        inner = fields.get("error")
        told = [inner.get("message") if isinstance(inner, dict) else inner, fields.get("message"), fields.get("detail")]
        words = next((self.said(each) for each in told if isinstance(each, str) and each), "")
        return f": {words}" if words else ""


@dataclass(frozen=True, slots=True)
class Trainer:
    """A provider of fine-tuning, and what its API takes.

    `params` are the hyperparameters that may be set. `send` gives what a file is called there, the same one however
    often it is sent; `find` the id of the job that an order has led to, where one has; `start` gives it; `look` None
    for a job it doesn't know; `remove` is content with a file that is gone.
    """

    title: str
    formats: Mapping[Method, Name]
    params: Mapping[Method, frozenset[str]]
    least_rows: int
    most_bytes: int
    needs_namespace: bool
    send: Callable[[Api, Order, File], Awaitable[str]]
    find: Callable[[Api, Order, Mapping[str, str]], Awaitable[str | None]]
    start: Callable[[Api, Order, Mapping[str, str]], Awaitable[str]]
    look: Callable[[Api, Order, str], Awaitable[Progress | None]]
    remove: Callable[[Api, str], Awaitable[None]]


def read(api: Api, response: httpx.Response) -> Any:
    """A good answer's JSON, None where it has no body. Raises what `Api.checked` does."""
    api.checked(response)
    try:
        return response.json() if response.content else None
    except (ValueError, RecursionError) as error:
        raise api.unreadable() from error


def text(api: Api, answer: Any, name: str) -> str:
    """A field that has to be there. Raises `Unavailable`."""
    value = answer.get(name) if isinstance(answer, dict) else None
    if not isinstance(value, str) or not value:
        raise api.unreadable()
    return value


def rows(api: Api, answer: Any) -> list[dict[str, Any]]:
    """A list's objects, which is an answer or its `data`. Raises `Unavailable`: what isn't found would be made anew."""
    listed = answer.get("data") if isinstance(answer, dict) else answer
    if not isinstance(listed, list):
        raise api.unreadable()
    return [row for row in listed if isinstance(row, dict)]


def suffix(model_name: str, characters: int) -> str:
    """A model's name as a part of another."""
    kept = "".join(each if each.isascii() and each.isalnum() else "-" for each in model_name.lower())
    return kept[:characters].strip("-")


async def in_thread(chunks: Iterator[bytes]) -> AsyncIterator[bytes]:
    """What an iterator gives that blocks."""
    while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
        yield chunk
