"""What a caller may ask and spend: counted and reserved in the database before a model is asked, charged after."""

import hmac
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from decimal import Decimal
from ipaddress import ip_address, ip_network
from typing import Any
from uuid import uuid4

import httpx
from postgrest import AsyncPostgrestClient

from shared import database, queue
from shared.auth import Anybody, ApiKey, Caller
from shared.errors import DatabaseUnavailable, GatewayError, QuotaExhausted, RateLimited
from shared.models import Spent
from shared.settings import Settings
from shared.telemetry import Trace
from shared.wire import TokenUsage, Usage

FUNCTION = "ai-with-rag"
LEASE_MARGIN_SECONDS = 15
CLOSE_SECONDS = 3  # then the queue takes it
TOO_OFTEN = "Too many questions in the last minute."
REFUSALS = 1000  # that a process remembers
REFUSAL_SECONDS = 60  # where the error doesn't say how long it holds


@dataclass(frozen=True, slots=True)
class Quota:
    """Whose calls are counted under what key, and how many a minute may bring."""

    key: str
    calls_per_minute: int
    user: Caller | None = None

    @property
    def person(self) -> str:
        """Who stays with one served version: the user, in every function, or a visitor's address."""
        return self.user.auth_user_id if self.user else self.key


@dataclass(frozen=True, slots=True)
class Call:
    """A call that may ask a model; `user_id` pays for it where there is one."""

    user_id: int | None = None
    id: str = field(default_factory=lambda: str(uuid4()))


@dataclass(slots=True)
class Refusals:
    """Users who were refused, and until when on the monotonic clock: so long nothing is bought for them in advance.

    The database alone admits and refuses; this says for whom its word is waited for. None is a visitor, who isn't kept.
    """

    until: OrderedDict[str, float] = field(default_factory=OrderedDict, repr=False)

    def hold(self, user: str | None) -> bool:
        return user is not None and time.monotonic() < self.until.get(user, 0)

    @contextmanager
    def noted(self, user: str | None) -> Iterator[None]:
        """Remembers that what runs inside has refused the user."""
        try:
            yield
        except GatewayError as error:
            if user is not None and error.status < 500:
                self.until[user] = time.monotonic() + (error.retry_after_seconds or REFUSAL_SECONDS)
                self.until.move_to_end(user)
                if len(self.until) > REFUSALS:
                    self.until.popitem(last=False)
            raise

    def forget(self, user: str | None) -> None:
        """The user is admitted again."""
        if user is not None:
            self.until.pop(user, None)


@dataclass(frozen=True, slots=True)
class Charge:
    """A call's end as `close_call` takes it; it goes through the queue as JSON when it can't be written at once."""

    call_id: str
    function: str
    status: str
    user_id: int | None
    error_code: str | None
    model_version: str | None
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    reasoning_tokens: int
    is_estimated: bool
    cost_usd: str
    latency_ms: int | None
    routed_version: str | None = None


def of_turns(settings: Settings, caller: Anybody, address: str) -> Quota | None:
    """The quota of questions to the model; None for the secret key's holder, who isn't counted."""
    limits = settings.turns_per_minute, settings.anonymous_turns_per_minute
    return _quota(settings, caller, address, "", *limits)


def of_searches(settings: Settings, caller: Anybody, address: str) -> Quota | None:
    """The quota of searches, which cost no model's time; None for the secret key's holder."""
    limits = settings.searches_per_minute, settings.anonymous_searches_per_minute
    return _quota(settings, caller, address, ":search", *limits)


async def count(http: httpx.AsyncClient, settings: Settings, quota: Quota | None) -> None:
    """Count a call that asks no model. Raises `RateLimited`, and the database's error where it can't be counted.

    As the gateway: a caller who could count for himself could use up the quota of others.
    """
    if quota is None:
        return
    arguments = {"caller_key": quota.key, "calls_per_minute": quota.calls_per_minute}
    wait_seconds = await database.call(database.as_gateway(http, settings), "count_call", arguments)
    if wait_seconds is not None:
        raise RateLimited(TOO_OFTEN, wait_seconds)


async def open_call(
    http: httpx.AsyncClient, settings: Settings, quota: Quota | None, most: Spent, trace: Trace
) -> Call:
    """Count a call to a model, and reserve for a user the most it may spend.

    Raises `RateLimited`, `QuotaExhausted`, and the database's error. As the gateway, as `count` is.
    """
    call = Call()
    if quota is None:
        return call
    arguments = {
        "call_id": call.id,
        "function": FUNCTION,
        "caller_key": quota.key,
        "calls_per_minute": quota.calls_per_minute,
        "auth_user_id": quota.user.auth_user_id if quota.user else None,
        "claimed_user_id": quota.user.claimed_user_id if quota.user else None,
        "lease_seconds": int(settings.request_timeout_seconds) + LEASE_MARGIN_SECONDS,
        **reservation(most),
    }
    opened = await database.call(database.as_gateway(http, settings), "open_call", arguments)
    refuse(opened, trace)
    if opened.get("outcome") != "open":
        raise DatabaseUnavailable("open_call answers what this version doesn't know: run the migrations.")
    return Call(opened.get("user_id"), call.id)


