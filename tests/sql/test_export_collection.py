"""Collecting: which conversations an export reads, page by page, and how they are put into the corpus."""

import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from supabase import create_client

from infra.local.stack import Stack
from tests.sql.exports import READ, Exports, assessed, digest

WORKER = "5f0f3c5e-0f64-4c62-8a3c-0c9d5b6b8a11"


def begun(exports: Exports, **arguments: Any) -> int:
    """An export whose first shard WORKER has in hand."""
    id: int = exports.begin(**arguments)["id"]
    exports.claim(id, WORKER)
    return id


def pages(exports: Exports, id: int, shard: int = 1, page_rows: int = 100) -> list[list[int]]:
    """The ids of a shard's rows, by the page."""
    found: list[list[int]] = []
    cursor = None
    while not found or cursor:
        page = exports.read(id, shard, cursor, page_rows)
        found.append([row[0] for row in page["rows"]])
        cursor = page["next"]
    return found


def test_a_conversation_is_read_with_what_is_known_of_it(exports: Exports) -> None:
    user_id, thread_id = exports.user(), uuid4()
    for number, status in enumerate(["complete", "complete", "failed", "complete", "complete"]):
        exports.ask(user_id, f"q{number}", f"a{number}", None, thread_id=thread_id, status=status)
    passages = '[{"id": 1, "similarity": 0.9, "content_hash": "a"}, {"id": 2, "similarity": 0.8, "content_hash": "b"}]'
    more = {"context_used": passages, "flags": '[{"kind": "unknown_url", "text": "x.y"}]', "error_code": "late"}
    id = exports.ask(user_id, 'A "question"\n?', "An\tanswer", -1, thread_id=thread_id, status="partial", **more)
    exports.ask(user_id, "later", "later", None, thread_id=thread_id)
    exports.ask(exports.user(), "another's", "another's", None, thread_id=thread_id)

    page = exports.read(exports.begin()["id"], 1)

    assert page["next"] is None
    assert [dict(zip(READ, row, strict=True)) for row in page["rows"]] == [
        {
            "id": id,
            "user_id": user_id,
            "message": 'A "question"\n?',
            "response": "An\tanswer",
            "feedback": -1,
            "status": "partial",
            "error_code": "late",
            "passages": 2,
            "flags": 1,
            "turns": [["q1", "a1"], ["q3", "a3"], ["q4", "a4"]],
        }
    ]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4])
def test_up_to_three_turns_come_before_it_the_oldest_first(exports: Exports, count: int) -> None:
    user_id, thread_id = exports.user(), uuid4()
    for number in range(count):
        exports.ask(user_id, f"q{number}", f"a{number}", None, thread_id=thread_id)
    exports.ask(user_id, thread_id=thread_id)

    [row] = exports.read(exports.begin()["id"], 1)["rows"]

    turns = [[f"q{number}", f"a{number}"] for number in range(count)][-3:]
    assert row[9] == (turns or None)


def test_a_disliked_turn_is_not_among_them(exports: Exports) -> None:
    user_id, thread_id = exports.user(), uuid4()
    for number, feedback in enumerate([1, 0, None, -1]):
        exports.ask(user_id, f"q{number}", f"a{number}", feedback, thread_id=thread_id)
    last = exports.ask(user_id, thread_id=thread_id)

    read = exports.read(exports.begin()["id"], 1)["rows"]

    assert [row[9] for row in read if row[0] == last] == [[["q0", "a0"], ["q1", "a1"], ["q2", "a2"]]]


@pytest.mark.parametrize("consents", [True, False])
@pytest.mark.parametrize("feedback", [-1, 0, 1, None])
def test_what_is_rated_is_read_where_its_user_consents(exports: Exports, consents: bool, feedback: int | None) -> None:
    id = exports.ask(exports.user(consents), feedback=feedback)

    export = exports.begin()

    is_read = consents and feedback is not None
    assert export["to_collect"] == (1 if is_read else 0)
    assert [row[0] for row in exports.read(export["id"], 1)["rows"]] == ([id] if is_read else [])


