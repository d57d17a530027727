"""Which conversations are good enough to learn from, and what they may show: pure functions over pages of them.

A conversation is redacted first (`redaction`), and loses the numbers of passages that a trainee is not shown; all that
follows is of the text as it then stands. It is dropped for itself for the first of these that holds:

- `error`, `empty`: there is no answer;
- `truncated`: it broke off, or ends within a block of code;
- `flagged`: it has an address or a link that no source of it has;
- `refusal`: it says that it isn't known;
- `too_long`: more tokens, by estimate, than a row may have.

What others say of it is the database's to find out, by what stands here: votes on equal answers and duplicates by
`content_hash`, near duplicates by `near_keys` and `signature`, a disliked answer to the same question by
`question_hash`.

A score from 0 to 1 says which of two is the better, and can be asked for at least:

    0.4 feedback     liked 1, not rated 0.5, disliked 0, by the majority of the votes for the same answer
    0.3 grounding    cites passages that are there 1, cites none of them 0.5, one that isn't there or flagged 0
    0.15 length      1 from 40 to 2,000 characters, less the shorter it is, and less up to 8,000 where it is 0
    0.15 language    the question's 1, not known 0.5, another 0

`merit` is that without feedback, which the database adds: `quality_score = merit + 0.4 * approval`.
"""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from shared import evaluation, grounding, near_duplicates, redaction
from shared.prompting import count_tokens
from shared.redaction import Kind, Redactor
from shared.splits import SPLIT_SALT, VALIDATION_SHARE, split
from shared.training_formats import Split

# Names the rules of this module, `near_duplicates` and `redaction`: with another name everything is assessed anew. To
# be changed with whatever changes what comes out of them: a recogniser, a reason to drop, a weight, a hash, a tag.
RULES = "3"

Reason = Literal["error", "empty", "truncated", "flagged", "refusal", "too_long"]

MOST_TOKENS = 4096  # a row's, with its question
# Conversations and characters: with more their texts leave the processor's cache, with fewer it calls too often.
AT_ONCE, AT_ONCE_CHARACTERS = 500, 250_000

SHORT_CHARACTERS, LONG_CHARACTERS, ENDLESS_CHARACTERS = 40, 2_000, 8_000
FOR_GROUNDING, FOR_LENGTH, FOR_LANGUAGE = 0.3, 0.15, 0.15

# Words that other languages of Latin script don't have, or seldom: those languages that `prompting` knows.
STOP_WORDS = {
    "en": "the of and to is are what how which with for it this that was do does my can from by on an not have",
    "de": "der die das und ist nicht ein eine mit für auf von zu den dem wie was ich wird werden sind auch im wo kann",
    "fr": "le les des et est une pour dans avec sur du au qui pas ce sont je vous ne comment quel quelle aux il cette",
    "es": "el los las y es una para con del por qué que cómo se al lo son como su más cuál pero está hay yo mi",
    "pt": "o os as e é uma para com do da dos das em não no na que como ao são um qual mais seu pelo você eu meu",
}
LANGUAGE_WORDS = {name: frozenset(words.encode().split()) for name, words in STOP_WORDS.items()}
OTHER_WORDS = frozenset().union(*(words for name, words in LANGUAGE_WORDS.items() if name != "en"))
SCRIPT_LANGUAGES = {"CYRILLIC": "ru", "CJK": "zh", "HIRAGANA": "ja", "KATAKANA": "ja", "HANGUL": "ko"}
READ_CHARACTERS, READ_WORDS = 1_000, 30
SCRIPT_SHARE = 0.3  # of the letters: names of tokens are Latin in any language

NOT_LATIN = re.compile("[^\x00-\u024f\u1e00-\u1eff\u2000-\u2bff]")  # nor a sign


class Conversation(NamedTuple):
    """What is stored of a conversation, in the order of a row of `read_export_conversations`.

    `passages` is how many it was answered from, `flags` how many it has; `turns` are the questions and answers before
    it, the oldest first. A row that was written by hand has no user, and is its own.
    """

    id: int
    user_id: int | None
    question: str
    answer: str | None
    feedback: int | None = None
    status: str = "complete"
    error_code: str | None = None
    passages: int = 0
    flags: int = 0
    turns: Sequence[Sequence[str]] | None = None