async def close_call(
    http: httpx.AsyncClient,
    settings: Settings,
    call: Call,
    spent: Spent,
    trace: Trace,
    model: str | None = None,
    error_code: str | None = None,
) -> None:
    """Charge what a call has spent, now or by the queue when the database doesn't take it.

    Where no model has answered, the one that was asked last stands there.
    """
    charge = Charge(
        call_id=call.id,
        function=FUNCTION,
        status="complete" if not error_code else "partial" if spent.usage.output_tokens else "failed",
        user_id=call.user_id,
        error_code=error_code,
        model_version=model or trace.facts.get("model"),
        latency_ms=latency_ms(trace),
        routed_version=trace.facts.get("routed"),
        **tokens(spent),
    )
    try:
        await charge_now(http, settings, charge)
    except Exception as error:  # the answer is there, and so is what it cost
        code = error.code if isinstance(error, GatewayError) else type(error).__name__
        write = await queue.put_off(settings.queue_url, {"charge": asdict(charge)})
        trace.facts |= {"write": write, "writeError": code}


async def charge_now(http: httpx.AsyncClient, settings: Settings, charge: Charge) -> None:
    """Write a charge; again with the same one changes nothing."""
    await database.call(database.as_gateway(http, settings), "close_call", asdict(charge), CLOSE_SECONDS)


async def read_usage(db: AsyncPostgrestClient) -> Usage:
    """The caller's plan, and what he has spent of it."""
    return Usage(**await database.call(db, "describe_usage", {}))


def reservation(most: Spent) -> dict[str, Any]:
    """What a call may spend, as open_turn and open_call take it."""
    return {"tokens": most.usage.input_tokens + most.usage.output_tokens, "usd": str(most.cost_usd)}


def tokens(spent: Spent) -> dict[str, Any]:
    """What a call has spent, as close_turn and close_call take it."""
    usage = spent.usage
    return {
        "input_tokens": usage.input_tokens,
        "cached_tokens": usage.cached_tokens,
        "output_tokens": usage.output_tokens,
        "reasoning_tokens": usage.reasoning_tokens,
        "is_estimated": spent.estimated,
        "cost_usd": str(spent.cost_usd),
    }


def told(spent: Spent) -> TokenUsage:
    """What a call has spent, as the client sees it."""
    usage = spent.usage
    return TokenUsage(
        input_tokens=usage.input_tokens,
        cached_tokens=usage.cached_tokens,
        output_tokens=usage.output_tokens,
        reasoning_tokens=usage.reasoning_tokens,
        cost_usd=float(spent.cost_usd),
        estimated=spent.estimated,
    )


def facts(spent: Spent) -> dict[str, Any]:
    """What a call has spent, for the log line and the headers."""
    usage = spent.usage
    return {
        "inputTokens": usage.input_tokens,
        "outputTokens": usage.output_tokens,
        "cachedTokens": usage.cached_tokens,
        "costUsd": float(spent.cost_usd),
    }


def plain(figure: float) -> str:
    """A figure as headers have it: every digit, and no exponent."""
    return f"{Decimal(str(figure)).normalize():f}"


def latency_ms(trace: Trace) -> int | None:
    """The time the models took, with all tries; None where none was asked."""
    return round(trace.timings["model"]) if "model" in trace.timings else None


def refuse(opened: Mapping[str, Any], trace: Trace) -> None:
    """Keep what is left of the caller's limits for the headers. Raises `RateLimited` and `QuotaExhausted`."""
    for kind, limit in (opened.get("limits") or {}).items():
        if limit:
            trace.headers |= {
                f"x-ratelimit-limit-{kind}": plain(limit["limit"]),
                f"x-ratelimit-remaining-{kind}": plain(limit["remaining"]),
                f"x-ratelimit-reset-{kind}": plain(limit["reset_seconds"]),
            }
    if opened.get("outcome") == "limited":
        raise RateLimited(TOO_OFTEN, opened["retry_after_seconds"])
    if opened.get("outcome") == "exhausted":
        means = {"tokens": "tokens", "usd": "money"}[opened["kind"]]
        raise QuotaExhausted(
            f"Your plan has not enough {means} left for another answer.", opened["retry_after_seconds"]
        )


def _quota(
    settings: Settings, caller: Anybody, address: str, kind: str, user_limit: int, visitor_limit: int
) -> Quota | None:
    if caller is ApiKey.SECRET:
        return None
    if isinstance(caller, Caller):
        return Quota(f"user:{caller.auth_user_id.lower()}{kind}", user_limit, caller)
    return Quota(f"address:{_hashed(settings, address)}{kind}", visitor_limit)


def _hashed(settings: Settings, address: str) -> str:
    """The address, not to be read from the table; of IPv6 the /64, all of which one subscriber has."""
    try:
        host = ip_address(address)
        host = (host.version == 6 and host.ipv4_mapped) or host
        place = str(ip_network((host, 64), strict=False) if host.version == 6 else host)
    except ValueError:
        place = address
    return hmac.digest(settings.supabase_secret_key.get_secret_value().encode(), place.encode(), "sha256").hex()
