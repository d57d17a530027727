"""Exports however they are run: in shards, by workers whose time is up, killed anywhere, beside others."""

import asyncio
import json
import math
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from infra.local.forked import Forked
from infra.local.parts import ROOT
from infra.local.stack import Stack
from shared import exports
from shared.clients import Clients
from shared.settings import Settings
from shared.training_data import Lost
from tests import commands
from tests.functions.corpus import PATH, Corpus
from tests.functions.delivery import deliver, queued
from tests.functions.test_deferred import queue_of

FUNCTION = "export-training-data"
ALONE = {"EXPORT_QUEUE_URL": ""}  # a request or a schedule does all it can itself

pytestmark = pytest.mark.timeout(300)  # a hundred thousand rows take half a minute where nobody else does anything


@pytest.fixture(scope="module")
def alone(stack: Stack) -> Iterator[str]:
    """The functions without a queue."""
    with stack.functions(**ALONE) as origin:
        yield origin


@pytest.mark.parametrize("count", [1001, 2500])
def test_no_row_is_lost_beyond_a_page(corpus: Corpus, count: int) -> None:
    corpus.put_many(count)

    export = corpus.export()

    told = Counter(note["conversation_id"] for note in corpus.notes(export))
    assert len(told) == count and set(told.values()) == {1}


def test_a_hundred_thousand_rows_while_others_come_and_change(corpus: Corpus) -> None:
    corpus.put_many(100_000, users=200)
    ids = [id for [id] in corpus.sql("select id from conversations where model_version = %s", corpus.model)]
    ends = threading.Event()

    def disturb() -> None:
        number = 200_000
        while not ends.is_set():
            corpus.put_many(20, users=2, start=number)
            corpus.sql("update conversations set feedback = 1 where id = any(%s)", ids[number % 997 :: 997])
            number += 20
            time.sleep(0.3)

    disturbing = threading.Thread(target=disturb)
    disturbing.start()
    try:
        answer = corpus.call("POST", body={"modelVersion": corpus.model, "formats": ["alpaca"]})
        export = corpus.until(answer.json()["exportId"], seconds=240)
    finally:
        ends.set()
        disturbing.join()

    told = Counter(note["conversation_id"] for note in corpus.notes(export))
    assert set(told.values()) == {1}
    assert set(ids) <= set(told)


def test_killed_anywhere_and_run_again_it_is_complete(corpus: Corpus) -> None:
    corpus.put_many(12_000)
    command = [sys.executable, "-m", "shared.exports", "run", "--model-version", corpus.model]
    environment = {**corpus.stack.environment, **ALONE}
    chance = random.Random(7)  # noqa: S311
    killed = 0

    for _ in range(4):
        doomed = Forked(command, environment, Path(os.devnull), ROOT)
        time.sleep(0.1 + 1.2 * chance.random())
        killed += doomed.poll() is None
        doomed.send_signal(signal.SIGKILL)
        doomed.wait()
        for [id] in corpus.sql("select id from training_exports where options ->> 'model_version' = %s", corpus.model):
            corpus.forget_lease(id)
    done = commands.run(environment, *command[2:], seconds=120)

    assert done.returncode == 0, done.stderr
    exports = corpus.sql(
        "select id, status from training_exports where options ->> 'model_version' = %s order by id desc", corpus.model
    )
    assert exports[0][1] == "ready"
    told = Counter(note["conversation_id"] for note in corpus.notes(corpus.until(exports[0][0])))
    assert len(told) == 12_000 and set(told.values()) == {1}
    assert killed


