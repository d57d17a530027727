"""What the models cost over time, and how they did, as the gateway is told it."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from supabase import Client

from tests.sql import close_call, close_turn, open_call, open_turn, rows

# In years of their own, which no other test's calls are in.
SPANS = (datetime(year, 3, 1, tzinfo=UTC) for year in range(1990, 2020))
USED: dict[str, Any] = {"input_tokens": 40, "output_tokens": 10, "cost_usd": 0.01}
HOUR = timedelta(hours=1)
Answer = Callable[..., int]


@pytest.fixture
def start() -> datetime:
    return next(SPANS)


@pytest.fixture
def model() -> str:
    return f"ton@{uuid4().hex}"


@pytest.fixture
def answer(api: Client, service: Client, database: psycopg.Connection) -> Answer:
    """Have a turn answered as if it were then; gives the conversation's id."""

    def answered(at: datetime, thumb: int | None = None, **end: Any) -> int:
        turn = open_turn(api, turns_per_minute=1000)
        close_turn(service, turn, **{**USED, **end})
        conversation_id: int = turn["conversation_id"]
        database.execute(
            "update public.model_calls set created_at = %s where conversation_id = %s", [at, conversation_id]
        )
        if thumb is not None:
            api.table("conversations").update({"feedback": thumb}).eq("id", conversation_id).execute()
        return conversation_id

    return answered


def summarize(service: Client, start: datetime, until: datetime, bucket: str = "1 hour") -> dict[str, Any]:
    span = {"since": start.isoformat(), "until": until.isoformat(), "bucket": bucket}
    told: dict[str, Any] = rows(service.rpc("summarize_usage", span))
    return told


def test_calls_are_counted_by_model_and_hour(answer: Answer, service: Client, start: datetime, model: str) -> None:
    for minutes, latency in ((0, 100), (59, 300), (60, 5000)):
        answer(start + timedelta(minutes=minutes), model_version=model, latency_ms=latency)
    answer(start, model_version=model, status="failed", error_code="model_unavailable", latency_ms=9000)
    answer(start, model_version=f"{model}-2", latency_ms=40, cost_usd=1)

    told = summarize(service, start, start + 2 * HOUR)

    [dearer, cheaper] = told["models"]
    assert (dearer["model"], dearer["requests"], dearer["cost_usd"]) == (f"{model}-2", 1, 1)
    assert cheaper == {
        "model": model,
        "requests": 4,
        "errors": 1,
        "input_tokens": 160,
        "output_tokens": 40,
        "cost_usd": 0.04,
        "p50_ms": pytest.approx(300, rel=0.01),
        "p95_ms": pytest.approx(9000, rel=0.01),
        "likes": 0,
        "dislikes": 0,
    }
    assert (told["total"]["requests"], told["total"]["cost_usd"]) == (5, 1.04)
    by_hour = [(datetime.fromisoformat(row["start"]), row["model"], row["requests"]) for row in told["buckets"]]
    assert by_hour == [(start, model, 3), (start, f"{model}-2", 1), (start + HOUR, model, 1)]


def test_days_begin_at_midnight_utc(answer: Answer, service: Client, start: datetime, model: str) -> None:
    for hours in (-1, 0, 23, 24):
        answer(start + hours * HOUR, model_version=model)

    told = summarize(service, start - HOUR, start + 25 * HOUR, "1 day")

    by_day = [(datetime.fromisoformat(row["start"]), row["requests"]) for row in told["buckets"]]
    assert by_day == [(start - 24 * HOUR, 1), (start, 2), (start + 24 * HOUR, 1)]


def test_what_is_outside_the_span_does_not_count(answer: Answer, service: Client, start: datetime) -> None:
    answer(start - timedelta(seconds=1), thumb=1)
    answer(start + HOUR, thumb=1)

    assert summarize(service, start, start + HOUR) == {"total": None, "models": [], "buckets": []}


def test_what_still_runs_does_not_count(
    api: Client, user_id: int, service: Client, database: psycopg.Connection
) -> None:
    open_turn(api)
    start = next(SPANS)
    database.execute("update public.model_calls set created_at = %s where user_id = %s", [start, user_id])

    assert summarize(service, start, start + HOUR)["total"] is None


def test_thumbs_count_when_their_answers_were_given(
    answer: Answer, service: Client, start: datetime, model: str
) -> None:
    for hours, thumb in ((0, 1), (0, 1), (0, -1), (0, 0), (1, -1)):
        answer(start + hours * HOUR, thumb, model_version=model)
    answer(start, model_version=model)

    told = summarize(service, start, start + 2 * HOUR)

    assert [(row["requests"], row["likes"], row["dislikes"]) for row in told["buckets"]] == [(5, 2, 1), (1, 0, 1)]
    assert (told["total"]["likes"], told["total"]["dislikes"]) == (2, 2)


def test_a_thumb_is_for_the_model_whose_answer_stands(
    api: Client, user_id: int, service: Client, database: psycopg.Connection, start: datetime, model: str
) -> None:
    for number, status in enumerate(("failed", "complete"), start=1):
        turn = open_turn(api, request_key="key")
        close_turn(service, turn, idempotency_key="key", status=status, model_version=f"{model}-{number}")
    api.table("conversations").update({"feedback": 1}).eq("id", turn["conversation_id"]).execute()
    database.execute("update public.model_calls set created_at = %s where user_id = %s", [start, user_id])

    told = summarize(service, start, start + HOUR)

    assert {row["model"]: row["likes"] for row in told["models"]} == {f"{model}-1": 0, f"{model}-2": 1}


def test_a_call_that_asked_no_model_has_none(
    service: Client, user_id: int, database: psycopg.Connection, start: datetime
) -> None:
    close_call(service, open_call(service, user_id))
    database.execute("update public.model_calls set created_at = %s where user_id = %s", [start, user_id])

    [row] = summarize(service, start, start + HOUR)["models"]

    assert (row["model"], row["requests"], row["p50_ms"]) == (None, 1, None)


def test_agrees_with_the_owners_view(answer: Answer, service: Client, start: datetime, model: str) -> None:
    for latency in range(100, 1100, 50):
        answer(start, model_version=model, latency_ms=latency)

    [told] = summarize(service, start, start + 24 * HOUR, "1 day")["models"]

    [row] = rows(service.table("model_usage").select("*").eq("model_version", model))
    assert (told["requests"], told["errors"], told["cost_usd"]) == (row["calls"], row["failed"], row["cost_usd"])
    assert told["p50_ms"] == pytest.approx(row["p50_latency_ms"], rel=0.06)  # which lies between two of the twenty
    assert told["p95_ms"] == pytest.approx(row["p95_latency_ms"], rel=0.02)
