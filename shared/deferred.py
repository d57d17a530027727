"""Answers that outlast their request: left to the queue, finished by a worker or by the provider that calls back."""

import asyncio
import json
import re
import time
from collections.abc import Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from functools import cache
from typing import Any
from uuid import uuid4

from pydantic import TypeAdapter, ValidationError

from shared import answering, conversations, database, errors, models, queue, quotas, realtime, webhooks
from shared.answering import Draft, Question
from shared.auth import Caller
from shared.clients import Clients, kept
from shared.conversations import Turn, WholeConversation
from shared.errors import (
    GatewayError,
    InvalidRequest,
    Misconfigured,
    ModelUnavailable,
    NotFound,
    TurnRunning,
    Unavailable,
)
from shared.models import Deadline, Model, Route
from shared.providers.chat import JOB_SECONDS, Ask, Failure, ProviderFailed
from shared.queue import Delivery
from shared.telemetry import Trace, conclude
from shared.wire import Answer, Pending, Token, Wire

HOLD_SECONDS = 900  # a pending conversation that nobody finishes by then is lost
LOOK_SECONDS = 60  # between looks at it, for a call that never comes
JOB_CALL_SECONDS = 10
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.1, 1.0
FLUSH_SECONDS = 0.1  # pieces of an answer go over Realtime together, which counts messages
WORKER = "ai-finance-worker"  # in the log and the metrics: its time is not that of requests
WAIT = re.compile(r"^wait=(\d{1,3})$")


@dataclass(frozen=True, slots=True)
class Work:
    """A deferred turn as it travels: the prepared draft, whom it may ask, and who is to hear its pieces.

    `refused` are the models that a provider has failed with after it was left alone.
    """

    draft: Draft
    user_key: str
    wanted: str | None = None
    broadcast: bool = False
    refused: tuple[str, ...] = ()


def wait_seconds(prefer: str | None) -> int | None:
    """How long the caller waits before he goes on without the answer (RFC 7240); None where he waits for all of it."""
    preferences = [part.strip().lower() for part in (prefer or "").split(",")]
    waits = [int(match[1]) for part in preferences if (match := WAIT.fullmatch(part))]
    if waits:
        return waits[0]
    return 0 if "respond-async" in preferences else None


async def answer(
    clients: Clients,
    caller: Caller,
    question: Question,
    wait: int,
    broadcast: bool,
    deadline: Deadline,
    trace: Trace,
) -> Answer | Pending:
    """The answer, where it comes within `wait` seconds, else the conversation that will have it.

    Raises `Unavailable` where the queue doesn't take it.
    """
    try:
        draft, route = await answering.prepare(clients, caller, question, deadline, trace)
    except TurnRunning as running:
        if not running.pending:
            raise
        return await _wait(clients, caller, *running.pending, wait, deadline, trace)
    if draft.reply is not None:
        return await answering.whole(clients, draft, route, deadline, trace)
    work = Work(draft, caller.auth_user_id, question.model, broadcast)
    await _defer(clients, work, trace)
    turn = draft.turn
    return await _wait(clients, caller, turn.conversation_id, str(turn.thread_id), wait, deadline, trace)


async def consume(delivery: Delivery) -> None:
    """The worker's part: whatever stands in a message of ai-finance's queue. Raises what makes it come again."""
    clients, body = await kept(), _object(delivery.body)
    if "work" in body:
        await _finish(clients, _work(body["work"]), delivery)
    elif "job" in body:
        if not await settle_job(clients, str(body["job"])):
            await _send(clients, {"job": body["job"]}, LOOK_SECONDS)
    elif "charge" in body:
        await quotas.charge_now(clients.http, clients.settings, quotas.Charge(**body["charge"]))
    else:
        db = database.as_gateway(clients.http, clients.settings)
        await conversations.close_turn(db, conversations.closing_from_json(delivery.body))


async def called_back(clients: Clients, wire: str, token: str, headers: Mapping[str, str], body: bytes) -> bool:
    """A provider's word that a job is over; whether it is. Nothing in it is believed but which job it is about.

    Raises `Unauthenticated` for a call that Replicate has not signed, and `NotFound`.
    """
    if wire == "replicate":
        secret = clients.settings.replicate_webhook_secret
        if secret is None:
            raise Misconfigured("Missing settings: REPLICATE_WEBHOOK_SECRET.")
        webhooks.verify(secret, headers, body)
    job_id = _object(body.decode(errors="replace")).get("id")
    return await settle_job(clients, token, wire, job_id if isinstance(job_id, str) else None)


