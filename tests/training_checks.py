"""Whether a training file would be taken where it is meant to go, before anything is uploaded or paid for.

A format's rules are those that its target applies itself, where it says which:

- `openai`: the checks of OpenAI's cookbook, examples/Chat_finetuning_data_prep.ipynb, under its names for them; from
  its guide (developers.openai.com/api/docs/guides/supervised-fine-tuning) 10 examples at least, 512 MB at most, an
  assistant's message as the last, weights 0 or 1 on assistants' messages only and not 0 on all of them.
- `openai_dpo`: developers.openai.com/api/docs/guides/direct-preference-optimization, with the same bounds.
- `together`, `together_dpo`: `check_file` of github.com/togethercomputer/together-python, src/together/utils/files.py
  and constants.py (1 example, 50.1 GB, no key beside a format's own, alternate roles), and docs.together.ai's data
  preparation: a system message can only be the first, and then a user's follows.
- `alpaca`: a JSON array or JSON Lines. The keys that Axolotl's alpaca prompts read (docs/dataset-formats/inst_tune.qmd
  of github.com/axolotl-ai-cloud/axolotl), and the same in all rows, for Hugging Face's datasets make columns of them.
- `sharegpt`: data/README.md of github.com/hiyouga/LLaMA-Factory, where human must speak at odd places and gpt at even
  ones, a system's message aside; Axolotl reads the same by its mappings (docs/dataset-formats/conversation.qmd).

Ours, beyond that: no other keys at all, for what is said about a row belongs in its sidecar; no text that is only
spaces; no half of a surrogate pair, at which tokenizers fail; and no pair of two equal answers.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shared.prompting import count_tokens
from shared.training_formats import Name

MOST_ERRORS = 100
MOST_LINE_BYTES = 64 * 1024 * 1024
MOST_BROKEN_CHARACTERS = 1_000_000  # of an array's element over several lines, which is read anew with each of them
ARRAY_STEPS = {("[", "["): "first", ("first", "]"): "nothing", ("end", "]"): "nothing", ("end", ","): "element"}
DECODER = json.JSONDecoder(parse_constant=lambda constant: _refuse(f"{constant} is no JSON"))

CHAT_KEYS = {"role", "content", "name", "weight", "function_call", "tool_calls", "tool_call_id"}
CHAT_ROLES = {"system", "user", "assistant", "function", "tool"}
TOGETHER_ROLES = {"system", "user", "assistant"}
HALF = re.compile("[\ud800-\udfff]")  # JSON can escape it, UTF-8 can't hold it
UNSAID = {"role", "from", "name", "source"}  # keys whose text is not trained on

Problem = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with a line, from 1; 0 is the file as a whole."""

    line: int
    code: str
    message: str


@dataclass(slots=True)
class Report:
    """`errors` are the first hundred, `counts` has all of them by code. `tokens` is an estimate, on the high side."""

    errors: list[Fault] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    size_bytes: int = 0
    tokens: int = 0

    @property
    def is_right(self) -> bool:
        return not self.counts

    def add(self, line: int, code: str, message: str) -> None:
        self.counts[code] += 1
        if len(self.errors) < MOST_ERRORS:
            self.errors.append(Fault(line, code, message))


@dataclass(frozen=True, slots=True)
class Target:
    """What a format's target asks of each row and of the file."""

    problems: Callable[[Any], Iterator[Problem]]
    fewest_rows: int = 1
    most_bytes: int | None = None
    may_be_array: bool = False
    needs_same_keys: bool = False


def check(source: Path | str | Iterable[bytes | str], name: Name) -> Report:
    """What is wrong with a file, or with lines as they come; a row at a time.

    Raises `OSError` for a path that can't be read.
    """
    if not isinstance(source, Path | str):
        return _check(source, TARGETS[name])
    with Path(source).open("rb") as file:
        return _check(iter(lambda: file.readline(MOST_LINE_BYTES), b""), TARGETS[name])


def _check(lines: Iterable[bytes | str], target: Target) -> Report:
    report = Report()
    keys: Collection[str] | None = None
    for number, row in _rows(lines, target, report):
        report.rows += 1
        texts = list(_texts(row))
        report.tokens += sum(count_tokens(text.encode(errors="replace").decode()) for text in texts)
        if any(HALF.search(text) for text in texts):
            report.add(number, "half_character", "A text has half of a surrogate pair.")
        for code, message in target.problems(row):
            report.add(number, code, message)
        if target.needs_same_keys and isinstance(row, dict):
            if keys is not None and set(row) != keys:
                report.add(number, "keys_differ", "Its keys are not the first row's.")
            keys = set(row) if keys is None else keys
    if report.rows < target.fewest_rows:
        report.add(0, "too_few_examples", f"{report.rows} rows; at least {target.fewest_rows} are needed.")
    if target.most_bytes and report.size_bytes > target.most_bytes:
        report.add(0, "file_too_large", f"{report.size_bytes} bytes; at most {target.most_bytes} are taken.")
    return report


