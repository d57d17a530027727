"""What training files are refused for where they go, each rule with a row that breaks it and nothing else."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shared.training_formats import Name, Row, encode, write
from tests import training_checks
from tests.training_checks import check

ROW = Row("What is TON?", "A blockchain.", rejected="A coin?")
USER, ANSWER = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}
SYSTEM = {"role": "system", "content": "Be brief."}
HUMAN, GPT = {"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}


def chat(*messages: Any, **others: Any) -> dict[str, Any]:
    return {"messages": list(messages), **others}


def shared(*messages: Any, **others: Any) -> dict[str, Any]:
    return {"conversations": list(messages), **others}


def pair(*messages: Any, good: Any = (ANSWER,), bad: Any = ({**ANSWER, "content": "No."},), **others: Any) -> Any:
    return {"input": chat(*messages), "preferred_output": list(good), "non_preferred_output": list(bad), **others}


def alpaca(**changes: Any) -> dict[str, Any]:
    return {"instruction": "Why?", "input": "", "output": "So.", "source": "conversation"} | changes


BREAKING: dict[Name, list[tuple[str, Any]]] = {
    "openai": [
        ("data_type", [1]),
        ("missing_messages_list", chat()),
        ("missing_messages_list", {"messages": "Why?"}),
        ("unknown_key", chat(USER, ANSWER, conversation_id=1)),
        ("data_type", chat("Why?", ANSWER)),
        ("message_missing_key", chat({"content": "Why?"}, ANSWER)),
        ("message_unrecognized_key", chat(USER | {"id": 1}, ANSWER)),
        ("unrecognized_role", chat(USER | {"role": "human"}, ANSWER)),
        ("unrecognized_role", chat(USER | {"role": ["user"]}, ANSWER)),
        ("missing_content", chat(USER, ANSWER | {"content": " "})),
        ("missing_content", chat(USER, ANSWER | {"content": None})),
        ("missing_content", chat(USER, ANSWER | {"content": 1})),
        ("example_missing_assistant_message", chat(SYSTEM, USER)),
        ("last_message_not_assistant", chat(USER, ANSWER, USER)),
        ("invalid_weight", chat(USER, ANSWER | {"weight": 0.5})),
        ("invalid_weight", chat(USER, ANSWER | {"weight": True})),
        ("invalid_weight", chat(USER, ANSWER | {"weight": "1"})),
        ("weight_not_allowed", chat(USER | {"weight": 0}, ANSWER)),
        ("nothing_to_learn", chat(USER, ANSWER | {"weight": 0})),
        ("half_character", chat(USER, ANSWER | {"content": "\ud83d"})),
    ],
    "together": [
        ("line_type", "Why?"),
        ("missing_key", {}),
        ("unknown_key", chat(USER, ANSWER, text="Why?")),
        ("messages_type", {"messages": {}}),
        ("messages_type", chat()),
        ("messages_type", chat(USER, ANSWER, "Why?")),
        ("message_missing_key", chat(USER, {"role": "assistant"})),
        ("message_unknown_key", chat(USER, ANSWER | {"name": "bot"})),
        ("content_type", chat(USER, ANSWER | {"content": None})),
        ("content_type", chat(USER, ANSWER | {"content": ""})),
        ("invalid_role", chat(USER, ANSWER, USER | {"role": "tool"})),
        ("roles_alternate", chat(USER, USER, ANSWER)),
        ("roles_alternate", chat(USER, ANSWER, ANSWER)),
        ("roles_alternate", chat(ANSWER, USER)),
        ("roles_alternate", chat(USER, SYSTEM, ANSWER)),
        ("roles_alternate", chat(SYSTEM, SYSTEM, USER, ANSWER)),
        ("missing_assistant", chat(USER)),
        ("invalid_weight", chat(USER, ANSWER | {"weight": 2})),
        ("invalid_weight", chat(USER, ANSWER | {"weight": 1.0})),
    ],
    "sharegpt": [
        ("not_an_object", []),
        ("missing_conversations", shared()),
        ("missing_conversations", shared("Why?")),
        ("unknown_key", shared(HUMAN, GPT, id=1)),
        ("message_missing_key", shared(HUMAN, {"from": "gpt"})),
        ("message_unknown_key", shared(HUMAN, GPT | {"weight": 1})),
        ("empty_text", shared(HUMAN, GPT | {"value": ""})),
        ("invalid_role", shared(HUMAN | {"from": "user"}, GPT)),
        ("roles_alternate", shared(GPT, HUMAN)),
        ("roles_alternate", shared(HUMAN, HUMAN, GPT)),
        ("roles_alternate", shared(HUMAN, {"from": "system", "value": "x"}, GPT)),
        ("last_message_not_gpt", shared(HUMAN, GPT, HUMAN)),
        ("last_message_not_gpt", shared({"from": "system", "value": "x"})),
    ],
    "alpaca": [
        ("not_an_object", []),
        ("missing_key", {"instruction": "Why?", "input": ""}),
        ("missing_key", {"input": "", "output": "So."}),
        ("unknown_key", alpaca(quality="good")),
        ("not_text", alpaca(output=None)),
        ("not_text", alpaca(input=1)),
        ("empty_text", alpaca(output=" \n")),
        ("empty_text", alpaca(instruction="")),
    ],
    "openai_dpo": [
        ("data_type", 1),
        ("missing_key", {"input": chat(USER), "preferred_output": [ANSWER]}),
        ("unknown_key", pair(USER, id=1)),
        ("unknown_key", pair(USER) | {"input": chat(USER, id=1)}),
        ("missing_messages_list", pair()),
        ("missing_messages_list", pair() | {"input": "Why?"}),
        ("unrecognized_role", pair(USER | {"role": "human"})),
        ("input_ends_with_answer", pair(USER, ANSWER)),
        ("output_role", pair(USER, good=[])),
        ("output_role", pair(USER, bad=[USER])),
        ("missing_content", pair(USER, bad=[ANSWER | {"content": ""}])),
        ("same_outputs", pair(USER, bad=[ANSWER])),
    ],
    "together_dpo": [
        ("line_type", 1),
        ("missing_key", {"input": chat(USER), "preferred_output": [ANSWER]}),
        ("unknown_key", pair(USER, id=1)),
        ("unknown_key", pair(USER) | {"input": chat(USER, tools=[])}),
        ("messages_type", pair()),
        ("messages_type", pair() | {"input": "Why?"}),
        ("roles_alternate", pair(USER, USER)),
        ("input_ends_with_answer", pair(USER, ANSWER)),
        ("output_count", pair(USER, good=[])),
        ("output_count", pair(USER, bad=[ANSWER, ANSWER])),
        ("output_count", pair(USER, bad=["No."])),
        ("output_role", pair(USER, bad=[USER])),
        ("message_missing_key", pair(USER, bad=[{"role": "assistant"}])),
        ("message_unknown_key", pair(USER, bad=[ANSWER | {"content": "No.", "weight": 1}])),
        ("content_type", pair(USER, bad=[ANSWER | {"content": ["No."]}])),
        ("same_outputs", pair(USER, bad=[ANSWER])),
    ],
}
CASES = [(name, place) for name, broken in BREAKING.items() for place in range(len(broken))]
RIGHT: dict[Name, list[Any]] = {
    "openai": [
        chat(SYSTEM, USER, ANSWER),
        chat(USER, ANSWER | {"weight": 0}, USER, ANSWER | {"weight": 1}),
        chat(USER, {"role": "assistant", "tool_calls": [{}]}, USER | {"role": "tool"}, ANSWER, tools=[]),
    ],
    "together": [chat(USER, ANSWER | {"weight": 0}, USER, ANSWER), chat(SYSTEM, USER, ANSWER, USER)],
    "openai_dpo": [pair(SYSTEM, USER, bad=[ANSWER, ANSWER])],
    "sharegpt": [shared({"from": "system", "value": "x"}, HUMAN, GPT, HUMAN, GPT)],
}


def good_lines(name: Name, count: int = 12) -> list[str]:
    """Rows as JSON Lines."""
    line = encode(name, ROW)
    assert line
    return [f"{line.decode()}\n"] * count


@pytest.mark.parametrize(("name", "place"), CASES)
def test_a_row_that_breaks_a_rule_is_named_with_its_line(name: Name, place: int) -> None:
    code, row = BREAKING[name][place]
    lines = good_lines(name)
    lines[6] = json.dumps(row) + "\n"

    report = check(lines, name)

    assert code in {error.code for error in report.errors}
    assert {error.line for error in report.errors} == {7}
    assert (report.rows, report.is_right) == (12, False)


def test_every_rule_has_a_row_that_breaks_it() -> None:
    rules = set(re.findall(r'(?:yield |code: str = )"(\w+)"', Path(training_checks.__file__).read_text()))

    assert rules | {"message_missing_key", "message_unknown_key", "half_character"} == {
        code for broken in BREAKING.values() for code, _ in broken
    }


@pytest.mark.parametrize("name", RIGHT)
def test_what_a_target_takes_is_right(name: Name) -> None:
    assert check([json.dumps(row) for row in RIGHT[name] * 10], name).errors == []


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b'{"messages": [\n', "invalid_json"),
        (b"\n", "invalid_json"),
        (b'{"messages": NaN}\n', "invalid_json"),
        (b"[" * 100_000 + b"\n", "invalid_json"),
        (b"9" * 5_000 + b"\n", "invalid_json"),
        (b"\xef\xbb\xbf{}\n", "invalid_json"),
        (b'{"messages": "\xff"}\n', "not_utf8"),
    ],
    ids=["cut off", "blank", "NaN", "deep", "long number", "byte order mark", "Latin-1"],
)
def test_a_line_that_is_no_json_is_named(line: bytes, code: str) -> None:
    report = check([*good_lines("openai"), line, *good_lines("openai")], "openai")

    assert [(error.line, error.code) for error in report.errors] == [(13, code)]
    assert report.rows == 24


def test_too_few_examples_are_the_files_fault() -> None:
    counts = {name: check(good_lines(name, 9), name).counts["too_few_examples"] for name in BREAKING}

    assert counts == {"openai": 1, "together": 0, "sharegpt": 0, "alpaca": 0, "openai_dpo": 1, "together_dpo": 0}
    assert all(check([], name).counts["too_few_examples"] for name in BREAKING)


def test_a_file_that_is_too_large_is_found_while_it_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    target = training_checks.TARGETS["openai"]
    small = training_checks.Target(target.problems, target.fewest_rows, most_bytes=1_000)
    monkeypatch.setitem(training_checks.TARGETS, "openai", small)

    report = check(good_lines("openai"), "openai")

    assert [(error.line, error.code) for error in report.errors] == [(0, "file_too_large")]
    assert report.size_bytes == len("".join(good_lines("openai")))
    assert target.most_bytes == 512_000_000


def test_a_hundred_errors_are_told_and_all_are_counted() -> None:
    report = check(["[]\n"] * 250, "openai")

    assert (len(report.errors), report.counts["data_type"], report.rows) == (100, 250, 250)


def as_guide(rows: list[Any]) -> str:
    return json.dumps(rows, separators=(",", ":"))


def as_lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def as_pretty(rows: list[Any]) -> str:
    return json.dumps(rows, indent=2) + "\n"


def as_written(rows: list[Any]) -> str:
    made = [Row(row["instruction"], row["output"]) for row in rows]
    return b"".join(piece for piece, _ in write("alpaca", made)).decode()


@pytest.mark.parametrize("told", [as_guide, as_lines, as_pretty, as_written], ids=lambda told: told.__name__)
def test_the_guides_rows_are_read_however_they_are_laid_out(told: Callable[[list[Any]], str], tmp_path: Path) -> None:
    file = tmp_path / "conversations-v1.json"
    file.write_text(told([alpaca(instruction='Why, [1] or {"a"}?')] * 30))

    report = check(file, "alpaca")

    assert (report.errors, report.rows, report.size_bytes) == ([], 30, file.stat().st_size)


@pytest.mark.parametrize(
    "text",
    ["[", "[{}", "[{},", "[{},]", "[,{}]", "[{}{}]", "[{}]\n{}", "[{},,{}]", '["a\n"]', "[1 2]"],
)
def test_an_array_that_is_broken_is_named(text: str) -> None:
    report = check(text.splitlines(keepends=True), "alpaca")

    assert report.counts["invalid_json"] == 1


def test_an_array_on_one_long_line_is_read_at_once() -> None:
    report = check([as_guide([alpaca()] * 50_000)], "alpaca")

    assert (report.errors, report.rows) == ([], 50_000)


def test_an_element_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_checks, "MOST_BROKEN_CHARACTERS", 100)

    report = check(["[{\n", *['"a":[\n'] * 1_000], "alpaca")

    assert (report.errors[0].line < 30, report.counts["invalid_json"]) == (True, 1)


def test_rows_with_other_keys_than_the_first_are_named() -> None:
    rows = [alpaca(), {"instruction": "Why?", "output": "So."}, alpaca()]

    report = check([as_guide(rows)], "alpaca")

    assert [error.code for error in report.errors] == ["keys_differ"]


def test_lines_are_read_one_at_a_time() -> None:
    taken: list[int] = []

    def lines() -> Iterator[str]:
        for number, line in enumerate(good_lines("openai")):
            taken.append(number)
            yield line

    report = training_checks.Report()
    rows = training_checks._rows(lines(), training_checks.TARGETS["openai"], report)
    next(rows)

    assert taken == [0]


def test_a_line_without_an_end_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_checks, "MOST_LINE_BYTES", 1_000)
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(chat(USER, ANSWER | {"content": "So. " * 1_000})))

    report = check(file, "together")

    assert (report.counts["line_too_long"], report.size_bytes) == (1, 1_000)


def test_tokens_are_those_of_the_texts() -> None:
    short, long = (check([json.dumps(chat(USER, ANSWER | {"content": text}))], "together") for text in ("a", "a" * 351))

    assert long.tokens - short.tokens == 100
