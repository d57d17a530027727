"""A turn's two calls, as a user and as the gateway make them over PostgREST."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from supabase import Client

from tests.sql import ANSWER, QUESTION, close_turn, open_turn, rows

# What a token could hold where the user's id belongs, and no id is meant by it.
GARBAGE = ["", "abc", "1 or 1=1", "-1", -1, 1.5, "1e3", " 1", "1\n", "٣", 10**18, [1], {"id": 1}, True, None]


@pytest.fixture
def passages(database: psycopg.Connection) -> Iterator[list[int]]:
    """The ids of three passages about TON."""
    model = uuid4().hex
    added = database.execute(
        """
        insert into public.finance_knowledge (content, embedding, embedding_model, content_hash, token_symbol)
        select content, array_fill(0.1, array[1536])::extensions.vector, %s, content, 'TON'
        from unnest(array['Toncoin is a coin.', 'Deleted since.', 'It pays fees.']) as content returning id
        """,
        [model],
    )
    yield [id for (id,) in added.fetchall()]
    database.execute("delete from public.finance_knowledge where embedding_model = %s", [model])


def conversation(service: Client, conversation_id: int) -> dict[str, Any]:
    """The stored row, whoever's it is."""
    [row] = rows(service.table("conversations").select("*").eq("id", conversation_id))
    found: dict[str, Any] = row
    return found


def test_a_turn_opens_with_nothing_before_it(api: Client, user_id: int) -> None:
    turn = open_turn(api)

    assert turn.keys() == {"outcome", "conversation_id", "thread_id", "user_id", "attempt", "limits", "turns", "swaps"}
    assert (turn["outcome"], turn["user_id"], turn["turns"], turn["swaps"]) == ("open", user_id, [], [])
    assert [row["conversation_id"] for row in rows(api.table("open_turns").select("*"))] == [turn["conversation_id"]]


def test_an_open_turn_is_no_conversation_until_it_is_closed(api: Client, user_id: int, service: Client) -> None:
    turn = open_turn(api, request_key="key")
    before = rows(api.table("conversations").select("*"))

    close_turn(
        service,
        turn,
        idempotency_key="key",
        context_used=[{"id": 1, "similarity": 0.9}],
        model_version="model-1",
        input_tokens=40,
        cached_tokens=30,
        output_tokens=9,
        reasoning_tokens=4,
        is_estimated=False,
        cost_usd=0.0012,
        latency_ms=830,
        flags=[{"kind": "unknown_url", "text": "evil.example"}],
    )

    assert before == []
    [row] = rows(api.table("conversations").select("*"))
    assert row.pop("created_at")
    assert row.pop("changed_in")
    assert row == {
        "id": turn["conversation_id"],
        "user_id": user_id,
        "thread_id": turn["thread_id"],
        "idempotency_key": "key",
        "message": QUESTION,
        "response": ANSWER,
        "status": "complete",
        "context_used": [{"id": 1, "similarity": 0.9}],
        "model_version": "model-1",
        "feedback": None,
        "flags": [{"kind": "unknown_url", "text": "evil.example"}],
        "error_code": None,
        "input_tokens": 40,
        "cached_tokens": 30,
        "output_tokens": 9,
        "reasoning_tokens": 4,
        "is_estimated": False,
        "cost_usd": 0.0012,
    }
    assert rows(api.table("open_turns").select("*")) == []


def test_a_turn_is_closed_once(api: Client, service: Client) -> None:
    turn = open_turn(api)
    close_turn(service, turn)
    closed = conversation(service, turn["conversation_id"])

    close_turn(service, turn, response="Another answer.", model_version="other")
    close_turn(service, turn, response="", status="failed", error_code="model_unavailable")

    assert conversation(service, turn["conversation_id"]) == closed


@pytest.mark.parametrize("status", ["failed", "partial"])
def test_an_answer_takes_the_place_of_what_was_not_one(api: Client, service: Client, status: str) -> None:
    turn = open_turn(api)
    close_turn(service, turn, response="TON", status=status, error_code="model_unavailable")

    close_turn(service, turn)

    row = conversation(service, turn["conversation_id"])
    assert (row["response"], row["status"], row["error_code"]) == (ANSWER, "complete", None)


def test_a_key_that_is_at_work_is_running(api: Client) -> None:
    turn = open_turn(api, request_key="key")

    again = open_turn(api, request_key="key")

    assert again == {
        "outcome": "running",
        "conversation_id": turn["conversation_id"],
        "thread_id": turn["thread_id"],
        "is_pending": False,
        "retry_after_seconds": 1,
    }


