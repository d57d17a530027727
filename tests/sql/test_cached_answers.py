"""Answers that are kept for whoever asks the same."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from supabase import Client

from tests.sql import ANSWER, rows

TOLD = {"response": ANSWER, "sources": [{"id": 1}]}


@pytest.fixture
def key() -> str:
    return uuid4().hex


def keep(service: Client, key: str, answer: Any = None, seconds: int = 60) -> None:
    kept = {"key": key, "answer": answer or TOLD, "keep_seconds": seconds}
    service.rpc("keep_answer", kept).execute()


def read(service: Client, key: str) -> Any:
    return rows(service.rpc("read_answer", {"key": key}))


def kept_count(database: psycopg.Connection, prefix: str) -> int:
    found = database.execute("select count(*) from private.cached_answers where key like %s", [f"{prefix}%"]).fetchone()
    assert found
    return int(found[0])


def test_an_answer_is_read_as_it_was_kept(service: Client, key: str) -> None:
    before = read(service, key)
    keep(service, key)

    assert before is None
    assert read(service, key) == TOLD
    assert read(service, f"{key}x") is None


def test_an_answer_that_is_over_is_read_no_more(service: Client, key: str) -> None:
    keep(service, key, seconds=0)

    assert read(service, key) is None


def test_a_newer_answer_takes_the_place_of_the_older(service: Client, key: str) -> None:
    keep(service, key, {"response": "Old."}, seconds=0)
    keep(service, key, {"response": "New."})
    keep(service, key, {"response": "Newest."})

    assert read(service, key) == {"response": "Newest."}


def test_keeping_sweeps_what_is_over_and_nothing_else(service: Client, database: psycopg.Connection, key: str) -> None:
    for number in range(3):
        keep(service, f"{key}-{number}", seconds=60 if number == 0 else 0)

    keep(service, f"{key}-3")

    assert kept_count(database, key) == 2
    assert read(service, f"{key}-0") == read(service, f"{key}-3") == TOLD


def test_answers_kept_at_once_do_not_wait_for_each_other_for_ever(
    service: Client, database: psycopg.Connection, key: str
) -> None:
    keys = [f"{key}-{number % 8}" for number in range(160)]

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda key: keep(service, key, seconds=0), keys))
    keep(service, key)

    assert kept_count(database, key) == 1
