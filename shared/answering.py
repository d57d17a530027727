"""One answer, from the question to the stored conversation: prepared once, then given whole or as it is said."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any
from uuid import UUID

import anyio
import httpx
from postgrest import AsyncPostgrestClient

from shared import conversations, database, embeddings, grounding, guards, models, prompting, retrieval
from shared.auth import Caller
from shared.clients import Clients
from shared.conversations import Closing, Status, Turn
from shared.errors import GatewayError, InvalidRequest
from shared.models import Begun, Deadline
from shared.providers.chat import Message, Usage
from shared.retrieval import Passage
from shared.settings import load
from shared.telemetry import Trace
from shared.wire import Answer, Done, Failure, Flag, Source, Sources, Token, TokenUsage, Wire

NO_USAGE = Usage(0, 0)


@dataclass(frozen=True, slots=True)
class Question:
    """What the caller asks, and how it is to be looked up."""

    message: str
    thread_id: UUID | None
    claimed_user_id: int | None
    idempotency_key: str | None
    match_count: int
    match_threshold: float | None


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
    usage: Usage = NO_USAGE
    flags: Sequence[Flag] = ()


async def prepare(clients: Clients, caller: Caller, question: Question, deadline: Deadline, trace: Trace) -> Draft:
    """Embed the question while the turn opens, find passages as the caller, build the prompt.

    A failure after the turn is open keeps the conversation as failed. Raises `InvalidRequest` for a message
    longer than the setting allows, and `SecretInMessage`.
    """
    settings = clients.settings
    if len(question.message) > settings.message_characters:
        raise InvalidRequest(f"message: longer than {settings.message_characters} characters.")
    guards.refuse_secrets(question.message)
    db = database.as_caller(clients.http, settings, caller)
    embedding = asyncio.create_task(_embed(clients, question.message, trace))
    embedding.add_done_callback(lambda task: task.cancelled() or task.exception())  # a refused turn never asks for it
    try:
        async with deadline.enforced():
            with trace.step("open"):
                turn = await conversations.open_turn(
                    db,
                    settings,
                    question.message,
                    thread_id=question.thread_id,
                    claimed_user_id=question.claimed_user_id,
                    idempotency_key=question.idempotency_key,
                )
        trace.facts |= {"conversationId": turn.conversation_id, "threadId": str(turn.thread_id)}
        if turn.answered:
            return _replay(turn, turn.answered)
        async with _kept_if_failed(clients, turn, trace), deadline.enforced():
            return await _look_up(clients, db, question, turn, await embedding, trace)
    finally:
        embedding.cancel()


async def whole(clients: Clients, draft: Draft, deadline: Deadline, trace: Trace) -> Answer:
    """Ask the model and store its answer, or that it failed."""
    text, usage = draft.reply or "", draft.usage
    if draft.reply is None:
        async with _kept_if_failed(clients, draft.turn, trace):
            with trace.step("model"):
                reply = await models.generate(clients.route, draft.messages, deadline)
        trace.facts["attempts"] = reply.attempts
        text, usage, draft = reply.text, reply.usage, _checked(replace(draft, model=reply.model), reply.text)
    await _close(clients, draft, text, "complete", trace, usage)
    return Answer(response=text, sources=_sources(draft), **_done(draft, usage, trace).model_dump())


async def events(
    clients: Clients, draft: Draft, deadline: Deadline, trace: Trace
) -> AsyncGenerator[tuple[str, Wire], None]:
    """The answer as it is said: `sources`, `token` …, then `done` or `error`.

    However it ends, what was said is stored: as partial when the model broke off or the client went away,
    which closes this generator and with it the connection to the model.
    """
    said, usage, code = "", draft.usage, "client_gone"
    failure: GatewayError | None = None
    try:
        yield "sources", Sources(sources=_sources(draft))
        with trace.step("model"):
            async with aclosing(_said(clients, draft, deadline)) as parts:
                async for part in parts:
                    if isinstance(part, Begun):
                        draft = replace(draft, model=part.model)
                        trace.facts["attempts"] = part.attempts
                    elif isinstance(part, Usage):
                        usage = part
                    else:
                        said += part
                        yield "token", Token(token=part)
        code = ""
    except Exception as error:
        failure = error if isinstance(error, GatewayError) else GatewayError()
        code = failure.code
        trace.facts["cause"] = type(error.__cause__ or error).__name__
    finally:
        with anyio.CancelScope(shield=True):
            status: Status = "complete" if not code else "partial" if said else "failed"
            trace.facts |= {"code": code} if code else {}
            draft = _checked(draft, said)
            await _close(clients, draft, said.strip(), status, trace, usage, code or None)
    if failure:
        yield "error", Failure(**failure.body(trace.request_id))
    else:
        yield "done", _done(draft, usage, trace)


async def close_from_queue(body: str) -> None:
    """The worker's part: write a closing that a request could not write."""
    settings = load()
    async with httpx.AsyncClient() as http:
        await conversations.close_turn(database.as_gateway(http, settings), conversations.closing_from_json(body))


async def _embed(clients: Clients, message: str, trace: Trace) -> list[float]:
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


async def _said(clients: Clients, draft: Draft, deadline: Deadline) -> AsyncGenerator[Begun | str | Usage, None]:
    if draft.reply is not None:
        yield draft.reply
        return
    async with aclosing(models.stream(clients.route, draft.messages, deadline)) as parts:
        async for part in parts:
            yield part


@asynccontextmanager
async def _kept_if_failed(clients: Clients, turn: Turn, trace: Trace) -> AsyncIterator[None]:
    try:
        yield
    except BaseException as error:
        code = error.code if isinstance(error, GatewayError) else "internal"
        with anyio.CancelScope(shield=True):
            await _close(clients, Draft(turn, [], []), "", "failed", trace, NO_USAGE, code)
        raise


async def _close(
    clients: Clients,
    draft: Draft,
    response: str,
    status: Status,
    trace: Trace,
    usage: Usage,
    error_code: str | None = None,
) -> None:
    if draft.turn.answered:
        return
    trace.facts |= {"model": draft.model, "inputTokens": usage.input_tokens, "outputTokens": usage.output_tokens}
    closing = Closing(
        conversation_id=draft.turn.conversation_id,
        user_id=draft.turn.user_id,
        thread_id=str(draft.turn.thread_id),
        attempt=draft.turn.attempt,
        message=draft.turn.message,
        response=response,
        status=status,
        idempotency_key=draft.turn.idempotency_key,
        context_used=[
            {
                "id": passage.id,
                "similarity": round(passage.similarity, 4),
                "content_hash": passage.content_hash,
            }
            for passage in draft.passages
        ],
        model_version=draft.model,
        error_code=error_code,
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        flags=[flag.model_dump() for flag in draft.flags],
    )
    with trace.step("close"):
        await conversations.keep(database.as_gateway(clients.http, clients.settings), clients.settings, closing, trace)


def _checked(draft: Draft, said: str) -> Draft:
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
        usage=Usage(answered["input_tokens"] or 0, answered["output_tokens"] or 0),
        flags=[Flag(**flag) for flag in answered["flags"]],
    )


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


def _done(draft: Draft, usage: Usage, trace: Trace) -> Done:
    return Done(
        conversation_id=draft.turn.conversation_id,
        thread_id=draft.turn.thread_id,
        flags=list(draft.flags),
        model=draft.model,
        usage=TokenUsage(**asdict(usage)),
        timings=trace.timings,
    )