class Assessed(NamedTuple):
    """What is kept of a conversation, in the order of a row of `put_export_page`.

    `question` and `answer` are None where they are as they were; `turns` are all there are, in any case. The hashes
    and the signature (64 bytes) are hexadecimal. A row dropped for itself has neither `near_keys` nor a `signature`.
    `redactions` says how often something of a kind was replaced.

    Tags: `lang:en` and its like, the question's language or else the answer's; `multi_turn`, with earlier turns;
    `grounded`, its answer cited passages; `redacted`.
    """

    conversation_id: int
    question: str | None
    answer: str | None
    turns: list[list[str]] | None
    merit: float
    tags: list[str]
    split: Split
    question_hash: str
    content_hash: str
    near_keys: list[int] | None
    signature: str | None
    dropped: Reason | None
    redactions: dict[Kind, int] | None


def assess(conversation: Conversation, known: frozenset[tuple[Kind, str]] = frozenset()) -> Assessed:
    """One conversation, as `assess_page` does."""
    return Assessed(*assess_page([conversation], known)[0])


def assess_page(
    conversations: Iterable[Sequence[Any]], known: frozenset[tuple[Kind, str]] = frozenset()
) -> list[tuple[Any, ...]]:
    """Each conversation redacted, scored and hashed; `known` is what was published, `redaction.published`.

    Rows come as `Conversation`s or as the lists that JSON has for them, and leave as an `Assessed`'s plain tuple, for
    orjson writes no other.
    """
    return [assessed for few in _few(conversations) for assessed in _assess(few, known)]


def _few(conversations: Iterable[Sequence[Any]]) -> Iterator[list[Sequence[Any]]]:
    few: list[Sequence[Any]] = []
    characters = 0
    for row in conversations:
        few.append(row)
        characters += len(row[2]) + len(row[3] or "")
        if len(few) == AT_ONCE or characters > AT_ONCE_CHARACTERS:
            yield few
            few, characters = [], 0
    if few:
        yield few


def _assess(rows: list[Sequence[Any]], known: frozenset[tuple[Kind, str]]) -> list[tuple[Any, ...]]:
    """One thing for all of the rows after the other, for each has its own tables to look at."""
    texts = [_clean(row[2], row[3] or "", row[9], known) for row in rows]
    reasons = [
        drop_reason(question, answer, row[5], row[6], row[8])
        for (question, answer, _, _), row in zip(texts, rows, strict=True)
    ]
    plain = iter(near_duplicates.plain([text for question, answer, _, _ in texts for text in (question, answer)]))
    pairs = list(zip(plain, plain, strict=True))
    kept = [b" ".join(pair) for pair, reason in zip(pairs, reasons, strict=True) if not reason]
    compared = iter(near_duplicates.signatures(kept))
    return [
        _assessed(row, clean, *pair, reason, *((None, None) if reason else next(compared)))
        for row, clean, pair, reason in zip(rows, texts, pairs, reasons, strict=True)
    ]


Clean = tuple[str, str, list[list[str]] | None, dict[Kind, int] | None]  # question, answer, turns, redactions


def _clean(
    question: str, said: str, turns: Sequence[Sequence[str]] | None, known: frozenset[tuple[Kind, str]]
) -> Clean:
    """The texts as they are kept, and how often something of a kind was replaced in them."""
    answer = grounding.uncited(said)
    if not turns and not redaction.is_suspected(f"{question}\0{answer}"):
        return question, answer, None, None
    earlier = [text for message, response in turns or () for text in (message, grounding.uncited(response))]
    redactor = Redactor(known)
    *earlier, question, answer = redactor.redact_all([*earlier, question, answer])
    pairs = [earlier[at : at + 2] for at in range(0, len(earlier), 2)]
    return question, answer, pairs or None, dict(redactor.counts) or None


