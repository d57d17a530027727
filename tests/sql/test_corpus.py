"""The corpus: what is kept of rows that say the same, and what goes with the conversations it comes from."""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg.types.json import Jsonb

from infra.local.stack import Stack
from tests.sql import waits_for
from tests.sql.exports import Exports, assessed

WORKER = "5f0f3c5e-0f64-4c62-8a3c-0c9d5b6b8a11"
ALIKE = {"near_keys": [1, 2, 3, 4], "signature": "07" * 64}


def changed_in(exports: Exports, id: int) -> int:
    return int(exports.one("select changed_in::text from public.conversations where id = %s", id))


@pytest.mark.parametrize(
    "change",
    [
        "feedback = -1",
        "feedback = null",
        "status = 'partial'",
        "message = 'Why?'",
        "response = 'So.'",
        "context_used = '[{}]'",
        "flags = '[{}]'",
        "error_code = 'lost'",
        "model_version = 'other'",
    ],
)
def test_what_a_model_could_learn_from_is_noted_when_it_changes(exports: Exports, change: str) -> None:
    id = exports.ask(exports.user())
    before = changed_in(exports, id)

    exports.all(f"update public.conversations set {change}")  # noqa: S608

    assert changed_in(exports, id) > before


@pytest.mark.parametrize("change", ["feedback = 1", "message = message, response = response", "cost_usd = 1"])
def test_what_changes_nothing_of_it_is_not(exports: Exports, change: str) -> None:
    id = exports.ask(exports.user())
    before = changed_in(exports, id)

    exports.all(f"update public.conversations set {change}")  # noqa: S608

    assert changed_in(exports, id) == before


@pytest.mark.parametrize(
    ("votes", "dropped", "sum_of_votes", "quality"),
    [
        ([1], None, 1, 0.9),
        ([0], None, 0, 0.7),
        ([-1], "disliked", -1, 0.5),
        ([1, -1], "conflict", 0, 0.7),
        ([0, 0], None, 0, 0.7),
        ([1, 1, -1, -1, 0], "conflict", 0, 0.7),
        ([1, 1, -1], None, 1, 0.9),
        ([1, -1, -1], "disliked", -1, 0.5),
        ([1, 0], None, 1, 0.9),
    ],
    ids=str,
)
def test_users_vote_on_an_answer_together(
    exports: Exports, votes: list[int], dropped: str | None, sum_of_votes: int, quality: float
) -> None:
    ids = [exports.ask(exports.user(), feedback=vote) for vote in votes]

    exports.select()

    newest = exports.row(ids[-1])
    assert (newest["dropped"], newest["votes"], newest["quality_score"]) == (dropped, sum_of_votes, quality)
    others = {exports.kept()[id] for id in ids[:-1]}
    assert others <= {dropped or "duplicate"}


def test_of_duplicates_the_best_is_kept_then_the_newest(exports: Exports) -> None:
    user_id = exports.user()
    same = {"content_hash": "aa"}
    exports.said = {"good": {**same, "merit": 0.6}, "better": {**same, "merit": 0.61}, "bad": {**same, "merit": 0.1}}
    good, better, newer, bad = (exports.ask(user_id, response=each) for each in ("good", "better", "better", "bad"))

    exports.select()

    assert exports.kept() == {good: "duplicate", better: "duplicate", newer: None, bad: "duplicate"}
    kept = exports.row(newer)
    assert {exports.row(id)["duplicate_of"] for id in (good, better, bad)} == {kept["id"]}
    assert (kept["votes"], kept["duplicate_of"], exports.row(good)["votes"]) == (4, None, None)


@pytest.mark.parametrize("page_rows", [1, 2, 100])
def test_it_makes_no_difference_in_which_pages_they_come(exports: Exports, page_rows: int) -> None:
    user_id = exports.user()
    ids = [exports.ask(user_id, feedback=vote) for vote in (1, -1, 1, 0, 1)]

    exports.select(page_rows=page_rows)

    assert exports.kept() == dict.fromkeys(ids[:-1], "duplicate") | {ids[-1]: None}
    assert (exports.row(ids[-1])["votes"], exports.row(ids[-1])["quality_score"]) == (2, 0.9)


