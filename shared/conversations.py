"""Conversations as rows: open a turn, close it, rate it, read them back."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from postgrest import AsyncPostgrestClient
from pydantic import Field

from shared import database, queue, quotas
from shared.errors import (
    DatabaseUnavailable,
    Forbidden,
    GatewayError,
    InvalidRequest,
    KeyReused,
    NotFound,
    TurnRunning,
    Unavailable,
)
from shared.models import Spent
from shared.prompting import Exchange, Swap
from shared.settings import Settings
from shared.telemetry import Trace
from shared.wire import Flag, Source, TokenUsage, Wire

Status = Literal["pending", "complete", "partial", "failed"]
TURN_COUNT = 4
SWAP_COUNT = 10
LEASE_MARGIN_SECONDS = 15
CLOSE_SECONDS = 3  # then the queue takes it


@dataclass(frozen=True, slots=True)
class Turn:
    """A reserved conversation and what the prompt needs of the caller.

    `answered` is the conversation (as `describe_conversation` tells it) when the idempotency key's answer
    is already there; nothing is reserved then.
    """

    conversation_id: int
    thread_id: UUID
    user_id: int
    attempt: str
    message: str
    idempotency_key: str | None
    turns: list[Exchange]
    swaps: list[Swap]
    answered: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Closing:
    """A turn's end as `close_turn` takes it; it goes through the queue as JSON when it can't be written at once."""

    conversation_id: int
    user_id: int
    thread_id: str
    attempt: str
    message: str
    response: str
    status: Status
    idempotency_key: str | None
    context_used: list[dict[str, Any]]
    model_version: str | None = None
    error_code: str | None = None
    input_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    reasoning_tokens: int | None = None
    is_estimated: bool | None = None
    cost_usd: str | None = None
    latency_ms: int | None = None
    routed_version: str | None = None
    flags: list[dict[str, str]] = field(default_factory=list)


class Thread(Wire):
    """A thread as one line of a list."""

    thread_id: UUID
    title: str
    conversation_count: int
    last_conversation_id: int
    created_at: datetime
    last_message_at: datetime


class ThreadPage(Wire):
    """Some of the caller's threads; `next` is None on the last page."""

    threads: list[Thread]
    next: int | None


class Conversation(Wire):
    """A question and its answer."""

    id: int
    message: str
    response: str
    status: Status
    flags: list[Flag]
    feedback: int | None
    model: str | None
    created_at: datetime


class WholeConversation(Conversation):
    """A conversation with its sources and what it cost; `error_code` says why there is no answer."""

    thread_id: UUID
    sources: list[Source]
    usage: TokenUsage
    error_code: str | None


class Rating(Wire):
    """A thumb for an answer: -1 down, 0 neutral, 1 up."""

    conversation_id: int = Field(ge=1, le=2**63 - 1)
    feedback: int = Field(ge=-1, le=1, strict=True)


class ConversationPage(Wire):
    """Some of a thread's conversations; `next` is None on the last page."""

    thread_id: UUID
    conversations: list[Conversation]
    next: int | None


async def open_turn(
    db: AsyncPostgrestClient,
    settings: Settings,
    message: str,
    most: Spent,
    trace: Trace,
    thread_id: UUID | None = None,
    claimed_user_id: int | None = None,
    idempotency_key: str | None = None,
) -> Turn:
    """Reserve the caller's next conversation and what it may cost, in one round trip with his recent turns and swaps.

    Raises `Forbidden` for another user's id, `TurnRunning` while the key's first request is at work,
    `KeyReused` for a key with another message, `RateLimited`, `QuotaExhausted`.
    """
    turn = await database.call(
        db,
        "open_turn",
        {
            "question": message,
            "thread": str(thread_id) if thread_id else None,
            "claimed_user_id": claimed_user_id,
            "request_key": idempotency_key,
            "turn_count": TURN_COUNT,
            "swap_count": SWAP_COUNT,
            "lease_seconds": int(settings.request_timeout_seconds) + LEASE_MARGIN_SECONDS,
            "turns_per_minute": settings.turns_per_minute,
            **quotas.reservation(most),
        },
    )
    quotas.refuse(turn, trace)
    match turn.get("outcome"):
        case "open":
            pass
        case "forbidden":
            raise Forbidden("userId is not the signed-in user's: leave it out, or send the caller's own.")
        case "unknown_user":
            raise Forbidden("The signed-in user has no row in the table users.")
        case "running":
            raise TurnRunning(
                "The first request with this Idempotency-Key is still being answered.",
                turn["retry_after_seconds"],
                (turn["conversation_id"], turn["thread_id"]) if turn["is_pending"] else None,
            )
        case "mismatch":
            raise KeyReused("This Idempotency-Key came with another message before: use a new one.")
        case "answered":
            said = turn["conversation"]
            turn |= {"thread_id": said["thread_id"], "user_id": 0, "attempt": "", "turns": [], "swaps": []}
        case _:
            raise DatabaseUnavailable("open_turn answers what this version doesn't know: run the migrations.")
    return Turn(
        conversation_id=turn["conversation_id"],
        thread_id=UUID(turn["thread_id"]),
        user_id=turn["user_id"],
        attempt=turn["attempt"],
        message=message,
        idempotency_key=idempotency_key,
        turns=[Exchange(**exchange) for exchange in turn["turns"]],
        swaps=[Swap(**swap) for swap in turn["swaps"]],
        answered=turn.get("conversation"),
    )


