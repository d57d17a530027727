"""What is told of models: a canary's figures beside the active version's, and the list."""

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from supabase import Client

from tests.sql import close_call, close_turn, open_call, open_turn, retire, rows, sign_up
from tests.sql.models import Family

NOTHING: dict[str, Any] = {
    "answers": 0,
    "failed": 0,
    "users": 0,
    "thumbs_up": 0,
    "thumbs_down": 0,
    "votes": [],
    "latency_count": 0,
    "latency_sum_ms": 0,
    "latencies_ms": [],
}


@pytest.fixture
def canary(family: Family) -> Family:
    """v2 is the canary beside v1."""
    family.active("v1")
    family.ready("v2")
    family.activate("v2", 0.25)
    return family


def figures(family: Family) -> dict[str, Any]:
    return family.call("canary_figures")


def answer(family: Family, api: Client, version: str, thumb: int | None = None, **end: Any) -> int:
    """The user's question is answered by the version, and rated; gives the conversation's id."""
    turn = open_turn(api, turns_per_minute=1000)
    name = f"{family.name}@{version}"
    close_turn(family.service, turn, **{"model_version": name, "routed_version": name, **end})
    api.table("conversations").update({"feedback": thumb}).eq("id", turn["conversation_id"]).execute()
    conversation_id: int = turn["conversation_id"]
    return conversation_id


def make_older(database: psycopg.Connection, conversation_id: int) -> None:
    """As if it had been asked an hour before."""
    for change in (
        "update public.model_calls set created_at = created_at - interval '1 h' where conversation_id = %s",
        "update public.conversations set created_at = created_at - interval '1 h' where id = %s",
    ):
        database.execute(change, [conversation_id])


def test_without_a_canary_there_are_no_figures(family: Family) -> None:
    nothing = figures(family)
    family.active("v1")

    assert nothing == {"outcome": "no_canary", "active": None}
    assert figures(family) == {"outcome": "no_canary", "active": "v1"}


def test_a_canary_that_nobody_has_asked_has_figures_of_nothing(canary: Family) -> None:
    assert figures(canary) == {
        "outcome": "figures",
        "since": canary.row("v2")["canary_since"],
        "weight": 0.25,
        "active": {"version": "v1", **NOTHING},
        "canary": {"version": "v2", **NOTHING},
    }


def test_figures_of_different_weights_are_not_put_together(canary: Family, api: Client) -> None:
    answer(canary, api, "v1", 1)  # by a user who is moved to the canary then
    answer(canary, api, "v2", -1)

    canary.activate("v2", 0.75)
    answer(canary, api, "v2", 1)

    told = figures(canary)
    assert (told["weight"], told["since"]) == (0.75, canary.row("v2")["canary_since"])
    assert told["active"] == {"version": "v1", **NOTHING}
    assert (told["canary"]["answers"], told["canary"]["votes"]) == (1, [[1, 0]])


def test_both_versions_calls_are_counted_each_for_itself(
    canary: Family, api: Client, neighbour: Client, user_id: int
) -> None:
    for latency in (100, 300):
        answer(canary, api, "v1", latency_ms=latency)
    answer(canary, neighbour, "v1", status="partial", latency_ms=200)
    answer(canary, api, "v1", status="failed", error_code="model_unavailable", latency_ms=9000)
    answer(canary, api, "v2", latency_ms=50)
    answer(canary, api, "v2")
    for user in (None, user_id):
        called = open_call(canary.service, user)
        close_call(
            canary.service, called, model_version=f"{canary.name}@v2", routed_version=f"{canary.name}@v2", latency_ms=70
        )
    answer(canary, neighbour, "v3")
    open_turn(api)

    told = figures(canary)

    active = {"answers": 3, "failed": 1, "users": 2, "latency_count": 3, "latency_sum_ms": 600}
    assert told["active"] == {"version": "v1", **NOTHING, **active, "latencies_ms": [200, 300, 100]}
    of_canary = {"answers": 4, "users": 1, "latency_count": 3, "latency_sum_ms": 190}
    assert told["canary"] == {"version": "v2", **NOTHING, **of_canary, "latencies_ms": [70, 70, 50]}


def test_a_user_who_votes_often_can_be_counted_as_one(
    canary: Family, api: Client, database: psycopg.Connection, mint: Callable[..., Client]
) -> None:
    second, third, fourth = (sign_up(database, mint) for _ in range(3))
    for thumb in (1, 1, 1, -1, 0, None):
        answer(canary, api, "v2", thumb)
    answer(canary, second, "v2", -1)
    answer(canary, third, "v2", -1)
    answer(canary, third, "v1", 1)
    answer(canary, fourth, "v2", 0)

    told = figures(canary)

    assert told["canary"]["votes"] == [[0, 1], [0, 1], [3, 1]]
    assert (told["canary"]["thumbs_up"], told["canary"]["thumbs_down"], told["canary"]["users"]) == (3, 3, 4)
    assert (told["active"]["votes"], told["active"]["thumbs_up"], told["active"]["thumbs_down"]) == ([[1, 0]], 1, 0)


