"""Answers that are kept for whoever asks the same."""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, LiteralString
from uuid import uuid4

import psycopg
import pytest
from supabase import Client

from infra.local.stack import Stack
from tests.sql import ANSWER, rows, waits_for

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


def test_two_that_keep_do_not_wait_for_what_the_other_sweeps(
    stack: Stack, service: Client, database: psycopg.Connection, key: str
) -> None:
    keep_in_transaction: LiteralString = "select public.keep_answer(%s, '{}', 60)"
    keep(service, f"{key}-1", seconds=0)

    with ThreadPoolExecutor(1) as threads, psycopg.connect(stack.database_url) as transaction:
        transaction.execute(keep_in_transaction, [f"{key}-0"])  # and sweep the first
        keep(service, f"{key}-2", seconds=0)
        other = threads.submit(keep, service, f"{key}-1")
        while not waits_for(database, transaction.info.backend_pid):
            time.sleep(0.01)
        transaction.execute(keep_in_transaction, [f"{key}-2"])
        transaction.commit()

    assert other.exception() is None
    assert kept_count(database, key) == 3