async def defer_turn(db: AsyncPostgrestClient, turn: Turn, hold_seconds: int) -> None:
    """Leave an open turn to a worker: from now on its conversation is there, as pending. As the gateway."""
    arguments = {
        "conversation_id": turn.conversation_id,
        "user_id": turn.user_id,
        "thread_id": str(turn.thread_id),
        "attempt": turn.attempt,
        "message": turn.message,
        "idempotency_key": turn.idempotency_key,
        "lease_seconds": hold_seconds,
    }
    await database.call(db, "defer_turn", arguments)


async def claim_turn(db: AsyncPostgrestClient, turn: Turn, seconds: float) -> int | None:
    """How often a deferred turn has been claimed with this time, in which no other worker may; 0 seconds let go of it.

    None for a turn that is over. Raises `Unavailable` while another worker has it. As the gateway.
    """
    arguments = {"conversation_id": turn.conversation_id, "attempt": turn.attempt, "claim_seconds": math.ceil(seconds)}
    claim = await database.call(db, "claim_turn", arguments)
    if claim["outcome"] == "busy":
        raise Unavailable("Somebody else answers it: ask again.", retry_after_seconds=1)
    return int(claim["claims"]) if claim["outcome"] == "claimed" else None


async def close_turn(db: AsyncPostgrestClient, closing: Closing) -> None:
    """Write the turn's conversation; its INSERT is what the client hears over Realtime.

    Again with the same closing changes nothing. `db` is the gateway's own client: row level security can't
    tell the gateway that writes an answer from a user who forges one.
    """
    await database.call(db, "close_turn", asdict(closing), CLOSE_SECONDS)


async def keep(db: AsyncPostgrestClient, settings: Settings, closing: Closing, trace: Trace) -> None:
    """Close the turn now, or by the queue when the database doesn't take it: an answer is never lost to a write."""
    try:
        await close_turn(db, closing)
    except Exception as error:  # whatever it is, the model has been paid: the answer goes out, the write comes later
        code = error.code if isinstance(error, GatewayError) else type(error).__name__
        trace.facts |= {"write": await queue.put_off(settings.queue_url, asdict(closing)), "writeError": code}


async def rate(db: AsyncPostgrestClient, conversation_id: int, feedback: int) -> None:
    """Set the caller's thumb (-1, 0 or 1) on one of his answers. Raises `NotFound` for anybody else's."""
    rated = await database.run(
        db.from_("conversations")
        .update({"feedback": feedback})
        .eq("id", conversation_id)
        .in_("status", ["complete", "partial"])
        .select("id")
        .execute()
    )
    if not rated:
        raise NotFound("There is no such answer.")


async def read(db: AsyncPostgrestClient, conversation_id: int) -> WholeConversation:
    """One of the caller's conversations with its sources. Raises `NotFound` for anybody else's."""
    told = await database.call(db, "read_conversation", {"conversation_id": conversation_id})
    if not told:
        raise NotFound("There is no such conversation.")
    return WholeConversation(id=told["conversation_id"], usage=usage(told), **told)


def usage(told: Mapping[str, Any]) -> TokenUsage:
    """What a stored conversation has spent."""
    return TokenUsage(
        input_tokens=told["input_tokens"] or 0,
        cached_tokens=told["cached_tokens"] or 0,
        output_tokens=told["output_tokens"] or 0,
        reasoning_tokens=told["reasoning_tokens"] or 0,
        cost_usd=told["cost_usd"] or 0,
        estimated=told["is_estimated"] or False,
    )


async def list_threads(db: AsyncPostgrestClient, limit: int, before: int | None) -> ThreadPage:
    """The caller's threads, the one with the newest conversation first; `before` is a page's `next`."""
    query = db.from_("threads").select("*").order("last_conversation_id", desc=True).limit(limit + 1)
    rows = await database.run((query.lt("last_conversation_id", before) if before else query).execute())
    threads = [Thread(**row) for row in rows[:limit]]
    return ThreadPage(threads=threads, next=threads[-1].last_conversation_id if len(rows) > limit else None)


async def read_thread(db: AsyncPostgrestClient, thread_id: UUID, limit: int, before: int | None) -> ConversationPage:
    """The thread's conversations, newest first; `before` is a page's `next`. `NotFound` where the caller has none."""
    query = (
        db.from_("conversations")
        .select("id,message,response,status,flags,feedback,model:model_version,created_at")
        .eq("thread_id", str(thread_id))
        .order("id", desc=True)
        .limit(limit + 1)
    )
    rows = await database.run((query.lt("id", before) if before else query).execute())
    if not rows and before is None:
        raise NotFound("There is no such thread.")
    kept = [Conversation(**row) for row in rows[:limit]]
    return ConversationPage(thread_id=thread_id, conversations=kept, next=kept[-1].id if len(rows) > limit else None)


def closing_from_json(text: str) -> Closing:
    """A closing that came back from the queue. Raises `InvalidRequest` for anything else."""
    try:
        return Closing(**json.loads(text))
    except (ValueError, TypeError) as error:
        raise InvalidRequest("The message is not a turn's closing.") from error
