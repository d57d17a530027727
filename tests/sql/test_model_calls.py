"""The ledger of model calls: reserved before, settled after, and charged once whatever happens between."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from supabase import Client

from tests.sql import close_call, close_turn, let_die, open_call, open_turn, put_on_plan, rows, spent

USED: dict[str, Any] = {"input_tokens": 40, "output_tokens": 10, "cost_usd": 0.01}
FAILED: dict[str, Any] = {"status": "failed", "error_code": "model_unavailable"}


@dataclass(frozen=True, slots=True)
class Asking:
    """One model's answer asked for by a user: ai-finance's turn, or ai-with-rag's call."""

    kind: str
    api: Client
    user_id: int
    service: Client

    def open(self, tokens: int = 1000, usd: float = 0.5) -> dict[str, Any]:
        if self.kind == "turn":
            return open_turn(self.api, tokens=tokens, usd=usd)
        return open_call(self.service, self.user_id, tokens=tokens, usd=usd)

    def close(self, opened: dict[str, Any], **end: Any) -> None:
        close = close_turn if self.kind == "turn" else close_call
        close(self.service, opened, **end)


@pytest.fixture(params=["turn", "call"])
def asked(request: pytest.FixtureRequest, api: Client, user_id: int, service: Client) -> Asking:
    return Asking(request.param, api, user_id, service)


def put_back(database: psycopg.Connection, user_id: int, days: int) -> None:
    """As if the user had made his calls so many days ago."""
    database.execute(
        "update public.model_calls set created_at = created_at - make_interval(days => %s) where user_id = %s",
        [days, user_id],
    )
    database.execute(
        """
        update public.spending
        set starts_on = date_trunc(period, (now() - make_interval(days => %s)) at time zone 'UTC')
        where user_id = %s
        """,
        [days, user_id],
    )