def _rows(lines: Iterable[bytes | str], target: Target, report: Report) -> Iterator[tuple[int, Any]]:
    """The rows that can be read, with their lines' numbers. What can't be is reported; an array ends there."""
    texts = _decoded(lines, report)
    if not target.may_be_array:
        yield from _lines_rows(texts, report)
        return
    first = next(texts, None)
    if first is None:
        return
    everything = _with(first, texts)
    yield from (_array_rows if first[1].lstrip().startswith("[") else _lines_rows)(everything, report)


def _decoded(lines: Iterable[bytes | str], report: Report) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(lines, start=1):
        data = line if isinstance(line, bytes) else line.encode(errors="surrogatepass")
        report.size_bytes += len(data)
        if len(data) >= MOST_LINE_BYTES:
            report.add(number, "line_too_long", f"The line has {MOST_LINE_BYTES} bytes or more: nothing after is read.")
            return
        try:
            yield number, data.decode()
        except UnicodeDecodeError as error:
            report.add(number, "not_utf8", f"Not UTF-8 at byte {error.start}.")


def _with(first: tuple[int, str], others: Iterator[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    yield first
    yield from others


def _lines_rows(texts: Iterator[tuple[int, str]], report: Report) -> Iterator[tuple[int, Any]]:
    for number, text in texts:
        try:
            yield number, DECODER.decode(text)
        except (ValueError, RecursionError) as error:
            report.add(number, "invalid_json", f"Not a JSON value: {_said(error)}.")


def _array_rows(texts: Iterator[tuple[int, str]], report: Report) -> Iterator[tuple[int, Any]]:
    """An array's elements while its lines come, however they are broken; no more than a line or an element is held."""
    unread, number, wanted = "", 0, "["  # what must come next: the opening, a first or further element, what follows
    for number, text in texts:
        unread += text
        at = _beyond_spaces(unread, 0)
        while at < len(unread):
            if wanted == "element" or (wanted == "first" and unread[at] != "]"):
                try:
                    row, at = DECODER.raw_decode(unread, at)
                except (ValueError, RecursionError) as error:
                    if _is_cut_off(error, unread) and len(unread) - at < MOST_BROKEN_CHARACTERS:
                        break  # it goes on in the next line
                    report.add(number, "invalid_json", f"Not a JSON value: {_said(error)}. Nothing after it is read.")
                    return
                yield number, row
                wanted = "end"
            elif (step := (wanted, unread[at])) in ARRAY_STEPS:
                at, wanted = at + 1, ARRAY_STEPS[step]
            else:
                report.add(number, "invalid_json", f"{unread[at]!r} can't stand there. Nothing after it is read.")
                return
            at = _beyond_spaces(unread, at)
        unread = unread[at:]
    if wanted != "nothing":
        report.add(number, "invalid_json", "The array does not end.")


def _beyond_spaces(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _is_cut_off(error: Exception, text: str) -> bool:
    return isinstance(error, json.JSONDecodeError) and error.pos >= len(text.rstrip())


def _chat_problems(row: Any) -> Iterator[Problem]:
    """OpenAI's chat rows."""
    if not isinstance(row, dict):
        yield "data_type", "A row must be an object."
        return
    yield from _unknown_keys(row, {"messages", "tools", "parallel_tool_calls", "functions"})
    messages = row.get("messages")
    if not messages or not isinstance(messages, list):
        yield "missing_messages_list", "`messages` must be a list of messages."
        return
    yield from _openai_messages(messages)
    roles = [message.get("role") for message in messages if isinstance(message, dict)]
    if "assistant" not in roles:
        yield "example_missing_assistant_message", "No message is the assistant's."
    elif not isinstance(messages[-1], dict) or roles[-1] != "assistant":
        yield "last_message_not_assistant", "The last message must be the assistant's."
    answers = [each for each in messages if isinstance(each, dict) and each.get("role") == "assistant"]
    if answers and all(answer.get("weight") == 0 for answer in answers):
        yield "nothing_to_learn", "All of the assistant's messages have the weight 0."


def _openai_messages(messages: list[Any]) -> Iterator[Problem]:
    for message in messages:
        if not isinstance(message, dict):
            yield "data_type", "A message must be an object."
            continue
        calls = message.get("function_call") or message.get("tool_calls")
        if "role" not in message or ("content" not in message and not calls):
            yield "message_missing_key", "A message needs `role` and `content`."
        if unknown := sorted(set(message) - CHAT_KEYS):
            yield "message_unrecognized_key", f"A message has the key {unknown[0]!r}."
        if not _is_one_of(message.get("role"), CHAT_ROLES):
            yield "unrecognized_role", f"A message's role is none of {', '.join(sorted(CHAT_ROLES))}."
        if not calls and not _is_text(message.get("content")):
            yield "missing_content", "A message's content must be text."
        yield from _weight_problems(message)
        if "weight" in message and message.get("role") != "assistant":
            yield "weight_not_allowed", "Only the assistant's messages have a weight."


def _together_problems(row: Any) -> Iterator[Problem]:
    if not isinstance(row, dict):
        yield "line_type", "A row must be an object."
        return
    yield from _missing_keys(row, ["messages"])
    yield from _unknown_keys(row, {"messages"})
    if "messages" in row:
        yield from _together_messages(row["messages"])
        if not any(isinstance(each, dict) and each.get("role") == "assistant" for each in _list(row["messages"])):
            yield "missing_assistant", "No message is the assistant's."


def _together_messages(messages: Any) -> Iterator[Problem]:
    if not isinstance(messages, list) or not messages:
        yield "messages_type", "`messages` must be a list of messages."
        return
    expected = "user"
    for position, message in enumerate(messages):
        if not isinstance(message, dict):
            yield "messages_type", "A message must be an object."
            return
        yield from _missing_keys(message, ["role", "content"], "message_missing_key")
        yield from _unknown_keys(message, {"role", "content", "weight"}, "message_unknown_key")
        yield from _weight_problems(message)
        if "content" in message and not _is_text(message["content"]):
            yield "content_type", "A message's content must be text."
        role = message.get("role")
        if not _is_one_of(role, TOGETHER_ROLES):
            yield "invalid_role", f"A message's role is none of {', '.join(sorted(TOGETHER_ROLES))}."
            return
        if role == "system" and position == 0:
            continue
        if role != expected:
            yield "roles_alternate", f"Message {position + 1} must be the {expected}'s: roles alternate."
            return
        expected = "assistant" if role == "user" else "user"


def _openai_preference(row: Any) -> Iterator[Problem]:
    if not isinstance(row, dict):
        yield "data_type", "A row must be an object."
        return
    yield from _preference_keys(row, {"messages", "tools", "parallel_tool_calls"})
    messages = _list(_dict(row.get("input")).get("messages"))
    if not messages:
        yield "missing_messages_list", "`input.messages` must be a list of messages."
    yield from _openai_messages(messages)
    yield from _last_is_not_answer(messages)
    for key in ("preferred_output", "non_preferred_output"):
        answers = _list(row.get(key))
        roles = [each.get("role") if isinstance(each, dict) else None for each in answers]
        if "assistant" not in roles or not all(_is_one_of(role, {"assistant", "tool"}) for role in roles):
            yield "output_role", f"`{key}` must hold messages of the assistant."
        yield from _openai_messages(answers)
    yield from _same_outputs(row)


def _together_preference(row: Any) -> Iterator[Problem]:
    if not isinstance(row, dict):
        yield "line_type", "A row must be an object."
        return
    yield from _preference_keys(row, {"messages"})
    messages = _dict(row.get("input")).get("messages")
    yield from _together_messages(messages)
    yield from _last_is_not_answer(_list(messages))
    for key in ("preferred_output", "non_preferred_output"):
        answers = _list(row.get(key))
        if len(answers) != 1 or not isinstance(answers[0], dict):
            yield "output_count", f"`{key}` must hold exactly one message."
            continue
        yield from _missing_keys(answers[0], ["role", "content"], "message_missing_key")
        yield from _unknown_keys(answers[0], {"role", "content"}, "message_unknown_key")
        if answers[0].get("role") != "assistant":
            yield "output_role", f"`{key}` must hold a message of the assistant."
        if "content" in answers[0] and not _is_text(answers[0]["content"]):
            yield "content_type", "A message's content must be text."
    yield from _same_outputs(row)


def _preference_keys(row: Mapping[str, Any], of_input: Collection[str]) -> Iterator[Problem]:
    keys = ["input", "preferred_output", "non_preferred_output"]
    yield from _missing_keys(row, keys)
    yield from _unknown_keys(row, keys)
    yield from _unknown_keys(_dict(row.get("input")), of_input)


def _last_is_not_answer(messages: list[Any]) -> Iterator[Problem]:
    if messages and _dict(messages[-1]).get("role") == "assistant":
        yield "input_ends_with_answer", "The last message of the input must not be the assistant's."


def _same_outputs(row: Mapping[str, Any]) -> Iterator[Problem]:
    if row.get("preferred_output") and row["preferred_output"] == row.get("non_preferred_output"):
        yield "same_outputs", "Both answers are the same: nothing is preferred."


def _alpaca_problems(row: Any) -> Iterator[Problem]:
    if not isinstance(row, dict):
        yield "not_an_object", "A row must be an object."
        return
    yield from _missing_keys(row, ["instruction", "output"])
    yield from _unknown_keys(row, {"instruction", "input", "output", "source"})
    for key, value in row.items():
        if not isinstance(value, str):
            yield "not_text", f"{key!r} must be text."
        elif key in {"instruction", "output"} and not value.strip():
            yield "empty_text", f"{key!r} is empty."


def _sharegpt_problems(row: Any) -> Iterator[Problem]:
    if not isinstance(row, dict):
        yield "not_an_object", "A row must be an object."
        return
    yield from _unknown_keys(row, {"conversations"})
    messages = row.get("conversations")
    if not messages or not isinstance(messages, list) or not all(isinstance(each, dict) for each in messages):
        yield "missing_conversations", "`conversations` must be a list of messages."
        return
    for message in messages:
        yield from _missing_keys(message, ["from", "value"], "message_missing_key")
        yield from _unknown_keys(message, {"from", "value"}, "message_unknown_key")
        if "value" in message and not _is_text(message["value"]):
            yield "empty_text", "A message's value must be text."
    speakers = [message.get("from") for message in messages]
    if not all(_is_one_of(speaker, {"human", "gpt", "system"}) for speaker in speakers):
        yield "invalid_role", "A message is from none of human, gpt, system."
        return
    said = speakers[1:] if speakers[0] == "system" else speakers
    if any(speaker != ("human", "gpt")[place % 2] for place, speaker in enumerate(said)):
        yield "roles_alternate", "human and gpt must alternate, human first."
    elif len(said) % 2 or not said:
        yield "last_message_not_gpt", "The last message must be gpt's."


def _weight_problems(message: Mapping[str, Any]) -> Iterator[Problem]:
    weight = message.get("weight", 1)
    if not isinstance(weight, int) or isinstance(weight, bool) or weight not in (0, 1):
        yield "invalid_weight", "A weight is 0 or 1."


def _missing_keys(row: Mapping[str, Any], keys: Iterable[str], code: str = "missing_key") -> Iterator[Problem]:
    for key in keys:
        if key not in row:
            yield code, f"{key!r} is missing."


def _unknown_keys(row: Mapping[str, Any], keys: Collection[str], code: str = "unknown_key") -> Iterator[Problem]:
    for key in row:
        if key not in keys:
            yield code, f"{key[:40]!r} is no key of this format."


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_one_of(value: Any, known: Collection[str]) -> bool:
    return isinstance(value, str) and value in known


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _texts(value: Any, key: str = "") -> Iterator[str]:
    """All that a model would read of a row."""
    if isinstance(value, str) and key not in UNSAID:
        yield value
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each, key)
    elif isinstance(value, dict):
        for name, each in value.items():
            yield from _texts(each, name)


def _said(error: Exception) -> str:
    return error.msg if isinstance(error, json.JSONDecodeError) else (str(error) or "nested too deeply")[:100]


def _refuse(reason: str) -> Any:
    raise ValueError(reason)


OPENAI_BYTES, TOGETHER_BYTES = 512 * 1000**2, int(50.1 * 2**30)
TARGETS: dict[Name, Target] = {
    "alpaca": Target(_alpaca_problems, may_be_array=True, needs_same_keys=True),
    "openai": Target(_chat_problems, fewest_rows=10, most_bytes=OPENAI_BYTES),
    "together": Target(_together_problems, most_bytes=TOGETHER_BYTES),
    "sharegpt": Target(_sharegpt_problems),
    "openai_dpo": Target(_openai_preference, fewest_rows=10, most_bytes=OPENAI_BYTES),
    "together_dpo": Target(_together_preference, most_bytes=TOGETHER_BYTES),
}
