"""Deferred turns: a worker answers what is pending, once, however often the queue delivers it."""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, LiteralString
from uuid import uuid4

import psycopg
import pytest
from postgrest import APIError
from supabase import Client

from infra.local.stack import Stack
from tests.sql import ANSWER, QUESTION, close_turn, let_die, open_turn, put_on_plan, rows, spent, waits_for

USED: dict[str, Any] = {"input_tokens": 40, "output_tokens": 10, "cost_usd": 0.01}
LOST = ("failed", "lost")
CLOSE: LiteralString = (
    "select public.close_turn(%(id)s, %(user)s, %(thread)s, %(attempt)s, 'What is TON?', '', 'failed')"
)


@pytest.fixture
def turn(api: Client, service: Client) -> dict[str, Any]:
    """A turn of the key "key" that has been left to a worker."""
    turn = open_turn(api, request_key="key", tokens=1000, usd=0.5)
    defer_turn(service, turn, idempotency_key="key")
    return turn


def defer_turn(service: Client, turn: dict[str, Any], **arguments: Any) -> None:
    held = {name: turn[name] for name in ("conversation_id", "user_id", "thread_id", "attempt")}
    service.rpc("defer_turn", {**held, "message": QUESTION, **arguments}).execute()


def claim_turn(service: Client, turn: dict[str, Any], seconds: int = 60) -> str:
    held = {name: turn[name] for name in ("conversation_id", "attempt")}
    outcome: str = rows(service.rpc("claim_turn", {**held, "claim_seconds": seconds}))["outcome"]
    return outcome


def erase(service: Client, turn: dict[str, Any]) -> None:
    service.rpc("erase_open_turns", {"user_id": turn["user_id"]}).execute()
    service.rpc("erase_training_user", {"user_id": turn["user_id"]}).execute()


def read(api: Client, turn: dict[str, Any]) -> tuple[str, str | None] | None:
    """The conversation's status and error code as they are told to a user, None where he is told of none."""
    told = rows(api.rpc("read_conversation", {"conversation_id": turn["conversation_id"]}))
    return (told["status"], told["error_code"]) if told else None


def stored(service: Client, turn: dict[str, Any]) -> tuple[str, str, str | None]:
    """The conversation's status, response and error code as they stand in its row."""
    query = service.table("conversations").select("status, response, error_code")
    [row] = rows(query.eq("id", turn["conversation_id"]))
    return row["status"], row["response"], row["error_code"]


def test_a_deferred_turn_is_a_pending_conversation(api: Client, neighbour: Client, turn: dict[str, Any]) -> None:
    again = open_turn(api, request_key="key")

    [row] = rows(api.table("conversations").select("id, thread_id, message, response, status, idempotency_key"))
    assert row == {
        "id": turn["conversation_id"],
        "thread_id": turn["thread_id"],
        "message": QUESTION,
        "response": "",
        "status": "pending",
        "idempotency_key": "key",
    }
    assert again == {
        "outcome": "running",
        "conversation_id": turn["conversation_id"],
        "thread_id": turn["thread_id"],
        "is_pending": True,
        "retry_after_seconds": 1,
    }
    assert (read(api, turn), read(neighbour, turn)) == (("pending", None), None)


def test_an_answer_takes_the_place_of_what_was_pending(
    api: Client, service: Client, user_id: int, turn: dict[str, Any]
) -> None:
    claimed = claim_turn(service, turn)

    close_turn(service, turn, idempotency_key="key", model_version="ton@3", **USED)

    assert claimed == "claimed"
    assert stored(service, turn) == ("complete", ANSWER, None)
    assert open_turn(api, request_key="key")["outcome"] == "answered"
    assert len(rows(api.table("conversations").select("id"))) == 1
    assert spent(service, user_id) == [(1, 50, 0.01)]


def test_a_pending_turn_is_no_part_of_a_prompt(api: Client, turn: dict[str, Any]) -> None:
    following = open_turn(api, thread=turn["thread_id"])

    assert following["turns"] == []


def test_of_many_workers_one_claims_a_turn(service: Client, turn: dict[str, Any]) -> None:
    with ThreadPoolExecutor(20) as threads:
        outcomes = sorted(threads.map(lambda _: claim_turn(service, turn), range(20)))

    assert outcomes == ["busy"] * 19 + ["claimed"]


def test_a_claim_that_is_let_go_or_over_can_be_claimed_again(
    service: Client, database: psycopg.Connection, turn: dict[str, Any]
) -> None:
    outcomes = [claim_turn(service, turn), claim_turn(service, turn), claim_turn(service, turn, 0)]
    outcomes += [claim_turn(service, turn), claim_turn(service, turn)]

    database.execute(
        "update public.open_turns set claimed_until = now() - interval '1 s' where conversation_id = %s",
        [turn["conversation_id"]],
    )

    assert outcomes == ["claimed", "busy", "claimed", "claimed", "busy"]
    assert claim_turn(service, turn) == "claimed"