def ledger(service: Client, call_id: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = rows(service.table("model_calls").select("*").eq("id", call_id))
    return found


def test_a_call_is_in_the_ledger_as_reserved_and_then_as_it_was(api: Client, user_id: int, service: Client) -> None:
    call = open_call(service, user_id, tokens=1000, usd=0.5)
    [reserved] = ledger(api, call["call_id"])

    close_call(
        service,
        call,
        model_version="ton@3",
        cached_tokens=30,
        reasoning_tokens=4,
        is_estimated=True,
        latency_ms=830,
        **USED,
    )

    [settled] = ledger(api, call["call_id"])
    assert call.keys() == {"outcome", "user_id", "limits", "call_id"}
    assert (reserved["state"], reserved["reserved_tokens"], reserved["reserved_usd"]) == ("reserved", 1000, 0.5)
    assert settled == reserved | {
        "state": "settled",
        "reserved_tokens": 0,
        "reserved_usd": 0,
        "expires_at": None,
        "status": "complete",
        "model_version": "ton@3",
        "input_tokens": 40,
        "cached_tokens": 30,
        "output_tokens": 10,
        "reasoning_tokens": 4,
        "is_estimated": True,
        "cost_usd": 0.01,
        "latency_ms": 830,
    }


def test_a_turn_is_in_the_ledger_with_its_conversation(api: Client, service: Client) -> None:
    turn = open_turn(api)
    close_turn(service, turn, model_version="ton@3", latency_ms=830, **USED)

    [row] = rows(api.table("model_calls").select("*"))

    assert (row["id"], row["function"], row["conversation_id"]) == (
        turn["attempt"],
        "ai-finance",
        turn["conversation_id"],
    )
    assert (row["status"], row["model_version"], row["latency_ms"]) == ("complete", "ton@3", 830)


def test_what_was_reserved_and_not_used_comes_back(
    asked: Asking, user_id: int, service: Client, database: psycopg.Connection
) -> None:
    put_on_plan(database, user_id, tokens_per_day=1000, usd_per_day=0.5)
    opened = asked.open()

    refused = asked.open(1, 0)
    asked.close(opened, **USED)

    assert refused["outcome"] == "exhausted"
    assert spent(service, user_id) == spent(service, user_id, "month") == [(1, 50, 0.01)]
    assert asked.open(950, 0.49)["outcome"] == "open"


def test_who_used_more_than_was_reserved_has_spent_it(
    asked: Asking, user_id: int, service: Client, database: psycopg.Connection
) -> None:
    put_on_plan(database, user_id, tokens_per_day=45)

    asked.close(asked.open(10, 0), **USED)

    assert spent(service, user_id) == [(1, 50, 0.01)]
    assert asked.open(1, 0)["limits"]["tokens"]["remaining"] == 0


def test_a_failure_costs_nothing(asked: Asking, user_id: int, service: Client) -> None:
    opened = asked.open()

    asked.close(opened, **FAILED)

    assert spent(service, user_id) == spent(service, user_id, "month") == [(1, 0, 0)]
    [row] = rows(service.table("model_calls").select("state, status, error_code").eq("user_id", user_id))
    assert row == {"state": "settled", "status": "failed", "error_code": "model_unavailable"}


def test_a_call_is_charged_once(asked: Asking, user_id: int, service: Client) -> None:
    opened = asked.open()
    asked.close(opened, **USED)

    asked.close(opened, **USED)
    asked.close(opened, **FAILED)
    asked.close(opened, input_tokens=4000, cost_usd=1)

    assert spent(service, user_id) == spent(service, user_id, "month") == [(1, 50, 0.01)]


def test_a_call_that_is_closed_by_many_at_once_is_charged_once(asked: Asking, user_id: int, service: Client) -> None:
    opened = asked.open()

    with ThreadPoolExecutor(10) as threads:
        list(threads.map(lambda _: asked.close(opened, **USED), range(20)))

    assert spent(service, user_id) == [(1, 50, 0.01)]


def test_what_the_dead_had_reserved_comes_back_with_the_next_call(
    asked: Asking, user_id: int, service: Client, database: psycopg.Connection
) -> None:
    put_on_plan(database, user_id, tokens_per_day=1000, usd_per_month=0.5)
    for _ in range(2):
        asked.open(500, 0.25)
    let_die(database, user_id)

    again = asked.open()

    assert again["outcome"] == "open"
    assert spent(service, user_id) == [(1, 1000, 0.5)]


def test_a_call_is_charged_to_the_day_and_month_it_began_in(
    asked: Asking, user_id: int, service: Client, database: psycopg.Connection
) -> None:
    closed, dead = asked.open(), asked.open()
    put_back(database, user_id, days=40)

    asked.close(closed, **USED)
    let_die(database, user_id)
    asked.open(7, 0)

    assert spent(service, user_id) == spent(service, user_id, "month") == [(1, 50, 0.01), (1, 7, 0)]
    assert ledger(service, dead.get("attempt") or dead["call_id"]) == []


def test_a_closing_that_comes_after_the_reservation_went_back_charges_once(
    asked: Asking, user_id: int, service: Client, database: psycopg.Connection
) -> None:
    late = asked.open()
    let_die(database, user_id)
    asked.close(asked.open(), **FAILED)
    swept = spent(service, user_id)

    for _ in range(2):
        asked.close(late, **USED)

    assert swept == [(1, 0, 0)]
    assert spent(service, user_id) == spent(service, user_id, "month") == [(2, 50, 0.01)]


def test_closings_and_sweeps_at_once_leave_the_sums_right(
    asked: Asking, user_id: int, service: Client, database: psycopg.Connection
) -> None:
    opened = [asked.open() for _ in range(12)]
    let_die(database, user_id)

    with ThreadPoolExecutor(16) as threads:
        closings = [threads.submit(asked.close, each, **USED) for each in opened]
        openings = [threads.submit(asked.open, 7, 0) for _ in range(4)]
    errors = [future.exception() for future in closings] + [future.exception() for future in openings]

    assert errors == [None] * 16
    assert spent(service, user_id) == [(16, 12 * 50 + 4 * 7, 0.12)]


def test_who_reserved_pays_whoever_is_named(user_id: int, service: Client) -> None:
    call = open_call(service, user_id, tokens=1000, usd=0.5)

    close_call(service, call, user_id=None, **USED)

    assert spent(service, user_id) == [(1, 50, 0.01)]
    assert ledger(service, call["call_id"])[0]["user_id"] == user_id


def test_a_visitors_call_is_in_the_ledger_and_on_nobodys_bill(service: Client) -> None:
    call = open_call(service, tokens=1000, usd=0.5)
    before = ledger(service, call["call_id"])

    for _ in range(2):
        close_call(service, call, **USED)

    assert call.keys() == {"outcome", "limits", "call_id"}
    assert before == []
    [row] = ledger(service, call["call_id"])
    assert (row["user_id"], row["input_tokens"], row["cost_usd"]) == (None, 40, 0.01)


def test_a_user_is_known_by_his_claim_or_by_his_account(user_id: int, service: Client) -> None:
    [account] = rows(service.table("users").select("auth_user_id").eq("user_id", user_id))

    by_claim = open_call(service, user_id, auth_user_id=str(uuid4()))
    by_account = open_call(service, None, **account)
    by_both = open_call(service, user_id, **account)
    by_none = open_call(service, 10**17, auth_user_id=str(uuid4()))

    assert [call.get("user_id") for call in (by_claim, by_account, by_both, by_none)] == [*[user_id] * 3, None]


@pytest.mark.parametrize(
    "said",
    [
        {"input_tokens": -5000, "output_tokens": -5000, "cost_usd": -5},
        {"input_tokens": -5000, "cost_usd": "-Infinity"},
        {"input_tokens": None, "output_tokens": None, "cost_usd": None},
    ],
)
def test_usage_below_zero_adds_nothing_to_a_budget(
    asked: Asking, user_id: int, service: Client, said: dict[str, Any]
) -> None:
    asked.close(asked.open(), **USED)

    asked.close(asked.open(), **said)

    assert spent(service, user_id) == [(2, 50, 0.01)]


def test_usage_beyond_measure_is_charged(asked: Asking, user_id: int, service: Client) -> None:
    asked.close(asked.open(), input_tokens=2**31 - 1, output_tokens=2**31 - 1, cost_usd="NaN")

    assert spent(service, user_id) == [(1, 2**32 - 2, 10**6)]


def test_of_a_user_who_is_gone_the_ledger_keeps_the_call(
    asked: Asking, user_id: int, service: Client, database: psycopg.Connection
) -> None:
    closed, open_yet = asked.open(), asked.open()
    asked.close(closed, **USED)
    database.execute("delete from public.users where user_id = %s", [user_id])

    asked.close(open_yet, **USED)

    ids = [each.get("attempt") or each["call_id"] for each in (closed, open_yet)]
    kept = rows(service.table("model_calls").select("user_id, input_tokens").in_("id", ids))
    assert kept == [{"user_id": None, "input_tokens": 40}] * 2
    assert spent(service, user_id) == []
    assert rows(service.table("conversations").select("*").eq("user_id", user_id)) == []
