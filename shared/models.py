"""The model behind the answers: which one, how long it may take, and what it said."""

import asyncio
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from openai import AsyncOpenAI

from shared.errors import DeadlineExceeded, ModelUnavailable
from shared.prompting import count_tokens
from shared.providers import openai_compatible
from shared.providers.openai_compatible import Message, Usage

SENTENCE_END = re.compile(r"[.!?。！？](?=\s)")


@dataclass(frozen=True, slots=True)
class Route:
    """A model on a server, and how much it may say."""

    client: AsyncOpenAI
    model: str
    answer_tokens: int


@dataclass(frozen=True, slots=True)
class Deadline:
    """The moment a request must be answered by, on the monotonic clock."""

    at: float

    @classmethod
    def after(cls, seconds: float) -> "Deadline":
        return cls(time.monotonic() + seconds)

    def remaining(self) -> float:
        return self.at - time.monotonic()

    @asynccontextmanager
    async def enforced(self) -> AsyncIterator[None]:
        """Cancels what runs inside when the time is up. Raises `DeadlineExceeded`."""
        try:
            async with asyncio.timeout(self.remaining()):
                yield
        except TimeoutError as error:
            raise DeadlineExceeded("The answer took too long: try again, or ask something shorter.") from error


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model said, and its tokens; `estimated` where the server didn't count them itself."""

    text: str
    usage: Usage


async def generate(route: Route, messages: Sequence[Message], deadline: Deadline) -> Reply:
    """The model's whole answer, to its last whole sentence where the token limit cut it off.

    Raises `ModelUnavailable`, also for an empty answer, and `DeadlineExceeded`.
    """
    async with deadline.enforced():
        text, cut_off, usage = await openai_compatible.generate(
            route.client, route.model, messages, route.answer_tokens, deadline.remaining()
        )
    if not text.strip():
        raise ModelUnavailable("The model gave an empty answer: try again.")
    return Reply(_whole_sentences(text) if cut_off else text.strip(), usage or estimate(messages, text))


async def stream(route: Route, messages: Sequence[Message], deadline: Deadline) -> AsyncGenerator[str | Usage, None]:
    """The model's answer as it comes, then its usage once.

    Closing the iterator closes the connection to the model, which ends the work there.
    """
    said = ""
    usage: Usage | None = None
    parts = openai_compatible.stream(route.client, route.model, messages, route.answer_tokens, deadline.remaining())
    try:
        while True:
            async with deadline.enforced():
                part = await anext(parts, None)
            if part is None:
                break
            if isinstance(part, Usage):
                usage = part
            else:
                said += part
                yield part
    finally:
        await parts.aclose()
    if not said.strip():
        raise ModelUnavailable("The model gave an empty answer: try again.")
    yield usage or estimate(messages, said)


def estimate(messages: Sequence[Message], said: str) -> Usage:
    """Usage where the server reported none."""
    asked = sum(count_tokens(message["content"]) for message in messages)
    return Usage(asked, count_tokens(said) if said else 0, estimated=True)


def _whole_sentences(text: str) -> str:
    ends = [match.end() for match in SENTENCE_END.finditer(text)]
    return text[: ends[-1]].strip() if ends else text.strip()