@pytest.mark.parametrize("reason", ["error", "empty", "truncated", "flagged", "refusal", "too_long"])
def test_what_is_dropped_for_itself_has_no_say(exports: Exports, reason: str) -> None:
    user_id = exports.user()
    exports.said = {"bad": {"content_hash": "aa", "dropped": reason}, "good": {"content_hash": "aa"}}
    good, bad = exports.ask(user_id, response="good"), exports.ask(user_id, response="bad", feedback=-1)

    assert exports.export() == [good]

    assert exports.kept() == {good: None, bad: reason}
    assert (exports.row(good)["votes"], exports.row(bad)["votes"]) == (1, -1)


def test_a_row_written_by_hand_counts_as_liked(exports: Exports) -> None:
    user_id = exports.user()
    liked, disliked = exports.write("Liked?"), exports.write("Disliked?")
    exports.ask(user_id, "Liked?")
    exports.ask(user_id, "Disliked?", feedback=-1)

    exports.select()

    found = dict(exports.all("select id, dropped from public.training_data where conversation_id is null"))
    assert found == {liked: "duplicate", disliked: "conflict"}


@pytest.mark.parametrize(
    ("rating", "kept"), [(-1, {0: "conflict", 1: "conflict"}), (0, {0: "duplicate", 1: None}), (None, {0: None})]
)
def test_another_rating_is_followed_by_the_next_export(
    exports: Exports, rating: int | None, kept: dict[int, str | None]
) -> None:
    ids = [exports.ask(exports.user()), exports.ask(exports.user())]
    exports.export()

    exports.rate(ids[1], rating)
    exports.export()

    assert exports.kept() == {ids[place]: dropped for place, dropped in kept.items()}


def test_what_is_not_rated_any_more_goes_at_once(exports: Exports) -> None:
    first, second = exports.ask(exports.user()), exports.ask(exports.user())
    exports.export()

    exports.rate(second, None)

    assert exports.kept() == {first: None}


def test_a_user_unrates_what_he_may_not_see_the_row_of(exports: Exports, api: Any, user_id: int) -> None:
    exports.all("update public.users set training_consent = true where user_id = %s", user_id)
    id = exports.ask(user_id)
    exports.export()

    api.table("conversations").update({"feedback": None}).eq("id", id).execute()

    assert exports.kept() == {}


@pytest.mark.parametrize("table", ["conversations", "users"])
def test_a_deleted_conversations_row_goes_with_it(exports: Exports, table: str) -> None:
    ada, ben = exports.user(), exports.user()
    first, _ = exports.ask(ada), exports.ask(ben)
    exports.export()

    exports.all(f"delete from public.{table} where user_id = %s", ben)  # noqa: S608

    assert exports.kept() == {first: None}


def test_those_that_came_after_a_deleted_conversation_are_collected_anew(exports: Exports) -> None:
    ada, thread_id = exports.user(), "5f0f3c5e-0f64-4c62-8a3c-0c9d5b6b8a11"
    before = exports.ask(ada, "1?", thread_id=thread_id)
    secret = exports.ask(ada, "My key is abc", "Don't say.", None, thread_id=thread_id)
    after = exports.ask(ada, "2?", thread_id=thread_id)
    unrated = exports.ask(ada, "3?", feedback=None, thread_id=thread_id)
    others = [exports.ask(ada, "4?"), exports.ask(exports.user(), "5?", thread_id=thread_id)]
    exports.export(incremental=True)
    marks = {id: changed_in(exports, id) for id in (before, unrated, *others)}

    exports.all("delete from public.conversations where id = %s", secret)

    assert {id: changed_in(exports, id) for id in marks} == marks
    assert exports.export(incremental=True) == [after]
    assert exports.row(after)["turns"] == [["1?", "A coin."]]


def test_new_texts_leave_the_group_of_the_old(exports: Exports) -> None:
    user_id = exports.user()
    first, second = exports.ask(user_id), exports.ask(user_id)
    exports.export()

    exports.all("update public.conversations set response = 'Another.' where id = %s", second)
    exports.export()

    assert exports.kept() == {first: None, second: None}
    assert exports.row(second)["output"] == "Another."


