"""Jobs that a provider was left alone with, found again by the token in the address it calls."""

from typing import Any
from uuid import UUID, uuid4

import psycopg
from supabase import Client

from tests.sql import rows

WORK = {"conversation_id": 1, "attempt": str(uuid4())}


def open_job(service: Client, seconds: int = 60, **work: Any) -> str:
    opened = {"provider": "replicate", "work": {**WORK, **work}, "keep_seconds": seconds}
    token: str = rows(service.rpc("open_job", opened))
    return token


def find_job(service: Client, token: str) -> Any:
    return rows(service.rpc("find_job", {"token": token}))


def test_a_job_is_found_by_its_token(service: Client) -> None:
    token = open_job(service)
    unnamed = find_job(service, token)

    service.rpc("name_job", {"token": token, "job_id": "job-1"}).execute()

    assert UUID(token).version == 4
    assert unnamed == {"provider": "replicate", "job_id": None, "work": WORK}
    assert find_job(service, token) == {"provider": "replicate", "job_id": "job-1", "work": WORK}
    assert find_job(service, str(uuid4())) is None


def test_every_job_has_a_token_of_its_own(service: Client) -> None:
    one, other = open_job(service), open_job(service)

    service.rpc("name_job", {"token": one, "job_id": "job-1"}).execute()

    assert one != other
    assert find_job(service, other)["job_id"] is None


def test_a_job_is_closed_for_good_and_alone(service: Client) -> None:
    closed, other = open_job(service), open_job(service)

    for _ in range(2):
        service.rpc("close_job", {"token": closed}).execute()

    service.rpc("name_job", {"token": closed, "job_id": "late"}).execute()
    assert find_job(service, closed) is None
    assert find_job(service, other)


def test_a_job_whose_time_is_over_is_found_no_more_and_swept(service: Client, database: psycopg.Connection) -> None:
    over = open_job(service, seconds=0)
    found = find_job(service, over)

    kept = open_job(service)

    tokens = database.execute("select token::text from private.jobs where token in (%s, %s)", [over, kept]).fetchall()
    assert found is None
    assert tokens == [(kept,)]