def test_shards_by_several_workers_make_the_same_files(corpus: Corpus, stack: Stack) -> None:
    corpus.put_many(4_500)
    whole = corpus.files(corpus.export())
    corpus.sql("delete from training_data where model_version = %s", corpus.model)
    corpus.sql("update conversations set message = message || ' ' where model_version = %s", corpus.model)
    corpus.sql("update conversations set message = rtrim(message) where model_version = %s", corpus.model)

    with stack.functions(EXPORT_SHARD_ROWS="1000") as corpus.origin:
        export = corpus.export(validationShare=0.1)
    corpus.origin = stack.url

    [[shards]] = corpus.sql("select count(*) from private.export_shards where export_id = %s", export["exportId"])
    assert shards >= 5
    sharded = corpus.files(export)
    assert {name: sharded[name] for name in sharded if name != "manifest.json"} == {
        name: whole[name] for name in whole if name != "manifest.json"
    }


def test_two_at_once_are_one(corpus: Corpus, alone: str) -> None:
    corpus.put_many(3000)
    corpus.origin = alone
    answers: list[httpx.Response] = []
    options = {"modelVersion": corpus.model}
    threads = [
        threading.Thread(target=lambda: answers.append(corpus.call("POST", body=options))) for _ in range(3)
    ]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert {answer.status_code for answer in answers} <= {201, 202}
    assert len({answer.json()["exportId"] for answer in answers}) == 1
    told = Counter(note["conversation_id"] for note in corpus.notes(corpus.until(answers[0].json()["exportId"])))
    assert len(told) == 3000 and set(told.values()) == {1}


def test_two_different_ones_at_once_dont_disturb_each_other(corpus: Corpus) -> None:
    corpus.put_many(3000)

    first, second = (
        corpus.call("POST", body={"modelVersion": corpus.model, "formats": [name]}, Prefer="respond-async").json()
        for name in ("alpaca", "sharegpt")
    )

    for begun in (first, second):
        assert corpus.until(begun["exportId"])["rows"] == 3000


def test_a_schedule_exports_what_is_new(corpus: Corpus) -> None:
    corpus.put_many(50)
    options = {"modelVersion": corpus.model, "incremental": True}

    for _ in range(2):
        deliver(corpus.stack, FUNCTION, {"source": "aws.scheduler", "export": options}, ALONE)

    exports = [
        export for export in corpus.call("GET").json()["exports"] if export["options"]["modelVersion"] == corpus.model
    ]
    assert [corpus.until(export["exportId"])["rows"] for export in exports] == [0, 50]
    assert {export["actor"] for export in exports} == {"schedule"}


def test_a_dead_letter_of_a_schedule_is_done_when_it_is_moved_to_the_queue(corpus: Corpus) -> None:
    corpus.put_many(50)
    event = {"source": "aws.scheduler", "export": {"modelVersion": corpus.model}}
    body = {"version": "1.0", "requestContext": {"condition": "RetriesExhausted"}, "requestPayload": event}

    deliver(corpus.stack, FUNCTION, queued(json.dumps(body)), ALONE)

    [export] = [
        export for export in corpus.call("GET").json()["exports"] if export["options"]["modelVersion"] == corpus.model
    ]
    assert corpus.until(export["exportId"])["rows"] == 50


def test_workers_go_on_where_their_time_was_up(corpus: Corpus, stack: Stack) -> None:
    corpus.put_many(3_000)
    with queue_of(stack) as queue:
        settings = {"EXPORT_QUEUE_URL": queue.url}
        with stack.functions(**settings) as corpus.origin:
            answer = corpus.call("POST", body={"modelVersion": corpus.model}, Prefer="respond-async")
        corpus.origin, export_id, runs = stack.url, answer.json()["exportId"], 0
        while corpus.call("GET", f"/{export_id}").json()["status"] != "ready":
            for body in queue.take():  # half a second of work each: the rest is kept for the end
                deliver(stack, FUNCTION, queued(body), settings, seconds=5.5)
                runs += 1
            assert runs < 60

    assert (answer.status_code, answer.headers["location"]) == (202, f"{PATH}/{export_id}")
    assert runs > 1
    left = corpus.sql("select name from storage.objects where name like %s", f"datasets/{export_id}/%.parked")
    assert left == []
    told = Counter(note["conversation_id"] for note in corpus.notes(corpus.until(export_id)))
    assert len(told) == 3_000 and set(told.values()) == {1}


