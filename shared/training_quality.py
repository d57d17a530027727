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

Near duplicates are found by MinHash: Broder, "On the resemblance and containment of documents", 1997. A text is the
set of its runs of three words; the share of 64 random permutations in which two sets have the same minimum estimates
their Jaccard similarity (its standard error at 0.8 is 0.05). Four bands of four minima find those worth comparing: of
texts that are 0.9 alike 98 %.
"""

import hashlib
import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

from rensa import RMinHash

from shared import evaluation, grounding
from shared.prompting import count_tokens
from shared.redaction import Kind, Redactor
from shared.training_formats import Split

# Names the rules of this module and of `redaction`: with another name everything is assessed anew. To be changed with
# whatever changes what comes out of them: a recogniser, a reason to drop, a weight, a hash, a signature, a tag.
RULES = "1"
SPLIT_SALT, VALIDATION_SHARE = "training", 0.1

Reason = Literal["error", "empty", "truncated", "flagged", "refusal", "too_long"]

MOST_TOKENS = 4096  # a row's, with its question
PERMUTATIONS, BANDS, BAND_ROWS, SHINGLE_WORDS = 64, 4, 4, 3
PRIME = 2**61 - 1
SEED = 1997

SHORT_CHARACTERS, LONG_CHARACTERS, ENDLESS_CHARACTERS = 40, 2_000, 8_000
FOR_FEEDBACK, FOR_GROUNDING, FOR_LENGTH, FOR_LANGUAGE = 0.4, 0.3, 0.15, 0.15

# Words that other languages of Latin script don't have, or seldom: those languages that `prompting` knows.
STOP_WORDS = {
    "en": "the of and to is are what how which with for it this that was do does my can from by on an not have",
    "de": "der die das und ist nicht ein eine mit für auf von zu den dem wie was ich wird werden sind auch im wo kann",
    "fr": "le les des et est une pour dans avec sur du au qui pas ce sont je vous ne comment quel quelle aux il cette",
    "es": "el los las y es una para con del por qué que cómo se al lo son como su más cuál pero está hay yo mi",
    "pt": "o os as e é uma para com do da dos das em não no na que como ao são um qual mais seu pelo você eu meu",
}
LANGUAGES_OF = {word: [name for name, words in STOP_WORDS.items() if word in words.split()]
                for words in STOP_WORDS.values() for word in words.split()}  # fmt: skip
SCRIPT_LANGUAGES = {"CYRILLIC": "ru", "CJK": "zh", "HIRAGANA": "ja", "KATAKANA": "ja", "HANGUL": "ko"}
READ_CHARACTERS = 1_000
SCRIPT_SHARE = 0.3  # of the letters: names of tokens are Latin in any language


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
    and the signature (64 values of two bytes, the higher first) are hexadecimal. A row dropped for itself has neither
    `near_keys` nor a `signature`. `redactions` says how often something of a kind was replaced.

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
    return [tuple(_assess(Conversation(*row), known)) for row in conversations]


def _assess(conversation: Conversation, known: frozenset[tuple[Kind, str]]) -> Assessed:
    said, redactor = conversation.answer or "", Redactor(known)
    earlier = [
        text for message, response in conversation.turns or () for text in (message, grounding.uncited(response))
    ]
    texts = redactor.redact_all([*earlier, conversation.question, grounding.uncited(said)])
    question, answer = texts[-2:]
    dropped = drop_reason(conversation, question, answer)
    digest = (
        None if dropped else RMinHash.digests_from_token_sets([shingles(f"{question} {answer}")], PERMUTATIONS, SEED)[0]
    )
    languages = [language(question), language(answer)]
    tags = [f"lang:{name}" for name in languages if name][:1]
    tags += ["multi_turn"] * bool(earlier) + ["grounded"] * bool(grounding.cited(said))
    return Assessed(
        conversation.id,
        None if question == conversation.question else question,
        None if answer == conversation.answer else answer,
        [texts[at : at + 2] for at in range(0, len(earlier), 2)] or None,
        merit(conversation, question, answer),
        tags + ["redacted"] * bool(redactor.counts),
        split(conversation.id if conversation.user_id is None else conversation.user_id, SPLIT_SALT, VALIDATION_SHARE),
        _digest(_plain(question)),
        content_hash(question, answer),
        None if digest is None else near_keys(digest),
        None if digest is None else signature(digest),
        dropped,
        dict(redactor.counts) or None,
    )


def drop_reason(conversation: Conversation, question: str, answer: str) -> Reason | None:
    """Why the conversation by itself is not fit for learning from; None where it is."""
    answer = grounding.visible(answer).strip()
    if conversation.error_code or conversation.status == "failed":
        return "truncated" if conversation.status == "partial" else "error"
    if not answer or not question.strip() or conversation.status == "pending":
        return "empty"
    if conversation.status == "partial" or answer.count("```") % 2:
        return "truncated"
    if conversation.flags:
        return "flagged"
    if evaluation.refuses(answer):
        return "refusal"
    if count_tokens(_sound(question)) + count_tokens(_sound(answer)) > MOST_TOKENS:
        return "too_long"
    return None


def merit(conversation: Conversation, question: str, answer: str) -> float:
    """The score without feedback."""
    return round(
        FOR_GROUNDING * _grounding(conversation)
        + FOR_LENGTH * _length(len(answer.strip()))
        + FOR_LANGUAGE * _language_match(question, answer),
        4,
    )


def content_hash(question: str, answer: str) -> str:
    """The same for texts that differ in case, marks and spaces only; 32 hexadecimal digits."""
    return _digest(f"{_plain(question)}\n{_plain(answer)}")


def shingles(text: str) -> list[str]:
    """All runs of three words; a shorter text is one."""
    words = _plain(text).split()
    return [" ".join(words[at : at + SHINGLE_WORDS]) for at in range(max(1, len(words) - SHINGLE_WORDS + 1))]


def signature(minima: Sequence[int]) -> str:
    """The lower halves of the minima, in hexadecimal."""
    return b"".join((minimum & 0xFFFF).to_bytes(2) for minimum in minima).hex()


def near_keys(minima: Sequence[int]) -> list[int]:
    """A number for each of the first bands; texts that share one are worth comparing."""
    return [
        int.from_bytes(array("I", [*minima[BAND_ROWS * band :][:BAND_ROWS], band]).tobytes()) % PRIME
        for band in range(BANDS)
    ]


def language(text: str) -> str | None:
    """The text's language, by its script or its commonest words; None where neither says.

    A script that several languages use is its own name, in lower case; all of Cyrillic is `ru`.
    """
    letters = [character for character in text[:READ_CHARACTERS] if character.isalpha()]
    scripts = Counter(unicodedata.name(letter, "?").split()[0] for letter in letters)
    if scripts["HIRAGANA"] + scripts["KATAKANA"] > SCRIPT_SHARE / 3 * len(letters):
        return "ja"
    latin = scripts.pop("LATIN", 0)
    script, count = max(scripts.items(), key=lambda found: (found[1], found[0]), default=("", 0))
    if count and count >= SCRIPT_SHARE * (latin + count):
        return SCRIPT_LANGUAGES.get(script, script.lower())
    words = evaluation.PUNCTUATION.sub(" ", text[:READ_CHARACTERS].casefold()).split()
    heard = Counter(name for word in words for name in LANGUAGES_OF.get(word, ()))
    first, second = (*(count for _, count in heard.most_common(2)), 0, 0)[:2]
    return heard.most_common(1)[0][0] if first > second else None


def split(user_id: int, salt: str, validation_share: float) -> Split:
    """Where all of a user's conversations go, by a hash: always the same for the same salt.

    With a larger share nobody goes from validation back to training.
    """
    drawn = int.from_bytes(hashlib.blake2b(f"{salt}:{user_id}".encode(), digest_size=8).digest()) / 2**64
    return "validation" if drawn < validation_share else "train"


def _grounding(conversation: Conversation) -> float:
    numbers = grounding.cited(conversation.answer or "")
    if conversation.flags or not all(1 <= number <= conversation.passages for number in numbers):
        return 0
    return 1 if numbers else 0.5


def _length(characters: int) -> float:
    too_many = (ENDLESS_CHARACTERS - characters) / (ENDLESS_CHARACTERS - LONG_CHARACTERS)
    return max(0.0, min(1.0, characters / SHORT_CHARACTERS, too_many))


def _language_match(question: str, answer: str) -> float:
    asked, answered = language(question), language(answer)
    return 0.5 if asked is None or answered is None else float(asked == answered)


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _plain(text: str) -> str:
    """As answers are compared; text without any word, such as a smiley, stays as it is."""
    seen = grounding.visible(_sound(text))
    return evaluation.normalised(seen) or " ".join(seen.split())


def _sound(text: str) -> str:
    """Half a surrogate pair can't be hashed."""
    return text.encode(errors="replace").decode()