@pytest.mark.parametrize("page_rows", [1, 2, 3, 7, 8])
def test_pages_make_the_whole(exports: Exports, page_rows: int) -> None:
    user_id = exports.user()
    ids = [exports.ask(user_id) for _ in range(7)]
    exports.all("update public.conversations set feedback = 0")  # all in one transaction

    read = pages(exports, exports.begin()["id"], page_rows=page_rows)

    assert [id for page in read for id in page] == ids
    assert all(len(page) == page_rows for page in read[:-1])


def test_a_page_ends_with_the_row_that_makes_it_larger_than_4_mb(exports: Exports) -> None:
    user_id = exports.user()
    sizes = [9_000_000, 10, 1_500_000, 1_500_000, 1_500_000, 10, 1_000_000, 2_999_989, 1, 10]
    ids = [exports.ask(user_id, "é" * 5, "x" * size) for size in [size - 10 for size in sizes[:8]] + [1, 0]]
    written = [exports.write("é" * 5, "x" * size) for size in (3_999_990, 2_999_990, 1_000_001, 0)]
    id = exports.begin()["id"]

    assert pages(exports, id) == [ids[:1], ids[1:5], ids[5:9], ids[9:]]
    assert pages(exports, id, 0) == [written[:2], written[2:]]


def test_pages_come_in_the_order_of_changes(exports: Exports) -> None:
    user_id = exports.user()
    first, second, third = (exports.ask(user_id) for _ in range(3))
    exports.rate(first, 0)

    assert pages(exports, exports.begin()["id"], page_rows=2) == [[second, third], [first]]


@pytest.mark.parametrize(
    ("rows", "shard_rows", "sizes"),
    [(10, 4, [4, 3, 3]), (10, 10, [10]), (10, 11, [10]), (10, 5, [5, 5]), (3, 1, [1, 1, 1])],
)
def test_shards_share_the_conversations_out(exports: Exports, rows: int, shard_rows: int, sizes: list[int]) -> None:
    user_id = exports.user()
    ids = [exports.ask(user_id) for _ in range(rows)]

    export = exports.begin(shard_rows=shard_rows)

    read = [pages(exports, export["id"], shard + 1, 100)[0] for shard in range(export["shards"])]
    assert sorted(map(len, read), reverse=True) == sizes
    assert [id for shard in read for id in shard] == ids


def test_there_are_64_shards_at_most(exports: Exports) -> None:
    user_id = exports.user()
    for _ in range(70):
        exports.ask(user_id)

    assert exports.begin(shard_rows=1)["shards"] == 64


def test_what_changes_after_the_beginning_is_left_to_the_next_export(exports: Exports) -> None:
    user_id = exports.user()
    kept, changed = exports.ask(user_id), exports.ask(user_id)
    id = begun(exports)
    late = exports.ask(user_id, "late")
    exports.rate(changed, -1)

    page = exports.read(id, 1)
    exports.put(id, WORKER, page)

    assert [row[0] for row in page["rows"]] == [kept]
    assert pages(exports, begun(exports, min_feedback=0)) == [[kept, late, changed]]


@pytest.mark.parametrize("change", ["feedback = 0", "feedback = null", "response = 'Another.'"])
def test_what_changes_after_it_was_read_is_not_put(exports: Exports, change: str) -> None:
    user_id = exports.user()
    kept, changed = exports.ask(user_id), exports.ask(user_id, "changed")
    id = begun(exports)
    page = exports.read(id, 1)
    exports.all(f"update public.conversations set {change} where id = %s", changed)  # noqa: S608

    assert exports.put(id, WORKER, page) == "noted"

    assert exports.kept() == {kept: None}


@pytest.mark.parametrize(
    "end", ["delete from public.conversations", "update public.users set training_consent = false"]
)
def test_what_may_not_be_learned_from_any_more_is_not_put(exports: Exports, end: str) -> None:
    user_id = exports.user()
    exports.ask(user_id)
    id = begun(exports)
    page = exports.read(id, 1)
    exports.all(f"{end} where user_id = %s", user_id)

    assert exports.put(id, WORKER, page) == "noted"

    assert exports.kept() == {}