def test_a_schedule_goes_on_with_what_isnt_finished(corpus: Corpus, stack: Stack) -> None:
    corpus.put_many(30)
    with queue_of(stack) as queue, stack.functions(EXPORT_QUEUE_URL=queue.url) as corpus.origin:
        begun = corpus.call("POST", body={"modelVersion": corpus.model}, Prefer="respond-async").json()
    corpus.origin = stack.url  # and the message is gone with its queue

    deliver(stack, FUNCTION, {"source": "aws.scheduler"}, ALONE)
    with pytest.raises(AssertionError, match="formats"):  # Lambda tries again, and gives it to the dead letters then
        deliver(stack, FUNCTION, {"source": "aws.scheduler", "export": {"formats": ["parquet"]}}, ALONE)

    assert corpus.until(begun["exportId"])["rows"] == 30
    listed = corpus.call("GET").json()["exports"]
    assert [each["exportId"] for each in listed if each["options"]["modelVersion"] == corpus.model] == [
        begun["exportId"]
    ]


def test_a_file_that_was_on_its_way_when_rows_were_erased_does_not_stay(corpus: Corpus, stack: Stack) -> None:
    user, worker = corpus.learner(), str(uuid4())
    corpus.put(user, "What is slippage?", "The difference between the expected price and the one it is done at.")
    corpus.put_many(20)
    with queue_of(stack) as queue, stack.functions(EXPORT_QUEUE_URL=queue.url) as corpus.origin:
        begun = corpus.call("POST", body={"modelVersion": corpus.model}, Prefer="respond-async").json()
        told = asyncio.run(claimed(stack, begun["exportId"], worker))
        erased = corpus.call("POST", "/erase", {"userId": user}).json()
    corpus.origin = stack.url
    assert [each["replacedBy"] for each in erased["exports"]] == [begun["exportId"]]
    deliver(stack, FUNCTION, queued(json.dumps({"export": begun["exportId"]})), ALONE)
    export = corpus.until(begun["exportId"])

    with pytest.raises(Lost):
        asyncio.run(write(stack, told, worker))

    assert "alpaca.train.1.json" in [file["path"] for file in export["files"]]
    assert "What is slippage?" not in corpus.questions(export)
    folder = f"datasets/{begun['exportId']}/"
    there = {name for [name] in corpus.sql("select name from storage.objects where name like %s", f"{folder}%")}
    named = {name for file in export["files"] for name in (file["path"], file["sidecar"])}
    assert there == {f"{folder}{name}" for name in named | {"manifest.json"}}


async def claimed(stack: Stack, export_id: int, worker: str) -> dict[str, Any]:
    """An export whose files are to be written, as its worker is told of it."""
    opened = Clients.open(Settings.model_validate({**stack.environment, **ALONE}))
    async with opened.http:
        while (await exports.read(opened, export_id)).status != "writing":
            await exports.run(opened, export_id, 0)
        told: dict[str, Any] = await exports._call(
            opened, "claim_export", {"id": export_id, "worker": worker, "lease_seconds": 60}
        )
        return told


async def write(stack: Stack, told: dict[str, Any], worker: str) -> None:
    """A worker that has begun to write goes on."""
    opened = Clients.open(Settings.model_validate({**stack.environment, **ALONE}))
    async with opened.http:
        await exports._write(opened, told | {"progress": {"files": {}}}, worker, math.inf)


def test_a_storage_that_is_away_is_waited_for(corpus: Corpus, stack: Stack) -> None:
    corpus.put_many(20)
    with stack.functions(STORAGE_S3_URL="http://127.0.0.1:9/s3", EXPORT_QUEUE_URL="") as corpus.origin:
        refused = corpus.call("POST", body={"modelVersion": corpus.model})
    assert (refused.status_code, refused.json()["code"]) == (503, "storage_unavailable")

    corpus.origin = stack.url
    assert corpus.export()["rows"] == 20
