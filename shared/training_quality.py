"""Which conversations are good enough to learn from: pure functions from what is stored of them.

A conversation is dropped for the first of these that holds:

- `error`, `empty`: there is no answer;
- `truncated`: it broke off, or ends within a block of code;
- `flagged`: it has an address or a link that no source of it has;
- `refusal`: it says that it isn't known;
- `too_long`: more tokens, by estimate, than a row may have;
- `conflict`: of the votes for the same answer to the same question, as many are against it as for it;
- `disliked`: more are against it. So feed all rated conversations, not the liked ones alone: the others vote too;
- `duplicate`: another conversation with the same question and answer, case and punctuation aside, is better;
- `near_duplicate`: one with nearly the same words is.

A score from 0 to 1 says which is the better one, and can be asked for at least:

    0.4 feedback     liked 1, not rated 0.5, disliked 0, by the majority of the votes for the same answer
    0.3 grounding    cites passages that are there 1, cites none of them 0.5, one that isn't there or flagged 0
    0.15 length      1 from 40 to 2,000 characters, less the shorter it is, and less up to 8,000 where it is 0
    0.15 language    the question's 1, not known 0.5, another 0

Near duplicates are found by MinHash: Broder, "On the resemblance and containment of documents", 1997. A text is the
set of its runs of three words; the share of 64 random permutations in which two sets have the same minimum estimates
their Jaccard similarity (its standard error at 0.8 is 0.05). Sixteen bands of four minima find those worth comparing:
of texts that are 0.8 alike, all but 0.02 %.

A different answer is held by its hashes: 0.35 KB and half a millisecond, and with its minima 0.75 KB, some 0.15 KB more
while they are compared, and 1.3 ms. So beyond `NEAR_LIMIT` of them near duplicates are let be and minima are forgotten:
a million rows take 0.35 GB, and `Selection.is_exact_only` says so. `datasketch` would give the same minima behind
`SIGN`, in numpy; but it brings numpy and scipy, of the 250 MB that a function may have unpacked the larger part.
"""

import hashlib
import random
import unicodedata
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from shared import evaluation, grounding
from shared.prompting import count_tokens
from shared.training_formats import Split

Reason = Literal[
    "error",
    "empty",
    "truncated",
    "flagged",
    "refusal",
    "too_long",
    "conflict",
    "disliked",
    "duplicate",
    "near_duplicate",
]

MOST_TOKENS = 4096  # a row's, with its question
NEAR_LIMIT = 100_000  # different answers
SIMILAR = 0.8
PERMUTATIONS, BANDS, SHINGLE_WORDS = 64, 16, 3
MINIMUM_BYTES = 4
SIGNATURE_BYTES = PERMUTATIONS * MINIMUM_BYTES
BAND_BYTES = SIGNATURE_BYTES // BANDS
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


@dataclass(frozen=True, slots=True)
class Candidate:
    """What is stored of a conversation; `passages` is how many it was answered from, `flags` how many it has."""

    conversation_id: int
    user_id: int
    question: str
    answer: str
    feedback: int | None = None
    status: str = "complete"
    error_code: str | None = None
    passages: int = 0
    flags: int = 0


@dataclass(slots=True)
class Group:
    """The conversations with the same question and answer: the votes, and the best of them."""

    best_id: int
    best_score: float
    count: int = 0
    likes: int = 0
    dislikes: int = 0
    signature: bytes = b""


@dataclass(slots=True)
class Selection:
    """The kept conversations' scores by their ids, and how many were dropped why.

    `rejected` has, for a kept liked answer, the conversation of a disliked one to the same question. `resolved` counts
    the answers with votes for and against them of which one side had more.
    """

    scores: dict[int, float] = field(default_factory=dict)
    rejected: dict[int, int] = field(default_factory=dict)
    dropped: Counter[Reason] = field(default_factory=Counter)
    resolved: int = 0
    is_exact_only: bool = False


def minhash(text: str) -> bytes:
    """The least value of each permutation over the text's shingles; always the same for the same text."""
    hashes = [int.from_bytes(hashlib.blake2b(each.encode(), digest_size=7).digest()) for each in shingles(text)]
    return array("I", [min([(a * each + b) % PRIME for each in hashes]) & 0xFFFFFFFF for a, b in UNIVERSAL]).tobytes()


