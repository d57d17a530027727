"""An export's files in Storage: gone on with by whoever comes next, wherever a run was stopped."""

import asyncio
import threading
import time
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from infra.local.stack import Stack
from shared import exports
from shared.clients import Clients
from shared.dataset_files import Dataset, Torn
from shared.settings import Settings
from shared.training_formats import Name, Row
from shared.transfers import Destination
from tests.functions.deployments import clients
from tests.sql import put_export

NAMES: tuple[Name, ...] = ("alpaca", "together")


@pytest.fixture
def folder(stack: Stack) -> Destination:
    """A folder of Storage that nothing else writes to."""
    _, storage = clients(stack)
    return Destination(storage, "ai-models", f"datasets/{uuid4().hex}")


def rows(batch: int) -> list[Row]:
    return [Row(f"Question {batch}.{place}?", "Answer.", conversation_id=place, split="train") for place in range(5)]


def begun(folder: Destination, kept: Any = None) -> Dataset:
    return Dataset(folder, NAMES, kept)


def stored(folder: Destination) -> list[str]:
    listed = folder.s3.list_objects_v2(Bucket=folder.bucket, Prefix=folder.key("")).get("Contents", [])
    return sorted(item["Key"].removeprefix(folder.key("")) for item in listed)


def test_a_run_that_was_killed_at_its_end_is_gone_on_with(folder: Destination) -> None:
    first = begun(folder)
    first.add(rows(0), 0)
    first.park(1)
    second = begun(folder, first.progress())
    second.add(rows(1), 1)
    kept, files = second.progress(), second.finish()  # and killed before anybody was told

    third = begun(folder, kept)
    third.add(rows(1), 1)

    assert third.finish() == files
    assert [file["rows"] for file in files] == [10, 10]
    third.remove_parked()
    assert not any(path.endswith(".parked") for path in stored(folder))


def test_what_was_parked_and_is_gone_is_written_anew(folder: Destination) -> None:
    first = begun(folder)
    first.add(rows(0), 0)
    first.park(1)
    kept = first.progress()
    first.remove_parked()

    with pytest.raises(Torn):
        begun(folder, kept)


def test_what_is_begun_anew_after_an_erasure_has_names_of_its_own(folder: Destination) -> None:
    first = begun(folder, {"rewritten": 2})
    first.add(rows(0), 0)
    first.park(1)

    second = begun(folder, first.progress())
    files = second.finish()

    assert [(file["path"], file["sidecar"]) for file in files] == [
        (f"{name}.train.2.{suffix}", f"{name}.train.2.rows.jsonl")
        for name, suffix in (("alpaca", "json"), ("together", "jsonl"))
    ]
    assert second.progress()["rewritten"] == 2


class Slow:
    """Files that take their time to be stored."""

    stores = threading.Event()

    def progress(self) -> dict[str, Any]:
        return {}

    def finish(self) -> list[dict[str, Any]]:
        self.stores.set()
        time.sleep(2.5)
        return []


def test_an_export_is_its_workers_for_as_long_as_files_are_stored(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exports, "LEASE_SECONDS", 1)
    monkeypatch.setattr(exports, "NOTE_SECONDS", 0.2)
    claim = "select claim_export(%s, gen_random_uuid(), 1) ->> 'outcome'"
    with psycopg.connect(stack.database_url, autocommit=True) as database:
        id, worker = put_export(database, status="writing"), str(uuid4())
        database.execute("select claim_export(%s, %s, 1)", [id, worker])

        async def store() -> None:
            opened = Clients.open(Settings.model_validate(stack.environment))
            async with opened.http:
                await exports._whole(opened, Slow(), id, worker)  # type: ignore[arg-type]

        storing = threading.Thread(target=asyncio.run, args=[store()])
        storing.start()
        Slow.stores.wait()
        time.sleep(1.5)
        outcome = database.execute(claim, [id]).fetchone()
        storing.join()
        database.execute("delete from public.training_exports where id = %s", [id])

    assert outcome == ("busy",)