def test_what_a_row_was_too_much_like_is_free_when_that_is_not_kept(exports: Exports) -> None:
    user_id = exports.user()
    exports.said = {"one": {**ALIKE, "merit": 0.2}, "two": {**ALIKE, "merit": 0.6}}
    one, two = exports.ask(user_id, response="one"), exports.ask(user_id, response="two")
    exports.export()
    assert exports.kept() == {one: "near_duplicate", two: None}

    exports.all("delete from public.conversations where id = %s", two)

    assert exports.kept() == {one: None}
    assert exports.row(one)["duplicate_of"] is None


@pytest.mark.parametrize("how", ["disliked", "dropped", "another text"])
def test_it_is_free_too_when_that_is_there_and_dropped(exports: Exports, how: str) -> None:
    user_id = exports.user()
    exports.said = {"one": {**ALIKE, "merit": 0.2}, "two": {**ALIKE, "merit": 0.6}}
    one, two = exports.ask(user_id, response="one"), exports.ask(user_id, response="two")
    exports.export()

    if how == "disliked":
        exports.rate(two, -1)
    elif how == "dropped":
        exports.said["two"]["dropped"] = "refusal"
        exports.all("update public.conversations set flags = '[{}]' where id = %s", two)
    else:
        exports.all("update public.conversations set response = 'three' where id = %s", two)

    assert one in exports.export()
    assert exports.kept()[one] is None


def test_what_comes_out_the_same_counts_as_unchanged(exports: Exports) -> None:
    user_id = exports.user()
    ids = [exports.ask(user_id), exports.ask(user_id), exports.ask(user_id, "Another?", feedback=-1)]
    exports.export()
    before = [exports.row(id) for id in ids]

    exports.export(rules="others")

    assert [exports.row(id) for id in ids] == before


@pytest.mark.parametrize("change", ["instruction = 'Why?'", "input = 'The price'", "output = 'So.'"])
def test_a_changed_row_written_by_hand_is_assessed_anew(exports: Exports, change: str) -> None:
    id = exports.write()
    exports.export()
    assert exports.one("select content_hash is not null from public.training_data where id = %s", id)

    exports.all(f"update public.training_data set {change}")  # noqa: S608

    assert exports.one("select content_hash is null from public.training_data where id = %s", id)
    assert [row[0] for row in exports.parts(exports.select()["id"])] == [id]


def test_its_duplicate_is_kept_meanwhile(exports: Exports) -> None:
    id = exports.ask(exports.user())
    exports.said = {"A coin.": {"merit": 0.5}}
    written = exports.write()
    exports.export()
    exports.all("update public.training_data set merit = 0.9 where id = %s", written)
    exports.all("select private.settle_groups(array[content_hash]) from public.training_data where id = %s", written)
    assert exports.kept() == {None: None, id: "duplicate"}

    exports.all("update public.training_data set output = 'So.' where id = %s", written)

    assert exports.kept()[id] is None


def test_other_changes_of_a_row_leave_it_assessed(exports: Exports) -> None:
    id = exports.write()
    exports.export()

    exports.all("update public.training_data set tags = '{mine}', output = output where id = %s", id)

    assert exports.one("select content_hash is not null from public.training_data where id = %s", id)


@pytest.mark.parametrize(
    "end",
    [
        "delete from public.conversations where user_id = %s",
        "update public.conversations set feedback = null where user_id = %s",
        "update public.users set training_consent = false where user_id = %s",
    ],
)
@pytest.mark.parametrize("first", ["put", "end"])
def test_who_puts_a_row_and_who_ends_its_use_take_turns(exports: Exports, stack: Stack, end: str, first: str) -> None:
    user_id = exports.user()
    exports.ask(user_id)
    id = exports.begin()["id"]
    exports.claim(id, WORKER)
    page = exports.read(id, 1)

    def in_turn(connection: psycopg.Connection, step: str) -> None:
        if step == "end":
            connection.execute(end.encode(), [user_id])
        else:
            rows = Jsonb([assessed(row) for row in page["rows"]])
            put = "select public.put_export_page(%s, 1, %s, null, true, %s, 1, 60)"
            connection.execute(put, [id, WORKER, rows])

    def wait_and_do() -> None:
        with psycopg.connect(stack.database_url) as connection:
            in_turn(connection, "end" if first == "put" else "put")

    with psycopg.connect(stack.database_url) as holder, ThreadPoolExecutor() as pool:
        in_turn(holder, first)
        second = pool.submit(wait_and_do)
        while not waits_for(exports.database, holder.info.backend_pid):
            time.sleep(0.01)
        holder.commit()
        second.result()

    assert exports.kept() == {}


