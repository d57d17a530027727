"""The models behind the answers: which one is asked, which next where that fails, and by when it must have answered."""

import asyncio
import math
import random
import re
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from itertools import chain
from typing import TypeVar

from shared import model_table
from shared.breakers import Breakers
from shared.errors import DeadlineExceeded, GatewayError, InvalidRequest, ModelUnavailable
from shared.prompting import count_tokens
from shared.providers.chat import Ask, Chat, Failure, Message, ProviderFailed, Said, Usage
from shared.settings import ModelFacts
from shared.telemetry import Span, Trace, logger, model_span

Answer = TypeVar("Answer")
SENTENCE_END = re.compile(r"[.!?。！？](?=\s)")
TOO_LATE = "The answer took too long: try again, or ask something shorter."
ERRORS: dict[Failure, tuple[type[GatewayError], str]] = {
    Failure.BUSY: (ModelUnavailable, "The model is busy: try again."),
    Failure.LATE: (DeadlineExceeded, TOO_LATE),
    Failure.EMPTY: (ModelUnavailable, "The model gave an empty answer: try again."),
    Failure.TOO_LONG: (InvalidRequest, "message: longer than the model reads. Ask something shorter."),
    Failure.UNACCEPTABLE: (InvalidRequest, "message: the model doesn't take it. Put it in other words."),
}
OF_THE_REQUEST = {Failure.TOO_LONG, Failure.UNACCEPTABLE}
OF_THE_PROVIDER = {Failure.BUSY, Failure.FAILING, Failure.LATE}  # what its breaker counts
TRIES = 3  # of one model, where the same may help
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 5.0
SHARE = 0.6  # of the time that is left, for a model that has another behind it
FAIR_SECONDS = 10.0  # for an answer, where the model has no shorter limit of its own


@dataclass(frozen=True, slots=True)
class Model:
    """A model at a provider: `name` is what answers and conversations call it, `asked` is its `provider:model`."""

    name: str
    asked: str
    provider: str
    model: str
    chat: Chat
    facts: ModelFacts
    base_url: str = ""

    def spent(self, usage: Usage) -> "Spent":
        """What the tokens cost."""
        estimated = usage.estimated or not model_table.is_priced(self.facts)
        return Spent(usage, model_table.cost_usd(self.facts, usage), estimated)


@dataclass(frozen=True, slots=True)
class Spent:
    """A call's tokens and their cost; `estimated` where either is not what the provider will charge."""

    usage: Usage
    cost_usd: Decimal
    estimated: bool = False


NOTHING = Spent(Usage(0, 0), Decimal(0))


@dataclass(frozen=True, slots=True)
class Route:
    """The models in the order they are asked, how much they may say, and how long they may pause while they do.

    `detours` are the models for what the others won't take, by what is the matter with it. `version` is the served one
    that the user was sent to.
    """

    chain: Sequence[Model]
    detours: Mapping[Failure, Sequence[Model]]
    breakers: Breakers
    answer_tokens: int
    answer_characters: int
    stall_seconds: float
    version: str | None = None

    def most(self, prompt_tokens: int) -> Spent:
        """What an answer can cost at most, by the dearest that may be asked for it."""
        said, thought = (Usage(prompt_tokens, self.answer_tokens, reasoning_tokens=n) for n in (0, self.answer_tokens))
        models = chain(self.chain, *self.detours.values())
        return max((model.spent(usage) for model in models for usage in (said, thought)), key=lambda all: all.cost_usd)

    def ask(self, model: Model, messages: Sequence[Message], seconds: float) -> Ask:
        """The call as the model takes it. Raises `ProviderFailed` for what it can't read whole."""
        facts = model.facts
        max_tokens = min(self.answer_tokens, facts.max_tokens or self.answer_tokens)
        asked = _joined(messages) if facts.system_prompt is False else messages
        if facts.context_tokens and _tokens(messages) + max_tokens > facts.context_tokens:
            raise ProviderFailed(Failure.TOO_LONG, "longer than its context")
        return Ask(model.model, asked, max_tokens, seconds)


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
    """What the model said, which one it was, what it spent, and how many attempts it took."""

    text: str
    model: str
    spent: Spent
    attempts: int


