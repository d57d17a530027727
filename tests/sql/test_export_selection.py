"""Selecting: near duplicates, what the options leave out and count, parts, pairs, increments."""

from typing import Any

import pytest

from tests.sql.exports import Exports

WORKERS = ["5f0f3c5e-0f64-4c62-8a3c-0c9d5b6b8a11", "6f0f3c5e-0f64-4c62-8a3c-0c9d5b6b8a12"]
DPO: dict[str, Any] = {"formats": ["openai_dpo"]}


def signature(places: int) -> str:
    """One that agrees with `signature(64)` in so many of its 64 places."""
    return "".join("0a" if place < places else "0c" for place in range(64))


@pytest.mark.parametrize(("places", "dropped"), [(52, "near_duplicate"), (51, None), (64, "near_duplicate"), (0, None)])
def test_rows_with_a_key_in_common_are_compared(exports: Exports, places: int, dropped: str | None) -> None:
    user_id = exports.user()
    exports.said = {
        "one": {"near_keys": [1, 2, 3, 4], "signature": signature(64)},
        "two": {"near_keys": [5, 6, 3, 8], "signature": signature(places)},
    }
    one, two = exports.ask(user_id, response="one"), exports.ask(user_id, response="two")

    exports.select()

    assert exports.kept() == {one: dropped, two: None}
    assert exports.row(one)["duplicate_of"] == (exports.row(two)["id"] if dropped else None)


@pytest.mark.parametrize("keys", [[5, 6, 7, 8], [2, 1, 4, 3]], ids=["other keys", "in other places"])
def test_rows_without_a_key_in_common_are_not(exports: Exports, keys: list[int]) -> None:
    user_id = exports.user()
    exports.said = {
        "one": {"near_keys": [1, 2, 3, 4], "signature": signature(64)},
        "two": {"near_keys": keys, "signature": signature(64)},
    }
    ids = [exports.ask(user_id, response=each) for each in ("one", "two")]

    exports.select()

    assert exports.kept() == dict.fromkeys(ids)


def test_of_near_duplicates_the_one_that_users_like_best_is_kept(exports: Exports) -> None:
    user_id = exports.user()
    alike = {"near_keys": [1, 2, 3, 4], "signature": signature(64)}
    exports.said = {
        "liked": {**alike, "merit": 0.3},
        "not rated": {**alike, "merit": 0.45},
        "bad": {**alike, "merit": 0.6},
    }
    liked = exports.ask(user_id, response="liked")
    not_rated = exports.ask(user_id, response="not rated", feedback=0)
    bad = exports.ask(user_id, response="bad", feedback=-1)

    exports.select()

    assert exports.kept() == {liked: None, not_rated: "near_duplicate", bad: "disliked"}


def test_a_liked_one_is_kept_before_one_with_a_higher_score(exports: Exports) -> None:
    user_id = exports.user()
    alike = {"near_keys": [1, 2, 3, 4], "signature": signature(64)}
    exports.said = {"liked": {**alike, "merit": 0.1}, "not rated": {**alike, "merit": 0.6}}
    liked = exports.ask(user_id, response="liked")
    not_rated = exports.ask(user_id, response="not rated", feedback=0)

    exports.select()

    assert exports.kept() == {liked: None, not_rated: "near_duplicate"}


@pytest.mark.parametrize("first", [1, 2])
def test_it_makes_no_difference_which_shard_comes_first(exports: Exports, first: int) -> None:
    user_id = exports.user()
    exports.said = {each: {"near_keys": [1, 2, 3, 4], "signature": signature(64)} for each in ("one", "two")}
    bad: dict[str, Any] = {"feedback": -1, "created_at": "2026-01-01T00:00:00Z"}
    one = exports.ask(user_id, response="one")
    exports.ask(user_id, response="bad", **bad)
    two = exports.ask(user_id, response="two")
    exports.ask(user_id, response="just as bad", **bad)
    id = exports.begin(shard_rows=2, **DPO)["id"]
    for worker in WORKERS:
        exports.claim(id, worker)

    for shard in (first, 3 - first):
        assert exports.put(id, WORKERS[shard - 1], exports.read(id, shard), shard) == "noted"
    exports.claim(id, WORKERS[0])
    exports.call("select_export", id=id, worker=WORKERS[0])

    assert [(row[1], row[6]) for row in exports.parts(id)] == [(two, "just as bad")]
    assert exports.kept()[one] == "near_duplicate"


