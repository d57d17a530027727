"""Counting calls: what the gateway asks before it lets somebody on, over PostgREST."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from supabase import Client

from tests.sql import DENIED, refusal, rows


@pytest.fixture
def key() -> str:
    return f"user:{uuid4()}"


def count_call(api: Client, key: str, limit: int | None) -> Any:
    """The seconds to wait, None where there are none."""
    return rows(api.rpc("count_call", {"caller_key": key, "calls_per_minute": limit}))


def age(database: psycopg.Connection, key: str, seconds: float) -> None:
    """Make all calls of the key that much older."""
    database.execute(
        "update private.calls set called_at = called_at - make_interval(secs => %s) where caller_key = %s",
        [seconds, key],
    )


def test_the_call_over_the_limit_has_to_wait_for_the_first_to_pass(
    service: Client, database: psycopg.Connection, key: str
) -> None:
    counted = [count_call(service, key, 2)]
    age(database, key, 20)
    counted += [count_call(service, key, 2) for _ in range(2)]
    age(database, key, 41)

    assert counted[:2] == [None, None]
    assert 38 <= counted[2] <= 40
    assert count_call(service, key, 2) is None
    assert 17 <= count_call(service, key, 2) <= 20


def test_a_lower_limit_waits_for_as_many_as_are_too_many(
    service: Client, database: psycopg.Connection, key: str
) -> None:
    for _ in range(3):
        count_call(service, key, 10)
        age(database, key, 10)

    assert 38 <= count_call(service, key, 2) <= 40
    assert 48 <= count_call(service, key, 1) <= 50


def test_callers_do_not_count_for_each_other(service: Client, key: str) -> None:
    counted = [count_call(service, each, 1) for each in (key, f"{key}:search", f"{key}x")]

    assert counted == [None] * 3


def test_calls_at_once_do_not_slip_past_the_limit(service: Client, key: str) -> None:
    with ThreadPoolExecutor(12) as pool:
        counted = list(pool.map(lambda _: count_call(service, key, 5), range(30)))

    assert counted.count(None) == 5


@pytest.mark.parametrize("limit", [0, -1, None])
def test_a_limit_that_is_none_lets_one_through(service: Client, key: str, limit: int | None) -> None:
    counted = [count_call(service, key, limit) for _ in range(2)]

    assert counted[0] is None
    assert counted[1] > 0


def test_calls_sweep_what_is_over_whoever_called(service: Client, database: psycopg.Connection, key: str) -> None:
    visitor = f"address:{uuid4()}"
    for _ in range(3):
        count_call(service, visitor, 10)
    age(database, visitor, 61)

    count_call(service, key, 10)

    assert database.execute("select count(*) from private.calls where caller_key = %s", [visitor]).fetchone() == (0,)


def test_nobody_but_the_gateway_counts(visitor: Client, outsider: Client, key: str) -> None:
    for api in (visitor, outsider):
        assert refusal(api.rpc("count_call", {"caller_key": key, "calls_per_minute": 1})) == DENIED
        assert refusal(api.schema("private").table("calls").select("*")) == "PGRST106"
