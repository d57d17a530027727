"""Fine-tune jobs as rows: begun once, held by one worker, over for good, and nobody else's business."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from supabase import Client

from tests.sql import DENIED, refusal, rows

FILES = [{"path": "openai.train.jsonl", "split": "train", "rows": 12, "sizeBytes": 9, "sha256": "a" * 64}]
INVALID = "22023"


@pytest.fixture
def export_id(database: psycopg.Connection) -> Iterator[int]:
    """An export that is ready."""
    found = database.execute(
        "insert into public.training_exports (status, options, rules, collected_from, collected_until, to_collect)"
        " values ('ready', '{}', 'r', '0', '0', 0) returning id"
    ).fetchone()
    assert found
    yield int(found[0])
    database.execute("delete from public.fine_tune_jobs where export_id = %s", [found[0]])
    database.execute("delete from public.training_exports where id = %s", [found[0]])


def begin(service: Client, export_id: int, **more: Any) -> dict[str, Any]:
    asked = {
        **{"export_id": export_id, "provider": "openai", "base_model": "gpt", "method": "dpo", "files": FILES},
        **{"params": {"seed": 1}, "model_name": "ton", "version": None, "actor": "user 1", **more},
    }
    told: dict[str, Any] = rows(service.rpc("begin_fine_tune", asked))
    return told


def call(service: Client, function: str, id: int, **arguments: Any) -> dict[str, Any]:
    told: dict[str, Any] = rows(service.rpc(function, {"id": id, **arguments}))
    return told


def claim(service: Client, id: int, worker: str, seconds: int = 60) -> dict[str, Any]:
    return call(service, "claim_fine_tune", id, worker=worker, lease_seconds=seconds)


def note(service: Client, id: int, worker: str, **changes: Any) -> dict[str, Any]:
    return call(service, "note_fine_tune", id, worker=worker, changes=changes, lease_seconds=60)


def test_a_request_makes_one_job(service: Client, export_id: int) -> None:
    with ThreadPoolExecutor(8) as pool:
        told = list(pool.map(lambda _: begin(service, export_id), range(8)))
    different: list[dict[str, Any]] = [{"params": {}}, {"base_model": "b"}, {"method": "supervised"}]
    others = [begin(service, export_id, **each) for each in different]

    assert sorted(each["outcome"] for each in told) == ["again"] * 7 + ["begun"]
    assert len({each["id"] for each in told}) == 1
    assert [other["outcome"] for other in others] == ["begun"] * 3


@pytest.mark.parametrize(("status", "outcome"), [("failed", "begun"), ("cancelled", "begun"), ("ready", "again")])
def test_what_came_to_nothing_is_begun_anew(service: Client, export_id: int, status: str, outcome: str) -> None:
    id, worker = begin(service, export_id)["id"], str(uuid4())
    claim(service, id, worker)
    note(service, id, worker, status=status)

    assert begin(service, export_id)["outcome"] == outcome


def test_an_export_that_is_not_there_has_no_jobs(service: Client) -> None:
    assert begin(service, 2**62) == {"outcome": "unknown"}


def test_a_job_is_one_workers_until_he_lets_go(service: Client, export_id: int) -> None:
    id, first, second = begin(service, export_id)["id"], str(uuid4()), str(uuid4())

    told = [claim(service, id, first), claim(service, id, second), claim(service, id, first)]
    lost = note(service, id, second, status="training")
    call(service, "note_fine_tune", id, worker=first, changes={}, lease_seconds=0)
    told.append(claim(service, id, second))

    assert [each["outcome"] for each in told] == ["claimed", "busy", "claimed", "claimed"]
    assert (told[0]["export_status"], told[1]["retry_after_seconds"]) == ("ready", 60)
    assert lost == {"outcome": "lost"}
    assert [each["tries"] for each in (told[0], told[2], told[3])] == [1, 2, 3]
    assert note(service, id, first) == {"outcome": "lost"}


def test_a_job_that_is_over_stays_so(service: Client, export_id: int) -> None:
    id, worker = begin(service, export_id)["id"], str(uuid4())
    claim(service, id, worker)

    ended = note(service, id, worker, status="failed", failure="No.", provider_files={"train": "file-1"})

    assert (ended["outcome"], ended["status"], ended["failure"]) == ("noted", "failed", "No.")
    assert ended["finished_at"]
    assert note(service, id, worker, status="training") == {"outcome": "over"}
    assert claim(service, id, worker)["outcome"] == "over"
    assert call(service, "read_fine_tune", id)["provider_files"] == {"train": "file-1"}


@pytest.mark.parametrize("column", ["id", "export_id", "provider", "reference", "params", "tries"])
def test_what_a_job_is_for_does_not_change(service: Client, export_id: int, column: str) -> None:
    id, worker = begin(service, export_id)["id"], str(uuid4())
    claim(service, id, worker)
    arguments = {"id": id, "worker": worker, "changes": {column: None}, "lease_seconds": 60}

    assert refusal(service.rpc("note_fine_tune", arguments)) == INVALID


def test_a_job_that_is_not_there_is_unknown(service: Client) -> None:
    worker = str(uuid4())

    assert claim(service, 2**62, worker) == {"outcome": "unknown"}
    assert note(service, 2**62, worker) == {"outcome": "unknown"}
    assert call(service, "read_fine_tune", 2**62) == {"outcome": "unknown"}
    assert call(service, "forget_fine_tune_files", 2**62) == {"outcome": "unknown"}


def test_unfinished_jobs_are_listed_by_themselves(service: Client, export_id: int) -> None:
    made = [begin(service, export_id, params={"seed": seed})["id"] for seed in range(3)]
    worker = str(uuid4())
    claim(service, made[1], worker)
    note(service, made[1], worker, status="ready")

    def listed(**arguments: Any) -> list[int]:
        found = rows(service.rpc("list_fine_tunes", {"export_id": export_id, **arguments}))
        return [job["id"] for job in found["jobs"]]

    assert listed() == made[::-1]
    assert listed(unfinished=True) == [made[2], made[0]]
    assert listed(page_rows=1) == [made[2]]
    assert listed(before=made[2]) == [made[1], made[0]]


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        ("begin_fine_tune", {"export_id": 1, "provider": "", "base_model": "", "method": "", "params": {}}),
        ("claim_fine_tune", {"id": 1, "worker": str(uuid4()), "lease_seconds": 1}),
        ("note_fine_tune", {"id": 1, "worker": str(uuid4()), "changes": {}, "lease_seconds": 1}),
        ("read_fine_tune", {"id": 1}),
        ("list_fine_tunes", {}),
        ("forget_fine_tune_files", {"id": 1}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_jobs_are_the_gateways_alone(
    visitor: Client, outsider: Client, admin: Client, function: str, arguments: dict[str, Any]
) -> None:
    if function == "begin_fine_tune":
        arguments = arguments | {"model_name": "", "version": None, "files": []}

    assert [refusal(api.rpc(function, arguments)) for api in (visitor, outsider, admin)] == [DENIED] * 3


def test_admins_read_the_jobs_and_nobody_changes_them(
    service: Client, visitor: Client, outsider: Client, admin: Client, export_id: int
) -> None:
    id = begin(service, export_id)["id"]

    assert [row["id"] for row in rows(admin.table("fine_tune_jobs").select("id").eq("id", id))] == [id]
    assert rows(outsider.table("fine_tune_jobs").select("id")) == []
    assert refusal(visitor.table("fine_tune_jobs").select("id")) == DENIED
    for api in (outsider, admin):
        assert refusal(api.table("fine_tune_jobs").update({"status": "ready"}).eq("id", id)) == DENIED
        assert refusal(api.table("fine_tune_jobs").delete().eq("id", id)) == DENIED