def test_a_keys_answer_is_given_again_with_its_sources(
    api: Client, service: Client, database: psycopg.Connection, passages: list[int]
) -> None:
    turn = open_turn(api, request_key="key")
    next_best, gone, best = passages
    used = [{"id": best, "similarity": 0.93}, {"id": gone, "similarity": 0.92}, {"id": next_best, "similarity": 0.91}]
    counts = {"output_tokens": 9, "cached_tokens": 30, "reasoning_tokens": 4, "is_estimated": True, "cost_usd": 0.0012}
    close_turn(service, turn, idempotency_key="key", context_used=used, model_version="model-1", **counts)
    database.execute("delete from public.finance_knowledge where id = %s", [gone])

    again = open_turn(api, request_key="key")

    told = again["conversation"]
    assert (again["outcome"], again["conversation_id"]) == ("answered", turn["conversation_id"])
    assert (told["conversation_id"], told["thread_id"]) == (turn["conversation_id"], turn["thread_id"])
    assert (told["message"], told["response"], told["status"]) == (QUESTION, ANSWER, "complete")
    assert (told["model"], told["feedback"], told["input_tokens"], told["error_code"]) == ("model-1", None, None, None)
    assert counts.items() <= told.items()
    assert told["sources"] == [
        {"id": best, "content": "It pays fees.", "similarity": 0.93, "token_symbol": "TON"},
        {"id": next_best, "content": "Toncoin is a coin.", "similarity": 0.91, "token_symbol": "TON"},
    ]
    assert rows(api.table("open_turns").select("*")) == []


@pytest.mark.parametrize("closed", [False, True])
def test_a_key_with_another_message_is_a_mismatch(api: Client, service: Client, closed: bool) -> None:
    turn = open_turn(api, request_key="key")
    if closed:
        close_turn(service, turn, idempotency_key="key")

    again = open_turn(api, "What is NOT?", request_key="key")

    assert again == {"outcome": "mismatch"}


def test_a_key_is_its_users_own(api: Client, neighbour: Client, service: Client) -> None:
    turn = open_turn(api, request_key="key")
    close_turn(service, turn, idempotency_key="key")

    other = open_turn(neighbour, "What is NOT?", request_key="key")

    assert other["outcome"] == "open"
    assert other["conversation_id"] != turn["conversation_id"]


@pytest.mark.parametrize("status", ["failed", "partial"])
def test_a_key_without_a_whole_answer_is_opened_again_in_its_place(api: Client, service: Client, status: str) -> None:
    turn = open_turn(api, request_key="key")
    close_turn(service, turn, idempotency_key="key", response="", status=status)

    again = open_turn(api, request_key="key")
    meanwhile = open_turn(api, request_key="key")
    close_turn(service, again, idempotency_key="key")

    assert again == turn | {name: again[name] for name in ("attempt", "limits")}
    assert meanwhile["outcome"] == "running"
    assert conversation(service, turn["conversation_id"])["status"] == "complete"


def test_a_key_whose_lease_has_run_out_is_opened_again(api: Client) -> None:
    turn = open_turn(api, request_key="key", lease_seconds=0)

    again = open_turn(api, request_key="key", thread=str(uuid4()))

    assert again == turn | {name: again[name] for name in ("attempt", "limits")}
    assert open_turn(api, request_key="key")["outcome"] == "running"


def test_a_late_closing_does_not_let_go_of_a_newer_attempt(api: Client, service: Client) -> None:
    first = open_turn(api, request_key="key")
    close_turn(service, first, idempotency_key="key", response="", status="failed")
    open_turn(api, request_key="key")

    close_turn(service, first, idempotency_key="key", response="", status="failed")

    assert open_turn(api, request_key="key")["outcome"] == "running"


def test_attempts_that_fail_count_against_the_limit_too(api: Client, service: Client) -> None:
    for _ in range(3):
        turn = open_turn(api, request_key="key", turns_per_minute=3)
        close_turn(service, turn, idempotency_key="key", response="", status="failed")

    assert open_turn(api, request_key="key", turns_per_minute=3)["outcome"] == "limited"


def test_what_a_caller_says_of_limits_is_bounded(api: Client) -> None:
    turn = open_turn(api, request_key="k" * 3000, lease_seconds=-5, turn_count=-1, swap_count=-1, turns_per_minute=None)

    kept = rows(api.table("open_turns").select("idempotency_key"))
    assert turn["outcome"] == "open"
    assert (turn["turns"], turn["swaps"]) == ([], [])
    assert kept == [{"idempotency_key": "k" * 255}]


def test_the_turns_of_a_minute_are_limited(api: Client, neighbour: Client, service: Client) -> None:
    close_turn(service, open_turn(api, turns_per_minute=2))
    second = open_turn(api, turns_per_minute=2)

    third = open_turn(api, turns_per_minute=2)

    assert second["outcome"] == "open"
    assert third.keys() == {"outcome", "retry_after_seconds", "limits"}
    assert third["outcome"] == "limited"
    assert 1 <= third["retry_after_seconds"] <= 60
    assert second["limits"]["requests"] | {"reset_seconds": 60} == {"limit": 2, "remaining": 0, "reset_seconds": 60}
    assert third["limits"]["requests"] == {"limit": 2, "remaining": 0, "reset_seconds": third["retry_after_seconds"]}
    assert open_turn(neighbour, turns_per_minute=2)["outcome"] == "open"


