"""Erasure: what a user said goes, from the tables and from every export that has any of it."""

from typing import Any

import pytest

from tests.sql.exports import Exports
from tests.sql.models import Family

WORKER = "5f0f3c5e-0f64-4c62-8a3c-0c9d5b6b8a11"
NOTHING = {"conversations": 0, "training_data": 0, "exports": [], "replaced": [], "models": [], "jobs": []}
FILES = [{"path": "openai.train.jsonl", "split": "train", "rows": 12, "sizeBytes": 9, "sha256": "a" * 64}]


def erase(exports: Exports, user_id: int) -> dict[str, Any]:
    return exports.call("erase_training_user", user_id=user_id, actor="officer")


def finish(exports: Exports, id: int) -> None:
    assert exports.claim(id, WORKER)["outcome"] == "write"
    finished = {"id": id, "worker": WORKER, "files": [], "manifest": {}, "rows": 0}
    assert exports.call("finish_export", **finished)["outcome"] == "noted"


def exported(exports: Exports, **options: Any) -> int:
    """A ready export's id."""
    selected = exports.select(**options)
    exports.finish(selected)
    id: int = selected["id"]
    return id


def tuned(exports: Exports, export_id: int, status: str = "uploading", version: str | None = None) -> int:
    """A fine-tune job that WORKER has in hand, and has brought so far."""
    asked = {
        **{"export_id": export_id, "provider": "openai", "base_model": "gpt", "method": "dpo", "params": {}},
        **{"model_name": "ton", "version": version, "files": FILES},
    }
    id: int = exports.call("begin_fine_tune", **asked)["id"]
    exports.call("claim_fine_tune", id=id, worker=WORKER, lease_seconds=60)
    assert note(exports, id, status=status) == "noted"
    return id


def note(exports: Exports, id: int, **changes: Any) -> str:
    told = exports.call("note_fine_tune", id=id, worker=WORKER, changes=changes, lease_seconds=60)
    return str(told["outcome"])


def test_a_users_conversations_rows_and_consent_go(exports: Exports) -> None:
    ada, ben = exports.user(), exports.user()
    exports.ask(ada, "1?")
    exports.ask(ada, "2?", feedback=None)
    kept = exports.ask(ben, "3?")
    exports.select()

    told = erase(exports, ada)

    assert (told["conversations"], told["training_data"]) == (2, 1)
    assert exports.all("select id from public.conversations") == [(kept,)]
    assert exports.kept() == {kept: None}
    assert exports.one("select training_consent from public.users where user_id = %s", ada) is False
    assert exports.one("select training_consent from public.users where user_id = %s", ben) is True


def test_rows_written_for_him_go_too(exports: Exports) -> None:
    ada = exports.user()
    exports.write("1?", user_id=ada)
    kept = [exports.write("2?", user_id=exports.user()), exports.write("3?")]
    old = exported(exports)

    told = erase(exports, ada)

    assert (told["training_data"], [each["id"] for each in told["exports"]]) == (1, [old])
    assert exports.all("select id from public.training_data order by id") == [(id,) for id in kept]
    assert [row[0] for row in exports.parts(told["exports"][0]["replaced_by"])] == kept


def test_a_user_of_whom_there_is_nothing_is_erased_too(exports: Exports) -> None:
    assert erase(exports, exports.user()) == NOTHING
    assert erase(exports, 999_999_999) == NOTHING


