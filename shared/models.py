"""The models behind the answers: which one is asked, which next where that fails, and by when it must have answered."""

import asyncio
import math
import random
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

import httpx

from shared.errors import DeadlineExceeded, GatewayError, InvalidRequest, Misconfigured, ModelUnavailable
from shared.prompting import count_tokens
from shared.providers import openai_compatible, replicate, runpod
from shared.providers.chat import Ask, Chat, Failure, Message, ProviderFailed, Usage
from shared.settings import Provider, Settings, provider_key

Answer = TypeVar("Answer")
SENTENCE_END = re.compile(r"[.!?。！？](?=\s)")
WIRES = {"openai": openai_compatible.connect, "replicate": replicate.connect, "runpod": runpod.connect}
# MODEL_PROVIDERS adds to them; each has its key in <NAME>_API_KEY.
PROVIDERS = {
    "openai": Provider(base_url="https://api.openai.com/v1"),
    "together": Provider(base_url="https://api.together.ai/v1"),
    "groq": Provider(base_url="https://api.groq.com/openai/v1"),
    "huggingface": Provider(base_url="https://router.huggingface.co/v1"),
    "replicate": Provider(base_url="https://api.replicate.com/v1", wire="replicate"),
    "runpod": Provider(base_url="https://api.runpod.ai/v2", wire="runpod"),
}
TOO_LATE = "The answer took too long: try again, or ask something shorter."
ERRORS: dict[Failure, tuple[type[GatewayError], str]] = {
    Failure.BUSY: (ModelUnavailable, "The model is busy: try again."),
    Failure.LATE: (DeadlineExceeded, TOO_LATE),
    Failure.EMPTY: (ModelUnavailable, "The model gave an empty answer: try again."),
    Failure.TOO_LONG: (InvalidRequest, "message: longer than the model reads. Ask something shorter."),
    Failure.UNACCEPTABLE: (InvalidRequest, "message: the model doesn't take it. Put it in other words."),
}
TO_THE_CALLER = {Failure.TOO_LONG, Failure.UNACCEPTABLE}
OWN = "own"  # the server at MODEL_BASE_URL
TRIES = 3  # of one model, where the same may help
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 5.0
SHARE = 0.6  # of the time that is left, for a model that has another behind it


@dataclass(frozen=True, slots=True)
class Model:
    """A model at a provider; `name` is what answers and conversations call it."""

    name: str
    model: str
    chat: Chat