@dataclass(frozen=True, slots=True)
class Begun:
    """What opens a stream: which model it is, and how many attempts it took."""

    model: Model
    attempts: int


async def generate(route: Route, messages: Sequence[Message], deadline: Deadline, trace: Trace) -> Reply:
    """A model's whole answer, to its last whole sentence where a limit cut it off.

    Raises `ModelUnavailable` where none of the chain answers, `DeadlineExceeded`, and `InvalidRequest` for what a model
    won't take.
    """

    async def ask(model: Model, seconds: float, call: Span) -> tuple[str, str, Spent]:
        asked = route.ask(model, messages, seconds)
        call.note({"gen_ai.request.max_tokens": asked.max_tokens})
        said = await model.chat.generate(asked)
        answer = said_text(route, said), model.name, spent_on(model, messages, said)
        call.answered(said)
        return answer

    answer, attempts = await _first(route, messages, deadline, trace, ask)
    return Reply(*answer, attempts)


async def stream(
    route: Route, messages: Sequence[Message], deadline: Deadline, trace: Trace
) -> AsyncGenerator[Begun | str | Spent, None]:
    """Which model it is, its answer as it comes, and what it spent, once.

    Another model may take over until the first piece has come; after that a failure ends the answer. Closing the
    iterator closes the connection to the model, which ends the work there. Raises what `generate` does.
    """
    said = ""
    usage: Usage | None = None

    async def begin(
        model: Model, _: float, call: Span
    ) -> tuple[Model, AsyncGenerator[str | Usage, None], str | Usage | None, Span]:
        asked = route.ask(model, messages, deadline.remaining())
        call.note({"gen_ai.request.max_tokens": asked.max_tokens, "gen_ai.request.stream": True})
        parts = model.chat.stream(asked)
        try:
            first = await anext(parts, None)
            if not isinstance(first, str):
                raise ProviderFailed(Failure.EMPTY)
        except BaseException:
            await parts.aclose()
            raise
        call.begun()
        return model, parts, first, call

    (model, parts, part, call), attempts = await _first(route, messages, deadline, trace, begin)
    async with call.ending(), aclosing(parts):
        yield Begun(model, attempts)
        while part is not None and len(said) < route.answer_characters:
            if isinstance(part, Usage):
                usage = part
                call.used(usage)
            else:
                part = part[: route.answer_characters - len(said)]
                said += part
                yield part
            try:
                part = await _next(parts, deadline, route.stall_seconds)
            except ModelUnavailable:
                route.breakers.note(model.provider, has_failed=True)
                raise
    if not said.strip():
        raise _ours(ProviderFailed(Failure.EMPTY))
    yield model.spent(usage or estimate(messages, said))


def said_text(route: Route, said: Said) -> str:
    """A whole answer's text, to its last whole sentence where a limit cut it off. Raises `ProviderFailed`."""
    if not said.text.strip():
        raise ProviderFailed(Failure.EMPTY)
    text = said.text[: route.answer_characters]
    return _whole_sentences(text) if said.cut_off or text != said.text else text.strip()


def spent_on(model: Model, messages: Sequence[Message], said: Said) -> Spent:
    """What a whole answer spent."""
    return model.spent(said.usage or estimate(messages, said.text))


def estimate(messages: Sequence[Message], said: str) -> Usage:
    """Usage where the server reported none."""
    return Usage(_tokens(messages), count_tokens(said) if said else 0, estimated=True)


def charged(spent: Spent, trace: Trace) -> Spent:
    """What a call has spent; where nobody reported anything, the prompt that a model was left with."""
    return (trace.unreported or spent) if spent == NOTHING else spent


