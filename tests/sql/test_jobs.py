"""Jobs that a provider was left alone with, found again by the token in the address it calls."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID, uuid4

import psycopg
from supabase import Client

from tests.sql import rows

WORK = {"conversation_id": 1}


def open_job(service: Client, attempt: str, seconds: int = 60, model: str = "near:meta/llama") -> dict[str, Any]:
    asked = {"attempt": attempt, "provider": "near", "model": model, "work": WORK, "keep_seconds": seconds}
    opened: dict[str, Any] = rows(service.rpc("open_job", asked))
    return opened


def find_job(service: Client, token: str) -> Any:
    return rows(service.rpc("find_job", {"token": token}))


def test_a_job_is_found_by_its_token(service: Client) -> None:
    token = open_job(service, str(uuid4()))["token"]
    unnamed = find_job(service, token)

    service.rpc("name_job", {"token": token, "job_id": "job-1"}).execute()

    named = find_job(service, token)
    assert UUID(token).version == 4
    assert 50 < unnamed.pop("seconds_left") <= 60
    assert unnamed == {"provider": "near", "model": "near:meta/llama", "job_id": None, "work": WORK}
    assert named["job_id"] == "job-1"
    assert find_job(service, str(uuid4())) is None


def test_an_attempt_has_one_job_at_each_model(service: Client) -> None:
    attempt = str(uuid4())
    with ThreadPoolExecutor(10) as pool:
        tokens = {job["token"] for job in pool.map(lambda _: open_job(service, attempt), range(10))}
    [token] = tokens
    service.rpc("name_job", {"token": token, "job_id": "job-1"}).execute()

    again = open_job(service, attempt)
    others = [open_job(service, attempt, model="other"), open_job(service, str(uuid4()))]

    assert again == {"token": token, "job_id": "job-1"}
    assert [job["job_id"] for job in others] == [None, None]
    assert len({token, *(job["token"] for job in others)}) == 3


def test_a_job_whose_time_is_over_is_known_for_a_day_and_swept_then(
    service: Client, database: psycopg.Connection
) -> None:
    token = open_job(service, str(uuid4()), seconds=0)["token"]
    found = find_job(service, token)
    database.execute("update private.jobs set expires_at = now() - interval '25 h' where token = %s", [token])

    kept = open_job(service, str(uuid4()))["token"]

    assert found["seconds_left"] <= 0
    assert find_job(service, token) is None
    assert find_job(service, kept)