def test_another_export_finds_them_anew(exports: Exports) -> None:
    user_id = exports.user()
    alike = {"near_keys": [1, 2, 3, 4], "signature": signature(64)}
    exports.said = {"one": {**alike, "merit": 0.3}, "two": {**alike, "merit": 0.4}, "three": {**alike, "merit": 0.5}}
    one, two = exports.ask(user_id, response="one"), exports.ask(user_id, response="two", feedback=0)
    assert exports.export() == [one]

    exports.rate(two, 1)
    assert exports.export() == [two]
    three = exports.ask(user_id, response="three")
    assert exports.export() == [three]

    assert exports.kept() == {one: "near_duplicate", two: "near_duplicate", three: None}
    assert {exports.row(id)["duplicate_of"] for id in (one, two)} == {exports.row(three)["id"]}


def test_what_is_skipped_is_counted_by_the_reason(exports: Exports) -> None:
    user_id, other = exports.user(), exports.user(consents=False)
    exports.said = {
        "refusal": {"dropped": "refusal"},
        "poor": {"merit": 0.1},
        "one": {"near_keys": [1, 2, 3, 4], "signature": signature(64)},
        "two": {"near_keys": [1, 2, 3, 4], "signature": signature(64)},
    }
    for response in ("good", "same", "same", "refusal", "poor", "one", "two"):
        exports.ask(user_id, response=response)
    exports.ask(user_id, response="bad", feedback=-1)
    exports.ask(user_id, response="nothing said", feedback=0)
    for vote in (1, -1):
        exports.ask(user_id, response="disputed", feedback=vote)
    exports.ask(other, response="not to be learned from")
    exports.ask(other, response="nor rated", feedback=None)

    selected = exports.select(min_quality=0.6)

    assert selected["skipped"] == {
        "duplicate": 1,
        "refusal": 1,
        "low_quality": 1,
        "near_duplicate": 1,
        "disliked": 1,
        "low_feedback": 1,
        "conflict": 2,
        "no_consent": 1,
    }
    assert [row[4] for row in exports.parts(selected["id"])] == ["good", "same", "two"]
    assert exports.one("select rows from public.training_exports") == 3


@pytest.mark.parametrize(
    ("options", "answers"),
    [
        ({}, ["old", "mine", "new", "by hand"]),
        ({"min_feedback": 0}, ["old", "mine", "unrated", "new", "by hand"]),
        ({"min_quality": 0.95}, ["new"]),
        ({"model_version": "mine"}, ["mine"]),
        ({"since": "2026-02-01T00:00:00Z"}, ["mine", "new", "by hand"]),
        ({"until": "2026-02-01T00:00:00Z"}, ["old"]),
        ({"since": "2026-01-01T00:00:00Z", "until": "2026-03-01T00:00:00Z"}, ["old", "mine"]),
        ({"since": "2026-03-01T00:00:00+00:00", "until": "2026-04-01T02:00:00+02:00"}, ["new"]),
    ],
    ids=str,
)
def test_the_options_leave_out_what_they_say(exports: Exports, options: dict[str, Any], answers: list[str]) -> None:
    user_id = exports.user()
    exports.said = {"new": {"merit": 0.6}}
    exports.ask(user_id, response="old", created_at="2026-01-01T00:00:00Z")
    exports.ask(user_id, response="mine", created_at="2026-02-01T00:00:00Z", model_version="mine")
    exports.ask(user_id, response="unrated", created_at="2026-02-15T00:00:00Z", feedback=0, model_version="other")
    exports.ask(user_id, response="new", created_at="2026-03-31T23:59:59Z")
    exports.write(output="by hand", created_at="2026-04-01T00:00:00Z")

    found = [row[4] for row in exports.parts(exports.select(**options)["id"])]

    assert sorted(found) == sorted(answers)


def test_parts_are_numbered_by_the_rows_ids(exports: Exports) -> None:
    user_id = exports.user()
    ids = [exports.ask(user_id, f"{number}?") for number in range(7)]

    selected = exports.select(part_rows=3)

    stored = exports.all(
        "select number, conversation_ids, user_ids, rejected_ids from public.training_export_parts order by number"
    )
    assert selected["parts"] == 3
    assert stored == [
        (number, ids[3 * number :][:3], [user_id] * len(ids[3 * number :][:3]), None) for number in range(3)
    ]
    assert exports.conversations(selected["id"]) == ids


