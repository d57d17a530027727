"""Training files, a row at a time: the guide's own JSON, chat for OpenAI and Together, ShareGPT, preference pairs.

What each holds of a row:

| format         | a row                                                             | not in it                     |
|----------------|-------------------------------------------------------------------|-------------------------------|
| `alpaca`       | `{"instruction","input","output","source"}` in a JSON array       | system prompt, earlier turns  |
| `openai`       | `{"messages":[{"role","content","weight"?}]}`                     |                               |
| `together`     | the same                                                          |                               |
| `sharegpt`     | `{"conversations":[{"from","value"}]}`                            |                               |
| `openai_dpo`   | `{"input":{"messages"},"preferred_output","non_preferred_output"}`| rows without a rejected answer|
| `together_dpo` | the same                                                          | rows without a rejected answer|

`alpaca` is what the guide keeps as `conversations-v1.json`: the same four keys in the same order, `input` always empty.
It differs from what `JSON.stringify` makes of it only by line ends after a row's comma, so that a row is a line.

An earlier answer of a thread was shown to the model but is not what the user has liked: it has the weight 0, with
which OpenAI and Together don't train on it. ShareGPT has no weights; trainers learn those answers too.

The bytes are always the same for the same rows: UTF-8, keys in the order above, no spaces, `\\n`. What some readers
take for a line's end (U+0085, U+2028, U+2029) is escaped; half a surrogate pair, which UTF-8 can't hold, and NUL, at
which readers in C stop, become U+FFFD.

Nothing about a row stands in it, for Together refuses a file with further keys and OpenAI trains on none: beside each
file lies a sidecar of JSON Lines, whose line n tells of row n, by its conversation and never by its user.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import orjson

from shared.prompting import Exchange

Name = Literal["alpaca", "openai", "together", "sharegpt", "openai_dpo", "together_dpo"]
Split = Literal["train", "validation"]

LINE_ENDS = {end.encode(): f"\\u{ord(end):04x}".encode() for end in "\u0085\u2028\u2029"}


class Row(NamedTuple):
    """A question and the answer to learn; `turns` are what came before it in its thread, the oldest first.

    `rejected` is an answer to the same question that is not to be learnt. What follows `source` is told in the sidecar.
    """

    question: str
    answer: str
    system: str | None = None
    turns: Sequence[Exchange] = ()
    rejected: str | None = None
    source: str | None = "conversation"
    conversation_id: int | None = None
    quality: float | None = None
    tags: Sequence[str] = ()
    split: Split | None = None


@dataclass(frozen=True, slots=True)
class Format:
    """How a row is written, None where the format can't hold it; and what stands before, between and after rows."""

    told: Callable[[Row], dict[str, Any] | None]
    suffix: str
    content_type: str
    opening: bytes = b""
    separator: bytes = b"\n"
    end: bytes = b"\n"


def write(name: Name, rows: Iterable[Row]) -> Iterator[tuple[bytes, bytes]]:
    """The next bytes of the file and of its sidecar, for each row that the format can hold; at last the file's end.

    Only one row is held at a time.
    """
    form = FORMATS[name]
    written = 0
    for row in rows:
        told = form.told(row)
        if told is None:
            continue
        line = _json(told)
        written += 1
        yield (form.separator if written > 1 else form.opening) + line, note(written, row, line)
    if written:
        yield form.end, b""
    elif form.opening:
        yield form.opening + form.end, b""


def encode(name: Name, row: Row) -> bytes | None:
    """A row without what stands around it; None where the format can't hold it."""
    told = FORMATS[name].told(row)
    return None if told is None else _json(told)


def note(number: int, row: Row, line: bytes) -> bytes:
    """The sidecar's line about the file's row `number`, from 1; `sha256` is of the row's own bytes."""
    told = {
        "row": number,
        "conversation_id": row.conversation_id,
        "quality": row.quality,
        "tags": row.tags,
        "split": row.split,
        "sha256": hashlib.sha256(line).hexdigest(),
    }
    return _json(told) + b"\n"


def _alpaca(row: Row) -> dict[str, Any]:
    told = {"instruction": row.question, "input": "", "output": row.answer}
    if row.source is not None:
        told["source"] = row.source
    return told


def _chat(row: Row) -> dict[str, Any]:
    """Weights only where there are earlier answers, and then on each: a server's default is not to be guessed."""
    messages = [*_prompt(row), _said("assistant", row.answer)]
    if row.turns and len(answers := [each for each in messages if each["role"] == "assistant"]) > 1:
        for answer in answers:
            answer["weight"] = 0
        answers[-1]["weight"] = 1
    return {"messages": messages}


def _sharegpt(row: Row) -> dict[str, Any]:
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    messages = [*_prompt(row), _said("assistant", row.answer)]
    return {"conversations": [{"from": names[each["role"]], "value": each["content"]} for each in messages]}


def _preference(row: Row) -> dict[str, Any] | None:
    if row.rejected is None:
        return None
    return {
        "input": {"messages": _prompt(row)},
        "preferred_output": [_said("assistant", row.answer)],
        "non_preferred_output": [_said("assistant", row.rejected)],
    }


def _prompt(row: Row) -> list[dict[str, Any]]:
    """The messages up to the question. A turn that lacks a side is left out, for roles must alternate."""
    messages = [_said("system", row.system)] if row.system else []
    for turn in row.turns:
        if turn.message.strip() and turn.response.strip():
            messages += [_said("user", turn.message), _said("assistant", turn.response)]
    return [*messages, _said("user", row.question)]


def _said(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


def _json(told: Any) -> bytes:
    """Line ends are escaped in the whole text: in JSON they can stand within strings only."""
    try:
        line = orjson.dumps(told)
    except TypeError:  # half a surrogate pair
        line = b""
    if not line or b"\\u0000" in line:
        line = orjson.dumps(_whole(told))
    if not line.isascii():
        for end, escaped in LINE_ENDS.items():
            line = line.replace(end, escaped)
    return line


def _whole(told: Any) -> Any:
    """With text that UTF-8 can hold. Two halves of a pair next to each other become the one character they mean."""
    if isinstance(told, str):
        return told.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").replace("\0", "\ufffd")
    if isinstance(told, dict):
        return {key: _whole(value) for key, value in told.items()}
    return [_whole(each) for each in told] if isinstance(told, list | tuple) else told


FORMATS: dict[Name, Format] = {
    "alpaca": Format(_alpaca, "json", "application/json", opening=b"[", separator=b",\n", end=b"]\n"),
    "openai": Format(_chat, "jsonl", "application/jsonl"),
    "together": Format(_chat, "jsonl", "application/jsonl"),
    "sharegpt": Format(_sharegpt, "jsonl", "application/jsonl"),
    "openai_dpo": Format(_preference, "jsonl", "application/jsonl"),
    "together_dpo": Format(_preference, "jsonl", "application/jsonl"),
}
