"""What must go no further than the gateway: seed phrases and private keys that a user pastes into a question."""

import hashlib
import re
import unicodedata
from collections import Counter, deque
from collections.abc import Iterator
from functools import cache
from itertools import groupby, pairwise

from mnemonic import Mnemonic

from shared.errors import SecretInMessage
from shared.grounding import BASE58, visible

PHRASE_LENGTHS = (12, 15, 18, 21, 24)  # of BIP-39; TON's have 24 words of the same list
PHRASE_WORDS = PHRASE_LENGTHS[0]
WORD = re.compile(r"[a-z]+", re.IGNORECASE)
GAP_CHARACTERS = 25  # at most, between two words of a phrase: numbers, signs, a line's indent
# Words of the list that announce a phrase, and what separates it from a sentence before or after it.
ANNOUNCING = {"seed", "phrase", "word", "wallet", "secret", "key", "backup", "code", "import", "recover", "private"}
FEW = 3  # such borders in a run; more are the phrase's own signs
# Words of sentences, no slips and on no list.
SENTENCES = frozenset(
    re.findall(
        r"\w+",
        "is are was were the my and to of with it for on in a an i me do not if be been had or but so at from by its "
        "и в не на я с что по это как у мне из за но а для от или если есть нет он она мой моя "
        "de la el que y en los un una por con para no mi lo se las del al me pero si "
        "le les et je ma est pas des du au il ne dans sur mes "
        "der die das und ist ich nicht ein eine in zu mit auf für den von mir mein meine es war "
        "o os um uma em não meu minha da di che e non per sono nie na się to jest w z do ve bir bu için і що та є",
    )
)
CONJUNCTIONS = {"and", "und", "y", "e", "et", "и"}  # said while a phrase is being told
BORDER = re.compile(r"(?<!\d)[:.!?=()\"«»“”]|\n\s*\n")
# What announces a phrase: for Python's `re` and for RE2, to which only a letter of ASCII is one.
MINE = r"(?:my|mi|mis|ma|mes|meine?|minhas?|mia|мо[яиейю]) (?:(?:12|24) )?"
PHRASE_NAMES = (
    r"(?:seed|recovery|secret|mnemonic|backup)[ _-]?(?:recovery[ _-]?|seed[ _-]?)?(?:phrase|words?)|mnemonic"
    r"|(?:сид|сід|мнемо[а-яё]*|секретн[а-яё]+)[ _-]*(?:фраз[а-яё]|слов[а-яё]*)|мнемоник[а-яё]"
    r"|(?:фраз[а-яё]|слов[а-яё]*) (?:восстановления|відновлення)"
    r"|(?:frase|palabras|palavras) (?:semilla|semente|mnemónica|secretas?|segreta|d[ei] recup[a-zçãéó]+)"
    r"|phrase (?:de récupération|secrète|mnémonique|de sauvegarde)|mots secrets"
    r"|wiederherstellungs(?:phrase|wörter)|kurtarma (?:ifadesi|kelimeleri)"
    r"|助记词|助記詞|种子短语|種子短語|恢复短语|シードフレーズ|リカバリーフレーズ"
    r"|(?:시드|복구) ?(?:문구|구문)"
)
PERSONAL_NAMES = r"(?:seed|phrase|words|frase|mots|palabras|palavras|wörter|parole|сид|фраза|слова)"
SAYING = "is|are|это|ist|sind|es|son|est|sont|sono|é|são"
MARKED = "[:=—–\"'«“`\n是]"
ANNOUNCED = re.compile(
    r"(?:(?<![^\W\d_])|(?=[助种種恢シリ시복]))(?:"
    rf"(?P<mine>{MINE}(?:{PHRASE_NAMES}|{PERSONAL_NAMES})(?:[\W\d_]{{0,9}}{MARKED}|\s{{1,3}}(?:{SAYING})(?!\w)))"
    rf"|(?:{PHRASE_NAMES})[\W\d_]{{0,9}}{MARKED})[\W\d_]{{0,9}}(?=[^\W\d_])",
    re.IGNORECASE,
)
LETTER, MARK = r"[^\W\d_]", r"[\u0300-\u036f\u3099\u309a]"
ANY_WORD = re.compile(rf"{LETTER}(?:{LETTER}|{MARK})*")
WORD_LETTERS = 12  # at most, of any list's words
SHORT_WORD = re.compile(rf"{LETTER}(?:{LETTER}|{MARK}){{0,{WORD_LETTERS}}}")  # or the beginning of a longer one
LISTED_SHARE = 0.7  # of an announced phrase's words, at least
# A phrase told word by word.
TOLD = (
    r"(?:first|1st)(?: word)?(?: is)?[^a-z]{1,9}[a-z]{3,12}[^a-z]{1,9}"
    r"(?:second|2nd)(?: word)?(?: is)?[^a-z]{1,9}[a-z]{3,12}"
)
TOLD_WORDS = re.compile(TOLD, re.IGNORECASE)
ORDINAL = re.compile(
    r"(?<!\w)(?:(?:twenty[ -])?(?:first|second|third|fourth|fifth|sixth|seventh|eighth|ninth)|tenth|eleventh|twelfth"
    r"|(?:thir|four|fif|six|seven|eigh|nine)teenth|twentieth|\d\d?(?:st|nd|rd|th))(?: word)?(?: is)?(?!\w)",
    re.IGNORECASE,
)
# Cyrillic letters and the Latin ones that they pass for.
LIKE_LATIN = "АВЕКМНОРСТХаеорсухіј"
LOOK_ALIKES = str.maketrans(LIKE_LATIN, "ABEKMHOPCTXaeopcyxij")
MIXED = re.compile(
    rf"(?<![^\W\d_])(?:[A-Za-z]{{1,19}}[{LIKE_LATIN}]|[{LIKE_LATIN}]{{1,19}}[A-Za-z])"
    rf"[A-Za-z{LIKE_LATIN}]{{0,19}}(?![^\W\d_])"
)
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
    message = unnumbered(unmasked(visible(message)))
    if any(phrases(message)) or _has_foreign_phrase(message) or any(private_keys(message)):
        raise SecretInMessage(
            "This looks like a seed phrase or a private key. It was neither kept nor sent on. Never paste it anywhere:"
            " whoever has it has the wallet. If anybody may have seen it, move the funds to a new one."
        )


