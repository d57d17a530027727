"""Which conversations are kept for training, and why others aren't."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from shared.training_quality import (
    Candidate,
    content_hash,
    drop_reason,
    language,
    minhash,
    near_duplicates,
    score,
    select,
    similarity,
    split,
)

LIKED = Candidate(1, 1, "What are the fees on TON?", "The fees of a transfer are about 0.01 TON [1].", 1, passages=2)
WORDS = ["fees", "transfer", "chain", "paid", "toncoin", "depend", "gas", "message", "takes", "run", "wallet", "block"]


def candidate(number: int, **changes: Any) -> Candidate:
    return replace(LIKED, conversation_id=number, user_id=number, **changes)


def answer(seed: int, words: int = 60) -> str:
    """So many words by chance, the same for the same seed."""
    return " ".join(random.Random(seed).choices([f"{word}{n}" for word in WORDS for n in range(9)], k=words))  # noqa: S311


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
        ({"answer": "fee " * 4_000}, "too_long"),
        ({"answer": "a\ud83d"}, None),
    ],
)
def test_a_conversation_is_dropped_for_what_is_wrong_with_it(changes: dict[str, Any], reason: str | None) -> None:
    assert drop_reason(replace(LIKED, **changes)) == reason


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 1.0),
        ({"feedback": None}, 0.8),
        ({"feedback": 0}, 0.8),
        ({"feedback": -1}, 0.6),
        ({"answer": "The fees of a transfer are about 0.01 TON."}, 0.85),
        ({"answer": "The fees of a transfer are about 0.01 TON [3]."}, 0.7),
        ({"flags": 1}, 0.7),
        ({"answer": "The fees are low [1]."}, 0.91),
        ({"answer": "The fees are low [1]. " * 1_000}, 0.85),
        ({"answer": "Die Gebühren für eine Überweisung sind 0,01 TON [1]."}, 0.85),
        ({"answer": "0.01 TON, 0.01 TON, 0.01 TON, 0.01 TON, 0.01 TON [1]"}, 0.925),
    ],
)
def test_a_score_is_the_sum_of_its_parts(changes: dict[str, Any], expected: float) -> None:
    assert score(replace(LIKED, **changes)) == pytest.approx(expected, abs=0.01)


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
    assert language(text) == expected


@pytest.mark.parametrize(
    ("one", "other", "are_same"),
    [
        ("The fee is 0.3 %.", "the  FEE is\n0.3%", True),
        ("The fee is 0.3 % [1].", "The fee is 0.3 %.", True),
        ("The fee\u200b is", "The fee is", True),
        ("Fee: 2.5", "Fee: 25", False),
        ("👍", "👎", False),
        ("费用是 1", "费用是 2", False),
        ("a\ud83d", "b\ud83d", False),
    ],
)
def test_equal_content_is_what_differs_in_form_only(one: str, other: str, are_same: bool) -> None:
    assert (content_hash("Why?", one) == content_hash("Why?", other)) is are_same
    assert content_hash("ab", "c") != content_hash("a", "bc")


def test_of_equal_conversations_the_best_and_newest_is_kept() -> None:
    plain = LIKED.answer.replace(" [1]", "")

    selection = select([candidate(5, answer=plain), candidate(3), candidate(4), candidate(9, answer=plain)])

    assert selection.scores == {4: 1.0}
    assert selection.dropped == {"duplicate": 3}


@pytest.mark.parametrize(
    ("votes", "kept", "dropped", "resolved"),
    [
        ([1, 1, -1], 1, {"duplicate": 2}, 1),
        ([1, -1], 0, {"conflict": 2}, 0),
        ([1, -1, None], 0, {"conflict": 3}, 0),
        ([1, -1, -1], 0, {"disliked": 3}, 1),
        ([-1], 0, {"disliked": 1}, 0),
        ([None, 0], 1, {"duplicate": 1}, 0),
        ([1, None], 1, {"duplicate": 1}, 0),
    ],
)
def test_votes_on_the_same_answer_are_counted(
    votes: Sequence[int | None], kept: int, dropped: dict[str, int], resolved: int
) -> None:
    selection = select(candidate(number, feedback=vote) for number, vote in enumerate(votes))

    assert (len(selection.scores), selection.dropped, selection.resolved) == (kept, dropped, resolved)


def test_a_majority_decides_on_the_score_whoever_is_kept() -> None:
    selection = select([candidate(1), candidate(2), candidate(3, feedback=-1)])

    assert selection.scores == {3: 1.0}


def test_nearly_equal_answers_leave_the_best() -> None:
    long = answer(1)
    rows = [
        candidate(1, answer=long, feedback=None),
        candidate(2, answer=long + " indeed"),
        candidate(3, answer="so " + long, feedback=None),
        candidate(4, answer=answer(2)),
    ]

    selection = select(rows)

    assert set(selection.scores) == {2, 4}
    assert selection.dropped == {"near_duplicate": 2}


def test_the_order_of_conversations_does_not_matter() -> None:
    rows = [candidate(n, answer=f"{answer(n % 40)} {n % 3}", feedback=(1, None, -1)[n % 3]) for n in range(120)]
    shuffled = random.Random(5).sample(rows, len(rows))  # noqa: S311

    assert select(rows) == select(shuffled) == select(reversed(rows))


def test_beyond_the_limit_only_equal_ones_are_found() -> None:
    long = answer(1)
    rows = [candidate(1, answer=long), candidate(2, answer=long + " indeed"), candidate(3, answer=long)]

    near, exact, none = select(rows, near_limit=2), select(rows, near_limit=1), select(rows, near_limit=0)

    assert (near.is_exact_only, len(near.scores)) == (False, 1)
    assert exact == none
    assert (exact.is_exact_only, set(exact.scores), exact.dropped) == (True, {2, 3}, {"duplicate": 1})


def test_a_disliked_answer_to_a_liked_ones_question_makes_a_pair() -> None:
    rows = [
        candidate(1),
        candidate(2, answer=answer(2), feedback=-1),
        candidate(3, answer=answer(3), feedback=-1),
        candidate(4, answer=answer(3), feedback=-1),
        candidate(5, answer=answer(5), feedback=None),
        candidate(6, question="What are swaps?", answer=answer(6), feedback=-1),
    ]

    assert select(rows).rejected == {1: 4}


@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.6, 0.9, 1.0])
def test_signatures_estimate_what_two_texts_share(overlap: float) -> None:
    words = answer(1, 400).split()
    other = words[: int(400 * overlap)] + answer(2, 400 - int(400 * overlap)).split()
    expected = overlap / (2 - overlap)  # of two sets of the same size

    assert similarity(minhash(" ".join(words)), minhash(" ".join(other))) == pytest.approx(expected, abs=0.17)


def test_a_signature_is_the_same_on_every_machine() -> None:
    assert minhash("What are the fees on TON?").hex()[:32] == "e43f11e4d69bcdf24233013523d8dbbb"
    assert len(minhash("")) == 256


def test_what_is_like_a_dropped_one_only_is_kept() -> None:
    words = answer(1, 200).split()
    signatures = [minhash(" ".join(words[start : start + 150])) for start in (0, 14, 28)]

    assert near_duplicates(signatures) == {1}
    assert similarity(signatures[0], signatures[2]) < 0.8


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