def test_each_export_with_his_rows_gets_a_successor_without_them(exports: Exports) -> None:
    ada, ben = exports.user(), exports.user()
    hers = [exports.ask(ada, f"{number}?") for number in range(3)]
    his = [exports.ask(ben, f"{number}, sir?") for number in range(4)]
    old = exported(exports, part_rows=2)
    other = exported(exports, model_version="none")

    told = erase(exports, ada)

    [replaced] = told["exports"]
    new = replaced["replaced_by"]
    assert replaced == {"id": old, "replaced_by": new}
    assert told["replaced"] == []
    before, after = exports.call("read_export", id=old), exports.call("read_export", id=new)
    assert (before["status"], before["replaced_by"], after["status"], after["replaces"]) == (
        "ready",
        new,
        "writing",
        old,
    )
    assert (after["options"], after["actor"], after["skipped"]) == (before["options"], "officer", before["skipped"])
    assert exports.conversations(new) == his
    assert hers[0] not in exports.one(
        "select array_agg(id) from public.training_export_parts, unnest(conversation_ids) as id where export_id = %s",
        new,
    )

    finish(exports, new)

    assert [exports.call("read_export", id=id)["status"] for id in (old, new, other)] == ["replaced", "ready", "ready"]


def test_a_part_may_become_empty(exports: Exports) -> None:
    ada = exports.user()
    exports.ask(ada)
    exported(exports)

    [replaced] = erase(exports, ada)["exports"]

    told = exports.claim(replaced["replaced_by"], WORKER)
    assert (told["outcome"], told["parts"]) == ("write", 1)
    assert exports.call("read_export_part", id=replaced["replaced_by"], number=0) == {"rows": []}


def test_a_pair_loses_the_answer_that_was_rejected_by_him(exports: Exports) -> None:
    ada, ben = exports.user(), exports.user()
    exports.ask(ada, response="bad", feedback=-1)
    kept = exports.ask(ben, response="good")
    old = exported(exports, formats=["openai_dpo"])
    assert [row[6] for row in exports.parts(old)] == ["bad"]

    [replaced] = erase(exports, ada)["exports"]

    assert replaced["id"] == old
    assert [(row[1], row[6]) for row in exports.parts(replaced["replaced_by"])] == [(kept, None)]
    parts = "select rejected_ids, rejected_user_ids from public.training_export_parts where export_id = %s"
    assert exports.all(parts, replaced["replaced_by"]) == [([None], [None])]


@pytest.mark.parametrize("before", ["his conversation is deleted", "he has taken his consent back"])
def test_his_rows_are_found_where_nothing_else_is_left_of_them(exports: Exports, before: str) -> None:
    ada = exports.user()
    id = exports.ask(ada)
    old = exported(exports)
    if before == "his conversation is deleted":
        exports.all("delete from public.conversations where id = %s", id)
    else:
        exports.all("update public.users set training_consent = false where user_id = %s", ada)

    assert [each["id"] for each in erase(exports, ada)["exports"]] == [old]


def test_again_it_tells_of_what_is_not_replaced_yet(exports: Exports) -> None:
    ada = exports.user()
    exports.ask(ada)
    exported(exports)
    first = erase(exports, ada)["exports"]

    assert erase(exports, ada)["exports"] == first

    finish(exports, first[0]["replaced_by"])
    assert erase(exports, ada) == {**NOTHING, "replaced": first}


def test_exports_that_failed_with_his_rows_are_told(exports: Exports) -> None:
    ada = exports.user()
    exports.ask(ada)
    failed, early = exports.select(), exports.begin(min_quality=0.1)["id"]
    exports.call("fail_export", id=failed["id"], worker=failed["worker"], failure="any")
    exports.claim(early, WORKER)
    exports.call("fail_export", id=early, worker=WORKER, failure="any")

    told = erase(exports, ada)

    assert (told["exports"], told["replaced"]) == ([], [{"id": failed["id"], "replaced_by": None}])


def test_two_users_are_erased_one_after_the_other(exports: Exports) -> None:
    ada, ben = exports.user(), exports.user()
    exports.ask(ada, "1?")
    exports.ask(ben, "2?")
    kept = exports.ask(exports.user(), "3?")
    old = exported(exports)

    first, second = erase(exports, ada)["exports"], erase(exports, ben)["exports"]

    assert first == second  # one that is still to be written loses the rows of both
    assert exports.conversations(first[0]["replaced_by"]) == [kept]
    assert [each["id"] for each in first] == [old]


