"""One answer, from the question to the stored conversation: prepared once, then given whole or as it is said."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import asdict, dataclass, replace
from decimal import Decimal
from typing import Annotated, Any
from uuid import UUID

import anyio
from postgrest import AsyncPostgrestClient
from pydantic import Field, StrictInt, StringConstraints

from shared import conversations, database, embeddings, grounding, guards, models, prompting, quotas, retrieval
from shared.auth import Caller
from shared.clients import Clients
from shared.conversations import Closing, Status, Turn
from shared.errors import GatewayError, InvalidRequest
from shared.models import NOTHING, Begun, Deadline, Model, Route, Spent
from shared.providers.chat import Message, Usage
from shared.retrieval import Passage
from shared.telemetry import Trace
from shared.wire import Answer, Done, Failure, Flag, Source, Sources, Token, TokenUsage, Wire

HEAD_START_SECONDS = 0.001  # for the embedding's request, which takes longer than opening the turn


class Ask(Wire):
    """A question to ai-finance; `broadcast` sends the pieces of an answer that comes later over Realtime."""

    message: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, pattern=r"^[^\x00]*$")]
    user_id: StrictInt | str | None = None
    thread_id: UUID | None = None
    match_count: int = Field(3, ge=1, le=20)
    match_threshold: float | None = Field(None, ge=-1, le=1)
    model: Annotated[str | None, Field(max_length=255)] = None
    stream: bool = False
    broadcast: bool = False


@dataclass(frozen=True, slots=True)
class Question:
    """What the caller asks, how it is to be looked up, and by which model answered, if he says so."""

    message: str
    thread_id: UUID | None
    claimed_user_id: int | None
    idempotency_key: str | None
    match_count: int
    match_threshold: float | None
    model: str | None

    @classmethod
    def of(cls, ask: Ask, claimed_user_id: int | None, idempotency_key: str | None) -> "Question":
        return cls(
            message=ask.message,
            thread_id=ask.thread_id,
            claimed_user_id=claimed_user_id,
            idempotency_key=idempotency_key,
            match_count=ask.match_count,
            match_threshold=ask.match_threshold,
            model=ask.model,
        )


@dataclass(frozen=True, slots=True)
class Draft:
    """A question ready for the model: its reserved turn, the passages in its prompt, and the prompt.

    `reply` is there already when the model need not be asked: the idempotency key's earlier answer, or
    that nothing was found.
    """

    turn: Turn
    passages: Sequence[Passage]
    messages: Sequence[Message]
    reply: str | None = None
    model: str | None = None
    spent: Spent = NOTHING
    flags: Sequence[Flag] = ()


async def prepare(
    clients: Clients, caller: Caller, question: Question, deadline: Deadline, trace: Trace
) -> tuple[Draft, Route]:
    """Embed the question while the turn opens, find passages as the caller, build the prompt; and whom to ask.

    Of a caller who was just refused the question is embedded only once its turn is open. A failure after that keeps
    the conversation as failed. Raises `InvalidRequest` for a message longer than the setting allows, and
    `SecretInMessage`.
    """
    settings = clients.settings
    if len(question.message) > settings.message_characters:
        raise InvalidRequest(f"message: longer than {settings.message_characters} characters.")
    guards.refuse_secrets(question.message)
    db = database.as_caller(clients.http, settings, caller)
    admitted = asyncio.Event()
    embedding = asyncio.create_task(_embed(clients, question.message, trace, admitted))
    embedding.add_done_callback(lambda task: task.cancelled() or task.exception())  # a refused turn never asks for it
    try:
        if not clients.refusals.hold(caller.auth_user_id):
            admitted.set()
            await asyncio.wait([embedding], timeout=HEAD_START_SECONDS)
        async with deadline.enforced():
            with clients.refusals.noted(caller.auth_user_id):
                route = await clients.router.route(caller.auth_user_id, question.model)
                with trace.step("open"):
                    turn = await conversations.open_turn(
                        db,
                        settings,
                        question.message,
                        route.most(settings.prompt_tokens),
                        trace,
                        thread_id=question.thread_id,
                        claimed_user_id=question.claimed_user_id,
                        idempotency_key=question.idempotency_key,
                    )
        trace.facts |= {"conversationId": turn.conversation_id, "threadId": str(turn.thread_id)}
        if turn.answered:
            return _replay(turn, turn.answered), route
        clients.refusals.forget(caller.auth_user_id)
        admitted.set()
        async with kept_if_failed(clients, turn, trace), deadline.enforced():
            return await _look_up(clients, db, question, turn, await embedding, trace), route
    finally:
        embedding.cancel()


async def whole(clients: Clients, draft: Draft, route: Route, deadline: Deadline, trace: Trace) -> Answer:
    """Ask the model and store its answer, or that it failed."""
    text = draft.reply or ""
    if draft.reply is None:
        async with kept_if_failed(clients, draft.turn, trace):
            text, draft = await answered(draft, route, deadline, trace)
    await close(clients, draft, text, "complete", trace)
    return Answer(response=text, sources=_sources(draft), **_done(draft, trace).model_dump())


async def answered(draft: Draft, route: Route, deadline: Deadline, trace: Trace) -> tuple[str, Draft]:
    """The model's answer, and the draft with which model it was, what it spent, and flags."""
    with trace.step("model"):
        reply = await models.generate(route, draft.messages, deadline, trace)
    trace.facts["attempts"] = reply.attempts
    return reply.text, checked(replace(draft, model=reply.model, spent=reply.spent), reply.text)


