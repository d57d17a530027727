"""Which conversations are kept for training, and why others aren't."""

import os
import random
import subprocess
import sys
from typing import Any

import orjson
import pytest

from shared.near_duplicates import plain, signatures
from shared.redaction import published
from shared.splits import split
from shared.training_quality import (
    Assessed,
    Conversation,
    assess,
    assess_page,
    content_hash,
    language,
)

LIKED = Conversation(1, 1, "What are the fees on TON?", "The fees of a transfer are about 0.01 TON [1].", 1, passages=2)
WORDS = ["fees", "transfer", "chain", "paid", "toncoin", "depend", "gas", "message", "takes", "run", "wallet", "block"]


def assessed(**changes: Any) -> Assessed:
    return assess(LIKED._replace(**changes))


def answer(seed: int, words: int = 60) -> str:
    """So many words by chance, the same for the same seed."""
    return " ".join(random.Random(seed).choices([f"{word}{n}" for word in WORDS for n in range(9)], k=words))  # noqa: S311


def test_a_good_conversation_stays_as_it_is() -> None:
    row = assessed(answer="The fees of a transfer are about 0.01 TON.")

    assert row[:4] == (1, None, None, None)
    assert (row.merit, row.tags, row.split, row.dropped, row.redactions) == (0.45, ["lang:en"], "train", None, None)
    assert (len(row.question_hash), len(row.content_hash), len(row.signature or "")) == (32, 32, 128)
    assert len(set(row.near_keys or [])) == 4
    assert all(-(2**63) <= key < 2**63 for key in row.near_keys or [])


def test_what_is_found_is_replaced_before_anything_is_made_of_it() -> None:
    row = assessed(
        question="I am jane@example.com, my name is Jane",
        answer="Hi Jane, 0.01 TON [1].",
        turns=[["Jane here", "Hello [2]!"]],
    )

    assert row[1:4] == (
        "I am <EMAIL_1>, my name is <NAME_1>",
        "Hi <NAME_1>, 0.01 TON.",
        [["<NAME_1> here", "Hello!"]],
    )
    assert (row.tags, row.redactions) == (["lang:en", "multi_turn", "grounded", "redacted"], {"EMAIL": 1, "NAME": 3})
    assert row.content_hash == content_hash(row.question or "", row.answer or "")


def test_what_was_published_stays() -> None:
    known = published(["Write to help@example.org."])

    row = assess(LIKED._replace(answer="Write to help@example.org, it is free."), known)

    assert (row.answer, row.redactions) == (None, None)


def test_a_dropped_conversation_is_compared_with_none() -> None:
    row = assessed(answer="I don't know, ask jane@example.com.")

    assert (row.dropped, row.near_keys, row.signature) == ("refusal", None, None)
    assert row.answer == "I don't know, ask <EMAIL_1>."


def test_a_row_written_by_hand_has_its_own_split() -> None:
    splits = [assess(Conversation(number, None, "Why?", "Because it is.")).split for number in range(40)]

    assert splits == [split(number, "training", 0.1) for number in range(40)]
    assert len(set(splits)) == 2


def test_a_page_is_its_conversations_as_json_has_them() -> None:
    rows = [LIKED._replace(id=number, answer=answer(number), flags=number % 3 == 0) for number in range(1_100)]

    page = assess_page(orjson.loads(orjson.dumps([list(row) for row in rows])))

    assert page == [tuple(assess(row)) for row in rows]
    assert orjson.loads(orjson.dumps(page[1]))[10] == page[1][10]
    assert assess_page([]) == []


def test_a_conversation_without_an_answer_has_none() -> None:
    row = assessed(answer=None, status="failed")

    assert (row.dropped, row.answer) == ("error", "")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"status": "failed"}, "error"),
        ({"error_code": "model_unavailable"}, "error"),
        ({"answer": " \n"}, "empty"),
        ({"answer": "[1]"}, "empty"),
        ({"answer": "\u200b"}, "empty"),
        ({"question": ""}, "empty"),
        ({"status": "pending"}, "empty"),
        ({"status": "partial"}, "truncated"),
        ({"status": "partial", "error_code": "model_unavailable"}, "truncated"),
        ({"answer": "Run:\n```\nton send"}, "truncated"),
        ({"flags": 1}, "flagged"),
        ({"answer": "I don't know."}, "refusal"),
        ({"answer": "Об этом ничего не известно, я не знаю."}, "refusal"),
        ({"answer": "fees " * 4_000}, "too_long"),
        ({"answer": "a\ud83d"}, None),
    ],
)
def test_a_conversation_is_dropped_for_what_is_wrong_with_it(changes: dict[str, Any], reason: str | None) -> None:
    assert assessed(**changes).dropped == reason


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 0.6),
        ({"feedback": -1}, 0.6),
        ({"answer": "The fees of a transfer are about 0.01 TON."}, 0.45),
        ({"answer": "The fees of a transfer are about 0.01 TON [3]."}, 0.3),
        ({"flags": 1}, 0.3),
        ({"answer": "The fees are low [1]."}, 0.51),
        ({"answer": "The fees are low [1]. " * 1_000}, 0.45),
        ({"answer": "Die Gebühren für eine Überweisung sind 0,01 TON [1]."}, 0.45),
        ({"answer": "0.01 TON, 0.01 TON, 0.01 TON, 0.01 TON, 0.01 TON [1]"}, 0.525),
    ],
)
def test_a_merit_is_the_sum_of_its_parts(changes: dict[str, Any], expected: float) -> None:
    assert assessed(**changes).merit == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("What is the fee on TON?", "en"),
        ("Какая комиссия у TON?", "ru"),
        ("Wie hoch ist die Gebühr auf TON?", "de"),
        ("Quels sont les frais sur TON ?", "fr"),
        ("¿Cuál es la comisión en TON?", "es"),
        ("Qual é a taxa na TON?", "pt"),
        ("TON是什么", "zh"),
        ("TONとは何ですか", "ja"),
        ("ما هي رسوم TON", "arabic"),
        ("TON 0.3%", None),
        ("", None),
        ("\ud83d\0", None),
    ],
)
def test_a_language_is_known_by_script_or_words(text: str, expected: str | None) -> None:
    assert language(text, *plain([text])) == expected