def test_a_row_of_a_part_is_all_that_is_written(exports: Exports) -> None:
    user_id = exports.user()
    asked = exports.ask(user_id, "Why?", "So.", thread_id="5f0f3c5e-0f64-4c62-8a3c-0c9d5b6b8a11")
    written = exports.write("Say it", "It.", input="loudly", source="synthetic")
    exports.said = {"So.": {"turns": [["q", "a"]], "tags": ["lang:en", "multi_turn"]}}

    found = exports.parts(exports.select()["id"])

    row_id = exports.row(asked)["id"]
    assert sorted(found) == sorted(
        [
            [
                *[row_id, asked, "Why?", None, "So.", [["q", "a"]], None],
                *[0.9, ["lang:en", "multi_turn"], user_id, "conversation", None],
            ],
            [written, None, "Say it", "loudly", "It.", None, None, 0.9, ["lang:en"], None, "synthetic", None],
        ]
    )


def test_a_part_has_the_rows_that_still_exist(exports: Exports) -> None:
    user_id = exports.user()
    first, second = exports.ask(user_id, "1?"), exports.ask(user_id, "2?")
    selected = exports.select()

    exports.rate(first, None)
    late = exports.ask(user_id, "3?")

    assert exports.conversations(selected["id"]) == [second]
    assert late not in exports.kept()


def test_a_row_that_was_changed_by_hand_since_is_not_read_before_it_is_assessed(exports: Exports) -> None:
    user_id = exports.user()
    exports.ask(user_id, response="good")
    bad = exports.ask(user_id, response="bad", feedback=-1)
    exports.write("Say that", "That.")
    changed = exports.write("Say it", "So.")
    id = exports.select(**DPO)["id"]
    assert [(row[4], row[6]) for row in exports.parts(id)] == [("good", "bad"), ("That.", None), ("So.", None)]

    exports.all("update public.training_data set output = 'Mail a@b.c' where id = %s", changed)
    exports.all("update public.training_data set content_hash = null where conversation_id = %s", bad)

    assert [(row[4], row[6]) for row in exports.parts(id)] == [("good", None), ("That.", None)]


@pytest.mark.parametrize(
    ("formats", "rejected"), [(["openai_dpo", "alpaca"], "Send me your seed."), (["alpaca"], None)]
)
def test_pairs_have_the_disliked_answer_to_the_same_question(
    exports: Exports, formats: list[str], rejected: str | None
) -> None:
    user_id = exports.user()
    exports.ask(user_id, "What is TON?", "A coin.")
    exports.ask(user_id, "What is NOT?", "Another coin.")
    exports.ask(user_id, "What is TON?", "Send me your seed.", feedback=-1)

    found = exports.parts(exports.select(formats=formats)["id"])

    assert [(row[4], row[6]) for row in found] == [("A coin.", rejected), ("Another coin.", None)]


def test_of_disliked_answers_it_is_the_most_disliked_then_the_newest(exports: Exports) -> None:
    user_id = exports.user()
    exports.ask(user_id, response="good")
    for response in ("bad", "worse", "worse", "worst", "worst"):
        exports.ask(user_id, response=response, feedback=-1)

    [row] = exports.parts(exports.select(**DPO)["id"])

    assert (row[4], row[6]) == ("good", "worst")


def test_a_pairs_answers_are_of_users_in_the_same_half(exports: Exports) -> None:
    exports.said = {"bad": {"split": "validation"}}
    exports.ask(exports.user(), response="good")
    exports.ask(exports.user(), response="bad", feedback=-1)

    [row] = exports.parts(exports.select(**DPO)["id"])

    assert (row[4], row[6]) == ("good", None)


def test_a_trial_counts_and_has_no_parts(exports: Exports) -> None:
    user_id = exports.user()
    exports.ask(user_id)
    exports.ask(user_id, feedback=-1, response="bad")

    told = exports.select(dry_run=True)

    assert (told["outcome"], told["status"], told["rows"]) == ("ready", "ready", 1)
    assert told["skipped"] == {"disliked": 1}
    assert told["finished_at"]
    assert exports.parts(told["id"]) == []
    assert exports.claim(told["id"], told["worker"])["outcome"] == "ready"


