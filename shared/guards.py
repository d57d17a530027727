"""What must go no further than the gateway: seed phrases and private keys that a user pastes into a question."""

import hashlib
import re
from collections import deque
from collections.abc import Iterator
from functools import cache

from mnemonic import Mnemonic

from shared.errors import SecretInMessage
from shared.grounding import BASE58

PHRASE_LENGTHS = (12, 15, 18, 21, 24)  # of BIP-39; TON's have 24 words of the same list
PHRASE_WORDS = PHRASE_LENGTHS[0]
WORD = re.compile(r"[a-z]+", re.IGNORECASE)
GAP_CHARACTERS = 20  # at most, between two words of a phrase: numbers, signs, a line's indent
# Words of the list that announce a phrase, and what separates it from a sentence before or after it.
ANNOUNCING = {"seed", "phrase", "word", "wallet", "secret", "key", "backup", "code", "import", "recover", "private"}
FEW = 3  # such borders in a run; more are the phrase's own signs
SENTENCES = {"is", "are", "was", "the", "my", "and", "to", "of", "with", "it", "for", "on"}  # of sentences, no slips
BORDER = re.compile(r"(?<!\d)[:.!?=()\"«»“”]|\n\s*\n")
# By their own form: PEM, BIP-32's extended keys, and a Solana key pair as its tools write it.
KEYS = re.compile(
    r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY(?: BLOCK)?-----(?:"  # to its end, or as far as it goes
    r"(?:[^-]|-(?!----)){0,9000}-----END [A-Z ]{0,30}PRIVATE KEY(?: BLOCK)?-----"
    r"|(?:(?:\\[nr]|[\s\"'>|,])*+(?:[A-Za-z0-9+/]{20,}+={0,2}|[A-Za-z0-9+/]{2,}+={1,2}))*)"
    rf"|\b[xyztuv]prv[{BASE58}]{{100,112}}\b"
    r"|\[\s*(?:\d{1,3}\s*,\s*){63}\d{1,3}\s*\]"
)
IMPORT_FORMAT = re.compile(rf"\b[5KL9c][{BASE58}]{{50,51}}\b")  # Bitcoin's WIF
# By what is said of them, for hashes and signatures look the same.
NAMED = re.compile(
    r"(?:private|secret|signing)[\s_-]*key|\bseed\b|приватн\w*\s+ключ|секретн\w*\s+ключ|privat\w*\s+schlüssel"
    r"|clave\s+privada|clé\s+privée|chave\s+privada",
    re.IGNORECASE,
)
UNMARKED = re.compile(rf"(?<!\w)(?:(?:0x)?(?:[0-9a-fA-F]{{64}}){{1,2}}|[{BASE58}]{{86,88}})(?!\w)")
NEAR_CHARACTERS = 80


def refuse_secrets(message: str) -> None:
    """Raises `SecretInMessage` for a message that holds a seed phrase or a private key."""
    if any(phrases(message)) or any(private_keys(message)):
        raise SecretInMessage(
            "This looks like a seed phrase or a private key. It was neither kept nor sent on. Never paste it anywhere:"
            " whoever has it has the wallet. If anybody may have seen it, move the funds to a new one."
        )


def phrases(text: str) -> Iterator[tuple[int, int]]:
    """Where seed phrases start and end: twelve words of BIP-39's list in a row, whatever numbers and signs are between.

    Prose doesn't do that: the list has none of the, of, is, to and and. A word that isn't of the list, a slip of the
    pen, may be in a phrase that has a whole phrase's length with it.
    """
    words = list(WORD.finditer(text))
    runs = deque(_runs(text, words))
    while runs:
        first, last = runs.popleft()
        if (
            runs
            and runs[0][0] == last + 2
            and _is_slip(last + 1 - first, words[last + 1][0], 1 + runs[0][1] - runs[0][0])
        ):
            last = runs.popleft()[1]
        elif last + 1 - first >= PHRASE_WORDS:
            first, last = _without_sentence(text, words, first, last)
        else:
            continue
        yield words[first].start(), words[last].end()


def listed_words(text: str) -> Iterator[tuple[int, int, int]]:
    """Where words of BIP-39's list in a row start and end, and how many they are."""
    words = list(WORD.finditer(text))
    for first, last in _runs(text, words):
        yield words[first].start(), words[last].end(), last + 1 - first


def private_keys(text: str) -> Iterator[tuple[int, int]]:
    """Where private keys start and end: by their own form, by their checksum, or because something nearby says so."""
    yield from (match.span() for match in KEYS.finditer(text))
    yield from (match.span() for match in IMPORT_FORMAT.finditer(text) if is_checked(match[0]))
    for match in UNMARKED.finditer(text):
        before = text[max(0, match.start() - NEAR_CHARACTERS) : match.start()]
        if NAMED.search(before) or NAMED.search(text[match.end() : match.end() + NEAR_CHARACTERS]):
            yield match.span()


def is_checked(text: str) -> bool:
    """Whether it is base58 with its four bytes of checksum, as Bitcoin has it."""
    number = 0
    for character in text:
        number = number * 58 + BASE58.index(character)
    raw = number.to_bytes(40, "big").lstrip(b"\0")
    return hashlib.sha256(hashlib.sha256(raw[:-4]).digest()).digest()[:4] == raw[-4:]


def _runs(text: str, words: list[re.Match[str]]) -> Iterator[tuple[int, int]]:
    """The first and the last of words of the list in a row, as places in `words`."""
    first: int | None = None
    for place, word in enumerate(words):
        if first is not None and word.start() - words[place - 1].end() > GAP_CHARACTERS:
            yield first, place - 1
            first = None
        if word[0].lower() not in word_list():
            if first is not None:
                yield first, place - 1
            first = None
        elif first is None:
            first = place
    if first is not None:
        yield first, len(words) - 1


def _is_slip(before: int, word: str, after: int) -> bool:
    """Whether one foreign word between so many of the list is a phrase's misspelt one."""
    return (
        word.lower() not in SENTENCES
        and before + 1 + after in PHRASE_LENGTHS
        and (max(before, after) < PHRASE_WORDS or min(before, after) >= 8)
    )


def _without_sentence(text: str, words: list[re.Match[str]], first: int, last: int) -> tuple[int, int]:
    """The run without the listed words of a sentence around it, where a phrase's length remains."""

    gaps = {place: text[words[place].end() : words[place + 1].start()] for place in range(first, last)}
    borders = [place for place, gap in gaps.items() if BORDER.search(gap)]
    new_lines = [place for place, gap in gaps.items() if "\n" in gap and not any(map(str.isdigit, gap))]
    borders = sorted({*borders[: FEW * (len(borders) <= FEW)], *new_lines[: FEW * (len(new_lines) <= FEW)]})
    parts = list(zip([first, *(place + 1 for place in borders)], [*borders, last], strict=True))
    *others, longest_part = sorted(parts, key=lambda part: part[1] - part[0])
    if longest_part[1] + 1 - longest_part[0] in PHRASE_LENGTHS and all(end - start < 5 for start, end in others):
        return longest_part
    if last + 1 - first in PHRASE_LENGTHS:
        return first, last
    starts, ends = [part[0] for part in parts], [part[1] for part in parts]
    for place in range(first, min(first + 4, last)):
        if words[place][0].lower() not in ANNOUNCING:
            break
        starts.append(place + 1)
    fitting = {
        (start, end)
        for start in starts
        for end in ends
        if end + 1 - start in PHRASE_LENGTHS and max(start - first, last - end) < 6
    }
    longest = max((end - start for start, end in fitting), default=0)
    longest_fitting = [(start, end) for start, end in fitting if end - start == longest]
    return longest_fitting[0] if len(longest_fitting) == 1 else (first, last)


@cache
def word_list() -> frozenset[str]:
    """BIP-39's English list."""
    return frozenset(Mnemonic("english").wordlist)
