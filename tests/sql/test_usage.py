"""What was spent: a user is told his own, the project's owner everybody's."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from supabase import Client

from tests.sql import DENIED, close_call, close_turn, let_die, open_call, open_turn, put_on_plan, refusal, rows

USED: dict[str, Any] = {"input_tokens": 40, "output_tokens": 10, "cost_usd": 0.01}


@pytest.fixture
def model() -> str:
    """The version that one test's calls are counted under."""
    return f"ton@{uuid4().hex}"


def describe_usage(api: Client) -> dict[str, Any]:
    usage: dict[str, Any] = rows(api.rpc("describe_usage"))
    return usage


def answer(api: Client, service: Client, **end: Any) -> int:
    """Ask and be answered; gives the conversation's id."""
    turn = open_turn(api, turns_per_minute=1000)
    close_turn(service, turn, **end)
    conversation_id: int = turn["conversation_id"]
    return conversation_id


def figures(api: Client, model: str) -> list[dict[str, Any]]:
    """The model's rows of the owner's view, the first day first."""
    found: list[dict[str, Any]] = rows(api.table("model_usage").select("*").eq("model_version", model).order("day"))
    return found


def today() -> str:
    return datetime.now(UTC).date().isoformat()


def test_a_user_is_told_what_he_has_spent_and_may_spend(
    api: Client, user_id: int, service: Client, database: psycopg.Connection, model: str
) -> None:
    plan = put_on_plan(database, user_id, tokens_per_day=1000, usd_per_month=5)
    answer(api, service, model_version=model, **USED)
    answer(api, service, status="partial", model_version=model, **USED)
    answer(api, service, status="failed", error_code="model_unavailable")
    close_call(service, open_call(service, user_id), model_version=f"{model}-2", **USED | {"cost_usd": 0.5})
    open_turn(api, tokens=100, usd=0.1)

    usage = describe_usage(api)

    sums = {"requests": 5, "tokens": 250, "cost_usd": 0.62}
    by_model = {"requests": 2, "input_tokens": 80, "output_tokens": 20, "cost_usd": 0.02}
    assert usage == {
        "plan": plan,
        "day": {**sums, "starts_on": today(), "tokens_limit": 1000, "usd_limit": None},
        "month": {**sums, "starts_on": f"{today()[:8]}01", "tokens_limit": None, "usd_limit": 5},
        "models": [
            {"model": f"{model}-2", "requests": 1, "input_tokens": 40, "output_tokens": 10, "cost_usd": 0.5},
            {"model": model, **by_model},
        ],
    }


def test_who_has_spent_nothing_is_told_so(api: Client) -> None:
    usage = describe_usage(api)

    nothing = {"requests": 0, "tokens": 0, "tokens_limit": None, "cost_usd": 0, "usd_limit": None}
    assert usage == {
        "plan": "default",
        "day": {**nothing, "starts_on": today()},
        "month": {**nothing, "starts_on": f"{today()[:8]}01"},
        "models": [],
    }


def test_nobody_is_told_of_anothers_spending(
    api: Client, neighbour: Client, user_id: int, service: Client, database: psycopg.Connection, model: str
) -> None:
    put_on_plan(database, user_id, tokens_per_day=1000)
    before = describe_usage(neighbour)
    answer(api, service, model_version=model, **USED)

    after = describe_usage(neighbour)

    assert before == after
    assert describe_usage(api)["models"] != []


def test_yesterdays_and_last_months_spending_is_told_no_more(
    api: Client, user_id: int, service: Client, database: psycopg.Connection, model: str
) -> None:
    answer(api, service, model_version=model, **USED)
    database.execute(
        "update public.spending set starts_on = date_trunc(period, starts_on - 40) where user_id = %s", [user_id]
    )
    database.execute(
        "update public.model_calls set created_at = created_at - interval '40 days' where user_id = %s", [user_id]
    )

    usage = describe_usage(api)

    assert (usage["day"]["tokens"], usage["month"]["tokens"], usage["models"]) == (0, 0, [])


def test_who_has_no_row_among_the_users_has_spent_nothing(mint: Callable[..., Client]) -> None:
    usage = describe_usage(mint(user_id=10**17))

    assert (usage["day"]["tokens"], usage["month"]["requests"], usage["models"]) == (0, 0, [])