def test_what_is_put_stands_in_its_row(exports: Exports) -> None:
    user_id = exports.user()
    id = exports.ask(user_id, "Mail a@b.c", "Sent to a@b.c", model_version="tuned:v1")
    exports.said = {
        "Sent to a@b.c": {
            "question": "Mail <EMAIL_1>",
            "answer": "Sent to <EMAIL_1>",
            "turns": [["q", "a"]],
            "merit": 0.25,
            "tags": ["lang:en", "[odd]", 'a "tag"'],
            "split": "validation",
            "question_hash": "aa",
            "content_hash": "bb",
            "near_keys": [1, 2**50, -3, 4],
            "signature": "cc" * 64,
            "redactions": {"email": 2},
        }
    }

    exports.select()

    row = exports.row(id)
    asked_at = exports.one("select to_jsonb(created_at) from public.conversations where id = %s", id)
    assert {name: row[name] for name in row if name not in ("id", "created_at", "changed_in")} == {
        "instruction": "Mail <EMAIL_1>",
        "input": None,
        "output": "Sent to <EMAIL_1>",
        "source": "conversation",
        "quality_score": 0.65,
        "tags": ["lang:en", "[odd]", 'a "tag"'],
        "conversation_id": id,
        "user_id": user_id,
        "model_version": "tuned:v1",
        "asked_at": asked_at,
        "turns": [["q", "a"]],
        "votes": 1,
        "merit": 0.25,
        "split": "validation",
        "question_hash": "\\xaa",
        "content_hash": "\\xbb",
        "near_keys": [1, 2**50, -3, 4],
        "signature": "\\x" + "cc" * 64,
        "dropped": None,
        "duplicate_of": None,
        "redactions": {"email": 2},
    }


def test_a_text_that_is_null_is_the_conversations_own(exports: Exports) -> None:
    id = exports.ask(exports.user(), "As it is?", "As it is.")
    exports.said = {"As it is.": {"dropped": "refusal", "near_keys": None, "signature": None, "tags": []}}

    exports.select()

    row = exports.row(id)
    assert (row["instruction"], row["output"], row["turns"], row["redactions"]) == (
        "As it is?",
        "As it is.",
        None,
        None,
    )
    assert (row["near_keys"], row["signature"], row["tags"], row["dropped"]) == (None, None, [], "refusal")


def test_other_rules_assess_everything_anew(exports: Exports) -> None:
    user_id = exports.user()
    ids = [exports.ask(user_id, f"{number}?", f"{number}.") for number in range(3)]
    exports.export(rules="old")
    assert exports.begin(rules="old", min_quality=0.1)["to_collect"] == 0
    exports.said = {"1.": {"answer": "One."}}

    assert exports.export(rules="new") == ids

    assert [exports.row(id)["output"] for id in ids] == ["0.", "One.", "2."]
    assert exports.begin(rules="new", min_quality=0.1)["to_collect"] == 0


def test_another_signature_alone_is_no_change_for_an_increment(exports: Exports) -> None:
    user_id = exports.user()
    same, other = (exports.ask(user_id, f"{number}?", f"{number}.") for number in range(2))
    assert exports.export(rules="old", incremental=True) == [same, other]
    signed = {"near_keys": [1, 2, 3, 4], "signature": "0b" * 64}
    exports.said = {"0.": signed, "1.": {**signed, "near_keys": [5, 6, 7, 8], "merit": 0.25}}

    assert exports.export(rules="new", incremental=True) == [other]

    assert [exports.row(id)["signature"] for id in (same, other)] == ["\\x" + "0b" * 64] * 2


def test_only_what_is_new_is_collected_again(exports: Exports) -> None:
    user_id = exports.user()
    first, second = exports.ask(user_id, "1?"), exports.ask(user_id, "2?", feedback=None)
    assert exports.export() == [first]

    exports.rate(second, 1)  # long after it was asked
    export = exports.begin()

    assert (export["to_collect"], exports.read(export["id"], 1)["rows"][0][0]) == (1, second)


