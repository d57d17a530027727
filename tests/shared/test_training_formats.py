"""Training files as they leave: byte for byte, whatever a text holds, with a sidecar that tells of each row."""

import hashlib
import json
from collections.abc import Iterator

import pytest

from shared.prompting import Exchange
from shared.training_formats import FORMATS, Name, Row, encode, write
from tests.training_checks import check

PLAIN = Row("What is TON?", "A blockchain.", rejected="A coin?", conversation_id=7, quality=0.9, tags=("rag",))
LONG = Row(
    "And its fees?",
    "0.01 TON.",
    system="Be brief.",
    turns=(Exchange("What is TON?", "A blockchain."), Exchange("Lost", "")),
    rejected="Nothing.",
    source=None,
    split="validation",
)
EXPECTED: dict[Name, tuple[str, str]] = {
    "alpaca": (
        '{"instruction":"What is TON?","input":"","output":"A blockchain.","source":"conversation"}',
        '{"instruction":"And its fees?","input":"","output":"0.01 TON."}',
    ),
    "openai": (
        '{"messages":[{"role":"user","content":"What is TON?"},{"role":"assistant","content":"A blockchain."}]}',
        '{"messages":[{"role":"system","content":"Be brief."},{"role":"user","content":"What is TON?"},'
        '{"role":"assistant","content":"A blockchain.","weight":0},{"role":"user","content":"And its fees?"},'
        '{"role":"assistant","content":"0.01 TON.","weight":1}]}',
    ),
    "sharegpt": (
        '{"conversations":[{"from":"human","value":"What is TON?"},{"from":"gpt","value":"A blockchain."}]}',
        '{"conversations":[{"from":"system","value":"Be brief."},{"from":"human","value":"What is TON?"},'
        '{"from":"gpt","value":"A blockchain."},{"from":"human","value":"And its fees?"},'
        '{"from":"gpt","value":"0.01 TON."}]}',
    ),
    "openai_dpo": (
        '{"input":{"messages":[{"role":"user","content":"What is TON?"}]},'
        '"preferred_output":[{"role":"assistant","content":"A blockchain."}],'
        '"non_preferred_output":[{"role":"assistant","content":"A coin?"}]}',
        '{"input":{"messages":[{"role":"system","content":"Be brief."},{"role":"user","content":"What is TON?"},'
        '{"role":"assistant","content":"A blockchain."},{"role":"user","content":"And its fees?"}]},'
        '"preferred_output":[{"role":"assistant","content":"0.01 TON."}],'
        '"non_preferred_output":[{"role":"assistant","content":"Nothing."}]}',
    ),
}
EXPECTED |= {"together": EXPECTED["openai"], "together_dpo": EXPECTED["openai_dpo"]}
# What a text may hold, and what comes back.
HOSTILE = {
    "line ends": ("a\nb\r\nc\u2028d\u2029e\u0085f\x0bg\x1eh", "a\nb\r\nc\u2028d\u2029e\u0085f\x0bg\x1eh"),
    "NUL": ("a\0b", "a\ufffdb"),
    "half a pair": ("a\ud83db\ude00c", "a\ufffdb\ufffdc"),
    "two halves": ("a\ud83d\ude00b", "a😀b"),
    "quotes": ('"\'\\"}]}\\u0000\\', '"\'\\"}]}\\u0000\\'),
    "placeholders": ("[EMAIL_1] {{name}} ${x} %s {0} <|im_end|>", "[EMAIL_1] {{name}} ${x} %s {0} <|im_end|>"),
    "other scripts": ("Комиссия 手数料 رسوم 😀", "Комиссия 手数料 رسوم 😀"),
    "byte order mark": ("\ufeffa", "\ufeffa"),
}


def written(name: Name, rows: list[Row]) -> tuple[bytes, bytes]:
    """The file and its sidecar."""
    pieces = list(write(name, rows))
    return b"".join(piece for piece, _ in pieces), b"".join(note for _, note in pieces)


@pytest.mark.parametrize("name", FORMATS)
def test_a_row_has_these_bytes(name: Name) -> None:
    plain, long = EXPECTED[name]

    assert (encode(name, PLAIN), encode(name, LONG)) == (plain.encode(), long.encode())


def test_the_guides_file_is_an_array_with_a_row_a_line() -> None:
    file, _ = written("alpaca", [PLAIN, PLAIN])

    row = EXPECTED["alpaca"][0]
    assert file.decode() == f"[{row},\n{row}]\n"
    assert (
        json.loads(file)
        == [{"instruction": "What is TON?", "input": "", "output": "A blockchain.", "source": "conversation"}] * 2
    )


@pytest.mark.parametrize("name", FORMATS)
def test_no_rows_make_an_empty_file_that_can_be_read(name: Name) -> None:
    file, notes = written(name, [])

    assert (file, notes) == (b"[]\n" if name == "alpaca" else b"", b"")


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_written_passes_its_targets_checks(name: Name) -> None:
    rows = [PLAIN, LONG] * 6 if name != "alpaca" else [PLAIN] * 12

    report = check(written(name, rows)[0].splitlines(keepends=True), name)

    assert (report.errors, report.rows) == ([], 12)
    assert report.tokens > 0


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("kind", HOSTILE)
def test_any_text_is_one_line_and_comes_back(name: Name, kind: str) -> None:
    text, back = HOSTILE[kind]
    row = Row(text, text, system=text, rejected=f"not {text}", source=text, tags=(text,))

    file, notes = written(name, [row] * 10)

    lines = file.decode().splitlines()
    assert len(lines) == 10
    assert json.dumps(back) in json.dumps(json.loads(lines[4].lstrip("[").rstrip(",")))
    assert [json.loads(note)["tags"] for note in notes.decode().splitlines()] == [[back]] * 10
    assert check(file.splitlines(keepends=True), name).errors == []


def test_the_sidecars_lines_tell_of_the_files_rows() -> None:
    unpaired = Row("Why?", "Because.")

    file, notes = written("openai_dpo", [unpaired, PLAIN, unpaired, LONG])

    told = [json.loads(note) for note in notes.splitlines()]
    assert [list(note) for note in told] == [["row", "conversation_id", "quality", "tags", "split", "sha256"]] * 2
    assert told[0] | {"sha256": ""} == {
        "row": 1, "conversation_id": 7, "quality": 0.9, "tags": ["rag"], "split": None, "sha256": ""
    }  # fmt: skip
    assert (told[1]["row"], told[1]["split"]) == (2, "validation")
    assert [note["sha256"] for note in told] == [hashlib.sha256(line).hexdigest() for line in file.splitlines()]


@pytest.mark.parametrize("name", FORMATS)
def test_the_same_rows_are_the_same_bytes(name: Name) -> None:
    assert written(name, [PLAIN, LONG]) == written(name, [PLAIN, LONG])


def test_rows_are_taken_one_at_a_time() -> None:
    taken: list[int] = []

    def rows() -> Iterator[Row]:
        for number in range(3):
            taken.append(number)
            yield PLAIN

    pieces = write("openai", rows())
    next(pieces)

    assert taken == [0]
