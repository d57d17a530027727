"""Exports as work: begun once, in one worker's hand or in several's, finished, failed, told."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from supabase import Client, create_client

from infra.local.stack import Stack
from tests.sql import rows
from tests.sql.exports import OPTIONS, RULES, Exports

ADA, BEN = "5f0f3c5e-0f64-4c62-8a3c-0c9d5b6b8a11", "6f0f3c5e-0f64-4c62-8a3c-0c9d5b6b8a12"


def writing(exports: Exports, **options: Any) -> int:
    """An export that Ada writes."""
    id: int = exports.begin(**options)["id"]
    assert exports.collect(id, ADA)["outcome"] == "select"
    assert exports.call("select_export", id=id, worker=ADA)["outcome"] == "write"
    return id


def test_an_export_is_described_as_it_begins(exports: Exports) -> None:
    exports.ask(exports.user())

    begun = exports.begin(min_quality=0.5)

    told = {name: begun[name] for name in begun if name not in ("id", "created_at", "watermark")}
    assert told == {
        "outcome": "begun",
        "status": "collecting",
        "options": {**OPTIONS, "min_quality": 0.5},
        "rules": RULES,
        "rows": None,
        "files": None,
        "skipped": None,
        "consent": None,
        "manifest": None,
        "failure": None,
        "actor": "ci",
        "replaces": None,
        "replaced_by": None,
        "collected": 0,
        "to_collect": 1,
        "shards": 1,
        "finished_at": None,
    }
    assert exports.call("read_export", id=begun["id"]) == {name: begun[name] for name in begun if name != "outcome"}


@pytest.mark.parametrize("stage", ["collecting", "writing"])
def test_the_same_again_is_the_same_export_until_it_is_over(exports: Exports, stage: str) -> None:
    exports.ask(exports.user())
    id = writing(exports) if stage == "writing" else exports.begin()["id"]

    again = exports.begin()

    assert (again["outcome"], again["id"], again["status"]) == ("again", id, stage)
    assert exports.begin(min_quality=0.5)["outcome"] == "begun"


def test_two_who_begin_the_same_at_once_have_one_export(exports: Exports, stack: Stack) -> None:
    def begin(_: int) -> tuple[str, int]:
        own = Exports(create_client(stack.url, stack.keys.secret), exports.database)
        told = own.begin()
        return told["outcome"], told["id"]

    with ThreadPoolExecutor(4) as pool:
        told = list(pool.map(begin, range(4)))

    assert sorted(outcome for outcome, _ in told) == ["again", "again", "again", "begun"]
    assert len({id for _, id in told}) == 1


def test_one_that_still_collects_by_other_rules_has_failed(exports: Exports) -> None:
    old = exports.begin(rules="old")["id"]
    exports.claim(old, ADA)

    assert exports.begin(rules="new")["outcome"] == "begun"

    told = exports.claim(old, ADA)
    assert (told["outcome"], told["failure"]) == ("failed", "the rules have changed")


def test_workers_have_a_shard_each(exports: Exports) -> None:
    user_id = exports.user()
    for _ in range(2):
        exports.ask(user_id)
    id = exports.begin(shard_rows=1)["id"]

    told = [exports.claim(id, worker) for worker in (ADA, BEN, ADA, str(uuid4()))]

    assert [(each["outcome"], each.get("shard")) for each in told] == [
        ("collect", 1),
        ("collect", 2),
        ("collect", 1),
        ("busy", None),
    ]
    assert 55 <= told[3]["retry_after_seconds"] <= 60
    assert told[0]["options"] == OPTIONS


def test_a_shard_is_free_when_its_lease_is_over_or_it_is_let_go(exports: Exports) -> None:
    exports.ask(exports.user())
    id = exports.begin()["id"]

    exports.claim(id, ADA, 0)
    assert exports.claim(id, BEN)["outcome"] == "collect"
    assert exports.call("release_export", id=id, worker=ADA)["outcome"] == "lost"
    assert exports.call("release_export", id=id, worker=BEN)["outcome"] == "noted"

    assert exports.claim(id, ADA)["outcome"] == "collect"


def test_rows_are_selected_when_all_shards_are_in(exports: Exports) -> None:
    exports.ask(exports.user())
    id = exports.begin()["id"]
    exports.claim(id, ADA)

    assert exports.call("select_export", id=id, worker=ADA)["outcome"] == "lost"

    exports.put(id, ADA, exports.read(id, 1))
    assert exports.claim(id, ADA)["outcome"] == "select"
    assert exports.claim(id, BEN)["outcome"] == "busy"
    assert exports.call("select_export", id=id, worker=BEN)["outcome"] == "lost"
    told = exports.call("select_export", id=id, worker=ADA)
    assert (told["outcome"], told["status"], told["parts"], told["progress"]) == ("write", "writing", 1, None)


def test_who_claims_an_export_while_its_rows_are_selected_is_not_kept(exports: Exports, stack: Stack) -> None:
    id = exports.begin()["id"]
    with psycopg.connect(stack.database_url) as selecting:
        selecting.execute("select from public.training_exports where id = %s for update", [id])

        told = exports.claim(id, BEN)

    assert (told["outcome"], told["retry_after_seconds"], told["status"]) == ("busy", 5, "collecting")


def test_where_there_is_nothing_to_collect_rows_are_selected_at_once(exports: Exports) -> None:
    id = exports.begin()["id"]

    assert exports.claim(id, ADA)["outcome"] == "select"
    told = exports.call("select_export", id=id, worker=ADA)

    assert (told["outcome"], told["parts"], told["skipped"]) == ("write", 0, {})


def test_who_selects_again_is_told_what_to_write(exports: Exports) -> None:
    exports.ask(exports.user())
    id = writing(exports)

    assert exports.call("select_export", id=id, worker=ADA)["outcome"] == "write"
    assert exports.claim(id, ADA)["outcome"] == "write"


def test_the_files_have_one_writer_and_the_next_goes_on(exports: Exports) -> None:
    exports.ask(exports.user())
    id = writing(exports)
    noted = {"id": id, "progress": {"parts": 1}, "lease_seconds": 0}

    assert exports.claim(id, BEN)["outcome"] == "busy"
    assert exports.call("note_export", worker=BEN, **noted)["outcome"] == "lost"
    assert exports.call("note_export", worker=ADA, **noted)["outcome"] == "noted"

    told = exports.claim(id, BEN)
    assert (told["outcome"], told["progress"]) == ("write", {"parts": 1})
    assert exports.call("note_export", worker=ADA, **noted)["outcome"] == "lost"
    assert exports.call("note_export", id=id, worker=BEN, progress=None, lease_seconds=60)["outcome"] == "noted"
    assert exports.claim(id, BEN)["progress"] is None


def test_a_finished_export_is_ready_for_good(exports: Exports) -> None:
    exports.ask(exports.user())
    id = writing(exports)
    files, manifest = [{"path": "alpaca.train.json"}], {"path": "manifest.json"}
    finished = {"id": id, "files": files, "manifest": manifest, "rows": 1}

    assert exports.call("finish_export", worker=BEN, **finished)["outcome"] == "lost"
    assert exports.call("finish_export", worker=ADA, **finished)["outcome"] == "noted"
    assert exports.call("finish_export", worker=ADA, **finished)["outcome"] == "lost"

    told = exports.claim(id, BEN)
    assert (told["outcome"], told["status"], told["rows"]) == ("ready", "ready", 1)
    assert (told["files"], told["manifest"]) == (files, manifest)
    assert told["finished_at"]
    assert exports.call("fail_export", id=id, worker=ADA, failure="any")["outcome"] == "lost"
    assert exports.begin()["outcome"] == "begun"


@pytest.mark.parametrize("stage", ["collecting", "writing"])
def test_a_failed_export_says_why(exports: Exports, stage: str) -> None:
    exports.ask(exports.user())
    id = writing(exports) if stage == "writing" else exports.begin()["id"]
    exports.claim(id, ADA)

    assert exports.call("fail_export", id=id, worker=BEN, failure="no room")["outcome"] == "lost"
    assert exports.call("fail_export", id=id, worker=ADA, failure="no room")["outcome"] == "noted"

    told = exports.claim(id, BEN)
    assert (told["outcome"], told["failure"]) == ("failed", "no room")


def test_what_there_is_not_is_unknown(exports: Exports) -> None:
    assert exports.claim(0, ADA) == exports.call("read_export", id=0) == {"outcome": "unknown"}
    assert exports.call("select_export", id=0, worker=ADA)["outcome"] == "lost"
    assert exports.call("read_export_part", id=0, number=0) == {"rows": []}
    assert exports.read(0, 1) == {"rows": [], "next": None}


def test_exports_are_listed_by_the_page_the_newest_first(exports: Exports) -> None:
    ids = [exports.begin(min_quality=quality)["id"] for quality in (0.1, 0.2, 0.3)]

    first = exports.call("list_exports", page_rows=2)["exports"]
    last = exports.call("list_exports", after=first[-1]["id"], page_rows=2)["exports"]

    assert [export["id"] for export in first + last] == ids[::-1]
    assert last == [exports.call("read_export", id=ids[0])]


def test_exports_that_are_not_over_are_listed_the_oldest_first(exports: Exports) -> None:
    exports.ask(exports.user())
    assert exports.call("list_unfinished_exports") == {"ids": []}
    exports.export(min_quality=0.3)
    failed = exports.begin(min_quality=0.2)["id"]
    exports.claim(failed, ADA)
    exports.call("select_export", id=failed, worker=ADA)
    exports.call("fail_export", id=failed, worker=ADA, failure="any")

    ids = [writing(exports), exports.begin(min_quality=0.1)["id"]]

    assert exports.call("list_unfinished_exports") == {"ids": ids}


def test_admins_see_exports_and_what_is_in_them(exports: Exports, admin: Client, api: Client) -> None:
    asked = exports.ask(exports.user())
    exports.export()

    for table, column in (("training_exports", "id"), ("training_export_parts", "conversation_ids")):
        assert len(rows(admin.table(table).select(column))) == 1
        assert rows(api.table(table).select(column)) == []
    assert rows(admin.table("training_export_parts").select("conversation_ids")) == [{"conversation_ids": [asked]}]
