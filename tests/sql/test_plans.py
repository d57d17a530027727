"""Plans: what fits a budget is let through, also when many ask at once, and what is left is told."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from supabase import Client

from tests.sql import DENIED, open_call, open_turn, put_on_plan, refusal, rows, spent

ASKING: dict[str, Callable[[int], bool]] = {
    "turns": lambda _: True,
    "calls": lambda _: False,
    "turns and calls": lambda number: number % 2 == 0,
}
# What a caller could say of an answer's cost who calls open_turn himself, and no cost is meant by it.
ABSURD = [
    {"tokens": -1000, "usd": -1000},
    {"tokens": str(-(2**63)), "usd": "-Infinity"},
    {"tokens": str(2**63 - 1), "usd": "Infinity"},
    {"usd": "NaN"},
    {"usd": 1e300},
    {"usd": "1e-16000"},
    {"tokens": None, "usd": None},
]


@pytest.fixture
def default_plan(database: psycopg.Connection) -> Iterator[None]:
    """The default plan lets everybody ask once a minute."""
    database.execute("update public.plans set requests_per_minute = 1 where name = 'default'")
    yield
    database.execute("update public.plans set requests_per_minute = null where name = 'default'")


def until_tomorrow() -> float:
    now = datetime.now(UTC)
    return (datetime(now.year, now.month, now.day, tzinfo=UTC) + timedelta(days=1) - now).total_seconds()


def until_next_month() -> float:
    now = datetime.now(UTC)
    next_month = datetime(now.year + now.month // 12, now.month % 12 + 1, 1, tzinfo=UTC)
    return (next_month - now).total_seconds()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("asking", ASKING)
@pytest.mark.parametrize("limits", [{"tokens_per_day": 1000}, {"usd_per_month": 0.1}], ids=["tokens", "usd"])
def test_of_fifty_at_once_as_many_pass_as_fit_the_budget(
    api: Client, user_id: int, service: Client, database: psycopg.Connection, asking: str, limits: dict[str, Any]
) -> None:
    put_on_plan(database, user_id, **limits)
    is_turn = ASKING[asking]

    def ask(number: int) -> str:
        cost: dict[str, Any] = {"tokens": 100, "usd": 0.01}
        turn = open_turn(api, turns_per_minute=100, **cost) if is_turn(number) else open_call(service, user_id, **cost)
        return str(turn["outcome"])

    with ThreadPoolExecutor(25) as threads:
        outcomes = sorted(threads.map(ask, range(50)))

    assert outcomes == ["exhausted"] * 40 + ["open"] * 10
    assert spent(service, user_id) == spent(service, user_id, "month") == [(10, 1000, 0.1)]


def test_what_is_left_is_told_of_the_period_that_less_is_left_of(
    api: Client, user_id: int, service: Client, database: psycopg.Connection
) -> None:
    put_on_plan(
        database,
        user_id,
        requests_per_minute=7,
        tokens_per_day=1000,
        tokens_per_month=600,
        usd_per_day=0.25,
        usd_per_month=2,
    )

    limits = open_turn(api, tokens=100, usd=0.05)["limits"]
    of_call = open_call(service, user_id, tokens=100, usd=0.05)["limits"]

    assert limits.pop("requests") | {"reset_seconds": 60} == {"limit": 7, "remaining": 6, "reset_seconds": 60}
    assert until_next_month() == pytest.approx(limits["tokens"].pop("reset_seconds"), abs=5)
    assert until_tomorrow() == pytest.approx(limits["usd"].pop("reset_seconds"), abs=5)
    assert limits == {"tokens": {"limit": 600, "remaining": 500}, "usd": {"limit": 0.25, "remaining": 0.2}}
    assert (of_call["tokens"]["remaining"], of_call["usd"]["remaining"]) == (400, 0.15)
    assert of_call["requests"] == {"limit": 7, "remaining": 6, "reset_seconds": 60}


def test_who_is_on_no_plan_has_no_budget(api: Client, user_id: int, service: Client) -> None:
    turn = open_turn(api, tokens=10**9, usd=10**6)
    call = open_call(service, user_id, tokens=10**9, usd=10**6)

    assert (turn["outcome"], call["outcome"]) == ("open", "open")
    assert turn["limits"].keys() == call["limits"].keys() == {"requests"}


@pytest.mark.parametrize(("limits", "kind"), [({"tokens_per_day": 50}, "tokens"), ({"usd_per_day": 0.5}, "usd")])
def test_what_does_not_fit_is_refused_and_costs_nothing(
    api: Client, user_id: int, service: Client, database: psycopg.Connection, limits: dict[str, Any], kind: str
) -> None:
    put_on_plan(database, user_id, **limits)

    turn = open_turn(api, tokens=51, usd=0.51)
    call = open_call(service, user_id, tokens=51, usd=0.51)

    for refused in (turn, call):
        assert (refused["outcome"], refused["kind"]) == ("exhausted", kind)
        assert refused["limits"][kind] | {"reset_seconds": 0} == {
            "limit": limits[f"{kind}_per_day"],
            "remaining": limits[f"{kind}_per_day"],
            "reset_seconds": 0,
        }
    assert turn["limits"]["requests"]["remaining"] == 20
    assert spent(service, user_id) == []
    assert rows(api.table("open_turns").select("*")) == rows(api.table("model_calls").select("*")) == []


@pytest.mark.parametrize(
    ("limits", "until_reset"),
    [
        ({"tokens_per_day": 100, "tokens_per_month": 1000}, until_tomorrow),
        ({"tokens_per_day": 1000, "tokens_per_month": 100}, until_next_month),
        # Tomorrow the day has room again, and the month hasn't.
        ({"tokens_per_day": 100, "tokens_per_month": 110}, until_next_month),
        ({"tokens_per_day": 100, "usd_per_month": 0.1}, until_next_month),
    ],
)
def test_who_is_refused_may_come_again_when_there_is_room(
    api: Client,
    user_id: int,
    service: Client,
    database: psycopg.Connection,
    limits: dict[str, Any],
    until_reset: Callable[[], float],
) -> None:
    put_on_plan(database, user_id, **limits)
    open_turn(api, tokens=90, usd=0.09)

    turn = open_turn(api, tokens=30, usd=0.03)
    call = open_call(service, user_id, tokens=30, usd=0.03)

    assert (turn["outcome"], call["outcome"]) == ("exhausted", "exhausted")
    assert until_reset() == pytest.approx(turn["retry_after_seconds"], abs=5)
    assert until_reset() == pytest.approx(call["retry_after_seconds"], abs=5)


@pytest.mark.parametrize("period", ["day", "month"])
def test_a_budget_begins_anew_with_its_period(
    api: Client, user_id: int, service: Client, database: psycopg.Connection, period: str
) -> None:
    put_on_plan(database, user_id, **{f"tokens_per_{period}": 100})
    outcomes = [open_turn(api, tokens=80)["outcome"] for _ in range(2)]

    database.execute(
        "update public.spending set starts_on = starts_on - make_interval(days => 1, months => %s) where user_id = %s",
        [1 if period == "month" else 0, user_id],
    )
    database.execute(
        "update public.spending set starts_on = date_trunc('month', starts_on) where user_id = %s and period = 'month'",
        [user_id],
    )

    assert outcomes == ["open", "exhausted"]
    assert open_turn(api, tokens=80)["outcome"] == "open"
    assert spent(service, user_id, period) == [(1, 80, 0), (1, 80, 0)]


@pytest.mark.parametrize("timezone", ["UTC", "Pacific/Kiritimati", "Pacific/Pago_Pago"])
def test_days_and_months_are_utcs(user_id: int, database: psycopg.Connection, timezone: str) -> None:
    with database.transaction(force_rollback=True):
        database.execute("select set_config('timezone', %s, true)", [timezone])
        for moment in ("2026-03-31T23:59:59Z", "2026-04-01T00:00:00Z"):
            database.execute("select private.add_spending(%s, %s, 1, 10, 0.5)", [user_id, moment])

        found = database.execute(
            "select period, starts_on::text, tokens from public.spending where user_id = %s order by 1, 2", [user_id]
        ).fetchall()

    assert found == [
        ("day", "2026-03-31", 10),
        ("day", "2026-04-01", 10),
        ("month", "2026-03-01", 10),
        ("month", "2026-04-01", 10),
    ]


@pytest.mark.parametrize("cost", ABSURD, ids=repr)
def test_an_absurd_estimate_opens_no_budget(
    api: Client, user_id: int, service: Client, database: psycopg.Connection, cost: dict[str, Any]
) -> None:
    first = open_turn(api, lease_seconds=0, **cost)
    [(_, tokens, usd)] = spent(service, user_id)
    sized = database.execute("select scale(cost_usd) from public.spending where user_id = %s", [user_id]).fetchall()
    put_on_plan(database, user_id, tokens_per_day=100, usd_per_month=0.1)

    # The first is given back by now.
    opened = [open_turn(api, tokens=60, usd=usd)["outcome"] for usd in (0.06, 0.06)]

    assert first["outcome"] == "open"
    assert 0 <= tokens <= 10**9
    assert 0 <= usd <= 10**6
    assert max(digits for (digits,) in sized) <= 12
    assert opened == ["open", "exhausted"]
    assert spent(service, user_id)[0][1:] == (60, 0.06)


@pytest.mark.parametrize("cost", ABSURD, ids=repr)
def test_an_absurd_estimate_adds_nothing_to_a_budget(
    api: Client, user_id: int, database: psycopg.Connection, cost: dict[str, Any]
) -> None:
    put_on_plan(database, user_id, tokens_per_day=100, usd_per_day=0.1)
    before = open_turn(api, tokens=90, usd=0.09)

    open_turn(api, **cost)

    after = open_turn(api)["limits"]
    assert before["limits"]["tokens"]["remaining"] == after["tokens"]["remaining"] == 10
    assert before["limits"]["usd"]["remaining"] == after["usd"]["remaining"] == 0.01
    assert open_turn(api, tokens=11)["outcome"] == open_turn(api, usd=0.011)["outcome"] == "exhausted"


def test_a_plans_requests_take_the_place_of_what_the_caller_says(
    api: Client, user_id: int, service: Client, database: psycopg.Connection
) -> None:
    put_on_plan(database, user_id, requests_per_minute=2)
    key = str(user_id)

    turns = [open_turn(api, turns_per_minute=1000) for _ in range(3)]
    calls = [open_call(service, user_id, caller_key=key, calls_per_minute=1000) for _ in range(3)]

    for asked in (turns, calls):
        assert [each["outcome"] for each in asked] == ["open", "open", "limited"]
        assert [each["limits"]["requests"]["remaining"] for each in asked] == [1, 0, 0]
        assert asked[2]["retry_after_seconds"] == asked[2]["limits"]["requests"]["reset_seconds"]
        assert 50 <= asked[2]["retry_after_seconds"] <= 60


def test_after_a_lower_limit_as_many_have_to_pass_as_are_too_many(
    api: Client, user_id: int, database: psycopg.Connection
) -> None:
    for _ in range(3):
        open_turn(api)
        database.execute(
            "update private.attempts set attempted_at = attempted_at - interval '10 s' where user_id = %s", [user_id]
        )

    waits = [open_turn(api, turns_per_minute=most)["retry_after_seconds"] for most in (3, 2, 1)]

    assert waits == [pytest.approx(seconds, abs=3) for seconds in (30, 40, 50)]


@pytest.mark.usefixtures("default_plan")
def test_the_default_plan_is_everybodys_who_has_no_other(
    api: Client, user_id: int, neighbour: Client, database: psycopg.Connection
) -> None:
    put_on_plan(database, user_id, tokens_per_day=100)

    own = [open_turn(api)["outcome"] for _ in range(2)]
    default = [open_turn(neighbour)["outcome"] for _ in range(2)]

    assert (own, default) == (["open", "open"], ["open", "limited"])


@pytest.mark.usefixtures("default_plan")
def test_a_visitor_is_on_no_plan(service: Client, user_id: int) -> None:
    calls = [open_call(service, caller_key=f"address:{user_id}", calls_per_minute=2) for _ in range(3)]

    assert [call["outcome"] for call in calls] == ["open", "open", "limited"]
    assert [call["limits"]["requests"]["remaining"] for call in calls] == [1, 0, 0]


def test_users_read_the_plans_and_visitors_do_not(api: Client, visitor: Client) -> None:
    plans = rows(api.table("plans").select("*").eq("name", "default"))

    assert plans == [
        {
            "name": "default",
            "requests_per_minute": None,
            "tokens_per_day": None,
            "tokens_per_month": None,
            "usd_per_day": None,
            "usd_per_month": None,
        }
    ]
    assert refusal(visitor.table("plans").select("*")) == DENIED