async def events(
    clients: Clients, draft: Draft, route: Route, deadline: Deadline, trace: Trace, asks_again: bool = False
) -> AsyncGenerator[tuple[str, Wire], None]:
    """The answer as it is said: `sources`, `token` …, then `done` or `error`.

    However it ends, what was said is stored: as partial when the model broke off or the client went away,
    which closes this generator and with it the connection to the model. Where the caller `asks_again`, a failure that
    may pass is raised instead as long as nothing was said, and the turn stays open.
    """
    said, code = "", "client_gone"
    begun: Model | None = None
    failure: GatewayError | None = None
    stays_open = False
    try:
        yield "sources", _opened(draft)
        async with aclosing(_said(draft, route, deadline, trace)) as parts:
            async for part in parts:
                if isinstance(part, Begun):
                    begun, trace.facts["attempts"] = part.model, part.attempts
                    draft = replace(draft, model=begun.name)
                elif isinstance(part, Spent):
                    draft = replace(draft, spent=part)
                else:
                    said += part
                    trace.note_token()
                    yield "token", Token(token=part)
        code = ""
    except Exception as error:
        failure = error if isinstance(error, GatewayError) else GatewayError()
        code = failure.code
        stays_open = asks_again and failure.retryable and not said
        trace.facts["cause"] = type(error.__cause__ or error).__name__
    finally:
        with anyio.CancelScope(shield=True):
            status: Status = "complete" if not code else "partial" if said else "failed"
            trace.facts |= {"code": code} if code else {}
            if begun and draft.spent == NOTHING:
                draft = replace(draft, spent=begun.spent(models.estimate(draft.messages, said)))
            if not stays_open:
                draft = checked(draft, said)
                await close(clients, draft, said.strip(), status, trace, code or None)
    if failure and stays_open:
        raise failure
    if failure:
        yield "error", Failure(**failure.body(trace.request_id))
    else:
        yield "done", _done(draft, trace)


async def _embed(clients: Clients, message: str, trace: Trace, admitted: asyncio.Event) -> list[float]:
    await admitted.wait()
    with trace.step("embed"):
        return await embeddings.embed_query(clients.embedder, message)


async def _look_up(
    clients: Clients, db: AsyncPostgrestClient, question: Question, turn: Turn, vector: list[float], trace: Trace
) -> Draft:
    settings = clients.settings
    with trace.step("match"):
        passages = await retrieval.search(
            db,
            vector,
            question.message,
            clients.embedder.model,
            question.match_count,
            clients.embedder.threshold if question.match_threshold is None else question.match_threshold,
        )
    prompt = prompting.build(
        "ai_finance", question.message, passages, turn.swaps, turn.turns, budget_tokens=settings.prompt_tokens
    )
    trace.facts["passages"] = len(prompt.passages)
    if not prompt.grounded:
        return Draft(turn, prompt.passages, prompt.messages, reply=prompting.NOTHING_FOUND)
    return Draft(turn, prompt.passages, prompt.messages)