def unmasked(text: str) -> str:
    """Words of Latin letters and of Cyrillic ones that look the same, in Latin letters."""
    return text if text.isascii() else MIXED.sub(lambda word: word[0].translate(LOOK_ALIKES), text)


def unnumbered(text: str) -> str:
    """With blanks for the ordinals by which a phrase is told, where a phrase begins so."""
    return ORDINAL.sub(lambda match: " " * len(match[0]), text) if TOLD_WORDS.search(text) else text


def phrases(text: str) -> Iterator[tuple[int, int]]:
    """Where seed phrases start and end: in BIP-39's words, or announced as one."""
    announced = list(_announced_phrases(text))
    for said, start, _ in announced:  # the announcement's own words are of the list too
        text = text[:said] + "is".ljust(start - said) + text[start:]
    spans = sorted([*((start, end) for _, start, end in announced), *_listed_phrases(text)])
    for place, (start, end) in enumerate(spans):
        if place + 1 < len(spans) and spans[place + 1][0] < end:
            spans[place + 1] = start, max(end, spans[place + 1][1])
        else:
            yield start, end


def _listed_phrases(text: str) -> Iterator[tuple[int, int]]:
    """Twelve words of BIP-39's list in a row, whatever numbers and signs are between.

    Prose doesn't do that: the list has none of the, of, is, to and and. A word that isn't of the list may be one
    misspelt, or the "and" of somebody who tells the phrase.
    """
    words = list(WORD.finditer(text))
    runs = deque(_runs(text, words))
    while runs:
        first, last = runs.popleft()
        while (
            runs
            and runs[0][0] == last + 2
            and _is_slip(last + 1 - first, words[last + 1][0].lower(), 1 + runs[0][1] - runs[0][0])
        ):
            last = runs.popleft()[1]
        if last + 1 - first >= PHRASE_WORDS:
            first, last = _without_sentence(text, words, first, last)
            yield words[first].start(), words[last].end()