def test_what_was_answered_before_there_was_a_canary_does_not_count(
    family: Family, api: Client, database: psycopg.Connection
) -> None:
    family.active("v1")
    family.ready("v2")
    answer(family, api, "v1", 1, latency_ms=100)
    make_older(database, answer(family, api, "v2", -1, latency_ms=100))
    family.activate("v2", 0.25)
    make_older(database, answer(family, api, "v1", -1, latency_ms=100))
    answer(family, api, "v1", 1, latency_ms=200)

    told = figures(family)

    counted = {"answers": 1, "users": 1, "thumbs_up": 1, "votes": [[1, 0]]}
    latencies = {"latency_count": 1, "latency_sum_ms": 200, "latencies_ms": [200]}
    assert told["active"] == {"version": "v1", **NOTHING, **counted, **latencies}
    assert told["canary"] == {"version": "v2", **NOTHING}


def test_an_answer_of_before_that_is_rated_now_does_not_count(family: Family, api: Client) -> None:
    family.active("v1")
    family.ready("v2")
    before = answer(family, api, "v1")
    family.activate("v2", 0.25)

    api.table("conversations").update({"feedback": -1}).eq("id", before).execute()

    assert figures(family)["active"] == {"version": "v1", **NOTHING}


def test_a_canary_that_comes_again_begins_anew(canary: Family, api: Client) -> None:
    answer(canary, api, "v2", -1)
    counted = figures(canary)["canary"]["answers"]

    canary.activate("v2", 0.25)
    kept = figures(canary)["canary"]["answers"]
    canary.roll_back()
    canary.activate("v2", 0.25)

    assert (counted, kept) == (1, 1)
    assert figures(canary)["canary"] == {"version": "v2", **NOTHING}


def test_a_thumb_is_for_the_version_whose_answer_stands(canary: Family, api: Client) -> None:
    for version, status in ("v2", "partial"), ("v1", "complete"):
        turn = open_turn(api, request_key="key")
        name = f"{canary.name}@{version}"
        said = {"status": status, "model_version": name, "routed_version": name}
        close_turn(canary.service, turn, idempotency_key="key", **said)

    api.table("conversations").update({"feedback": 1}).eq("id", turn["conversation_id"]).execute()

    told = figures(canary)
    assert (told["canary"]["answers"], told["canary"]["votes"]) == (1, [])
    assert (told["active"]["answers"], told["active"]["votes"]) == (1, [[1, 0]])


def test_an_answer_that_another_model_gave_is_a_failure_of_the_version(canary: Family, api: Client) -> None:
    answer(canary, api, "v2", 1, model_version="together:llama")

    told = figures(canary)["canary"]

    assert (told["answers"], told["failed"], told["votes"], told["latencies_ms"]) == (0, 1, [], [])


def test_who_names_a_version_says_nothing_of_it(canary: Family, api: Client) -> None:
    """Whoever chooses his model was not sent there by chance."""
    answer(canary, api, "v2", 1, routed_version=None)

    assert figures(canary)["canary"] == {"version": "v2", **NOTHING}


def test_of_many_latencies_the_newest_are_told_one_by_one(canary: Family, database: psycopg.Connection) -> None:
    database.execute(
        """
        insert into public.model_calls
          (id, function, state, status, model_version, routed_version, latency_ms, created_at)
        select gen_random_uuid(), 'ai-finance', 'settled', 'complete', %s, %s, number, now() + number * interval '1 ms'
        from generate_series(1, 2100) as number
        """,
        [f"{canary.name}@v2"] * 2,
    )

    told = figures(canary)["canary"]

    assert (told["answers"], told["latency_count"], told["latency_sum_ms"]) == (2100, 2100, 2100 * 2101 // 2)
    assert told["latencies_ms"] == [*range(2100, 100, -1)]


def test_models_are_listed_with_their_part_of_the_users(canary: Family) -> None:
    canary.register("v3", source="https://example.com/ton.tar.gz", actor="ci")

    listed = canary.listed()

    told = ("version", "status", "is_active", "is_canary", "is_served", "weight")
    assert [tuple(row[column] for column in told) for row in listed] == [
        ("v3", "uploading", False, False, False, 0),
        ("v2", "ready", False, True, True, 0.25),
        ("v1", "ready", True, False, True, 0.75),
    ]
    assert canary.row("v3").items() <= listed[0].items()


def test_an_active_version_that_nobody_can_ask_has_no_users(family: Family) -> None:
    family.table().insert({"model_name": family.name, "version": "1", "is_active": True}).execute()

    [row] = family.listed()

    assert (row["is_active"], row["is_served"], row["weight"], row["share"]) == (True, False, 1, 0)


def test_shares_are_of_all_users_of_served_versions(canary: Family, database: psycopg.Connection) -> None:
    other = Family(canary.service, f"{canary.name}-2")
    other.active("v1")
    try:
        listed = rows(canary.service.rpc("list_models"))
    finally:
        retire(database, other.name)

    shares = {(row["model_name"], row["version"]): row["share"] for row in listed}
    whole = shares[(other.name, "v1")]
    assert sum(shares.values()) == pytest.approx(1)
    assert shares[(canary.name, "v1")] == pytest.approx(whole * 0.75)
    assert shares[(canary.name, "v2")] == pytest.approx(whole * 0.25)


def test_a_model_that_is_not_there_has_no_versions(family: Family) -> None:
    family.ready("v1")

    assert Family(family.service, f"{family.name}-2").listed() == []
