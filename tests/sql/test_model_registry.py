"""Versions of models as rows: what they may be, how they come in, and what is written down of them."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from supabase import Client

from tests.sql import DENIED, put_export, put_versions, refusal, refusal_message, rows
from tests.sql.models import ARTIFACT, PROVIDER, Family

UNIQUE, INVALID = "23505", "22023"
SOURCE = "https://example.com/ton.tar.gz"
COLUMNS: dict[str, Any] = {
    "base_model": "llama",
    "training_data_size": 7,
    "fine_tuned_on": "2026-01-01T00:00:00+00:00",
    "performance_metrics": {"accuracy": 0.9},
    "source": SOURCE,
    "content_type": "application/x-tar",
    "storage_path": "models/ton/v1",
    "sha256": "c" * 64,
    "size_bytes": 9,
    **PROVIDER,
}


def begun(family: Family, **columns: Any) -> int:
    """The id of a version whose artifact is on its way."""
    registered = family.register(**{"status": "transferring", "source": SOURCE, **columns})
    assert registered["outcome"] == "registered"
    id: int = registered["id"]
    return id


def claim(family: Family, id: int, worker: str | None = None, seconds: int = 60) -> dict[str, Any]:
    return family.of_id("claim_transfer", id, worker=worker or str(uuid4()), lease_seconds=seconds)


def finish(family: Family, id: int, **arguments: Any) -> dict[str, Any]:
    return family.of_id("finish_model", id, **{**ARTIFACT, **arguments})


def test_a_plain_row_of_the_guide_is_a_version_that_is_ready(family: Family) -> None:
    row = {"model_name": family.name, "version": "1.0", "base_model": "llama", "storage_path": "models/1.0"}

    [stored] = rows(family.table().insert({**row, "is_active": True}))

    assert (stored["status"], stored["is_active"], stored["canary_since"]) == ("ready", True, None)
    assert stored["created_at"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"model_name": ""},
        {"model_name": "../ton"},
        {"model_name": "ton/../chain"},
        {"model_name": "ton..chain"},
        {"model_name": "-ton"},
        {"model_name": "ton@1"},
        {"model_name": "ton\n"},
        {"model_name": "t" * 101},
        {"version": ""},
        {"version": "1/2"},
        {"version": "1..2"},
        {"version": ".1"},
        {"version": "1" * 101},
        {"status": "done"},
        {"size_bytes": -1},
        {"training_data_size": -1},
        {"sha256": "B" * 64},
        {"sha256": "b" * 63},
        {"files": {}},
        {"progress": []},
        {"is_active": True, "traffic_weight": 0},
        *(
            {"status": status, **served}
            for status in ("uploading", "transferring", "failed")
            for served in ({"is_active": True}, {"traffic_weight": 0.5})
        ),
    ],
    ids=str,
)
def test_a_row_that_is_no_version_is_refused(family: Family, wrong: dict[str, Any]) -> None:
    row = {"model_name": family.name, "version": "1", **wrong}

    assert "violates check constraint" in refusal_message(family.table().insert(row))


@pytest.mark.parametrize("version", ["1", "v1", "2026-01-01", "1.0_rc.2", "v" * 100])
def test_a_version_may_be_called_much(family: Family, version: str) -> None:
    registered = family.register(version, status="ready")

    assert (registered["outcome"], registered["version"]) == ("registered", version)


def test_one_version_of_a_name_is_active(family: Family) -> None:
    family.table().insert({"model_name": family.name, "version": "1", "is_active": True}).execute()

    assert refusal(family.table().insert({"model_name": family.name, "version": "2", "is_active": True})) == UNIQUE


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        ({"canary": 0.2}, "no active version beside it"),
        ({"active": 0.5}, "do not sum to 1"),
        ({"active": 0.7, "canary": 0.2}, "do not sum to 1"),
        ({"active": None, "canary": 0.2}, "do not sum to 1"),
        ({"active": 1, "canary": 0.2}, "do not sum to 1"),
    ],
    ids=str,
)
def test_a_names_users_are_shared_out_all_of_them_once(
    family: Family, weights: dict[str, float | None], told: str
) -> None:
    row = {"model_name": family.name}
    versions = [
        {**row, "version": each, "is_active": each == "active", "traffic_weight": weights[each]} for each in weights
    ]

    assert told in refusal_message(family.table().insert(versions))
    assert rows(family.table().select("id").eq("model_name", family.name)) == []


@pytest.mark.parametrize(
    "weights", [{"active": None}, {"active": 1}, {"active": 0.9, "canary": 0.1}, {"active": 2 / 3, "canary": 1 / 3}]
)
def test_shares_that_make_a_whole_are_taken_in_any_order(
    database: psycopg.Connection, family: Family, weights: dict[str, float | None]
) -> None:
    versions = {each: {"is_active": each == "active", "traffic_weight": weights[each]} for each in weights}

    put_versions(database, family.name, dict(reversed(versions.items())))

    assert {each: family.row(each)["traffic_weight"] for each in weights} == weights
    assert [bool(family.row(each)["canary_since"]) for each in weights] == [each == "canary" for each in weights]


def test_a_name_has_one_canary(database: psycopg.Connection, family: Family) -> None:
    versions = {"1": {"is_active": True, "traffic_weight": 0.8}, "2": {"traffic_weight": 0.1}}

    with pytest.raises(psycopg.errors.UniqueViolation):
        put_versions(database, family.name, {**versions, "3": {"traffic_weight": 0.1}})


def test_an_active_version_is_not_taken_from_its_canary(family: Family) -> None:
    family.active("v1")
    family.ready("v2")
    family.activate("v2", 0.2)

    taken = family.table().update({"is_active": False, "traffic_weight": 0}).eq("id", family.row("v1")["id"])

    assert "no active version beside it" in refusal_message(taken)
    assert family.served() == {"v1": 0.8, "v2": 0.2}


@pytest.mark.parametrize(
    "change",
    [
        {"model_name": "another"},
        {"version": "v2"},
        {"status": "failed"},
        {"base_model": "mistral"},
        {"base_model": None},
        {"training_data_size": 8},
        {"storage_path": "models/another"},
        {"sha256": "d" * 64},
        {"size_bytes": 8},
        {"files": []},
        {"source": "elsewhere"},
        {"content_type": "text/plain"},
        {"dataset_export_id": None},
    ],
    ids=str,
)
def test_a_version_that_is_ready_does_not_change(
    family: Family, database: psycopg.Connection, change: dict[str, Any]
) -> None:
    finish(family, begun(family, **COLUMNS, dataset_export_id=put_export(database)))
    before = family.row("v1")

    told = refusal_message(family.table().update(change).eq("id", before["id"]))

    assert (
        "keeps its name" in told
        if change.keys() & {"model_name", "version"}
        else "is ready and does not change" in told
    )
    assert family.row("v1") == before


def test_what_is_found_out_of_a_version_later_can_be_added(family: Family) -> None:
    id = family.register(status="ready")["id"]

    family.table().update({"performance_metrics": {"wins": 3}, **PROVIDER}).eq("id", id).execute()

    row = family.row("v1")
    assert (row["performance_metrics"], row["provider"]) == ({"wins": 3}, "together")


def test_a_version_keeps_its_name_even_before_it_is_ready(family: Family) -> None:
    id = begun(family)

    assert "keeps its name" in refusal_message(family.table().update({"version": "v2"}).eq("id", id))
    assert len(rows(family.table().update({"content_type": "text/plain"}).eq("id", id))) == 1


@pytest.mark.parametrize("change", [{"provider": "groq"}, {"provider_model": "another"}, {"provider": None}], ids=str)
def test_a_version_moves_to_another_provider_while_it_has_no_users(family: Family, change: dict[str, Any]) -> None:
    family.active("v1")
    family.ready("v2")
    family.activate("v2", 0.5)
    moves = [family.table().update(change).eq("id", family.row(version)["id"]) for version in ("v1", "v2")]

    served = [refusal_message(move) for move in moves]
    family.roll_back()
    waiting = rows(moves[1])

    assert all("is served and stays at its provider" in told for told in served)
    assert len(waiting) == 1


def test_a_version_that_has_users_is_not_deleted(family: Family) -> None:
    family.active("v1")
    family.ready("v2", "v3")
    family.activate("v2", 0.5)

    refused = [refusal_message(family.table().delete().eq("id", family.row(version)["id"])) for version in ("v1", "v2")]

    assert all("is served and cannot be deleted" in told for told in refused)
    assert len(rows(family.table().delete().eq("id", family.row("v3")["id"]))) == 1


def test_a_version_is_registered_with_its_columns(family: Family, database: psycopg.Connection) -> None:
    dataset = {"dataset_export_id": put_export(database)}

    registered = family.register("v1", actor="ci", **COLUMNS, **dataset)

    row = family.row("v1")
    told = {name: COLUMNS[name] for name in ("source", "content_type", "storage_path", "sha256", "size_bytes")}
    assert registered == {
        **told,
        "outcome": "registered",
        "id": row["id"],
        "model_name": family.name,
        "version": "v1",
        "status": "uploading",
        "files": None,
        "progress": None,
        "failure": None,
    }
    assert {name: row[name] for name in (*COLUMNS, *dataset)} == COLUMNS | dataset
    assert (row["deployed_at"], row["is_active"], row["traffic_weight"]) == (None, False, None)
    assert family.history("actor") == [("registered", "v1", "ci")]


def test_a_version_with_nothing_to_bring_is_ready_at_once(family: Family) -> None:
    registered = family.register(status="ready", **PROVIDER)

    assert (registered["status"], registered["version"]) == ("ready", "v1")
    assert family.row("v1")["deployed_at"]


@pytest.mark.parametrize(
    ("columns", "code"),
    [
        ({"is_active": True}, INVALID),
        ({"traffic_weight": 1}, INVALID),
        ({"acuracy": 1}, INVALID),
        ({"status": "failed"}, INVALID),
        ({"status": "done"}, INVALID),
        ({"size_bytes": "many"}, "22P02"),
    ],
    ids=str,
)
def test_what_is_no_column_to_register_with_is_refused(family: Family, columns: dict[str, Any], code: str) -> None:
    asked = {"model_name": family.name, "columns": columns}

    assert refusal(family.service.rpc("register_model", asked)) == code
    assert family.history() == []


def test_the_next_version_is_numbered_after_all_there_ever_were(family: Family) -> None:
    first = [family.register()["version"] for _ in range(2)]
    family.register("v9")
    family.register("2026-01-01")
    tenth = family.register()["version"]
    family.call("delete_model", version=tenth)

    eleventh = family.register()["version"]

    assert first == ["v1", "v2"]
    assert (tenth, eleventh) == ("v10", "v11")


def test_registers_at_once_have_a_version_each(family: Family) -> None:
    with ThreadPoolExecutor(10) as threads:
        registered = list(threads.map(lambda _: family.register(), range(10)))

    assert {each["outcome"] for each in registered} == {"registered"}
    assert {each["version"] for each in registered} == {f"v{number}" for number in range(1, 11)}
    assert len({each["id"] for each in registered}) == 10


def test_of_registers_of_one_version_at_once_one_makes_it(family: Family) -> None:
    with ThreadPoolExecutor(10) as threads:
        registered = list(threads.map(lambda _: family.register("v1", source=SOURCE), range(10)))

    outcomes = [each["outcome"] for each in registered]
    assert sorted(outcomes) == ["again"] * 9 + ["registered"]
    assert len({each["id"] for each in registered}) == 1
    assert family.history() == [("registered", "v1")]


def test_a_version_that_is_ready_exists(family: Family) -> None:
    family.ready("v1")

    again = family.register("v1", **PROVIDER)

    assert (again["outcome"], again["status"], again["version"]) == ("exists", "ready", "v1")
    assert family.history() == [("registered", "v1")]


@pytest.mark.parametrize("status", ["uploading", "transferring"])
def test_a_version_that_is_under_way_goes_on_from_the_same_source(family: Family, status: str) -> None:
    id = begun(family, status=status, content_type="application/x-tar")
    family.of_id("note_transfer", id, progress={"position": 5})

    same = family.register("v1", source=SOURCE, content_type="text/plain")
    other = family.register("v1", source="elsewhere")
    none = family.register("v1")

    assert (same["outcome"], same["id"], same["progress"]) == ("again", id, {"position": 5})
    assert (same["status"], same["content_type"]) == (status, "application/x-tar")
    assert (other["outcome"], other["status"], none["outcome"]) == ("exists", status, "exists")
    assert family.row("v1")["source"] == SOURCE


def test_a_version_that_failed_is_registered_again_from_the_same_source(family: Family) -> None:
    id = begun(family, content_type="application/x-tar", storage_path="models/ton/v1")
    family.of_id("note_transfer", id, progress={"position": 5})
    family.of_id("fail_model", id, failure="cut off")

    other = family.register("v1", source="elsewhere")
    again = family.register("v1", source=SOURCE, status="transferring", base_model="llama", actor="ci")

    assert (other["outcome"], other["status"], other["failure"]) == ("exists", "failed", "cut off")
    assert (again["outcome"], again["id"], again["status"]) == ("again", id, "transferring")
    assert (again["progress"], again["failure"]) == ({"position": 5}, None)
    assert (again["storage_path"], again["content_type"]) == ("models/ton/v1", None)
    assert family.row("v1")["base_model"] == "llama"
    assert family.history("reason") == [
        ("registered", "v1", None),
        ("failed", "v1", "cut off"),
        ("registered", "v1", None),
    ]


def test_a_version_that_was_deleted_never_comes_back(family: Family) -> None:
    family.ready("v1")

    deleted = family.call("delete_model", version="v1")

    again = family.register("v1")
    assert deleted["outcome"] == "deleted"
    assert again == {"outcome": "exists", "model_name": family.name, "version": "v1", "status": "deleted"}


def test_of_twenty_claims_at_once_one_has_the_transfer(family: Family) -> None:
    id = begun(family)
    with ThreadPoolExecutor(20) as threads:
        claims = list(threads.map(lambda _: claim(family, id), range(20)))

    busy = [each for each in claims if each["outcome"] == "busy"]
    assert [each["outcome"] for each in claims].count("claimed") == 1
    assert len(busy) == 19
    assert all(50 < each["retry_after_seconds"] <= 60 for each in busy)


def test_a_claim_tells_where_the_transfer_stands(family: Family) -> None:
    id, worker = begun(family, storage_path="models/ton/v1"), str(uuid4())
    first = claim(family, id, worker, seconds=0)
    noted = family.of_id("note_transfer", id, worker=worker, progress={"position": 5})

    second = claim(family, id)
    late = family.of_id("note_transfer", id, worker=worker, progress={"position": 6})

    assert (first["outcome"], first["progress"], first["source"]) == ("claimed", None, SOURCE)
    assert noted == {"outcome": "noted"}
    assert (second["outcome"], second["progress"], second["storage_path"]) == (
        "claimed",
        {"position": 5},
        "models/ton/v1",
    )
    assert late == {"outcome": "lost"}
    assert family.row("v1")["progress"] == {"position": 5}


def test_a_worker_keeps_its_claim_as_long_as_it_says(family: Family) -> None:
    id, worker = begun(family), str(uuid4())

    claims = [claim(family, id, worker, seconds) for seconds in (0, 60)]
    busy = claim(family, id)
    family.of_id("note_transfer", id, worker=worker, lease_seconds=600)
    busy_later = claim(family, id)
    family.of_id("note_transfer", id, worker=worker, lease_seconds=0)

    assert [each["outcome"] for each in claims] == ["claimed", "claimed"]
    assert (busy["outcome"], busy["retry_after_seconds"] <= 60) == ("busy", True)
    assert (busy_later["outcome"], 500 < busy_later["retry_after_seconds"] <= 600) == ("busy", True)
    assert claim(family, id)["outcome"] == "claimed"


def test_no_claim_is_longer_than_a_function_runs(family: Family) -> None:
    id = begun(family)
    claim(family, id, seconds=10**6)

    assert claim(family, id)["retry_after_seconds"] <= 900


def test_a_note_changes_what_it_names(family: Family) -> None:
    id = begun(family, status="uploading")

    notes = [
        family.of_id("note_transfer", id, progress={"parts": [1]}),
        family.of_id("note_transfer", id, status="transferring"),
        family.of_id("note_transfer", id, storage_path="models/elsewhere"),
    ]

    row = family.row("v1")
    assert notes == [{"outcome": "noted"}] * 3
    assert (row["status"], row["progress"], row["storage_path"]) == ("transferring", {"parts": [1]}, "models/elsewhere")


@pytest.mark.parametrize("status", ["ready", "failed", "done"])
def test_a_note_ends_no_transfer(family: Family, status: str) -> None:
    asked = {"id": begun(family), "status": status}

    assert refusal(family.service.rpc("note_transfer", asked)) == INVALID


def test_a_version_is_finished_once(family: Family) -> None:
    id, worker = begun(family, base_model="llama"), str(uuid4())
    claim(family, id, worker)
    family.of_id("note_transfer", id, worker=worker, progress={"position": 5})

    with ThreadPoolExecutor(10) as threads:
        finished = list(threads.map(lambda _: finish(family, id, worker=worker, actor="worker"), range(10)))
    other = finish(family, id, sha256="d" * 64, worker=str(uuid4()))

    row = family.row("v1")
    assert sorted(each["outcome"] for each in finished) == ["already"] * 9 + ["ready"]
    assert (other["outcome"], other["sha256"]) == ("already", ARTIFACT["sha256"])
    assert {name: row[name] for name in ARTIFACT} == ARTIFACT
    assert (row["status"], row["progress"], row["base_model"]) == ("ready", None, "llama")
    assert row["deployed_at"] > row["created_at"]
    assert family.history("actor", "numbers") == [
        ("registered", "v1", None, None),
        ("ready", "v1", "worker", {"size_bytes": 7, "files": 1}),
    ]


def test_a_version_that_is_ready_is_neither_claimed_nor_noted_nor_failed(family: Family) -> None:
    id = begun(family)
    finish(family, id)
    before = family.row("v1")

    answers = [
        claim(family, id)["outcome"],
        family.of_id("note_transfer", id, progress={"position": 0}, status="uploading")["outcome"],
        family.of_id("fail_model", id, failure="late")["outcome"],
    ]

    assert answers == ["ready", "ready", "ready"]
    assert family.row("v1") == before


def test_a_version_that_failed_says_why_and_is_left_alone(family: Family) -> None:
    id = begun(family)
    failed = family.of_id("fail_model", id, failure="no safetensors", actor="worker")

    again = [
        family.of_id("fail_model", id, failure="another reason")["outcome"],
        claim(family, id)["outcome"],
        family.of_id("note_transfer", id, progress={})["outcome"],
        finish(family, id)["outcome"],
    ]

    assert failed == {"outcome": "failed"}
    assert again == ["already", "failed", "failed", "failed"]
    assert (family.row("v1")["status"], family.row("v1")["failure"]) == ("failed", "no safetensors")
    assert family.history("actor", "reason")[1:] == [("failed", "v1", "worker", "no safetensors")]


def test_who_has_not_claimed_a_transfer_neither_notes_nor_ends_it(family: Family) -> None:
    id, worker = begun(family), str(uuid4())
    unclaimed = family.of_id("note_transfer", id, worker=worker, progress={})["outcome"]
    claim(family, id, worker)

    others = [
        family.of_id(function, id, worker=who, **arguments)["outcome"]
        for who in (str(uuid4()), None)
        for function, arguments in (
            ("note_transfer", {"progress": {"position": 9}}),
            ("finish_model", ARTIFACT),
            ("fail_model", {"failure": "meddling"}),
        )
    ]

    assert unclaimed == "lost"
    assert others == ["lost"] * 6
    assert (family.row("v1")["status"], family.row("v1")["progress"]) == ("transferring", None)


def test_a_transfer_whose_worker_is_gone_can_be_given_up(family: Family) -> None:
    id = begun(family)
    claim(family, id, seconds=0)

    assert family.of_id("fail_model", id, failure="the worker is gone") == {"outcome": "failed"}


def test_a_worker_whose_version_was_given_up_and_begun_again_has_lost_it(family: Family) -> None:
    id, worker = begun(family), str(uuid4())
    claim(family, id, worker)
    family.of_id("fail_model", id, failure="cut off", worker=worker)
    family.register("v1", source=SOURCE, status="transferring")

    assert finish(family, id, worker=worker) == {"outcome": "lost"}
    assert claim(family, id, worker)["outcome"] == "claimed"
    assert finish(family, id, worker=worker)["outcome"] == "ready"


def woken(family: Family, *ids: int, idle_seconds: int = 0) -> list[int]:
    """Which of these transfers are told to go on."""
    told: dict[str, list[int]] = rows(family.service.rpc("wake_transfers", {"idle_seconds": idle_seconds}))
    return [id for id in ids if id in told["ids"]]


def test_a_transfer_that_nobody_is_at_is_told_of_once_in_a_while(family: Family) -> None:
    left, held, lost = (begun(family, progress={"files": []}) for _ in range(3))
    claim(family, left, seconds=0)
    claim(family, held)

    assert woken(family, left, held, lost, idle_seconds=60) == []
    assert woken(family, left, held, lost) == [left, lost]
    assert woken(family, left, held, lost, idle_seconds=60) == []
    assert claim(family, left)["outcome"] == claim(family, lost)["outcome"] == "claimed"
    assert woken(family, left, held, lost) == []


def test_what_is_over_is_not_told_to_go_on(family: Family) -> None:
    done, failed = (begun(family, progress={"files": []}) for _ in range(2))
    claim(family, done, seconds=0)
    finish(family, done)
    family.of_id("fail_model", failed, failure="no safetensors")

    assert woken(family, done, failed) == []


def test_an_upload_waits_for_its_user(family: Family) -> None:
    id = begun(family, status="uploading", source="upload", progress={"files": []})
    before = woken(family, id)
    claim(family, id, seconds=0)
    while_it_is_checked = woken(family, id)
    family.call("record_decision", version="v1", action="not_finalized")
    refused = woken(family, id)
    claim(family, id, seconds=0)

    assert (before, while_it_is_checked, refused) == ([], [id], [])
    assert woken(family, id) == [id]


@pytest.fixture
def idle(family: Family, database: psycopg.Connection) -> Iterator[list[int]]:
    """101 transfers that nobody was heard of since 1970."""
    ids = [begun(family, version=f"v{number}", progress={"files": []}) for number in range(101)]
    woken(family)  # their time begins
    database.execute("update private.transfers set expires_at = '1970-01-01' where model_id = any(%s)", [ids])
    yield ids
    database.execute("delete from public.model_metadata where id = any(%s)", [ids])


def test_a_hundred_transfers_are_told_of_at_a_time(family: Family, idle: list[int]) -> None:
    told = [woken(family, *idle, idle_seconds=10**9) for _ in range(3)]

    assert [len(each) for each in told] == [100, 1, 0]
    assert sorted(chain(*told)) == idle


def test_of_calls_at_once_one_is_told_of_a_transfer(family: Family, idle: list[int]) -> None:
    with ThreadPoolExecutor(8) as threads:
        told = list(threads.map(lambda _: woken(family, *idle, idle_seconds=10**9), range(8)))

    each = [*chain(*told)]
    assert len(each) == len(set(each)) >= 100


def test_what_is_not_there_is_unknown(family: Family) -> None:
    answers = [
        claim(family, 0),
        family.of_id("note_transfer", 0, progress={}),
        finish(family, 0),
        family.of_id("fail_model", 0, failure="any"),
        family.call("delete_model", version="v1"),
        family.call("record_decision", version="v1", action="kept"),
    ]

    assert answers == [{"outcome": "unknown"}] * 6
    assert family.history() == []


def test_a_version_is_deleted_with_whatever_its_transfer_left(family: Family) -> None:
    id, worker = begun(family), str(uuid4())
    claim(family, id, worker)
    family.of_id("note_transfer", id, worker=worker, storage_path="models/ton/v1")

    deleted = family.call("delete_model", version="v1", actor="ada", reason="a slip")

    assert deleted == {"outcome": "deleted", "storage_path": "models/ton/v1", "files": None}
    assert finish(family, id, worker=worker) == {"outcome": "unknown"}
    assert family.history("actor", "reason")[1:] == [("deleted", "v1", "ada", "a slip")]


def test_a_served_version_is_not_deleted_by_its_name_either(family: Family) -> None:
    family.active("v1", "v2")
    family.activate("v1", 0.5)

    assert [family.call("delete_model", version=each) for each in ("v1", "v2")] == [{"outcome": "served"}] * 2


def test_a_decision_that_changes_nothing_is_written_down(family: Family) -> None:
    family.ready("v1")

    recorded = family.call(
        "record_decision", version="v1", action="kept", actor="schedule", reason="too few votes", numbers={"votes": 3}
    )

    [(*_, id)] = family.history("id")[1:]
    assert recorded == {"outcome": "recorded", "id": id}
    assert family.history("actor", "reason", "numbers", "weight")[1:] == [
        ("kept", "v1", "schedule", "too few votes", {"votes": 3}, None)
    ]


@pytest.mark.parametrize("action", ["activated", "promoted", "canary", "rolled_back", "deleted", "registered"])
def test_a_change_that_was_not_made_is_not_written_down(family: Family, action: str) -> None:
    family.ready("v1")
    asked = {"model_name": family.name, "version": "v1", "action": action}

    assert refusal(family.service.rpc("record_decision", asked)) == INVALID


def test_history_is_read_by_admins_and_changed_by_nobody(
    family: Family, admin: Client, api: Client, visitor: Client
) -> None:
    family.ready("v1")
    clients = {"service": family.service, "admin": admin, "api": api}
    history = {who: client.table("model_history") for who, client in clients.items()}

    seen = {who: len(rows(table.select("*").eq("model_name", family.name))) for who, table in history.items()}
    refusals = [
        refusal(change.eq("model_name", family.name))
        for table in history.values()
        for change in (table.update({"version": "v2"}), table.delete())
    ]

    assert seen == {"service": 1, "admin": 1, "api": 0}
    assert refusals == [DENIED] * 6
    assert refusal(visitor.table("model_history").select("*")) == DENIED
    assert refusal(admin.table("model_history").insert({"model_name": "a", "version": "1", "action": "kept"})) == DENIED
    assert family.history() == [("registered", "v1")]