@pytest.mark.parametrize(
    ("one", "other", "are_same"),
    [
        ("The fee is 0.3 %.", "the  FEE is\n0.3%", True),
        ("The fee\u200b is", "The fee is", True),
        ("Fee: 2.5", "Fee: 25", False),
        ("👍", "👎", False),
        ("？", "?", True),
        ("\u200b", "?", False),
        ("费用是 1", "费用是 2", False),
        ("a\ud83d", "b\ud83d", False),
    ],
)
def test_equal_content_is_what_differs_in_form_only(one: str, other: str, are_same: bool) -> None:
    assert (content_hash("Why?", one) == content_hash("Why?", other)) is are_same
    assert content_hash("ab", "c") != content_hash("a", "bc")


def test_a_user_is_always_in_the_same_half() -> None:
    halves = [split(user, "v1", 0.2) for user in range(2_000)]

    assert halves == [split(user, "v1", 0.2) for user in range(2_000)]
    assert halves[:20].count("validation") == 2
    assert 0.17 < halves.count("validation") / 2_000 < 0.23
    assert halves != [split(user, "v2", 0.2) for user in range(2_000)]


def test_a_larger_share_takes_nobody_back() -> None:
    small, large = ({user for user in range(500) if split(user, "s", share) == "validation"} for share in (0.1, 0.3))

    assert small < large
    assert {split(user, "s", 0) for user in range(50)} == {"train"}
    assert {split(user, "s", 1) for user in range(50)} == {"validation"}


def test_signatures_and_keys_find_what_is_nearly_the_same() -> None:
    chance = random.Random(9)  # noqa: S311
    found = missed = 0
    for number in range(400):
        words = answer(number, 100).split()
        other = list(words)
        for place in chance.sample(range(10, 90), 2):
            other[place] = "changed"
        ours, theirs = (set(zip(each, each[1:], each[2:], strict=False)) for each in (words, other))
        if len(ours & theirs) >= 0.88 * len(ours | theirs):
            is_found = are_near(assessed(answer=" ".join(words)), assessed(answer=" ".join(other)))
            found, missed = found + is_found, missed + (not is_found)

    assert found + missed > 300
    assert found >= 0.95 * (found + missed)


def test_signatures_and_keys_keep_apart_what_is_not() -> None:
    rows = [assessed(answer=answer(number, 40)) for number in range(400)]

    assert not any(are_near(one, other) for place, one in enumerate(rows) for other in rows[:place])


def test_the_last_word_is_one_of_a_run_only() -> None:
    pairs = [(answer(number, 20), f"{answer(number, 19)} changed") for number in range(100)]

    assert sum(are_near(assessed(answer=one), assessed(answer=other)) for one, other in pairs) >= 95


def test_a_signature_is_of_its_own_text_only() -> None:
    texts = plain(["a", "a b", "A, b!", "a b c", "？", "\u200b", "费用 a", "x" * 5000, *(answer(n) for n in range(40))])

    assert signatures(texts) == [signatures([text])[0] for text in texts]
    assert signatures(texts)[1] == signatures(texts)[2]
    assert len({signature for _, signature in signatures(texts)}) == len(texts) - 1


def test_signatures_are_the_same_in_every_process() -> None:
    conversation = Conversation(1, 1, "What?", "The fees are low, and so on.")
    told = f"from shared.training_quality import *; print(assess({conversation}))"
    runs = [
        subprocess.run(
            [sys.executable, "-c", told], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True
        ).stdout
        for seed in ("1", "2")
    ]

    row = assess(conversation)
    assert runs == [f"{row}\n"] * 2
    assert (row.signature or "")[:32] == "a82a43205dd8459babab0a231c8801bb"
    assert row.near_keys == [7786384359762329, 2990062337084909, 328472289493591, 5439846494494219]


def are_near(one: Assessed, other: Assessed) -> bool:
    """As the database finds out."""
    keys = zip(one.near_keys or [], other.near_keys or [], strict=True)
    ours, theirs = bytes.fromhex(one.signature or ""), bytes.fromhex(other.signature or "")
    same = sum(our == its for our, its in zip(ours, theirs, strict=True))
    return any(key == its for key, its in keys) and same >= 0.8 * 64