def test_an_answer_is_given_again_and_a_running_turn_told_beyond_the_limit(api: Client, service: Client) -> None:
    close_turn(service, open_turn(api, request_key="answered"), idempotency_key="answered")
    open_turn(api, request_key="running")

    outcomes = [
        open_turn(api, request_key=key, turns_per_minute=1)["outcome"] for key in ("answered", "running", "new")
    ]

    assert outcomes == ["answered", "running", "limited"]


def test_turns_opened_at_once_cannot_slip_past_the_limit(api: Client) -> None:
    with ThreadPoolExecutor(20) as threads:
        turns = list(threads.map(lambda _: open_turn(api, turns_per_minute=5), range(20)))

    outcomes = sorted(turn["outcome"] for turn in turns)
    assert outcomes == ["limited"] * 15 + ["open"] * 5
    assert len({turn.get("conversation_id") for turn in turns}) == 6


def test_one_key_sent_at_once_opens_one_turn(api: Client) -> None:
    with ThreadPoolExecutor(10) as threads:
        turns = list(threads.map(lambda _: open_turn(api, request_key="key"), range(10)))

    outcomes = sorted(turn["outcome"] for turn in turns)
    assert outcomes == ["open"] + ["running"] * 9


def test_a_user_opens_turns_in_his_own_name_only(api: Client, user_id: int) -> None:
    refused = open_turn(api, claimed_user_id=user_id + 1)
    allowed = open_turn(api, claimed_user_id=user_id)

    assert refused == {"outcome": "forbidden"}
    assert allowed["outcome"] == "open"
    assert len(rows(api.table("open_turns").select("*"))) == 1


def test_the_gateway_itself_is_no_user(service: Client, user_id: int) -> None:
    assert open_turn(service) == {"outcome": "unknown_user"}
    assert open_turn(service, claimed_user_id=user_id) == {"outcome": "unknown_user"}


def test_a_turn_comes_with_its_threads_last_answers_the_oldest_first(
    api: Client, neighbour: Client, service: Client
) -> None:
    first = open_turn(api)
    thread = first["thread_id"]
    close_turn(service, first, message="0", response="a 0")
    for number in range(1, 6):
        close_turn(service, open_turn(api, thread=thread), message=str(number), response=f"a {number}")
    close_turn(service, open_turn(api, thread=thread), message="failed", response="", status="failed")
    close_turn(service, open_turn(api), message="elsewhere")
    close_turn(service, open_turn(neighbour, thread=thread), message="not mine")

    turn = open_turn(api, thread=thread)
    short = open_turn(api, thread=thread, turn_count=1)

    assert turn["thread_id"] == thread
    assert turn["turns"] == [{"message": str(number), "response": f"a {number}"} for number in (2, 3, 4, 5)]
    assert short["turns"] == [{"message": "5", "response": "a 5"}]


def test_a_turn_comes_with_the_users_last_swaps_the_newest_first(
    api: Client, user_id: int, neighbour: Client, database: psycopg.Connection
) -> None:
    database.execute(
        """
        insert into public.swap_history (user_id, from_token, to_token, amount, created_at)
        select %s, 'TON', 'USDT', day + 0.5, timestamptz '2026-01-01' + day * interval '1 day'
        from generate_series(1, 12) as day order by random()
        """,
        [user_id],
    )

    turn, short, other = open_turn(api), open_turn(api, swap_count=1), open_turn(neighbour)

    assert [swap["amount"] for swap in turn["swaps"]] == [day + 0.5 for day in range(12, 2, -1)]
    assert short["swaps"] == [
        {"from_token": "TON", "to_token": "USDT", "amount": 12.5, "created_at": "2026-01-13T00:00:00+00:00"}
    ]
    assert other["swaps"] == []


@pytest.mark.parametrize("claim", [int, str])
def test_a_users_id_in_the_token_is_who_he_is(
    mint: Callable[..., Client], service: Client, database: psycopg.Connection, claim: type
) -> None:
    own_id = add_user(database)
    api = mint(user_id=claim(own_id))

    turn = open_turn(api, claimed_user_id=own_id)
    close_turn(service, turn)

    assert (turn["outcome"], turn["user_id"]) == ("open", own_id)
    assert [row["id"] for row in rows(api.table("conversations").select("id"))] == [turn["conversation_id"]]


@pytest.mark.parametrize("claim", GARBAGE, ids=repr)
def test_a_token_with_garbage_for_an_id_is_nobodys(
    mint: Callable[..., Client], database: psycopg.Connection, claim: Any
) -> None:
    add_user(database)
    api = mint(user_id=claim)

    turn = open_turn(api)

    assert turn == {"outcome": "unknown_user"}
    assert rows(api.table("users").select("*")) == []


def test_a_token_with_an_id_that_nobody_has_is_nobodys(mint: Callable[..., Client]) -> None:
    turn = open_turn(mint(user_id=10**17))

    assert turn == {"outcome": "unknown_user"}


def add_user(database: psycopg.Connection) -> int:
    """A user whom the app knows, and Supabase's Auth doesn't."""
    row = database.execute("insert into public.users default values returning user_id").fetchone()
    assert row
    added: int = row[0]
    return added
