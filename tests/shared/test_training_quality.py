"""Which conversations are kept for training, and why others aren't."""

import random
from typing import Any

import pytest

from shared.training_quality import Assessed, Conversation, assess, content_hash, language, split, words_of

LIKED = Conversation(1, 1, "What are the fees on TON?", "The fees of a transfer are about 0.01 TON [1].", 1, passages=2)
WORDS = ["fees", "transfer", "chain", "paid", "toncoin", "depend", "gas", "message", "takes", "run", "wallet", "block"]


def assessed(**changes: Any) -> Assessed:
    return assess(LIKED._replace(**changes))


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
    assert language(text, words_of(text)) == expected


@pytest.mark.parametrize(
    ("one", "other", "are_same"),
    [
        ("The fee is 0.3 %.", "the  FEE is\n0.3%", True),
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