def test_what_is_changed_by_hand_waits_until_it_is_collected_anew(exports: Exports) -> None:
    user = exports.user()
    id, other = exports.ask(user, "1?"), exports.ask(user, "2?")
    exports.finish(exports.select())

    exports.all("update public.training_data set output = 'Mail bo@example.org.' where conversation_id = %s", id)

    assert exports.export() == [other]
    assert exports.export() == [id, other]
    assert exports.row(id)["output"] == "A coin."


def test_a_rewritten_answer_of_the_same_words_stays(exports: Exports) -> None:
    id = exports.ask(exports.user())
    exports.finish(exports.select())

    exports.all("update public.conversations set response = 'A coin!' where id = %s", id)
    exports.said["A coin!"] = {"content_hash": exports.row(id)["content_hash"].removeprefix("\\x")}

    assert exports.export() == [id]
    assert exports.row(id)["output"] == "A coin!"


def test_earlier_turns_of_rows_by_hand_are_assessed_too(exports: Exports) -> None:
    id = exports.write("And now?", "Fine.", turns=Jsonb([["My mail is bo@example.org.", "Good."]]))
    begun = exports.begin()
    exports.claim(begun["id"], WORKER)

    page = exports.read(begun["id"], 0)
    clean = [["My mail is <EMAIL_1>.", "Good."]]
    rows = [assessed(row, turns=clean) for row in page["rows"]]

    assert [row[9] for row in page["rows"]] == [[["My mail is bo@example.org.", "Good."]]]
    assert exports.put(begun["id"], WORKER, page, 0, rows) == "noted"
    assert exports.one("select turns from public.training_data where id = %s", id) == clean
    exports.all("update public.training_data set turns = '[]' where id = %s", id)
    assert exports.one("select content_hash from public.training_data where id = %s", id) is None


@pytest.mark.parametrize("turns", [["text"], [["one"]], [["one", 2]], [["one", "two", "three"]], [{"one": "two"}]])
def test_turns_are_pairs_of_texts(exports: Exports, turns: list[Any]) -> None:
    with pytest.raises(psycopg.errors.CheckViolation, match="turns_are_pairs"):
        exports.write(turns=Jsonb(turns))


def test_a_turn_that_is_disliked_later_leaves_the_rows_after_it(exports: Exports) -> None:
    user, thread = exports.user(), uuid4()
    before = exports.ask(user, "Before?", "Bad.", feedback=None, thread_id=thread)
    id = exports.ask(user, "After?", thread_id=thread)
    exports.ask(user, "Not rated?", feedback=None, thread_id=thread)

    def turns() -> Any:
        worker = str(uuid4())
        begun = exports.begin()
        exports.claim(begun["id"], worker)
        page = exports.read(begun["id"], 1)
        assert exports.put(begun["id"], worker, page) == "noted"
        exports.claim(begun["id"], worker)
        exports.finish(exports.call("select_export", id=begun["id"], worker=worker) | {"worker": worker})
        [found] = [row[9] for row in page["rows"] if row[0] == id]
        return found

    assert turns() == [["Before?", "Bad."]]
    exports.rate(before, -1)
    assert turns() is None
    exports.rate(before, 0)
    assert turns() == [["Before?", "Bad."]]


def test_an_export_that_waits_to_begin_forgets_no_watermark(exports: Exports, stack: Stack) -> None:
    exports.ask(exports.user())
    first = exports.begin()
    with psycopg.connect(stack.database_url) as holder, ThreadPoolExecutor(1) as pool:
        holder.execute("select pg_advisory_xact_lock(hashtextextended('exports', 0))")
        second = pool.submit(exports.begin, formats=["alpaca"])
        while not waits_for(exports.database, holder.info.backend_pid):
            time.sleep(0.05)
        exports.collect(first["id"], WORKER)
        exports.finish(exports.call("select_export", id=first["id"], worker=WORKER) | {"worker": WORKER})
        holder.rollback()
        assert second.result()["outcome"] == "begun"

    assert exports.call("read_export", id=first["id"])["watermark"]["selected_until"]