def _announced_phrases(text: str) -> Iterator[tuple[int, int, int]]:
    """Where twelve words or more are announced, start and end: said to be somebody's phrase, or words of a list."""
    for said in ANNOUNCED.finditer(text):
        words = _words_after(text, said.end())
        if len(words) < PHRASE_WORDS or not _is_even(text, words):
            continue
        listed = _best_list(words)
        share = sum(listed) / len(words)
        while share >= LISTED_SHARE and len(words) not in PHRASE_LENGTHS and not listed[len(words) - 1]:
            words.pop()
        if share >= LISTED_SHARE or said["mine"]:
            yield said.start(), words[0].start(), words[-1].end()


def _words_after(text: str, place: int) -> list[re.Match[str]]:
    """The words in a row that may be a phrase's."""
    words: list[re.Match[str]] = []
    has_conjunction, gap = False, ""
    for word in SHORT_WORD.finditer(text, place):
        gap, before = text[place : word.start()], gap
        place = word.end()
        is_border = len(words) in PHRASE_LENGTHS and BORDER.search(gap) and not BORDER.search(before)
        if is_border or len(gap) > GAP_CHARACTERS or len(word[0]) > WORD_LETTERS or len(words) == PHRASE_LENGTHS[-1]:
            break
        if word[0].lower() not in SENTENCES:
            words.append(word)
        elif word[0].lower() not in CONJUNCTIONS or has_conjunction:
            break
        else:
            has_conjunction = True
    return words


def _is_even(text: str, words: list[re.Match[str]]) -> bool:
    """Whether the words stand and are written alike, as a sentence's or a menu's do not."""
    gaps = [text[word.end() : after.start()] for word, after in pairwise(words)]
    plain = Counter(" ".join(re.sub(r"\d", "", gap).split()) for gap in gaps)
    cases = Counter((word[0].islower(), word[0].isupper()) for word in words[1:])
    return min(max(plain.values()), max(cases.values())) >= 0.75 * len(gaps)


def _has_foreign_phrase(text: str) -> bool:
    """Whether twelve words in a row are of a list in another language; the lists are read only where it may be."""
    run: list[re.Match[str]] = []
    runs = [run]
    for word in ANY_WORD.finditer(text):
        is_of_sentence = word[0].lower() in SENTENCES
        if is_of_sentence or (run and word.start() - run[-1].end() > GAP_CHARACTERS):
            runs.append(run := [])
        if not is_of_sentence:
            run.append(word)
    return any(
        is_listed and len(list(row)) >= PHRASE_WORDS
        for run in runs
        if len(run) >= PHRASE_WORDS
        for is_listed, row in groupby(_best_list(run))
    )


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
    """Whether one foreign word between so many of the list is a phrase's misspelt one, or an "and"."""
    fewest, most, listed = min(before, after), max(before, after), before + after
    if word in CONJUNCTIONS:
        return most < PHRASE_WORDS <= listed and fewest > 1
    return word not in SENTENCES and (
        (most < PHRASE_WORDS <= listed + 1 and (fewest > 1 or listed + 1 in PHRASE_LENGTHS))
        or (fewest > 2 and listed + 1 in PHRASE_LENGTHS)
        or fewest >= 8
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


@cache
def word_lists() -> tuple[frozenset[str], ...]:
    """BIP-39's lists in all languages, without accents."""
    return tuple(frozenset(map(_plain, Mnemonic(language).wordlist)) for language in Mnemonic.list_languages())


def _best_list(words: list[re.Match[str]]) -> list[bool]:
    """Which of the words are of the list that has most of them."""
    plain = [_plain(word[0]) for word in words]
    return max(([word in listed for word in plain] for listed in word_lists()), key=sum)


def _plain(word: str) -> str:
    return re.sub("[\u0300-\u036f\u3099\u309a]", "", unicodedata.normalize("NFKD", word.lower()))