SIGN: Callable[[str], bytes] = minhash  # 64 minima of 4 bytes each
_chance = random.Random(SEED)  # noqa: S311  # the same permutations everywhere, not a secret
UNIVERSAL = [(_chance.randrange(1, PRIME), _chance.randrange(PRIME)) for _ in range(PERMUTATIONS)]  # a and b


def select(candidates: Iterable[Candidate], near_limit: int = NEAR_LIMIT) -> Selection:
    """Which to keep, in one pass over them; none of their texts is held.

    The same candidates give the same selection in any order. With a `near_limit` of 0 only equal ones are found.
    """
    selection = Selection(is_exact_only=not near_limit)
    groups: dict[bytes, Group] = {}
    for candidate in candidates:
        reason = drop_reason(candidate)
        if reason:
            selection.dropped[reason] += 1
            continue
        _join(groups, candidate, is_signed=not selection.is_exact_only)
        if not selection.is_exact_only and len(groups) > near_limit:
            selection.is_exact_only = True
            for group in groups.values():
                group.signature = b""
    liked = _voted(groups, selection)
    kept = liked if selection.is_exact_only else _distinct(liked, groups, selection)
    selection.scores = {groups[key].best_id: _rated(groups[key]) for key in kept}
    selection.rejected = _rejected(kept, groups)
    return selection


def drop_reason(candidate: Candidate) -> Reason | None:
    """Why the conversation by itself is not fit for learning from; None where it is."""
    answer = grounding.uncited(grounding.visible(candidate.answer)).strip()
    if candidate.error_code or candidate.status == "failed":
        return "truncated" if candidate.status == "partial" else "error"
    if not answer or not candidate.question.strip() or candidate.status == "pending":
        return "empty"
    if candidate.status == "partial" or answer.count("```") % 2:
        return "truncated"
    if candidate.flags:
        return "flagged"
    if evaluation.refuses(answer):
        return "refusal"
    if count_tokens(_sound(candidate.question)) + count_tokens(_sound(candidate.answer)) > MOST_TOKENS:
        return "too_long"
    return None


def score(candidate: Candidate) -> float:
    """From 0 to 1, by the conversation's own vote."""
    return round(_merit(candidate) + FOR_FEEDBACK * _approval(candidate.feedback or 0), 4)


def content_key(question: str, answer: str) -> bytes:
    """The same for texts that differ in case, marks, citations and spaces only; the first half is the question's."""
    return _digest(question) + _digest(grounding.uncited(answer))


def content_hash(question: str, answer: str) -> str:
    """`content_key` in hexadecimal, 64 digits."""
    return content_key(question, answer).hex()


def shingles(text: str) -> set[str]:
    """All runs of three words; a shorter text is one."""
    words = _plain(text).split()
    return {" ".join(words[at : at + SHINGLE_WORDS]) for at in range(max(1, len(words) - SHINGLE_WORDS + 1))}


def similarity(one: bytes, other: bytes) -> float:
    """The estimate of how much two signatures' texts have in common, from 0 to 1."""
    minima = zip(memoryview(one).cast("I"), memoryview(other).cast("I"), strict=True)
    return sum(mine == its for mine, its in minima) / PERMUTATIONS


def near_duplicates(signatures: Sequence[bytes]) -> set[int]:
    """The places of those that are like one before them that is not itself among these: the best stand first.

    One band's table is held at a time, of about 0.1 KB a signature.
    """
    likes: dict[int, set[int]] = {}
    for start in range(0, SIGNATURE_BYTES, BAND_BYTES):
        firsts: dict[bytes, int] = {}
        for place, signature in enumerate(signatures):
            first = firsts.setdefault(signature[start : start + BAND_BYTES], place)
            if first != place and similarity(signatures[first], signature) >= SIMILAR:
                likes.setdefault(place, set()).add(first)
    repeated: set[int] = set()
    for place in sorted(likes):
        if likes[place] - repeated:
            repeated.add(place)
    return repeated


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