def _assessed(
    row: Sequence[Any],
    clean: Clean,
    asked: bytes,
    said: bytes,
    reason: Reason | None,
    near_keys: list[int] | None,
    signature: str | None,
) -> tuple[Any, ...]:
    id, user_id, old_question, old_answer, _, _, _, passages, flags, _ = row
    question, answer, turns, redactions = clean
    asked_in, said_in = language(question, asked), language(answer, said)
    language_match = 0.5 if asked_in is None or said_in is None else asked_in == said_in
    tags = [f"lang:{asked_in or said_in}"] if asked_in or said_in else []
    if turns:
        tags.append("multi_turn")
    is_grounded = 0.5
    if numbers := grounding.cited(old_answer or ""):
        tags.append("grounded")
        is_grounded = all(1 <= number <= passages for number in numbers)
    if redactions:
        tags.append("redacted")
    merit = (
        FOR_GROUNDING * (0 if flags else is_grounded)
        + FOR_LENGTH * _length(len(answer))
        + FOR_LANGUAGE * language_match
    )
    return (
        id,
        None if question == old_question else question,
        None if answer == old_answer else answer,
        turns,
        round(merit, 4),
        tags,
        split(id if user_id is None else user_id, SPLIT_SALT, VALIDATION_SHARE),
        _digest(asked),
        _digest(asked + b"\n" + said),
        near_keys,
        signature,
        reason,
        redactions,
    )


def drop_reason(question: str, answer: str, status: str, error_code: str | None, flags: int) -> Reason | None:
    """Why the conversation by itself is not fit for learning from; None where it is."""
    if not answer.isascii():
        answer = grounding.visible(answer)
    if error_code or status == "failed":
        return "truncated" if status == "partial" else "error"
    if not answer or answer.isspace() or not question or question.isspace() or status == "pending":
        return "empty"
    if status == "partial" or answer.count("```") % 2:
        return "truncated"
    if flags:
        return "flagged"
    if evaluation.refuses(answer):
        return "refusal"
    if len(question) + len(answer) > MOST_TOKENS / 2 and _tokens(question) + _tokens(answer) > MOST_TOKENS:
        return "too_long"
    return None


def content_hash(question: str, answer: str) -> str:
    """The same for texts that differ in case, marks and spaces only; 32 hexadecimal digits."""
    return _digest(b"\n".join(near_duplicates.plain((question, answer))))


def language(text: str, plain: bytes) -> str | None:
    """The text's language, by its script or its commonest words; None where neither says. `plain` is its plain form.

    A script that several languages use is its own name, in lower case; all of Cyrillic is `ru`.
    """
    if not text.isascii() and NOT_LATIN.search(text) and (script := _script(text)):
        return script
    words = plain.split(b" ", READ_WORDS)[:READ_WORDS]
    if len(LANGUAGE_WORDS["en"].intersection(words)) > len(OTHER_WORDS.intersection(words)):
        return "en"
    heard = sorted(((len(own.intersection(words)), name) for name, own in LANGUAGE_WORDS.items()), reverse=True)
    return heard[0][1] if heard[0][0] > heard[1][0] else None


def _script(text: str) -> str | None:
    """The language of another script than Latin, where enough of the text is in it."""
    letters = Counter(text[:READ_CHARACTERS])
    scripts: Counter[str] = Counter()
    for letter, count in letters.items():
        scripts[_script_of(letter)] += count
    del scripts[""]
    if scripts["HIRAGANA"] + scripts["KATAKANA"] > SCRIPT_SHARE / 3 * scripts.total():
        return "ja"
    latin = scripts.pop("LATIN", 0)
    script, count = max(scripts.items(), key=lambda found: (found[1], found[0]), default=("", 0))
    return SCRIPT_LANGUAGES.get(script, script.lower()) if count and count >= SCRIPT_SHARE * (latin + count) else None


@lru_cache(maxsize=10_000)
def _script_of(character: str) -> str:
    """The name of a letter's script, nothing for what is no letter."""
    return unicodedata.name(character, "?").split()[0] if character.isalpha() else ""


def _length(characters: int) -> float:
    too_many = (ENDLESS_CHARACTERS - characters) / (ENDLESS_CHARACTERS - LONG_CHARACTERS)
    return max(0.0, min(1.0, characters / SHORT_CHARACTERS, too_many))


def _tokens(text: str) -> int:
    return count_tokens(text.encode(errors="replace").decode())  # half a surrogate pair has no bytes


def _digest(plain: bytes) -> str:
    return hashlib.blake2b(plain, digest_size=16).hexdigest()