def test_how_many_consented_is_kept_with_it(exports: Exports) -> None:
    exports.ask(exports.user())
    consenting = exports.one("select count(*) from public.users where training_consent")

    selected = exports.select()
    exports.user()

    told = exports.call("read_export", id=selected["id"])["consent"]
    assert told["users"] == consenting
    assert told["at"]


def test_an_increment_has_what_was_changed_since_the_last(exports: Exports) -> None:
    user_id = exports.user()
    first, late = exports.ask(user_id, "1?"), exports.ask(user_id, "2?", feedback=None)
    assert exports.export(incremental=True) == [first]
    assert exports.export(incremental=True) == []
    second = exports.ask(user_id, "3?")
    exports.rate(late, 1)  # long after the others, of an earlier one

    assert exports.export(incremental=True) == [late, second]

    assert exports.export(incremental=True) == []
    assert exports.export() == [first, late, second]
    assert exports.export(incremental=True) == []


def test_an_increment_counts_from_exports_with_the_same_options(exports: Exports) -> None:
    user_id = exports.user()
    first = exports.ask(user_id, "1?")
    exports.export(min_quality=0.1)
    assert exports.select(dry_run=True)["rows"] == 1
    unfinished = exports.select()
    exports.call("fail_export", id=unfinished["id"], worker=unfinished["worker"], failure="any")

    assert exports.export(incremental=True) == [first]

    assert exports.export(incremental=True, min_quality=0.1) == []
    assert exports.export(incremental=True, until="2999-01-01T00:00:00Z") == []


def test_an_increment_counts_from_exports_of_the_same_times_or_of_all(exports: Exports) -> None:
    user_id = exports.user()
    narrow = {"since": "2026-02-01T00:00:00Z", "until": "2026-03-01T00:00:00Z"}
    before = exports.ask(user_id, "1?", created_at="2026-01-15T00:00:00Z")
    within = exports.ask(user_id, "2?", created_at="2026-02-15T00:00:00Z")
    assert exports.export(**narrow) == [within]

    assert exports.export(incremental=True, **narrow) == []
    assert exports.export(incremental=True, since="2026-01-01T00:00:00Z") == [before, within]
    assert exports.export(incremental=True) == [before, within]

    assert exports.export(incremental=True, until="2026-02-01T00:00:00Z") == []
    late = exports.ask(user_id, "3?", created_at="2026-02-16T00:00:00Z")
    assert exports.export(incremental=True, **narrow) == [late]
    assert exports.export(incremental=True, **narrow) == []
    assert exports.export(incremental=True) == [late]


def test_an_increment_of_pairs_has_a_row_again_whose_counterpart_came_since(exports: Exports) -> None:
    user_id = exports.user()
    paired, _ = exports.ask(user_id, "1?", "good"), exports.ask(user_id, "2?", "good too")
    assert exports.export(incremental=True, formats=["alpaca"])
    assert exports.export(incremental=True, **DPO)
    exports.ask(user_id, "1?", "bad", feedback=-1)

    selected = exports.select(incremental=True, **DPO)
    exports.finish(selected)

    assert [(row[1], row[6]) for row in exports.parts(selected["id"])] == [(paired, "bad")]
    assert selected["skipped"] == {"disliked": 1}
    assert exports.export(incremental=True, **DPO) == []
    assert exports.export(incremental=True, formats=["alpaca"]) == []


def test_an_increment_has_a_row_again_whose_rating_has_changed_its_score(exports: Exports) -> None:
    user_id = exports.user()
    id = exports.ask(user_id, feedback=0)
    assert exports.export(incremental=True, min_feedback=0) == [id]

    exports.rate(id, 1)

    assert exports.export(incremental=True, min_feedback=0) == [id]


def test_two_exports_at_once_both_bring_the_corpus_up_to_date(exports: Exports) -> None:
    user_id = exports.user()
    ids = [exports.ask(user_id, "1?")]
    early = exports.begin()["id"]
    ids.append(exports.ask(user_id, "2?"))
    worker = "5f0f3c5e-0f64-4c62-8a3c-0c9d5b6b8a11"

    assert exports.export(min_quality=0.1) == ids
    exports.collect(early, worker)
    exports.call("select_export", id=early, worker=worker)

    assert exports.begin(min_quality=0.2)["to_collect"] == 0
    assert exports.kept() == dict.fromkeys(ids)