def test_a_successor_that_failed_has_another(exports: Exports) -> None:
    ada = exports.user()
    exports.ask(ada)
    old = exported(exports)
    [first] = erase(exports, ada)["exports"]
    exports.claim(first["replaced_by"], WORKER)
    exports.call("fail_export", id=first["replaced_by"], worker=WORKER, failure="any")

    [second] = erase(exports, ada)["exports"]

    assert second["id"] == old
    assert second["replaced_by"] != first["replaced_by"]


def test_an_export_that_is_being_written_begins_anew(exports: Exports) -> None:
    ada, ben = exports.user(), exports.user()
    exports.ask(ada, "1?")
    kept = exports.ask(ben, "2?")
    selected = exports.select()
    held = {"id": selected["id"], "worker": selected["worker"]}
    exports.call("note_export", **held, progress={"parts": 1}, lease_seconds=60)

    rewritten = {"id": selected["id"], "replaced_by": selected["id"]}
    assert erase(exports, ada)["exports"] == [rewritten]

    assert exports.call("finish_export", **held, files=[], manifest={}, rows=2)["outcome"] == "lost"
    told = exports.claim(selected["id"], WORKER)
    assert (told["outcome"], told["progress"]) == ("write", {"rewritten": 1})
    assert exports.conversations(selected["id"]) == [kept]
    erase(exports, ben)
    assert exports.claim(selected["id"], WORKER)["progress"] == {"rewritten": 2}


def test_an_export_that_still_collects_goes_on_without_him(exports: Exports) -> None:
    ada, ben = exports.user(), exports.user()
    exports.ask(ada, "1?")
    kept = exports.ask(ben, "2?")
    id = exports.begin()["id"]
    exports.claim(id, WORKER)
    page = exports.read(id, 1)

    erase(exports, ada)

    assert exports.put(id, WORKER, page) == "noted"
    exports.claim(id, WORKER)
    exports.call("select_export", id=id, worker=WORKER)
    assert exports.conversations(id) == [kept]


def test_jobs_of_which_nothing_is_registered_are_cancelled(exports: Exports) -> None:
    ada, ben = exports.user(), exports.user()
    exports.ask(ben, "1?")
    other = tuned(exports, exported(exports))
    exports.ask(ada, "2?")
    old = exported(exports)
    statuses = ["uploading", "training", "deploying", "ready", "failed"]
    ids = [tuned(exports, old, status, version=f"v{place}") for place, status in enumerate(statuses)]

    told = erase(exports, ada)["jobs"]

    assert [(job["id"], job["status"]) for job in told] == list(zip(ids, statuses, strict=True))
    after = {job["id"]: job for job in exports.call("list_fine_tunes")["jobs"]}
    assert [after[id]["status"] for id in (*ids, other)] == [*["cancelled"] * 3, "ready", "failed", "uploading"]
    assert after[ids[0]]["failure"] == "The rows were erased."
    assert after[ids[0]]["finished_at"]
    assert note(exports, ids[0], status="training") == "over"
    assert note(exports, ids[1], status="deploying") == "over"
    assert exports.call("claim_fine_tune", id=ids[0], worker=WORKER, lease_seconds=60)["outcome"] == "over"
    assert exports.all("select from private.fine_tune_leases where job_id = %s", ids[0]) == []


def test_models_that_have_learned_from_his_rows_are_named(exports: Exports, family: Family) -> None:
    ada, ben = exports.user(), exports.user()
    exports.ask(ada, "1?")
    old = exported(exports)
    exports.ask(ben, "2?")
    family.register("old", status="ready", dataset_export_id=old)
    family.register("other", status="ready", dataset_export_id=exported(exports, since="2999-01-01T00:00:00Z"))
    family.register("none", status="ready")

    told = erase(exports, ada)
    finish(exports, told["exports"][0]["replaced_by"])
    family.register("new", status="ready", dataset_export_id=told["exports"][0]["replaced_by"])

    named = [{"model_name": family.name, "version": "old"}]
    assert told["models"] == named
    assert erase(exports, ada)["models"] == named
    family.table().delete().eq("model_name", family.name).execute()  # before the exports go