@pytest.mark.parametrize("who", ["admin", "service"])
def test_the_owner_sees_every_models_figures(
    request: pytest.FixtureRequest, api: Client, neighbour: Client, service: Client, model: str, who: str
) -> None:
    for latency, asking in ((100, api), (200, neighbour), (400, api)):
        answer(
            asking,
            service,
            model_version=model,
            cached_tokens=30,
            reasoning_tokens=4,
            is_estimated=asking is neighbour,
            latency_ms=latency,
            **USED,
        )
    answer(api, service, model_version=model, status="failed", error_code="model_unavailable", latency_ms=1000)
    close_call(service, open_call(service), model_version=model, latency_ms=70, **USED)
    open_turn(api, tokens=10**6)

    by_function = {row["function"]: row for row in figures(request.getfixturevalue(who), model)}

    assert by_function["ai-finance"] == {
        "day": today(),
        "model_version": model,
        "function": "ai-finance",
        "calls": 4,
        "failed": 1,
        "error_rate": 0.25,
        "input_tokens": 120,
        "cached_tokens": 90,
        "output_tokens": 30,
        "reasoning_tokens": 12,
        "estimated": 1,
        "cost_usd": 0.03,
        "p50_latency_ms": 300,
        "p95_latency_ms": pytest.approx(910),
        "thumbs_up": 0,
        "thumbs_down": 0,
    }
    of_visitors = by_function["ai-with-rag"]
    assert (of_visitors["calls"], of_visitors["p50_latency_ms"], of_visitors["cost_usd"]) == (1, 70, 0.01)


def test_the_databases_owner_sees_the_figures_too(
    api: Client, service: Client, database: psycopg.Connection, model: str
) -> None:
    answer(api, service, model_version=model, **USED)

    found = database.execute("select calls from public.model_usage where model_version = %s", [model]).fetchall()

    assert found == [(1,)]


def test_nobody_else_sees_a_figure(
    api: Client, service: Client, visitor: Client, mint: Callable[..., Client], model: str
) -> None:
    answer(api, service, model_version=model, **USED)

    pretenders = [api, mint(role="authenticated", user_metadata={"role": "admin"}), mint(app_metadata={"role": "user"})]

    assert [rows(each.table("model_usage").select("*")) for each in pretenders] == [[], [], []]
    assert refusal(visitor.table("model_usage").select("*")) == DENIED


def test_thumbs_are_counted_by_model_and_day(
    api: Client, user_id: int, service: Client, database: psycopg.Connection, model: str
) -> None:
    thumbs = {answer(api, service, model_version=model): thumb for thumb in (1, 1, -1, 0)}
    answer(api, service, model_version=model)
    other = answer(api, service, model_version=f"{model}-2")
    for conversation_id, thumb in {**thumbs, other: -1}.items():
        api.table("conversations").update({"feedback": thumb}).eq("id", conversation_id).execute()
    database.execute(
        "update public.model_calls set created_at = created_at - interval '1 day' where conversation_id = %s",
        [min(thumbs)],
    )

    counted = [(row["day"], row["thumbs_up"], row["thumbs_down"]) for row in figures(service, model)]

    yesterday = (datetime.now(UTC).date() - timedelta(days=1)).isoformat()
    assert counted == [(yesterday, 1, 0), (today(), 1, 1)]
    assert [(row["thumbs_up"], row["thumbs_down"]) for row in figures(service, f"{model}-2")] == [(0, 1)]


@pytest.mark.parametrize("first", ["failed", "partial"])
def test_a_thumb_is_for_the_model_whose_answer_stands(api: Client, service: Client, model: str, first: str) -> None:
    turn = open_turn(api, request_key="key")
    close_turn(service, turn, idempotency_key="key", status=first, model_version=model)
    again = open_turn(api, request_key="key")
    close_turn(service, again, idempotency_key="key", model_version=f"{model}-2")

    api.table("conversations").update({"feedback": 1}).eq("id", turn["conversation_id"]).execute()

    assert [row["thumbs_up"] for row in figures(service, model)] == [0]
    assert [row["thumbs_up"] for row in figures(service, f"{model}-2")] == [1]


def test_a_thumb_counts_once_however_often_the_model_answered(
    api: Client, user_id: int, service: Client, database: psycopg.Connection, model: str
) -> None:
    attempts = []
    for _ in range(2):
        attempts.append(open_turn(api, request_key="key"))
        let_die(database, user_id)
    for attempt in attempts:
        close_turn(service, attempt, idempotency_key="key", model_version=model)

    api.table("conversations").update({"feedback": -1}).eq("id", attempts[0]["conversation_id"]).execute()

    assert [(row["calls"], row["thumbs_down"]) for row in figures(service, model)] == [(2, 1)]


def test_usage_is_for_users_to_ask_for(visitor: Client) -> None:
    assert refusal(visitor.rpc("describe_usage")) == DENIED
