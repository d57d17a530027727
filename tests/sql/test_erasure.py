"""Erasure: what a user said goes, from the tables and from every export that has any of it."""

from typing import Any

import pytest

from tests.sql.exports import Exports
from tests.sql.models import Family

WORKER = "5f0f3c5e-0f64-4c62-8a3c-0c9d5b6b8a11"
NOTHING = {"conversations": 0, "training_data": 0, "exports": [], "models": [], "jobs": []}


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
    assert (replaced["id"], replaced["files"]) == (old, [])
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
    assert erase(exports, ada) == NOTHING


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

    assert erase(exports, ada)["exports"] == []

    assert exports.call("finish_export", **held, files=[], manifest={}, rows=2)["outcome"] == "lost"
    told = exports.claim(selected["id"], WORKER)
    assert (told["outcome"], told["progress"]) == ("write", None)
    assert exports.conversations(selected["id"]) == [kept]


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