async def _said(
    draft: Draft, route: Route, deadline: Deadline, trace: Trace
) -> AsyncGenerator[Begun | str | Spent, None]:
    if draft.reply is not None:
        yield draft.reply
        return
    with trace.step("model"):
        async with aclosing(models.stream(route, draft.messages, deadline, trace)) as parts:
            async for part in parts:
                yield part


@asynccontextmanager
async def kept_if_failed(clients: Clients, turn: Turn, trace: Trace) -> AsyncIterator[None]:
    """Stores a turn as failed where what runs inside fails."""
    try:
        yield
    except BaseException as error:
        code = error.code if isinstance(error, GatewayError) else "internal"
        with anyio.CancelScope(shield=True):
            await close(clients, Draft(turn, [], []), "", "failed", trace, code)
        raise


async def close(
    clients: Clients, draft: Draft, response: str, status: Status, trace: Trace, error_code: str | None = None
) -> None:
    """Store how a turn ended; never raises for a database that is away.

    Where no model has answered, the one that was asked last stands there.
    """
    turn, spent = draft.turn, models.charged(draft.spent, trace)
    if turn.answered:
        return
    model = draft.model or trace.facts.get("model")
    trace.facts |= {"model": model, **quotas.facts(spent)}
    closing = Closing(
        conversation_id=turn.conversation_id,
        user_id=turn.user_id,
        thread_id=str(turn.thread_id),
        attempt=turn.attempt,
        message=turn.message,
        response=response,
        status=status,
        idempotency_key=turn.idempotency_key,
        context_used=[
            {"id": passage.id, "similarity": round(passage.similarity, 4), "content_hash": passage.content_hash}
            for passage in draft.passages
        ],
        model_version=model,
        error_code=error_code,
        latency_ms=quotas.latency_ms(trace),
        routed_version=trace.facts.get("routed"),
        flags=[flag.model_dump() for flag in draft.flags],
        **quotas.tokens(spent),
    )
    with trace.step("close"):
        await conversations.keep(database.as_gateway(clients.http, clients.settings), clients.settings, closing, trace)


def checked(draft: Draft, said: str) -> Draft:
    """With flags for what the model says of its own: addresses and links it was not told."""
    if draft.reply is not None:
        return draft  # as it was kept, or the gateway's own words
    known = [
        *prompting.told(draft.turn.message, draft.passages),
        *map(str, draft.turn.swaps),
        *map(str, draft.turn.turns),
    ]
    return replace(draft, flags=[Flag(**asdict(flag)) for flag in grounding.unknown(said, known)])


def _replay(turn: Turn, answered: dict[str, Any]) -> Draft:
    return Draft(
        turn=turn,
        passages=[Passage(**source) for source in answered["sources"]],
        messages=[],
        reply=answered["response"],
        model=answered["model"],
        spent=_spent(conversations.usage(answered)),
        flags=[Flag(**flag) for flag in answered["flags"]],
    )


def _opened(draft: Draft) -> Sources:
    turn = draft.turn
    return Sources(conversation_id=turn.conversation_id, thread_id=turn.thread_id, sources=_sources(draft))


def _sources(draft: Draft) -> list[Source]:
    return [
        Source(
            id=passage.id,
            content=passage.content,
            similarity=passage.similarity,
            token_symbol=passage.token_symbol,
        )
        for passage in draft.passages
    ]


def _spent(kept: TokenUsage) -> Spent:
    usage = Usage(kept.input_tokens, kept.output_tokens, False, kept.cached_tokens, kept.reasoning_tokens)
    return Spent(usage, Decimal(str(kept.cost_usd)), kept.estimated)


def _done(draft: Draft, trace: Trace) -> Done:
    return Done(
        conversation_id=draft.turn.conversation_id,
        thread_id=draft.turn.thread_id,
        flags=list(draft.flags),
        model=draft.model,
        usage=quotas.told(draft.spent),
        timings=trace.timings,
    )