async def settle_job(clients: Clients, token: str, wire: str | None = None, job_id: str | None = None) -> bool:
    """See what a job has come to that a provider was left alone with, and end its turn; whether it is over.

    As often as one likes and in any order: what counts is what the provider says when it is asked now. `wire` and
    `job_id` are what a caller says they are; the latter counts where it was not noted. Raises `NotFound`, and
    `Unavailable` while somebody else is at it.
    """
    db = database.as_gateway(clients.http, clients.settings)
    job = await database.call(db, "find_job", {"token": token})
    if not job or wire not in (None, clients.router.wire(job["provider"])):
        raise NotFound("There is no such job.")
    work, job_id, trace = _work(job["work"]), job["job_id"] or job_id, Trace(str(uuid4()))
    route = await clients.router.route(work.user_key, work.wanted)
    model = clients.router.named(job["model"])  # after the route, for which the served versions are looked up
    if await conversations.claim_turn(db, work.draft.turn, JOB_CALL_SECONDS) is None:
        return True
    said = None
    try:
        if model is None or model.chat.collect is None or not job_id:
            raise ProviderFailed(Failure.FAILING, "no such job")
        ask = route.ask(model, work.draft.messages, JOB_CALL_SECONDS)
        said = await model.chat.collect(ask, job_id)
        if said is None and job["seconds_left"] <= 0:
            await _cancel(model, ask, job_id)
            raise ProviderFailed(Failure.LATE)
        text = said and models.said_text(route, said)
    except ProviderFailed as failed:
        if failed.failure in models.OF_THE_PROVIDER:
            clients.router.breakers.note(job["provider"], has_failed=True)
        await _pass_on(clients, replace(work, refused=(*work.refused, job["model"])), route, trace)
        return True
    if not said or not text or not model:
        await conversations.claim_turn(db, work.draft.turn, 0)
        return False
    if route.version == model.name:
        trace.facts["routed"] = route.version  # as `models` notes it where it asks
    spent = models.spent_on(model, work.draft.messages, said)
    draft = answering.checked(replace(work.draft, model=model.name, spent=spent), text)
    await answering.close(clients, draft, text, "complete", trace)
    conclude("settled", WORKER, trace, conversationId=work.draft.turn.conversation_id)
    return True


async def _defer(clients: Clients, work: Work, trace: Trace) -> None:
    db = database.as_gateway(clients.http, clients.settings)
    async with answering.kept_if_failed(clients, work.draft.turn, trace):
        with trace.step("defer"):
            await conversations.defer_turn(db, work.draft.turn, HOLD_SECONDS)
            await _send(clients, {"work": _json(work)})


async def _wait(
    clients: Clients, caller: Caller, conversation_id: int, thread_id: str, wait: int, deadline: Deadline, trace: Trace
) -> Answer | Pending:
    db = database.as_caller(clients.http, clients.settings, caller)
    until, pause = time.monotonic() + min(wait, deadline.remaining()), FIRST_PAUSE_SECONDS
    while time.monotonic() + pause < until:
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, LONGEST_PAUSE_SECONDS)
        told = await conversations.read(db, conversation_id)
        if told.status == "failed":
            raise errors.of_code(told.error_code)
        if told.status != "pending":
            return _answer(told, trace)
    return Pending.model_validate({"conversation_id": conversation_id, "thread_id": thread_id})


def _answer(told: WholeConversation, trace: Trace) -> Answer:
    trace.facts |= {"model": told.model, "costUsd": told.usage.cost_usd}
    return Answer(
        response=told.response,
        sources=told.sources,
        conversation_id=told.id,
        thread_id=told.thread_id,
        flags=told.flags,
        model=told.model,
        usage=told.usage,
        timings=trace.timings,
    )


async def _finish(clients: Clients, work: Work, delivery: Delivery) -> None:
    """Answer a deferred turn, unless it is answered; one that fails for good, or too often, is closed as failed."""
    db, trace, turn = database.as_gateway(clients.http, clients.settings), Trace(str(uuid4())), work.draft.turn
    claims = await conversations.claim_turn(db, turn, delivery.seconds)
    if claims is None:
        return
    comes_again = claims < clients.settings.answer_tries
    try:
        route = _left(await clients.router.route(work.user_key, work.wanted), work.refused)
        deadline = Deadline.after(delivery.seconds)
        if not work.broadcast and await _left_alone(clients, work, route):
            return
        if claims > clients.settings.answer_tries:  # those before it were killed
            raise ModelUnavailable()
        if work.broadcast:
            await _broadcast(clients, work.draft, route, deadline, trace, comes_again)
        else:
            text, draft = await answering.answered(work.draft, route, deadline, trace)
            await answering.close(clients, draft, text, "complete", trace)
    except Exception as error:
        failure = error if isinstance(error, GatewayError) else GatewayError()
        trace.facts["code"] = failure.code
        if failure.retryable and comes_again:
            await conversations.claim_turn(db, turn, 0)
            raise
        await answering.close(clients, work.draft, "", "failed", trace, failure.code)
    finally:
        conclude("deferred", WORKER, trace, conversationId=turn.conversation_id, claims=claims)