async def _first(
    route: Route,
    messages: Sequence[Message],
    deadline: Deadline,
    trace: Trace,
    attempt: Callable[[Model, float, Span], Awaitable[Answer]],
) -> tuple[Answer, int]:
    """What the first model of the chain gives that can, and the attempts; one is asked again where that may help.

    All tries share the deadline: a model gets what is left of it, less some where there is another one behind it.
    What is wrong with the request itself goes to the models that are there for it, one after the other, or to the
    caller at once. A try that succeeds ends its span itself; the trace knows which model was asked last, and what the
    prompt costs of one that was left with it.
    """
    failed, attempts = ProviderFailed(Failure.LATE), 0
    rests: list[float] = []
    waiting, is_detour = deque(route.chain), False
    if route.version:
        trace.facts["routed"] = route.version
    while waiting and deadline.remaining() > 0:
        model = waiting.popleft()
        if rest_seconds := route.breakers.wait_seconds(model.provider):
            rests.append(rest_seconds)
            failed = ProviderFailed(Failure.BUSY, "resting after failures", min(rests))
            continue
        for number in range(1, TRIES + 1):
            left = deadline.remaining() * (SHARE if waiting else 1)
            left = min(left, model.facts.timeout_seconds or left)
            attempts += 1
            trace.facts["model"] = model.name
            call = model_span("chat", model.provider, model.model, model.base_url)
            try:
                async with asyncio.timeout(left):
                    answer = await attempt(model, left, call)
                route.breakers.note(model.provider, has_failed=False)
                return answer, attempts
            except TimeoutError as error:
                failed = ProviderFailed(Failure.LATE)
                failed.__cause__ = error
            except ProviderFailed as error:
                failed = error
            except BaseException as error:
                if isinstance(error, asyncio.CancelledError):
                    trace.unreported = model.spent(estimate(messages, ""))
                call.end(error)
                raise
            if failed.failure is Failure.LATE:
                trace.unreported = model.spent(estimate(messages, ""))
            call.end(failed.failure.value)
            logger.warning("try failed", extra=_facts(trace, model, number, failed))
            pause = _pause(failed, number)
            if pause is None or pause >= deadline.remaining():
                break
            await asyncio.sleep(pause)
        if _is_the_providers(failed, model, left):
            route.breakers.note(model.provider, has_failed=True)
        if failed.failure in OF_THE_REQUEST and not is_detour:
            waiting, is_detour = deque(route.detours.get(failed.failure, ())), True
    trace.facts["attempts"] = attempts
    raise _ours(failed) from failed


def _is_the_providers(failed: ProviderFailed, model: Model, seconds: float) -> bool:
    """Whether its breaker counts it: being late only of a try that had the time to answer."""
    if failed.failure is Failure.LATE:
        return seconds >= min(model.facts.timeout_seconds or FAIR_SECONDS, FAIR_SECONDS)
    return failed.failure in OF_THE_PROVIDER


def _facts(trace: Trace, model: Model, number: int, failed: ProviderFailed) -> dict[str, object]:
    """What a log line may say of a try that failed: the provider's own words may hold the user's."""
    return {
        "requestId": trace.request_id,
        "provider": model.provider,
        "model": model.name,
        "try": number,
        "failure": failed.failure.value,
    }


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


def _tokens(messages: Sequence[Message]) -> int:
    return sum(count_tokens(message["content"]) for message in messages)


def _joined(messages: Sequence[Message]) -> list[Message]:
    """The system's words at the head of the user's, for models that have no place for them."""
    system = [message["content"] for message in messages if message["role"] == "system"]
    others = [message for message in messages if message["role"] != "system"]
    first = Message(role=others[0]["role"], content="\n\n".join([*system, others[0]["content"]]))
    return [first, *others[1:]]


def _whole_sentences(text: str) -> str:
    ends = [match.end() for match in SENTENCE_END.finditer(text)]
    return text[: ends[-1]].strip() if ends else text.strip()