def _join(groups: dict[bytes, Group], candidate: Candidate, is_signed: bool) -> None:
    key, merit = content_key(candidate.question, candidate.answer), _merit(candidate)
    group = groups.get(key)
    if group is None:
        signature = SIGN(f"{candidate.question}\n{candidate.answer}") if is_signed else b""
        group = groups[key] = Group(candidate.conversation_id, merit, signature=signature)
    elif (merit, candidate.conversation_id) > (group.best_score, group.best_id):  # of equals the newest
        group.best_id, group.best_score = candidate.conversation_id, merit
    group.count += 1
    group.likes += candidate.feedback == 1
    group.dislikes += candidate.feedback == -1


def _voted(groups: dict[bytes, Group], selection: Selection) -> list[bytes]:
    """The keys of those that have not been voted down, the best first."""
    kept = []
    for key, group in groups.items():
        selection.resolved += bool(group.likes and group.dislikes and group.likes != group.dislikes)
        if group.dislikes and group.likes <= group.dislikes:
            reason: Reason = "conflict" if group.likes == group.dislikes else "disliked"
            selection.dropped[reason] += group.count
            continue
        if group.count > 1:
            selection.dropped["duplicate"] += group.count - 1
        kept.append(key)
    return sorted(kept, key=lambda key: (-_rated(groups[key]), -groups[key].best_id))


def _distinct(keys: list[bytes], groups: dict[bytes, Group], selection: Selection) -> list[bytes]:
    repeated = near_duplicates([groups[key].signature for key in keys])
    if repeated:
        selection.dropped["near_duplicate"] += len(repeated)
    return [key for place, key in enumerate(keys) if place not in repeated]


def _rejected(keys: Iterable[bytes], groups: dict[bytes, Group]) -> dict[int, int]:
    """For each liked answer the most disliked one to its question; of equals the newest."""
    disliked: dict[bytes, Group] = {}
    for key, group in groups.items():
        if group.dislikes > group.likes:
            worst = disliked.setdefault(key[: len(key) // 2], group)
            if (group.dislikes - group.likes, group.best_id) > (worst.dislikes - worst.likes, worst.best_id):
                disliked[key[: len(key) // 2]] = group
    pairs = ((groups[key], disliked.get(key[: len(key) // 2])) for key in keys)
    return {group.best_id: other.best_id for group, other in pairs if other and group.likes > group.dislikes}


def _rated(group: Group) -> float:
    return round(group.best_score + FOR_FEEDBACK * _approval(group.likes - group.dislikes), 4)


def _approval(votes: int) -> float:
    return 0.5 if votes == 0 else float(votes > 0)


def _merit(candidate: Candidate) -> float:
    """The score without feedback."""
    return (
        FOR_GROUNDING * _grounding(candidate)
        + FOR_LENGTH * _length(len(grounding.uncited(candidate.answer).strip()))
        + FOR_LANGUAGE * _language_match(candidate.question, candidate.answer)
    )


def _grounding(candidate: Candidate) -> float:
    numbers = grounding.cited(candidate.answer)
    if candidate.flags or not all(1 <= number <= candidate.passages for number in numbers):
        return 0
    return 1 if numbers else 0.5


def _length(characters: int) -> float:
    too_many = (ENDLESS_CHARACTERS - characters) / (ENDLESS_CHARACTERS - LONG_CHARACTERS)
    return max(0.0, min(1.0, characters / SHORT_CHARACTERS, too_many))


def _language_match(question: str, answer: str) -> float:
    asked, answered = language(question), language(answer)
    return 0.5 if asked is None or answered is None else float(asked == answered)


def _digest(text: str) -> bytes:
    return hashlib.blake2b(_plain(text).encode(), digest_size=16).digest()


def _plain(text: str) -> str:
    """As answers are compared; text without any word, such as a smiley, stays as it is."""
    seen = grounding.visible(_sound(text))
    return evaluation.normalised(seen) or " ".join(seen.split())


def _sound(text: str) -> str:
    """Half a surrogate pair can't be hashed."""
    return text.encode(errors="replace").decode()