async def _left_alone(clients: Clients, work: Work, route: Route) -> bool:
    """Give the turn to a provider that calls back when it is done; False where the first model's doesn't."""
    settings, model = clients.settings, route.chain[0]
    wire = clients.router.wire(model.provider)
    if not (settings.webhook_url and model.chat.submit):
        return False
    if wire == "replicate" and not settings.replicate_webhook_secret:
        return False
    db = database.as_gateway(clients.http, settings)
    job = await database.call(
        db,
        "open_job",
        {
            "attempt": work.draft.turn.attempt,
            "provider": model.provider,
            "model": model.name,
            "work": _json(work),
            "keep_seconds": JOB_SECONDS,
        },
    )
    if not job["job_id"]:
        try:
            ask = route.ask(model, work.draft.messages, JOB_CALL_SECONDS)
            job_id = await model.chat.submit(ask, f"{settings.webhook_url}/webhooks/{wire}/{job['token']}")
        except ProviderFailed:
            return False  # the chain knows what to do with that
        await database.call(db, "name_job", {"token": job["token"], "job_id": job_id})
    await conversations.claim_turn(db, work.draft.turn, 0)
    await _send(clients, {"job": job["token"]}, LOOK_SECONDS)
    return True


async def _pass_on(clients: Clients, work: Work, route: Route, trace: Trace) -> None:
    """To the models that have not failed yet, or that is how it ends."""
    if all(model.name in work.refused for model in route.chain):
        trace.facts["code"] = ModelUnavailable.code
        await answering.close(clients, work.draft, "", "failed", trace, ModelUnavailable.code)
        conclude("settled", WORKER, trace, conversationId=work.draft.turn.conversation_id)
        return
    db = database.as_gateway(clients.http, clients.settings)
    await conversations.defer_turn(db, work.draft.turn, HOLD_SECONDS)
    await _send(clients, {"work": _json(work)})


async def _broadcast(
    clients: Clients, draft: Draft, route: Route, deadline: Deadline, trace: Trace, comes_again: bool
) -> None:
    """The answer as it is said, to the user's own topic; Realtime may miss it, the conversation has it all.

    Where the message `comes_again`, a failure before the first word is raised, and nobody hears of it.
    """
    waiting, flushed = "", 0.0
    async with aclosing(answering.events(clients, draft, route, deadline, trace, comes_again)) as events:
        async for name, part in events:
            waiting += part.token if isinstance(part, Token) else ""
            if waiting and (name != "token" or time.monotonic() - flushed > FLUSH_SECONDS):
                await _tell(clients, draft.turn, "token", Token(token=waiting))
                waiting, flushed = "", time.monotonic()
            if name in ("done", "error"):
                await _tell(clients, draft.turn, name, part)


async def _tell(clients: Clients, turn: Turn, event: str, part: Wire) -> None:
    payload = {"conversationId": turn.conversation_id, **part.model_dump(by_alias=True, mode="json")}
    with suppress(Unavailable):
        await realtime.broadcast(clients.http, clients.settings, f"user:{turn.user_id}", event, [payload])


async def _send(clients: Clients, body: Mapping[str, Any], delay_seconds: int = 0) -> None:
    await queue.send(clients.settings.queue_url or "", body, delay_seconds)  # without one nothing is deferred


async def _cancel(model: Model, ask: Ask, job_id: str) -> None:
    if model.chat.cancel:
        await model.chat.cancel(ask, job_id)


def _left(route: Route, refused: tuple[str, ...]) -> Route:
    chain = [model for model in route.chain if model.name not in refused]
    return replace(route, chain=chain or route.chain)


@cache
def _adapter() -> TypeAdapter[Work]:
    return TypeAdapter(Work)


def _json(work: Work) -> Any:
    return _adapter().dump_python(work, mode="json")


def _work(value: Any) -> Work:
    try:
        return _adapter().validate_python(value)
    except ValidationError as error:
        raise InvalidRequest("The message is not a deferred turn.") from error


def _object(text: str) -> Mapping[str, Any]:
    try:
        body = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest("The message is not JSON.") from error
    if not isinstance(body, dict):
        raise InvalidRequest("The message is not an object.")
    return body