def test_rows_written_by_hand_have_a_shard_of_their_own(exports: Exports) -> None:
    asked = exports.ask(exports.user())
    plain, with_input = exports.write("Say it", "So."), exports.write("Sum up", "So.", input="a text")
    id = exports.begin()["id"]

    page = exports.read(id, 0)

    assert page == {
        "rows": [
            [plain, None, "Say it", "So.", None, "complete", None, 0, 0, None],
            [with_input, None, "Sum up\n\na text", "So.", None, "complete", None, 0, 0, None],
        ],
        "next": None,
    }
    assert pages(exports, id, 0, 1) == [[plain], [with_input], []]
    assert pages(exports, id) == [[asked]]


def test_a_row_written_by_hand_is_redacted_where_it_stands(exports: Exports) -> None:
    plain, secret = exports.write("Say it", "So."), exports.write("Mail", "a@b.c", input="to me")
    exports.said = {"a@b.c": {"question": "Mail\n\nto me", "answer": "<EMAIL_1>", "redactions": {"email": 1}}}

    exports.select()

    found = exports.all(
        "select id, instruction, input, output, votes, quality_score from public.training_data order by id"
    )
    assert found == [(plain, "Say it", None, "So.", 1, 0.9), (secret, "Mail\n\nto me", None, "<EMAIL_1>", 1, 0.9)]


def test_a_row_written_by_hand_keeps_what_its_author_said_of_it(exports: Exports) -> None:
    ids = [
        exports.write("1?", tags=["mine", "lang:en", "a"], quality_score=0.95),
        exports.write("2?", tags=None, quality_score=None),
        exports.write("3?", tags=[], quality_score=0.2),
    ]
    exports.said = {"A coin.": {"tags": ["lang:en", "short"], "merit": 0.5}}

    assert len(exports.parts(exports.select(min_quality=0.3)["id"])) == 2

    found = exports.all("select id, tags, quality_score from public.training_data order by id")
    assert found == [
        (ids[0], ["mine", "lang:en", "a", "short"], 0.95),
        (ids[1], ["lang:en", "short"], 0.9),
        (ids[2], ["lang:en", "short"], 0.2),
    ]


def test_a_score_that_nobody_gave_follows_the_text(exports: Exports) -> None:
    given, filled = exports.write("1?", quality_score=0.8), exports.write("2?")
    exports.select()
    exports.said = {"So.": {"merit": 0.25}}
    exports.all("update public.training_data set output = 'So.'")

    exports.select(min_quality=0.1)

    found = dict(exports.all("select id, quality_score from public.training_data"))
    assert found == {given: 0.8, filled: 0.65}


def test_a_row_written_by_hand_that_was_changed_since_is_left_to_the_next_export(exports: Exports) -> None:
    id = exports.write()
    export = begun(exports)
    page = exports.read(export, 0)
    exports.all("update public.training_data set output = 'My number is 1.' where id = %s", id)

    assert exports.put(export, WORKER, page, 0) == "noted"

    assert exports.one("select content_hash is null from public.training_data where id = %s", id)
    assert [row[3] for row in exports.read(exports.begin(min_quality=0.1)["id"], 0)["rows"]] == ["My number is 1."]


def test_rows_written_by_hand_are_assessed_once_by_the_same_rules(exports: Exports) -> None:
    exports.write()
    exports.select(rules="old")

    assert exports.begin(rules="old", min_quality=0.1)["to_collect"] == 0
    assert exports.begin(rules="new")["to_collect"] == 1


def test_a_page_is_noted_with_where_the_next_one_begins(exports: Exports) -> None:
    user_id = exports.user()
    for number in range(3):
        exports.ask(user_id, f"{number}?")
    id = begun(exports)
    page = exports.read(id, 1, page_rows=2)

    assert exports.put(id, WORKER, page) == "noted"

    told = exports.claim(id, WORKER)
    assert (told["outcome"], told["shard"], told["cursor"], told["collected"]) == ("collect", 1, page["next"], 2)