@dataclass(frozen=True, slots=True)
class Route:
    """The models in the order they are asked, how much they may say, and how long they may pause while they do."""

    chain: Sequence[Model]
    answer_tokens: int
    stall_seconds: float

    @classmethod
    def open(cls, settings: Settings, http: httpx.AsyncClient) -> "Route":
        """MODEL_CHAIN, or the one model at MODEL_BASE_URL. Raises `Misconfigured`."""
        names = [name.strip() for name in (settings.model_chain or "").split(",") if name.strip()]
        if not names and not settings.model_name:
            raise Misconfigured("Missing settings: MODEL_BASE_URL and MODEL_NAME, or MODEL_CHAIN.")
        chain = [_open(settings, http, name) for name in names or [f"{OWN}:{settings.model_name}"]]
        return cls(chain, settings.answer_tokens, settings.stall_seconds)


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
            raise DeadlineExceeded(TOO_LATE) from error


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model said, which one it was, its tokens, and how many attempts it took."""

    text: str
    model: str
    usage: Usage
    attempts: int


@dataclass(frozen=True, slots=True)
class Begun:
    """What opens a stream: which model it is, and how many attempts it took."""

    model: str
    attempts: int


async def generate(route: Route, messages: Sequence[Message], deadline: Deadline) -> Reply:
    """A model's whole answer, to its last whole sentence where the token limit cut it off.

    Raises `ModelUnavailable` where none of the chain answers, `DeadlineExceeded`, and `InvalidRequest` for what a model
    won't take.
    """

    async def ask(model: Model, seconds: float) -> tuple[str, str, Usage]:
        said = await model.chat.generate(Ask(model.model, messages, route.answer_tokens, seconds))
        if not said.text.strip():
            raise ProviderFailed(Failure.EMPTY)
        text = _whole_sentences(said.text) if said.cut_off else said.text.strip()
        return text, model.name, said.usage or estimate(messages, said.text)

    answer, attempts = await _first(route, deadline, ask)
    return Reply(*answer, attempts)


async def stream(
    route: Route, messages: Sequence[Message], deadline: Deadline
) -> AsyncGenerator[Begun | str | Usage, None]:
    """Which model it is, its answer as it comes, and its usage once.

    Another model may take over until the first piece has come; after that a failure ends the answer. Closing the
    iterator closes the connection to the model, which ends the work there. Raises what `generate` does.
    """
    said = ""
    usage: Usage | None = None

    async def begin(model: Model, _: float) -> tuple[Model, AsyncGenerator[str | Usage, None], str | Usage | None]:
        parts = model.chat.stream(Ask(model.model, messages, route.answer_tokens, deadline.remaining()))
        try:
            first = await anext(parts, None)
            if not isinstance(first, str):
                raise ProviderFailed(Failure.EMPTY)
        except BaseException:
            await parts.aclose()
            raise
        return model, parts, first

    (model, parts, part), attempts = await _first(route, deadline, begin)
    async with aclosing(parts):
        yield Begun(model.name, attempts)
        while part is not None:
            if isinstance(part, Usage):
                usage = part
            else:
                said += part
                yield part
            part = await _next(parts, deadline, route.stall_seconds)
    if not said.strip():
        raise _ours(ProviderFailed(Failure.EMPTY))
    yield usage or estimate(messages, said)


def estimate(messages: Sequence[Message], said: str) -> Usage:
    """Usage where the server reported none."""
    asked = sum(count_tokens(message["content"]) for message in messages)
    return Usage(asked, count_tokens(said) if said else 0, estimated=True)


async def _first(
    route: Route, deadline: Deadline, attempt: Callable[[Model, float], Awaitable[Answer]]
) -> tuple[Answer, int]:
    """What the first model of the chain gives that can, and the attempts; one is asked again where that may help.

    All tries share the deadline: a model gets what is left of it, less some where there is another one behind it.
    What is wrong with the request itself goes to the caller at once.
    """
    failed, attempts = ProviderFailed(Failure.LATE), 0
    for place, model in enumerate(route.chain, start=1):
        for number in range(1, TRIES + 1):
            left = deadline.remaining() * (1 if place == len(route.chain) else SHARE)
            attempts += 1
            try:
                async with asyncio.timeout(left):
                    return await attempt(model, left), attempts
            except TimeoutError as error:
                failed = ProviderFailed(Failure.LATE)
                failed.__cause__ = error
            except ProviderFailed as error:
                failed = error
            pause = _pause(failed, number)
            if pause is None or pause >= deadline.remaining():
                break
            await asyncio.sleep(pause)
        if failed.failure in TO_THE_CALLER:
            break
    raise _ours(failed) from failed


async def _next(
    parts: AsyncGenerator[str | Usage, None], deadline: Deadline, stall_seconds: float
) -> str | Usage | None:
    """The next piece of an answer that has begun, which no other model can go on with."""
    try:
        async with asyncio.timeout(min(deadline.remaining(), stall_seconds)):
            return await anext(parts, None)
    except TimeoutError as error:
        if deadline.remaining() <= 0:
            raise DeadlineExceeded(TOO_LATE) from error
        raise ModelUnavailable("The model fell silent in the middle of its answer.") from error
    except ProviderFailed as failed:
        raise _ours(failed) from failed


def _pause(failed: ProviderFailed, tries: int) -> float | None:
    """Seconds until the same model is asked again; None where it isn't."""
    asked_for = failed.retry_after_seconds or 0
    if failed.failure not in (Failure.BUSY, Failure.FAILING) or tries == TRIES or asked_for > LONGEST_PAUSE_SECONDS:
        return None
    pause = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** (tries - 1)) * random.uniform(0.5, 1)  # noqa: S311
    return pause if failed.retry_after_seconds is None else asked_for


def _ours(failed: ProviderFailed) -> GatewayError:
    kind, message = ERRORS.get(failed.failure, (ModelUnavailable, "The model doesn't answer: try again."))
    return kind(message, math.ceil(failed.retry_after_seconds or 0) or None)


def _open(settings: Settings, http: httpx.AsyncClient, name: str) -> Model:
    provider, _, model = name.partition(":")
    if provider == OWN and model and settings.model_base_url:
        chat = openai_compatible.connect(http, settings.model_base_url, settings.model_api_key)
        return Model(model, model, chat)
    providers = PROVIDERS | (settings.model_providers or {})
    if not model or provider not in providers:
        raise Misconfigured(f"MODEL_CHAIN: {name} is no provider:model of {', '.join([OWN, *providers])}.")
    row = providers[provider]
    return Model(name, model, WIRES[row.wire](http, row.base_url, provider_key(provider)))


def _whole_sentences(text: str) -> str:
    ends = [match.end() for match in SENTENCE_END.finditer(text)]
    return text[: ends[-1]].strip() if ends else text.strip()