@pytest.mark.parametrize("end", [{}, {"status": "partial"}, {"status": "failed", "response": ""}])
def test_a_turn_that_is_closed_is_over(service: Client, turn: dict[str, Any], end: dict[str, str]) -> None:
    close_turn(service, turn, **end)

    assert claim_turn(service, turn) == "over"


def test_a_turn_that_was_opened_anew_is_over(
    api: Client, user_id: int, service: Client, database: psycopg.Connection, turn: dict[str, Any]
) -> None:
    let_die(database, user_id)
    newer = open_turn(api, request_key="key")

    outcomes = [claim_turn(service, turn), claim_turn(service, newer)]

    assert newer["conversation_id"] == turn["conversation_id"]
    assert outcomes == ["over", "claimed"]


def test_a_turn_that_an_older_attempt_has_answered_is_over(
    api: Client, user_id: int, service: Client, database: psycopg.Connection, turn: dict[str, Any]
) -> None:
    let_die(database, user_id)
    newer = open_turn(api, request_key="key")
    defer_turn(service, newer, idempotency_key="key")

    close_turn(service, turn, idempotency_key="key")

    assert stored(service, turn) == ("complete", ANSWER, None)
    assert claim_turn(service, newer) == "over"


def test_a_claim_keeps_what_was_reserved(
    api: Client, user_id: int, service: Client, database: psycopg.Connection, turn: dict[str, Any]
) -> None:
    put_on_plan(database, user_id, tokens_per_day=1000)
    let_die(database, user_id)

    claim_turn(service, turn)

    assert open_turn(api, tokens=1)["outcome"] == "exhausted"
    assert open_turn(api, request_key="key")["outcome"] == "running"
    assert spent(service, user_id) == [(1, 1000, 0.5)]


def test_deferring_keeps_what_was_reserved(
    api: Client, user_id: int, service: Client, database: psycopg.Connection
) -> None:
    put_on_plan(database, user_id, tokens_per_day=1000)
    turn = open_turn(api, lease_seconds=0, tokens=1000)

    defer_turn(service, turn)

    assert open_turn(api, tokens=1)["outcome"] == "exhausted"
    assert read(api, turn) == ("pending", None)


@pytest.mark.parametrize("hold", ["over", "gone"])
def test_a_pending_conversation_that_nobody_holds_is_lost(
    api: Client, user_id: int, service: Client, database: psycopg.Connection, turn: dict[str, Any], hold: str
) -> None:
    let_die(database, user_id)
    if hold == "gone":
        database.execute("delete from public.open_turns where user_id = %s", [user_id])
    told, kept = read(api, turn), stored(service, turn)

    open_turn(api)

    assert (told, kept) == (LOST, ("pending", "", None))
    assert stored(service, turn) == ("failed", "", "lost")
    assert read(api, turn) == LOST


def test_a_turn_sweeps_what_is_lost_of_its_own_user_only(
    api: Client, user_id: int, neighbour: Client, service: Client, database: psycopg.Connection, turn: dict[str, Any]
) -> None:
    held = open_turn(api)
    defer_turn(service, held)
    database.execute("delete from public.open_turns where conversation_id = %s", [turn["conversation_id"]])
    open_turn(neighbour)
    before = stored(service, turn)

    open_turn(api)

    assert before == ("pending", "", None)
    assert stored(service, turn) == ("failed", "", "lost")
    assert stored(service, held) == ("pending", "", None)


def test_what_was_lost_is_answered_all_the_same_when_a_worker_comes(
    api: Client, user_id: int, service: Client, database: psycopg.Connection, turn: dict[str, Any]
) -> None:
    let_die(database, user_id)
    open_turn(api)

    outcome = claim_turn(service, turn)
    close_turn(service, turn, idempotency_key="key", **USED)

    assert outcome == "claimed"
    assert (read(api, turn), stored(service, turn)) == (("complete", None), ("complete", ANSWER, None))
    assert spent(service, user_id) == [(2, 50, 0.01)]


def test_a_key_whose_answer_was_lost_is_opened_again_in_its_place(
    api: Client, user_id: int, database: psycopg.Connection, turn: dict[str, Any]
) -> None:
    database.execute("delete from public.open_turns where user_id = %s", [user_id])

    again = open_turn(api, request_key="key")

    assert (again["outcome"], again["conversation_id"]) == ("open", turn["conversation_id"])
    assert again["thread_id"] == turn["thread_id"]


def test_a_closing_that_is_delivered_again_changes_nothing(
    api: Client, user_id: int, service: Client, turn: dict[str, Any]
) -> None:
    close_turn(service, turn, idempotency_key="key", **USED)
    api.table("conversations").update({"feedback": 1}).eq("id", turn["conversation_id"]).execute()
    before = rows(api.table("conversations").select("*"))

    for _ in range(3):
        close_turn(service, turn, idempotency_key="key", **USED)

    assert rows(api.table("conversations").select("*")) == before
    assert spent(service, user_id) == [(1, 50, 0.01)]