def test_the_same_page_again_is_noted_once(exports: Exports) -> None:
    user_id = exports.user()
    ids = [exports.ask(user_id, f"{number}?") for number in range(2)]
    id = begun(exports)
    first = exports.read(id, 1, page_rows=1)
    exports.put(id, WORKER, first)

    assert exports.put(id, WORKER, first) == "noted"
    last = exports.read(id, 1, first["next"])
    assert [exports.put(id, WORKER, last), exports.put(id, WORKER, last)] == ["noted", "noted"]

    assert exports.call("read_export", id=id)["collected"] == 2
    assert exports.kept() == dict.fromkeys(ids)


@pytest.mark.parametrize("why", ["another has it", "nobody has it", "it has failed", "there is none"])
def test_a_page_of_a_shard_that_is_not_his_is_lost(exports: Exports, why: str) -> None:
    exports.ask(exports.user())
    id = exports.begin()["id"]
    if why == "another has it":
        exports.claim(id, WORKER, 0)
        exports.claim(id, str(uuid4()))
    elif why == "it has failed":
        exports.claim(id, WORKER)
        exports.call("fail_export", id=id, worker=WORKER, failure="any")

    assert exports.put(0 if why == "there is none" else id, WORKER, exports.read(id, 1)) == "lost"

    assert exports.kept() == {}


@pytest.mark.parametrize("seed", range(4))
def test_whoever_is_killed_wherever_nothing_is_lost_and_nothing_twice(exports: Exports, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311
    user_id = exports.user()
    ids = [exports.ask(user_id, f"{number}?") for number in range(23)]
    id = exports.begin(shard_rows=8)["id"]
    read: list[int] = []

    worker = str(uuid4())
    while (told := exports.claim(id, worker, 0))["outcome"] == "collect":
        page = exports.read(id, told["shard"], told["cursor"], 3)
        if chance.random() < 0.5:
            read += [row[0] for row in page["rows"]]
            assert exports.put(id, worker, page, told["shard"]) == "noted"
        worker = str(uuid4())
        exports.all("update private.export_shards set expires_at = now() - interval '1 s'")

    assert sorted(read) == ids
    assert exports.kept() == dict.fromkeys(ids)
    assert exports.call("read_export", id=id)["collected"] == len(ids)


def test_workers_put_what_says_the_same_at_once_without_a_deadlock(exports: Exports, stack: Stack) -> None:
    user_ids = [exports.user() for _ in range(4)]
    ids = [exports.ask(user_ids[number % 4], f"{number % 5}?") for number in range(120)]
    id = exports.begin(shard_rows=30)["id"]
    export_again = exports.begin(shard_rows=30, min_quality=0.1)["id"]

    def work(export_id: int) -> None:
        with psycopg.connect(stack.database_url, autocommit=True) as connection:
            own = Exports(create_client(stack.url, stack.keys.secret), connection)
            own.collect(export_id, str(uuid4()), page_rows=7)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, [id, export_again, id, export_again]))

    assert exports.kept() == dict.fromkeys(ids, "duplicate") | dict.fromkeys(ids[-5:])
    assert {exports.row(each)["votes"] for each in ids[-5:]} == {24}


def test_a_restored_database_counts_anew(exports: Exports) -> None:
    user_id = exports.user()
    old = exports.ask(user_id, "old?")
    exports.export()
    exports.all("alter table public.conversations disable trigger note_change")
    exports.all("update public.conversations set changed_in = '9000000000000'")
    exports.all("alter table public.conversations enable trigger note_change")
    exports.all("update public.training_data set changed_in = '9000000000000'")
    exports.all("update private.corpus set collected_until = '9000000000000'")
    exports.all("update public.training_exports set selected_until = '9000000000000'")
    new = exports.ask(user_id, "new?")

    first = exports.select(incremental=True)
    exports.finish(first)

    assert exports.conversations(first["id"]) == [old, new]
    assert exports.begin(min_quality=0.1)["to_collect"] == 1  # the old one, which counts as changed in the last export
    assert exports.export(incremental=True) == []
    assert exports.kept() == {old: None, new: None}


def test_a_row_as_it_is_put_is_what_is_documented() -> None:
    row = assessed([1, 2, "q", "a", 1, "complete", None, 0, 0, None])

    assert len(row) == 13
    assert row[7] == digest("q")