@pytest.mark.parametrize("status", ["failed", "partial"])
def test_a_late_closing_does_not_end_what_a_newer_attempt_works_at(
    api: Client, service: Client, turn: dict[str, Any], status: str
) -> None:
    closing = {"idempotency_key": "key", "response": "", "status": status, "error_code": "model_unavailable"}
    close_turn(service, turn, **closing)
    newer = open_turn(api, request_key="key")
    defer_turn(service, newer, idempotency_key="key")

    close_turn(service, turn, **closing)

    assert stored(service, turn) == ("pending", "", None)
    assert claim_turn(service, newer) == "claimed"


def test_a_failure_does_not_take_the_place_of_half_an_answer(
    api: Client, service: Client, turn: dict[str, Any]
) -> None:
    failure = {"idempotency_key": "key", "response": "", "status": "failed", "error_code": "model_unavailable"}
    close_turn(service, turn, **failure)
    newer = open_turn(api, request_key="key")
    close_turn(service, newer, idempotency_key="key", response="TON is", status="partial", error_code="cut_off")

    close_turn(service, turn, **failure)

    assert stored(service, turn) == ("partial", "TON is", "cut_off")


def test_deferring_what_is_over_changes_nothing(api: Client, service: Client, turn: dict[str, Any]) -> None:
    close_turn(service, turn, idempotency_key="key", response="", status="failed", error_code="model_unavailable")

    defer_turn(service, turn, idempotency_key="key")
    stranger = turn | {"conversation_id": turn["conversation_id"] + 10**9}
    defer_turn(service, stranger)

    assert stored(service, turn) == ("failed", "", "model_unavailable")
    assert read(api, turn) == ("failed", "model_unavailable")
    assert [row["id"] for row in rows(api.table("conversations").select("id"))] == [turn["conversation_id"]]


def test_an_answer_stays_when_its_turn_is_deferred_late(service: Client, turn: dict[str, Any]) -> None:
    close_turn(service, turn, idempotency_key="key")

    defer_turn(service, turn, idempotency_key="key")

    assert stored(service, turn) == ("complete", ANSWER, None)


@pytest.mark.parametrize(
    "late",
    [
        CLOSE,
        "select public.defer_turn(%(id)s, %(user)s, %(thread)s, %(attempt)s, 'What is TON?')",
        "select public.claim_turn(%(id)s, %(attempt)s, 60)",
    ],
    ids=["close", "defer", "claim"],
)
def test_a_turn_and_what_comes_late_for_it_do_not_wait_for_each_other(
    stack: Stack,
    api: Client,
    user_id: int,
    service: Client,
    database: psycopg.Connection,
    turn: dict[str, Any],
    late: LiteralString,
) -> None:
    other = open_turn(api)
    database.execute(
        "update public.open_turns set expires_at = now() - interval '2 days' where conversation_id = %s",
        [turn["conversation_id"]],
    )
    first, second = (
        {"id": each["conversation_id"], "user": user_id, "thread": each["thread_id"], "attempt": each["attempt"]}
        for each in (other, turn)
    )

    with ThreadPoolExecutor(1) as threads, psycopg.connect(stack.database_url) as transaction:
        transaction.execute(CLOSE, first)
        again = threads.submit(open_turn, api, request_key="key")
        while not waits_for(database, transaction.info.backend_pid):
            time.sleep(0.01)
        transaction.execute(late, second)
        transaction.commit()

    assert again.result()["outcome"] in ("open", "running")


def test_what_is_under_way_when_its_user_is_erased_is_not_kept(
    api: Client, service: Client, database: psycopg.Connection, turn: dict[str, Any]
) -> None:
    work = {"draft": {"turn": {"user_id": turn["user_id"], "message": QUESTION}}}
    for attempt in (turn["attempt"], str(uuid4())):
        job = {"attempt": attempt, "provider": "replicate", "model": "any", "keep_seconds": 60}
        service.rpc("open_job", {**job, "work": work}).execute()
    plain = open_turn(api)

    erase(service, turn)

    assert claim_turn(service, turn) == "over"
    left = "select count(*) from private.jobs where work::text like %s"
    assert database.execute(left, [f'%"user_id": {turn["user_id"]},%']).fetchone() == (0,)
    for answered in (turn, plain):
        close_turn(service, answered)
        defer_turn(service, answered)
    assert rows(api.table("conversations").select("id")) == []
    left = "select count(*) from public.open_turns where user_id = %s"
    assert database.execute(left, [turn["user_id"]]).fetchone() == (0,)


def test_an_erased_user_may_ask_again(api: Client, service: Client, turn: dict[str, Any]) -> None:
    erase(service, turn)

    again = open_turn(api, request_key="key")
    close_turn(service, again)

    assert [row["id"] for row in rows(api.table("conversations").select("id"))] == [again["conversation_id"]]


def test_nobody_else_ends_his_turns(api: Client, visitor: Client, turn: dict[str, Any]) -> None:
    for client in (api, visitor):
        with pytest.raises(APIError, match="permission denied"):
            client.rpc("erase_open_turns", {"user_id": turn["user_id"]}).execute()
