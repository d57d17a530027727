"""What must not be in training data, replaced by typed placeholders that stay the same within a conversation.

`<WALLET_1>` is the first wallet of a conversation wherever it stands and however it is written: the forms of one TON
account are one, and so are 0x addresses in any case. What is published (`published(texts)`: the knowledge base's
contracts, channels, support addresses) stays.

A finding is sure by its form (a prefix, a checksum, a length) or by what is said of it ("my password is …"); a name
only by the latter. What stays: amounts, dates, block numbers, token symbols, UUIDs, checksums said to be
some (`sha256:…`), addresses of private networks, the zero address, usernames of bots, addresses shortened to a few
letters (`EQAv…9NOT`).
Phone numbers are read without the `phonenumbers` package: its tables of every country weigh more than a function's own
code, and decide lengths only, where the false alarms here are amounts.
"""

import base64
import binascii
import ipaddress
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import takewhile
from typing import Literal, NamedTuple, get_args

from shared import grounding, guards
from shared.grounding import BASE58
from shared.signs import SPACE, SPACE_SIGNS, WORD, folded, scanner

Kind = Literal[
    "SEED_PHRASE",
    "PRIVATE_KEY",
    "JWT",
    "API_KEY",
    "WALLET",
    "TX_HASH",
    "PASSWORD",
    "EMAIL",
    "IBAN",
    "CARD",
    "PHONE",
    "IP",
    "USERNAME",
    "NAME",
]
PUBLISHABLE: frozenset[Kind] = frozenset({"WALLET", "TX_HASH", "EMAIL", "PHONE", "USERNAME"})
PLACEHOLDER = re.compile(rf"<({'|'.join(get_args(Kind))})_(\d{{1,6}})>")
BLANK = "\ufffc"  # in place of what is found; no recogniser's sign


class Finding(NamedTuple):
    """Where something stands, and the value it means, the same for each of its spellings."""

    start: int
    end: int
    kind: Kind
    value: str


@dataclass(slots=True)
class Redactor:
    """One conversation's placeholders; `counts` says how often something of a kind was replaced."""

    known: frozenset[tuple[Kind, str]] = frozenset()
    counts: Counter[Kind] = field(default_factory=Counter)
    numbers: dict[tuple[Kind, str], int] = field(default_factory=dict)
    last: Counter[Kind] = field(default_factory=Counter)
    taken: set[tuple[Kind, int]] = field(default_factory=set)  # by placeholders that texts came with
    names: dict[str, str] = field(default_factory=dict)  # as written, and whose it is
    is_thorough: bool = False  # all recognisers look at each text, which finds the same

    def redact_all(self, texts: Sequence[str]) -> list[str]:
        """One conversation's texts, the oldest first; a name that a later one tells is found in all."""
        if not self.is_thorough and not is_suspected("\0".join(texts)):
            return list(texts)
        self.taken |= {(kind, int(number)) for text in texts for kind, number in PLACEHOLDER.findall(text)}
        clean = [self.redact(text) for text in texts]
        return [self.redact(text) for text in clean] if self.names else clean

    def redact(self, text: str) -> str:
        """The text with placeholders; redacting it again changes nothing."""
        self.taken |= {(kind, int(number)) for kind, number in PLACEHOLDER.findall(text)}
        while findings := [found for found in self._find(text) if (found.kind, found.value) not in self.known]:
            text = self._replaced(text, findings)
        return text

    def _find(self, text: str) -> list[Finding]:
        shown, places = _shown(text)
        findings, blanked = _find(shown, self.is_thorough)
        for found in findings:
            if found.kind == "NAME":
                for written in _spellings(shown[found.start : found.end]):
                    self.names.setdefault(written, found.value)
        findings += _find_names(blanked, self.names)
        return [
            Finding(places[found.start], places[found.end - 1] + 1, found.kind, found.value)
            for found in sorted(findings)
        ]

    def _replaced(self, text: str, findings: list[Finding]) -> str:
        pieces, end = [], 0
        for found in findings:
            pieces += [text[end : found.start], f"<{found.kind}_{self._number(found.kind, found.value)}>"]
            end = found.end
            self.counts[found.kind] += 1
        return "".join(pieces) + text[end:]

    def _number(self, kind: Kind, value: str) -> int:
        """The value's number: the next one that no text had before."""
        if (kind, value) not in self.numbers:
            self.last[kind] += 1
            while (kind, self.last[kind]) in self.taken:
                self.last[kind] += 1
            self.numbers[kind, value] = self.last[kind]
        return self.numbers[kind, value]


def is_suspected(text: str) -> bool:
    """Whether a `Redactor` may find anything in the text or, between NULs, the texts; where not, it changes nothing."""
    return bool(suspects(_shown(text)[0]))


def published(texts: Iterable[str]) -> frozenset[tuple[Kind, str]]:
    """What texts that anyone may read say of addresses and accounts: a `Redactor` leaves these as they are."""
    findings = (found for text in texts for found in _find(_shown(text)[0])[0])
    return frozenset((found.kind, found.value) for found in findings if found.kind in PUBLISHABLE)


def _find(shown: str, is_thorough: bool = False) -> tuple[list[Finding], str]:
    """All findings, and the text with blanks in their places. An earlier recogniser's finding is hidden from later."""
    findings: list[Finding] = []
    blanked = PLACEHOLDER.sub(lambda match: BLANK * len(match[0]), shown)
    suspected = ALL if is_thorough else suspects(blanked)
    for place, (kind, find, _) in enumerate(RECOGNISERS):
        if place not in suspected:
            continue
        found = [Finding(start, end, kind, value) for start, end, value in find(blanked)]
        if found:
            found = _apart(found)
            blanked = _blanked(blanked, found)
            suspected = suspected if is_thorough else suspects(blanked)
            findings += found
    return findings, blanked


def _apart(findings: list[Finding]) -> list[Finding]:
    """Without those that overlap an earlier one."""
    apart: list[Finding] = []
    for found in sorted(findings, key=lambda found: (found.start, -found.end)):
        if not apart or found.start >= apart[-1].end:
            apart.append(found)
    return apart


def _blanked(text: str, findings: list[Finding]) -> str:
    pieces, end = [], 0
    for found in findings:
        pieces += [text[end : found.start], BLANK * (found.end - found.start)]
        end = found.end
    return "".join(pieces) + text[end:]


# What a reader sees: without invisible characters, wide letters and Cyrillic ones within Latin as what they pass for.
LONG_MIXED = re.compile(r"[\w+/:-]{20,}")
AMONG_LATIN = re.compile(rf"(?<=[0-9A-Za-z_-])[{guards.LIKE_LATIN}]{{1,3}}(?=[0-9A-Za-z_-])")
UNSEEN = re.compile(rf"{grounding.INVISIBLE.pattern}|[\u034f\u061c\u180e\ufe00-\ufe0f]")


def _shown(text: str) -> tuple[str, range | list[int]]:
    """The text as it is seen, and for each of its characters the place in the text itself."""
    if text.isascii() and "\\" not in text:
        return text, range(len(text))
    places: range | list[int] = range(len(text))
    shown = text
    if UNSEEN.search(text):
        hidden = {place for match in UNSEEN.finditer(text) for place in range(*match.span())}
        places = [place for place in places if place not in hidden]
        shown = "".join(text[place] for place in places)
    plain = {ord(character): _plain(character) for character in set(shown) if character >= "\u2000"}
    if any(chr(code) != character for code, character in plain.items()):
        shown = shown.translate(plain)
    if AMONG_LATIN.search(shown):
        shown = LONG_MIXED.sub(lambda word: AMONG_LATIN.sub(_in_latin, word[0]), shown)
    return guards.unmasked(shown), places


def _in_latin(look_alikes: re.Match[str]) -> str:
    return look_alikes[0].translate(guards.LOOK_ALIKES)


@lru_cache(maxsize=10_000)
def _plain(character: str) -> str:
    normal = unicodedata.normalize("NFKC", character)
    return normal if len(normal) == 1 else character


# Seed phrases and keys.

SAID_PHRASE = re.compile(
    r"(?:(?P<phrase>seed phrase|сид|мнемо[а-яё]*)|seed|recovery|secret|mnemonic|backup|секретн\w+)"
    r"[\s_-]*(?:phrase|words?|фраз\w|слов\w)?"
    r"(?:\s+(?:is|are|was|это|ist|es|est))?\s*[:=—-]?[\s\"'«“`]{0,3}$",
    re.IGNORECASE,
)
CUT_PHRASE_WORDS, FEWEST_PHRASE_WORDS = 6, 5
OTHER_PRIVATE_KEYS = re.compile(
    r"(?<![0-9A-Za-z])(?:nsec1[02-9ac-hj-np-z]{58}|suiprivkey1[02-9ac-hj-np-z]{58}|AGE-SECRET-KEY-1[0-9A-Z]{58}"
    rf"|S[A-Z2-7]{{55}}|edsk[{BASE58}]{{50,94}}|ed25519:[{BASE58}]{{86,88}})(?![0-9A-Za-z])"
)
HASH_SAID = re.compile(
    r"(?:\btx|transaction|txn|hash|signature|транзакци\w*|х[эе]ш\w*|подпись)[\s:=/#-]{0,4}(?:is\s+)?$", re.I
)

Spans = Iterator[tuple[int, int, str]]


def _seed_phrases(text: str) -> Spans:
    plain = guards.unnumbered(text)
    for start, end in guards.phrases(plain):
        if not _is_code(plain[start:end]):
            yield start, end, _words_of(plain[start:end])


def _is_code(phrase: str) -> bool:
    """Whether the words are tied by signs of many kinds or come again and again, as names in a program do.

    A phrase's stand evenly, and hardly any word comes twice.
    """
    words = _words_of(phrase).split()
    few_words = len(set(words)) < 0.7 * len(words)
    gaps = Counter(" ".join(re.sub(r"\d", "", gap).split()) for gap in guards.ANY_WORD.split(phrase)[1:-1])
    return (len(gaps) > 3 and max(gaps.values()) < 0.6 * gaps.total()) or (len(gaps) > 1 and few_words)


def _cut_phrases(text: str) -> Spans:
    """Fewer words than a phrase has, where a phrase is announced."""
    for start, end, count in guards.listed_words(text):
        if count < FEWEST_PHRASE_WORDS:
            continue
        words = list(guards.WORD.finditer(text, start, end))
        for place, word in reversed(list(enumerate(words[: count - FEWEST_PHRASE_WORDS + 1][:4]))):
            said = SAID_PHRASE.search(text[max(0, word.start() - 50) : word.start()])
            if said and (said["phrase"] or count - place >= CUT_PHRASE_WORDS):
                yield word.start(), end, _words_of(text[word.start() : end])
                break


def _words_of(phrase: str) -> str:
    return " ".join(guards.ANY_WORD.findall(phrase)).lower()


def _private_keys(text: str) -> Spans:
    for start, end in guards.private_keys(text):
        if not HASH_SAID.search(text[max(0, start - 30) : start]):
            key = text[start:end]
            yield start, end, key.lower().removeprefix("0x") if _is_hex(key) else "".join(key.split())


def _is_hex(text: str) -> bool:
    return re.fullmatch(r"(?:0[xX])?[0-9a-fA-F]+", text) is not None


API_KEYS = re.compile(
    r"(?<![\w-])sk-[\w-]{20,}|(?<![0-9A-Za-z])(?:"
    r"sb_secret_[\w-]{20,80}|sbp_[0-9a-f]{40}|(?:AKIA|ASIA)[0-9A-Z]{16}(?![0-9A-Za-z])"
    r"|gh[pousr]_[0-9A-Za-z]{36,255}|github_pat_\w{22,100}|glpat-[\w-]{20,60}"
    r"|[srp]k_(?:live|test)_[0-9A-Za-z]{16,120}|whsec_[\w+/=]{20,80}|AIza[\w-]{35}|ya29\.[\w-]{30,300}"
    r"|xox[abeoprs]-[0-9A-Za-z-]{10,200}|xapp-[0-9A-Za-z-]{20,200}|hf_[0-9A-Za-z]{30,60}|r8_[0-9A-Za-z]{36,40}"
    r"|gsk_[0-9A-Za-z]{40,60}|rpa_[0-9A-Za-z]{30,60}|npm_[0-9A-Za-z]{36}|SG\.[\w-]{20,24}\.[\w-]{40,46}"
    r"|dop_v1_[0-9a-f]{64}|tgp_v1_[\w-]{30,60})|(?<!\d)\d{8,10}:[A-Za-z][\w-]{34}(?![\w-])"
    r"|hooks\.slack\.com/services/T\w{6,12}/B\w{6,12}/\w{20,30}"
    r"|discord(?:app)?\.com/api/webhooks/\d{15,22}/[\w-]{40,90}"
    r"|(?:infura\.io|alchemy(?:api)?\.(?:com|io)|quiknode\.pro)/(?:(?:ws|nft|v\d)/){0,3}[\w-]{20,64}"
)
NAMED_KEYS = re.compile(
    r"(?P<name>api[_ -]?(?:key|token)|access[_ -]?key(?:[_ -]?id)?|(?:access|auth)[_ -]?token|client[_ -]?secret"
    r"|secret[_ -]?(?:access[_ -]?)?key|secret|token|bearer|my key|(?:api|апи)[ -]?(?:ключ|schlüssel|密钥|密鑰|키)"
    r"|密钥|密鑰|ключ (?:api|апи)|(?:секретн|приватн|закрыт)\w+ ключ|мой ключ|(?:clave|chave)(?: de)? api"
    r"|clé(?: d['’])? ?api)(?P<said>[\"']?\s{0,3}(?:[:=—–]|=>|is|это|ist|est?|é|是)\s{0,3}|\s)[\"'`]?(?:bearer )?"
    r"(?P<key>[\w+/=.~-]{16,512})",
    re.IGNORECASE,
)
BASIC = re.compile(r"authorization[\"']?\s{0,3}[:=]\s{0,3}[\"'`]?basic\s{1,3}([0-9A-Za-z+/=_-]{8,512})", re.IGNORECASE)
KEY_BITS = 3.0  # of chance a character, at least: words of a language in a row have fewer kinds of sign
NO_KEYS = re.compile(  # UUIDs, sites, names in a program
    r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}|[\w-]+\.[a-z]{2,4}(?:/\S*)?|[a-z_]+(?:\.[a-z0-9_]+)+"
    r"|(?:process\.env|import\.meta\.env|os\.environ|Deno\.env|settings|config|env|self)\.[\w.]+"
)
SLUG = re.compile(r"(?:v?\d{1,4}|[A-Za-z]{1,24}\d{0,2})(?:[_/.-](?:v?\d{1,4}|[A-Za-z]{1,24}\d{0,2}))+")
LINE_END = r"[ \t>|]{0,4}\r?\n[ \t>|]{0,8}"
JWTS = re.compile(
    rf"(?<![\w-])eyJ(?=[\w-]{{4}})(?:[\w-]+{LINE_END}){{0,20}}[\w-]+\.(?:{LINE_END})?"
    rf"eyJ[\w-]{{10,}}(?:{LINE_END}[\w-]{{16,}}){{0,60}}(?:(?:{LINE_END}[\w-]+)?\.(?:{LINE_END})?"
    rf"[\w-]+(?:{LINE_END}[\w-]{{16,}}){{0,20}})?"
)


def _named_api_keys(text: str) -> Spans:
    for match in NAMED_KEYS.finditer(text):
        key = match["key"].rstrip(".")
        is_slug = SLUG.fullmatch(key) and (match["said"].isspace() or match["name"].lower() == "token")
        least = KEY_BITS if re.search(r"\d", key) else KEY_BITS + 1
        if re.search("[A-Za-z]", key) and _bits(key) >= least and not NO_KEYS.fullmatch(key) and not is_slug:
            yield match.start("key"), match.start("key") + len(key), key
    for match in BASIC.finditer(text):
        if b":" in _decoded(match[1]):
            yield *match.span(1), match[1]


def _bits(text: str) -> float:
    """Shannon's entropy of a character."""
    return -sum(count / len(text) * math.log2(count / len(text)) for count in Counter(text).values())


# Wallets and transactions.

FRIENDLY = re.compile(r"(?=([EUk0][Qf][\w+/-]{46}))", re.ASCII)
CUT_FRIENDLY = re.compile(r"(?<![0-9A-Za-z])[EU]Q(?=[\w-]*\d)(?=[\w-]*[a-z])[\w-]{18,60}", re.ASCII)
BROKEN_FRIENDLY = re.compile(  # by spaces or a line's end
    r"(?<![\w+/-])(?=([EUk0]Q[\w+/-]{0,45}(?:[\s\u00a0]{1,8}[\w+/-]{8,48}){1,3}))", re.ASCII
)
EXTENDED_PUBLIC_KEYS = re.compile(rf"(?<![0-9A-Za-z])[xyztuvYZUV]pub[{BASE58}]{{100,112}}(?![0-9A-Za-z])")
BARE_HEX_ADDRESS = re.compile(  # as Ethereum's are written without 0x, and commits of git are
    r"(?:wallet|address|\bevm|\beth|ethereum|metamask|адрес\w{0,3}|кошел\w{1,5}|adresse|dirección)(?:\s+is)?[\s:=/-]{1,3}"
    r"([0-9a-fA-F]{40})(?![0-9A-Za-z])",
    re.IGNORECASE,
)
HEX_ADDRESS = re.compile(r"(?<![0-9A-Za-z])0[xX][0-9a-fA-F]{20,63}(?![0-9A-Za-z])")
TRON = re.compile(rf"(?<![0-9A-Za-z])T[{BASE58}]{{33}}(?![0-9A-Za-z])")
WALLET_NAMES = re.compile(r"(?<![\w.@/-])[a-z0-9][a-z0-9-]{2,125}\.(?:ton|eth)(?![\w-]|\.\w)")  # of TON DNS and ENS
NOBODY = re.compile(r"(?:0x|-?\d:)0+(?:dead)?")  # where coins are burnt
HEX_HASHES = re.compile(
    r"(?<![0-9A-Za-z])(?<!sha256[:=-])(?<!sha256: )(?:0[xX][0-9a-fA-F]{64,}|[0-9a-fA-F]{64})(?![0-9A-Za-z])"
)
BASE64_HASHES = re.compile(
    r"(?<![\w+%-])(?:[\w+-]|%2[BFbf]|/){43}(?:=|%3[Dd])(?![\w=])"
    r"|(?:(?<=/tx/)|(?<=/transaction/)|(?<=hash: ))[\w+-]{43}(?![\w=])",
    re.ASCII,
)
SAID_HASHES = re.compile(r"(?<![\w+/=-])[\w+/-]{43}(?![\w+/=-])", re.ASCII)
SIGNATURES = re.compile(rf"(?<![0-9A-Za-z])[{BASE58}]{{86,88}}(?![0-9A-Za-z])")


def _ton_addresses(text: str) -> Spans:
    """Those with a right checksum, whatever letters stand around them."""
    for match in FRIENDLY.finditer(text):
        account = grounding.ton_account(match[1])
        if ":" in account and not NOBODY.fullmatch(account):
            yield match.start(), match.end(1), account


def _broken_addresses(text: str) -> Spans:
    for match in BROKEN_FRIENDLY.finditer(text):
        signs = [place for place in range(*match.span(1)) if not text[place].isspace()][:48]
        account = grounding.ton_account("".join(text[place] for place in signs))
        if ":" in account and not NOBODY.fullmatch(account):
            yield match.start(), signs[-1] + 1, account


def _addresses(text: str) -> Spans:
    for start, written, account in grounding.addresses(text):
        if not NOBODY.fullmatch(account) and not text.startswith(("=", "%3D"), start + len(written)):
            yield start, start + len(written), account


def _checked_addresses(text: str) -> Spans:
    """Tron's, of which some have no digit."""
    for match in TRON.finditer(text):
        if guards.is_checked(match[0]):
            yield *match.span(), match[0]


def _joined_addresses(text: str) -> Spans:
    """Those that an underscore or a hyphen ties to a word, as markdown and slugs do."""
    return _addresses(re.sub(r"(?<![^\W_])[_-]|[_-](?![^\W_])|(?<=[a-z])[_-](?=0x|bc1|-?\d:)", " ", text))


def _hex_addresses(text: str) -> Spans:
    for match in HEX_ADDRESS.finditer(text):
        if not NOBODY.fullmatch(match[0].lower()):
            yield *match.span(), match[0].lower()
    for match in BARE_HEX_ADDRESS.finditer(text):
        yield *match.span(1), f"0x{match[1].lower()}"


def _cut_addresses(text: str) -> Spans:
    yield from ((*match.span(), match[0]) for match in CUT_FRIENDLY.finditer(text))


def _hashes(text: str) -> Spans:
    for match in HEX_HASHES.finditer(text):
        value = match[0].lower().removeprefix("0x")
        if len(set(value)) > 2:
            yield *match.span(), value
    yield from ((*match.span(), match[0]) for match in SIGNATURES.finditer(text))


def _base64_hashes(text: str) -> Spans:
    said = (
        match
        for match in SAID_HASHES.finditer(text)
        if HASH_SAID.search(text[max(0, match.start() - 30) : match.start()])
    )
    for match in (*BASE64_HASHES.finditer(text), *said):
        written = re.sub("%2b", "+", re.sub("%2f", "/", match[0], flags=re.I), flags=re.I)[:43]
        if all(re.search(signs, written) for signs in ("[a-z]", "[A-Z]", r"\d")):
            yield *match.span(), _base64_value(written)


def _base64_value(written: str) -> str:
    return _decoded(written).hex() or written


def _decoded(written: str) -> bytes:
    """What base64 means, in either of its alphabets; nothing where it is none."""
    bare = written.rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(bare + "=" * (-len(bare) % 4))
    except binascii.Error:
        return b""


# People.

LOCAL_PART = "A-Za-zÀ-ɏА-Яа-яЁёІіЇїЄєҐґ0-9_.+"
EMAILS = re.compile(
    rf"(?<![{LOCAL_PART}-])(?<!//)(?!git@)[{LOCAL_PART}-][{LOCAL_PART}'’-]{{0,63}}"
    r"(?:@|%40|\s?[\[({]\s?(?:at|собака)\s?[\])}]\s?)"
    r"(?:[\w-]{1,63}(?:\.|\s?[\[({]\s?dot\s?[\])}]\s?))+(?:[A-Za-z]{2,24}|[А-Яа-яё]{2,24})(?![A-Za-z0-9_-])"
)
SAID_PASSWORD = re.compile(
    r"(?<!\w)(?:pass(?:word|code|phrase|(?=\s?[:=]|\s+is\s))|pwd?"
    r"|pin(?:[ -]?code)?|парол(?:ь|я)|пин(?:-?код)?|passwort|kennwort|contraseña"
    r"|mot de passe|senha|hasło|şifrem?|密码)(?:\s+(?:for|от|к|für)\s+[\w.]{1,20}(?:\s[\w.]{1,20})?)?"
    r"(?P<said>[\"']?\s{0,3}[:=：]\s{0,3}|\s{1,3}[—–-]\s{1,3}|\s{0,3}是\s?"
    r"|\s{1,3}(?:is|was|ist|lautet|est|es|é|это|to)[\s:]{1,3}|\s{1,3})"
    rf"(?:(?P<quote>[\"'`«“])(?P<quoted>[^\s{BLANK}\"'`»”]{{3,64}})[\"'`»”]|(?P<bare>[^\s{BLANK}<\"'`]{{4,64}}))",
    re.IGNORECASE,
)
URL_PASSWORD = re.compile(
    rf"(?<![\w+.-])[a-z][a-z0-9+]{{1,20}}://[^\s/:@{BLANK}]{{0,64}}:([^\s/@{BLANK}]{{3,128}})@", re.I
)
NO_PASSWORDS = re.compile(
    r"(?-i:\$[A-Z_]+)|\$?[\[({].*|%[\w(].{0,8}|[*•x…?.]+|\.{2,}.*"
    r"|.*(?:environ|getenv|env\.|secrets\.|config\.).*|\d{1,2}[-–+]\w*|[\w.]+[})\](].*|[A-Za-z_]+(?:\.[A-Za-z_]+)+",
    re.I,
)
NO_VALUES = frozenset(
    re.findall(
        r"\w+",
        "required string none null true false optional hidden missing invalid incorrect wrong expired reset "
        "secret text str changed needed empty forgotten manager protected function return field input value "
        "your mine this that обязателен неверный забыт нужен ",
    )
)
IBAN_LENGTHS = dict(
    pair.split("-")
    for pair in [
        "AD-24",
        "AE-23",
        "AL-28",
        "AT-20",
        "AZ-28",
        "BA-20",
        "BE-16",
        "BG-22",
        "BH-22",
        "BR-29",
        "BY-28",
        "CH-21",
        "CR-22",
        "CY-28",
        "CZ-24",
        "DE-22",
        "DK-18",
        "DO-28",
        "EE-20",
        "ES-24",
        "FI-18",
        "FO-18",
        "FR-27",
        "GB-22",
        "GE-22",
        "GI-23",
        "GL-18",
        "GR-27",
        "GT-28",
        "HR-21",
        "HU-28",
        "IE-22",
        "IL-23",
        "IQ-23",
        "IS-26",
        "IT-27",
        "JO-30",
        "KW-30",
        "KZ-20",
        "LB-28",
        "LI-21",
        "LT-20",
        "LU-20",
        "LV-21",
        "MC-27",
        "MD-24",
        "ME-22",
        "MK-19",
        "MT-31",
        "MU-30",
        "NL-18",
        "NO-15",
        "PK-24",
        "PL-28",
        "PS-29",
        "PT-25",
        "QA-29",
        "RO-24",
        "RS-22",
        "SA-24",
        "SE-24",
        "SI-19",
        "SK-24",
        "SM-27",
        "TN-24",
        "TR-26",
        "UA-29",
        "VA-22",
        "VG-24",
        "XK-20",
    ]
)
IBAN = re.compile(r"(?<![0-9A-Za-z])[A-Za-z]{2}\d{2}(?:[ \u00a0-]?[0-9A-Za-z]){11,30}")
CARD = re.compile(r"(?<![\w.,])\d(?:[ \u00a0-]?\d){12,18}(?![\w]|[.,]\d)")
CARD_PREFIX = re.compile(r"4|5[1-5]|2[2-7]|3[4-7]|30[0-5]|38|35|6(?:011|5|4[4-9]|2)")
CARD_GROUPS = re.compile(r"\d{13,19}|\d{4}([ \u00a0-])\d{4}\1\d{4}\1\d{4}(?:\1\d{3})?|\d{4}([ \u00a0-])\d{6}\2\d{4,5}")


DOT = re.compile(r"[^\w-]+dot[^\w-]+")


def _emails(text: str) -> Spans:
    for match in EMAILS.finditer(text):
        local, _, domain = re.sub(r"\s?[\[({]\s?(at|собака)\s?[\])}]\s?|%40", "@", match[0]).partition("@")
        yield *match.span(), f"{local}@{DOT.sub('.', domain)}".casefold()


def _passwords(text: str) -> Spans:
    for in_url in URL_PASSWORD.finditer(text):
        if not NO_PASSWORDS.fullmatch(in_url[1]):
            yield *in_url.span(1), in_url[1]
    place = 0
    while match := SAID_PASSWORD.search(text, place):
        group = "quoted" if match["quoted"] else "bare"
        password = match[group] if group == "quoted" else match[group].rstrip(".,;:?)»”…")
        start, place = match.start(group), match.start(group)
        end = start + len(password)
        if len(password) >= 3 and _is_password(password, match["said"], group == "quoted", text[end : end + 8]):
            yield start, end, password
            place = end


def _is_password(password: str, said: str, quoted: bool, after: str) -> bool:
    """Whether what follows the word password is one, and no sentence about passwords."""
    if NO_PASSWORDS.fullmatch(password) or password.lower() in NO_VALUES:
        return False
    if re.search(r"\d", password) or re.search(r"\w[^\w\s'’-]+\w", password):
        return bool(said.strip()) or (bool(re.search(r"\d", password)) and bool(re.search(r"[^\W\d]", password)))
    return bool(said.strip()) and (
        quoted or (said.strip() in ":=：" and re.match(r"[ \t]*(?:[.,;)\n]|$)", after) is not None)
    )


def _ibans(text: str) -> Spans:
    for match in IBAN.finditer(text):
        length = int(IBAN_LENGTHS.get(match[0][:2].upper(), 0))
        signs = [place for place in range(*match.span()) if text[place].isalnum()]
        if not 0 < length <= len(signs) or text[signs[length - 1] + 1 :][:1].isalnum():
            continue
        value = "".join(text[place] for place in signs[:length]).upper()
        if int("".join(str(int(sign, 36)) for sign in value[4:] + value[:4])) % 97 == 1:
            yield match.start(), signs[length - 1] + 1, value


def _cards(text: str) -> Spans:
    for match in CARD.finditer(text):
        digits = re.sub(r"\D", "", match[0])
        if CARD_GROUPS.fullmatch(match[0]) and CARD_PREFIX.match(digits) and digits[-6:] != "000000" and _luhn(digits):
            yield *match.span(), digits


def _luhn(digits: str) -> bool:
    doubled = [int(digit) * (1 + place % 2) for place, digit in enumerate(reversed(digits))]
    return sum(number - 9 * (number > 9) for number in doubled) % 10 == 0


GAP = r"[ \u00a0.\-–‑/]{0,2}"
INTERNATIONAL = re.compile(
    rf"(?<![\w+])(?:\+|(?<!\d )00(?=[1-9]\d{{0,2}}[ ./(-]))\s?\(?[1-9]\d{{0,2}}\)?(?:{GAP}\(?\d{{1,12}}\)?){{1,7}}"
    r"(?![\w]|[.,]\d)"
)
TIE = r"[ \u00a0‑–-]"
NATIONAL = re.compile(
    r"(?<![\w.,+-])(?:"
    r"(?:1[ .-])?(?:\([2-9]\d{2}\)[ ]?[2-9]\d{2}[-. ]\d{4}|[2-9]\d{2}([-.])[2-9]\d{2}\1\d{4})"
    rf"|8{TIE}?(?:\([349]\d{{2,4}}\)|[349]\d{{2}}){TIE}?\d{{2,3}}{TIE}?\d\d{TIE}?\d\d"  # Russia's
    r"|0[67](?:[ .-]\d\d){4}|07\d{3}[ -]\d{3}[ -]?\d{3}|01[567]\d[ /-]\d{7,8}"  # France's, Britain's, Germany's
    r"|0[789]0[ -]\d{4}[ -]\d{4}|01[016-9]-\d{3,4}-\d{4}"  # Japan's, Korea's
    r")(?![\w-]|[.,]\d)"
)
# What has a number of its own, right before it.
NUMBERED = re.compile(
    r"(?<![^\W_])(?:блок\w*|block|bloque|bloco|транзакци\w*|trans[a-zçãó]+|tx(?:id)?|заказ\w*|заявк\w*|orde[rn]|pedido"
    r"|request|solicitud|ticket|тикет\w*|id|seqno|lt|nonce|hash|amount|value|balance|сумм\w*|баланс\w*|区块|订单|交易)"
    r"[\s:=#№\"'-]{0,4}(?:номер\w*|number|num|no|nr|n[uú]mero|numéro|is|at|height|id)?[\s:=#№\"'.-]{0,4}$",
    re.IGNORECASE,
)
PHONE_WORD = re.compile(
    r"(?:电话|電話|手机|手機|携帯|전화|휴대폰|핸드폰|(?<!\w)(?:(?:tele)?phone|tel|mobile?|whats\s?app|wa\.me/|sms|viber|fax"
    r"|телефон\w*|тел|моб\w*|в[ао][тц]с?ап\w*|вайбер\w*"
    r"|позвони\w*|звони\w*|handy\w*|telefon\w*|rufnummer|ruf|móvil|llám[ae]\w*|tel[eé]fono|téléphone|portable|appel\w*"
    r"|celular|cellulare|(?:my|meine?|mi|meu|mon|мо[йеё]\w{0,2})\s{1,2}(?:number|nummer|n[uú]mero|numéro|номер\w{0,2})"
    r"|(?P<mine>(?:my|his|her|our)\s)?(?P<word>call|cell|text|signal|contact)))"
    r"(?P<between>(?:[\s:.,—–-]{0,3}(?:number|num|no|nr|n°|is|at|me|us|him|her|on|my|it's|номер\w{0,2}|мой|моб|мне|по|на"
    r"|ist|lautet|unter|mich|an|es|à|au|al|est|moi|é|le|号码|號碼|号|號|번호|番号|是|は|는|send|phone)){0,4}"
    r"[\s:.,=?/#№：|—–-]{0,4})"
    r"(?P<number>\(?\d[\d \u00a0()./–-]{5,20}\d)(?![\w]|[.,]\d)",
    re.IGNORECASE,
)
TO_SOMEBODY = re.compile(r"(?<!\w)(?:me|us|him|her|my|mich|moi)(?!\w)|:", re.IGNORECASE)
GROUPED = re.compile(r"(?!\d{1,3}(?: \d{3})+$)(?:\(?\d{2,4}\)?[ .-]{1,2}){2}[\d .-]{2,12}|\d{3}[.-]\d{4}")
UNIT = re.compile(
    r"\s?(?:%|[$€£₽¥₿]|(?:btc|eth|gas|g?wei|bytes?|blocks?|holders|users|refs|eur|rub|usdc|usde|sol|trx|bnb|ston|k|m"
    r"|mln|млн|тыс|руб|usd|usdt|ton|toncoin|coins?|tokens?|nano\w*)(?!\w))",
    re.I,
)
DATE = re.compile(r"\d{4}-\d\d-\d\d.*|\d\d?\.\d\d?\.\d{4}.*")
# The least digits of a number with these first, where they are more than the usual ten.
LONGER = re.compile(r"1[2-9]\d{9}|7[3-9]\d{9}|(?!1|7)\d{10,15}|(?:3[0-9]|4[0-9])\d{7,8}")


def _phones(text: str) -> Spans:
    for match in INTERNATIONAL.finditer(text):
        digits = re.sub(r"\D", "", match[0]).removeprefix("00")
        if LONGER.fullmatch(digits) and _is_dialled(text, match, digits):
            yield *match.span(), digits
    for match in NATIONAL.finditer(text):
        digits = re.sub(r"\D", "", match[0])
        is_whole = digits[0] != "8" or len(digits) == 11 or match[1]
        if is_whole and _is_dialled(text, match, digits) and not NUMBERED.search(text[: match.start()][-40:]):
            yield *match.span(), _from_abroad(digits)
    for match in PHONE_WORD.finditer(text):
        digits = re.sub(r"\D", "", match["number"])
        is_amount = UNIT.match(text, match.end("number")) or digits.endswith("00000")
        if 7 <= len(digits) <= 15 and not DATE.fullmatch(match["number"]) and not is_amount and _is_called(match):
            yield *match.span("number"), _from_abroad(digits)


def _from_abroad(digits: str) -> str:
    """Russia's numbers without the 8 that is dialled at home."""
    return f"7{digits[1:]}" if re.fullmatch(r"8[349]\d{9}", digits) else digits


def _is_called(match: re.Match[str]) -> bool:
    """Whether a word that has other meanings is said of a phone."""
    word = (match["word"] or "").lower()
    is_long = word == "contact" and len(re.sub(r"\D", "", match["number"])) >= 9
    is_told = not word or match["mine"] or is_long or TO_SOMEBODY.search(match["between"])
    return bool(is_told or GROUPED.fullmatch(match["number"]))


def _is_dialled(text: str, match: re.Match[str], digits: str) -> bool:
    """Whether it is a number to call and no amount: those have units, and are round."""
    return not (UNIT.match(text, match.end()) or digits.endswith("00000") or digits.count("0") > 7)


IPV4 = re.compile(r"(?<![\w.-])(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\d)")
IPV6 = re.compile(r"(?<![\w:.])(?=[0-9a-fA-F:]*\d)[0-9a-fA-F]{1,4}(?::{1,2}[0-9a-fA-F]{1,4}){2,7}(?:::)?(?![\w:])")
VERSION = re.compile(r"(?:\bv|version|release|build|верси\w|update|firmware|==|@)[\s:=]{0,2}$", re.I)
LOCAL = [ipaddress.ip_network(network) for network in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")]


def _ips(text: str) -> Spans:
    for match in (*IPV4.finditer(text), *IPV6.finditer(text)):
        try:
            address = ipaddress.ip_address(match[0])
        except ValueError:
            continue
        own = address.is_loopback or address.is_unspecified or address.is_multicast or address.is_link_local
        own = own or any(address in network for network in LOCAL) or address.packed[0] in (0, 255)
        if not own and not VERSION.search(text[max(0, match.start() - 12) : match.start()]):
            yield *match.span(), str(address)


USERNAME = re.compile(
    r"(?<![\w/@.+-])@([A-Za-z][A-Za-z0-9_]{4,31})(?![\w@(/-]|\.\w)"
    r"(?!\s{0,3}\n[ \t]{0,16}(?:@|(?:async|def|class|function|export|public|private|const)\s))"  # no decorator
    r"|(?<![\w.-])(?:t(?:elegram)?\.me/|tg://resolve\?domain=)(?:s/)?"
    r"((?:\+|joinchat/)?[A-Za-z0-9_-]{5,32})(?![\w/]*/(?:\w))"
    r"|(?<!\w)(?:telegram|tg|телеграм\w?|тг|телега)\s?[:—–-]\s?@?([A-Za-z][A-Za-z0-9_]{4,31})(?![\w/.]\w)",
    re.IGNORECASE,
)
NO_USERNAMES = frozenset(
    re.findall(
        r"\w+",
        "property override dataclass staticmethod classmethod abstractmethod pytest fixture param params "
        "return returns throws media import keyframes everyone channel supports decorator component injectable "
        "deprecated author since version wallet charset include layer tailwind notice openzeppelin example ",
    )
)


def _usernames(text: str) -> Spans:
    """Of Telegram. A person's look as a channel's do: bots', published ones and links to a channel's posts stay."""
    for match in USERNAME.finditer(text):
        group = match.lastindex or 1
        name = match[group].lower()
        start = match.start(group) - (text[match.start(group) - 1] == "@")
        if name not in NO_USERNAMES and not name.endswith("bot") and name not in ("share", "addstickers"):
            yield start, match.end(group), name


CAPITALISED = (
    r"(?-i:[A-ZÀ-ÖØ-ÞĀĂĄĆĈĊČĎĐĒĖĘĚĜĞĢĪĮİĶĹĻĽŁŃŅŇŌŐŒŔŘŚŞŠŢŤŪŮŰŲŹŻŽА-ЯЁЄІЇҐ])(?:[^\W\d_]|['’-](?=[^\W\d_])){1,24}"
)
FULL_NAME = (
    rf"{CAPITALISED}(?:[ ](?:(?:de|del|la|van|von|der|da|dos|di|bin|al)[ ]){{0,2}}{CAPITALISED}"
    r"|[ ](?-i:[A-ZА-Я])\.){0,4}"
)
SURNAMES = (
    "王李张刘陈杨赵黄周吴徐孙胡朱高林何郭马罗梁宋郑谢韩唐冯于董萧程曹袁邓许傅沈曾彭吕苏卢蒋蔡贾丁魏薛叶阎余潘杜戴夏钟"
    "汪田任姜范方石姚谭廖邹熊金陆郝孔白崔康毛邱秦江史顾侯邵孟龙万段雷钱汤尹黎易常武乔贺赖龚文張劉陳楊趙黃吳孫馬羅鄭謝"
)
SAID_NAME = re.compile(
    r"(?<!\w)(?:my (?:full |real |legal |first )?name(?:\s+is|['’]s)|i(?:['’]| a)m called"
    r"|меня (?:зовут|звать)|мо[её] имя(?:\s+[—–-])?"
    r"|мене звати|ich hei(?:ß|ss)e|mein name ist|je m['’]appelle|mon nom est|me llamo|mi nombre es|mi chiamo"
    r"|(?:o )?meu nome é|eu me chamo|nazywam się|mam na imię|benim adım|(?:full )?name on (?:the )?(?:card|account):"
    r"|(?:card|account) ?holder(?:['’]s)?(?: name)?:|(?:(?P<full>full)|first|last|legal) name:|фио:)"
    rf"[ ](?P<name>{FULL_NAME})(?!\w)"
    rf"|(?:我叫|我的名字(?:是|叫))[ ]?([{SURNAMES}][\u4e00-\u9fff]{{1,2}})(?=[我是来住今想请在，,。.!！\s]|$)",
    re.IGNORECASE,
)
SAID_NAME_LOWER = re.compile(
    r"(?<!\w)(?:my name(?:\s+is|['’]s)|меня зовут|me llamo|je m['’]appelle|ich hei(?:ß|ss)e)"
    r"[ ]((?:[^\W\d_]{1,15}(?:[ ](?=[^\W\d_])|(?!\w))){1,4})(?P<ends>\s*(?:[,.!)\n]|$))?",
    re.IGNORECASE,
)
SIGNATURE = re.compile(
    r"(?:(?<=\n)|^)[ \t]{0,4}(?:(?:best|kind|warm|many)?[ ]?(?:regards|wishes|greetings)|sincerely(?: yours)?"
    r"|yours (?:sincerely|truly|faithfully)|cheers|thanks|thank you|many thanks|с уважением|спасибо"
    r"|mit freundlichen grüßen|viele grüße|beste grüße|liebe grüße|lg|mfg|cordialement"
    r"|bien à vous|saludos|un saludo|atentamente|cordiali saluti|atenciosamente|з повагою)[,!.]?"
    rf"[ \t]{{0,3}}\n{{1,2}}[ \t—–-]{{0,4}}"
    rf"(?:(?:Dr|Mrs?|Ms|Prof)\.?[ ])?({FULL_NAME})[ \t]{{0,3}}[.,]?[ \t]{{0,3}}(?=\n|$)"
    rf"|(?:(?:best|kind) regards|с уважением|mit freundlichen grüßen|viele grüße|cordialement|atentamente)"
    rf",?[ ]({FULL_NAME})(?=[ \t.]{{0,3}}(?:\n|$))",
    re.IGNORECASE,
)
NO_NAMES = frozenset(
    re.findall(
        r"\w+",
        "not on in the required ton toncoin notcoin tether bitcoin ethereum team support your here missing ",
    )
)
# What a sentence goes on with after a name, and what it says of one; a name without capitals is none of these.
AFTER_NAMES = frozenset(
    re.findall(
        r"\w+",
        "and but can from help how i im my please pls what why where и из как мне мой моя не нужна нужен помогите "
        "помоги пожалуйста потерял почему привет у хочу что я y de et und aber",
    )
)
NO_LOWER_NAMES = NO_NAMES | frozenset(
    re.findall(
        r"\w+",
        "a an are as at being by cannot correct different even everywhere for gone has hidden incorrect invalid is it "
        "known long nowhere of only or private public really same so still taken there this to too unknown visible "
        "which who with wrong written а в вы где на но по с так тут это el la lo un una como no pero qué pas comme "
        "nicht wie",
    )
)
PARTICIPLE = re.compile(r"\w+(?:[bcdfgiklnprstvwz]ed|rmed|ing)")
PERSONAL = re.compile(
    r"e-?mail|phone|\btel|passport|birth|\bdob\b|national|iban|surname|card|account|паспорт|телефон", re.I
)
OF_TOKEN = re.compile(r"symbol|ticker|token|coin|supply|decimals|jetton|crypto|blockchain|protocol|wrapped|usd", re.I)
NEAR_CHARACTERS = 120
# Names that are words as well, which are no names elsewhere.
WORDS_TOO = frozenset(
    re.findall(
        r"\w+",
        "will may price mark bill grace hope rich chase art max ton sol june april august joy faith dawn rose iris "
        "lily jack frank grant drew pat rob sue bob gene guy dean earl miles chip dash penny cash coin gold silver "
        "gram case major young long short white black green brown gray king banks bond day stone park wood woods "
        "field rice cook best good power swift block chain page bush ford lane love star sky summer winter noble "
        "sharp small little man вера надежда любовь роман лев слава мир роза майя марк волк luz paz cruz rosa mar "
        "rico ángel dolores león wolf lang klein groß stark ernst frei kaiser könig sommer blanc petit",
    )
)


def _names(text: str) -> Spans:
    for pattern in (SAID_NAME, SIGNATURE):
        for match in pattern.finditer(text):
            group = match.lastindex or 1
            name = match[group]
            if not NO_NAMES & set(name.lower().split()) and (pattern is SIGNATURE or _is_persons(text, match)):
                yield *match.span(group), name.casefold()
    for match in SAID_NAME_LOWER.finditer(text):
        if name := _name_without_capitals(match[1].split(), match["ends"] is not None):
            yield match.start(1), match.start(1) + len(name), name


def _is_persons(text: str, match: re.Match[str]) -> bool:
    """Whether a full name is not a token's."""
    near = text[max(0, match.start() - NEAR_CHARACTERS) : match.end() + NEAR_CHARACTERS]
    return not match["full"] or bool(PERSONAL.search(near) or (" " in match["name"] and not OF_TOKEN.search(near)))


def _name_without_capitals(words: list[str], is_end: bool) -> str:
    """The name that the words begin with, where the sentence ends or goes on after it as after a name."""
    name = list(takewhile(lambda word: word not in AFTER_NAMES, words))
    ends = is_end or len(name) < len(words)
    are_names = all(word.islower() and word not in NO_LOWER_NAMES and not PARTICIPLE.fullmatch(word) for word in name)
    return " ".join(name) if ends and are_names and len(name) <= 3 else ""


def _spellings(name: str) -> set[str]:
    """How a name may be written elsewhere: whole, its first and its last word, also with capitals."""
    words = name.split()
    ends = {word for word in (words[0], words[-1]) if word.casefold() not in WORDS_TOO}
    whole = {name} if len(words) > 1 else set()
    return {
        spelling for written in whole | ends for spelling in (written, written.title() if name.islower() else written)
    }


NAME_WORD = re.compile(r"\w+(?:(?!['’]s\b)['’-]\w+)*")
NAME_WORDS = 13  # of FULL_NAME, at most


def _find_names(text: str, names: dict[str, str]) -> list[Finding]:
    """Names that were said to be some before, wherever they stand now."""
    words = list(NAME_WORD.finditer(text)) if names else []
    found, end = [], 0
    for place, word in enumerate(words):
        for last in reversed(words[place : place + NAME_WORDS]):
            written = text[word.start() : last.end()]
            if word.start() >= end and len(written) > 2 and written in names:
                end = last.end()
                found.append(Finding(word.start(), end, "NAME", names[written]))
                break
    return found


def _by_form(pattern: re.Pattern[str]) -> Callable[[str], Spans]:
    return lambda text: ((*match.span(), match[0]) for match in pattern.finditer(text))


# What a text must have somewhere for a recogniser to find anything in it, as `signs` has it. A sign says what is there,
# never what is not, so that it is also in whatever the text is a part of. One that is too wide costs a recogniser's
# time; one that is too narrow leaks.

ALPHANUMERICS, FRIENDLY_START = (
    "[0-9A-Za-z]{22}",
    r"[EUk0][Qf][\w+/-]{18}",
)  # no longer, for the scanner counts them all
KEY_PREFIX = (
    r"(?:sk-|sb_secret_|sbp_|AKIA|ASIA|gh[pousr]_|github_pat_|glpat-|[srp]k_(?:live|test)_|whsec_|AIza|ya29\.|xapp-|hf_"
    rf"|r8_|gsk_|rpa_|npm_|SG\.|dop_v1_|tgp_v1_|\d{{8}}:)(?:{WORD}|[+/=-]){{16}}"
    r"|xox[abeoprs]-[0-9A-Za-z-]{10}|hooks\.slack\.com/services/|discord(?:app)?\.com/api/webhooks/"
    r"|(?:infura\.io|alchemy(?:api)?\.(?:com|io)|quiknode\.pro)/"
)
NAMED_KEY = (
    r"(?i:(?:key(?:[_ -]?id)?|token|secret|bearer|api|апи|ключ|schlüssel|密钥|密鑰|키)"
    rf"[\"']?{SPACE}{{0,3}}(?:[:=—–]|=>|is|это|ist|est?|é|是)?{SPACE}{{0,3}}[\"'`]?(?:bearer )?"
    rf"(?:{WORD}|[+/=.~-]){{16}})"
)
BASIC_KEY = rf"(?i:authorization[\"']?{SPACE}{{0,3}}[:=]{SPACE}{{0,3}}[\"'`]?basic{SPACE})"
BROKEN_START = rf"[EUk0]Q[\w+/-]*{SPACE}{{1,8}}[\w+/-]{{8}}"
SAID_HASH = (
    rf"(?i:(?:tx|transaction|txn|hash|signature|транзакци|х[эе]ш|подпись){WORD}*"
    rf"[{SPACE_SIGNS}:=/#-]*(?:is{SPACE}+)?[\w+/-]{{43}}(?:[^\w+/=-]|\z))"
)
PASSWORD = (
    r"(?i:(?:\b(?:pass(?:word|code|phrase)?|pwd?|pin(?:[ -]?code)?|passwort|kennwort|contraseña|mot de passe|senha"
    rf"|hasło)|парол[ья]|пин(?:-?код)?|şifrem?|密码)(?:{SPACE}+(?:for|от|к|für){SPACE}+(?:{WORD}|\.)+(?:{SPACE}(?:{WORD}|\.)+)?)?"
    rf"(?:[\"']?{SPACE}*[:=：—–是-]|{SPACE}+(?:is|was|ist|lautet|est|es|é|это|to)[{SPACE_SIGNS}:]"
    rf"|{SPACE}+[^{SPACE_SIGNS}]*\d))"
)
EMAIL = (
    rf"(?:@|%40|[\[({{]{SPACE}?(?:at|собака){SPACE}?[\])}}]{SPACE}?)(?:{WORD}|-)+"
    rf"(?:\.|{SPACE}?[\[({{]{SPACE}?dot{SPACE}?[\])}}])"
)
DIGITS = r"\d(?:[ .‑–/()-]{0,4}\d)"
CALLED = (
    r"(?i:(?:电话|電話|手机|手機|携帯|전화|휴대폰|핸드폰|phone|\btel|\bmobil|\bcel|\bcall|\btext|\bsms|\bviber|\bsignal|\bfax"
    r"|\bcontact|тел|моб|номер|звони|в[ао][тц]с?ап|вайбер|\bhandy|\bruf|\bmóvil|\bllám|\bportable|\bappel|\bn[uú]m|\bwa\.me/"
    rf"|\bwhats{SPACE}?app){WORD}*"
    rf"(?:[{SPACE_SIGNS}:.,—–-]*(?:number|num|no|nr|n°|is|at|me|us|him|her|on|my|it's|номер{WORD}*|мой|моб|мне|по|на|ist|lautet"
    r"|unter|mich|an|es|à|au|al|est|moi|é|le|号码|號碼|号|號|번호|番号|是|は|는|send|phone))*"
    rf"[{SPACE_SIGNS}:.,=?/#№：|—–-]*\(?\d[\d ()./–-]{{5}})"
)
USER = (
    rf"(?i:@[a-z]\w{{4}}|\bt(?:elegram)?\.me/|\btg://resolve|(?:\btelegram|\btg|телеграм{WORD}?|тг|телега)"
    rf"{SPACE}?[:—–-]{SPACE}?@?[a-z]\w{{4}})"
)
NAME = (
    r"(?i:\bmy (?:full |real |legal |first )?name|\bi(?:['’]| a)m called|меня (?:зовут|звать)|мо[её] имя|мене звати"
    r"|\bich hei(?:ß|ss)e|\bmein name|\bje m['’]appelle|\bmon nom|\bme llamo|\bmi nombre|\bmi chiamo|\bmeu nome"
    r"|\beu me chamo|\bnazywam|\bmam na imi|\bbenim ad|\bname on |\b(?:full|first|last|legal) name:|фио:"
    r"|\b(?:card|account) ?holder|我叫|我的名字)"
)
SIGNED = (
    r"(?i:(?:regards|wishes|greetings|sincerely|yours|faithfully|truly|cheers|thanks|thank you|уважением|спасибо|grüßen"
    r"|grüße|\blg|\bmfg|cordialement|bien à vous|saludo|saludos|atentamente|saluti|atenciosamente|повагою)"
    r"[,!.]?[ \t]{0,3}\n|(?:regards|уважением|grüßen|grüße|cordialement|atentamente),?[ ](?-i:[A-Zi\x{80}-\x{10ffff}]))"
)


LETTER = r"[A-Za-z\x{80}-\x{10ffff}]"
ANNOUNCED_PHRASE = (
    rf"(?i:(?:(?:{guards.PHRASE_NAMES}|{guards.MINE}{guards.PERSONAL_NAMES})[^A-Za-z]{{0,9}}{guards.MARKED}"
    rf"|{guards.MINE}(?:{guards.PHRASE_NAMES}|{guards.PERSONAL_NAMES}){SPACE}{{1,3}}(?:{guards.SAYING}))"
    rf"[^A-Za-z]{{0,9}}(?:{LETTER}{{1,12}}[^A-Za-z]{{1,25}}){{11}}{LETTER})"
)
TOLD_PHRASE = f"(?i:{guards.TOLD})"


def _listed_run() -> str:
    """Six words of BIP-39's list in a row, or five after a phrase's name, whatever is between them but letters."""
    words = "|".join(guards.word_list())
    return (
        rf"(?i:(?:(?:\A|[^a-z])(?:{words})|(?:phrase|сид|мнемо)[^a-z]*)[^a-z]+(?:(?:{words})[^a-z]+)"
        rf"{{{FEWEST_PHRASE_WORDS - 1}}}(?:{words}))"
    )


class Recogniser(NamedTuple):
    """What finds something of a kind, and the signs without any of which it finds nothing."""

    kind: Kind
    find: Callable[[str], Spans]
    signs: tuple[str, ...]


PHRASE_SIGN = _listed_run()
PHRASE_SIGNS = (PHRASE_SIGN, ANNOUNCED_PHRASE, TOLD_PHRASE)
ADDRESS_SIGNS = (ALPHANUMERICS, FRIENDLY_START, r"(?i:bc|tb|ltc|addr|cosmos|osmo)1[0-9a-zA-Z]{11}")
RECOGNISERS = [
    Recogniser("PRIVATE_KEY", _private_keys, (ALPHANUMERICS, "-----BEGIN ", rf"(?:\d{{1,3}}{SPACE}*,{SPACE}*){{20}}")),
    Recogniser("PRIVATE_KEY", _by_form(OTHER_PRIVATE_KEYS), (ALPHANUMERICS,)),
    Recogniser("SEED_PHRASE", _seed_phrases, PHRASE_SIGNS),
    Recogniser("SEED_PHRASE", _cut_phrases, PHRASE_SIGNS),
    Recogniser("JWT", _by_form(JWTS), ("eyJ",)),
    Recogniser("API_KEY", _by_form(API_KEYS), (KEY_PREFIX,)),
    Recogniser("WALLET", _by_form(EXTENDED_PUBLIC_KEYS), ("[xyztuvYZUV]pub[0-9A-Za-z]{18}",)),
    Recogniser("WALLET", _ton_addresses, (FRIENDLY_START,)),
    Recogniser("WALLET", _broken_addresses, (BROKEN_START,)),
    Recogniser(
        "TX_HASH", _base64_hashes, (r"[\w+/%-]{8}(?:=|%3[Dd])", r"(?:/tx/|/transaction/|hash: )[\w+-]{18}", SAID_HASH)
    ),
    Recogniser("WALLET", _addresses, ADDRESS_SIGNS),
    Recogniser("TX_HASH", _hashes, (ALPHANUMERICS,)),
    Recogniser("WALLET", _checked_addresses, (ALPHANUMERICS,)),
    Recogniser("WALLET", _joined_addresses, ADDRESS_SIGNS),
    Recogniser("WALLET", _hex_addresses, (ALPHANUMERICS,)),
    Recogniser("WALLET", _cut_addresses, (FRIENDLY_START,)),
    Recogniser("WALLET", _by_form(WALLET_NAMES), (r"[0-9a-z]\.(?:ton|eth)",)),
    Recogniser("API_KEY", _named_api_keys, (NAMED_KEY, BASIC_KEY)),
    Recogniser("PASSWORD", _passwords, (PASSWORD, "://[^ /]*:[^ /]*@")),
    Recogniser("EMAIL", _emails, (EMAIL,)),
    Recogniser("IBAN", _ibans, (r"[A-Za-z]{2}\d{2}(?:[ -]?[0-9A-Za-z]){11}",)),
    Recogniser("CARD", _cards, (r"\d(?:[ -]?\d){12}",)),
    Recogniser("PHONE", _phones, (DIGITS + "{8}", CALLED)),
    Recogniser("IP", _ips, (r"(?:\d{1,3}\.){3}\d", "::", "(?:[0-9a-fA-F]{1,4}:){7}")),
    Recogniser("USERNAME", _usernames, (USER,)),
    Recogniser("NAME", _names, (NAME, SIGNED)),
]
ALL = frozenset(range(len(RECOGNISERS)))
SIGNS = sorted({sign for recogniser in RECOGNISERS for sign in recogniser.signs} - {PHRASE_SIGN})
LOOKED_FOR = [frozenset(place for place in ALL if sign in RECOGNISERS[place].signs) for sign in SIGNS]
PHRASES_LOOKED_FOR = frozenset(place for place in ALL if PHRASE_SIGN in RECOGNISERS[place].signs)

SCAN, SCAN_PHRASES = scanner(SIGNS), scanner([PHRASE_SIGN])  # together they would have three times the states
NONE: frozenset[int] = frozenset()


def suspects(shown: str) -> frozenset[int]:
    """Which of `RECOGNISERS` may find something in the text; the others find nothing."""
    try:
        data = shown.encode() if shown.isascii() else folded(shown).encode()
    except UnicodeEncodeError:  # half a surrogate pair
        return ALL
    signs, phrases = SCAN(data), SCAN_PHRASES(data)
    if len(signs) == len(phrases) == 1:
        return NONE
    if not signs or not phrases:  # RE2 has failed
        return ALL
    places = [LOOKED_FOR[sign] for sign in signs if sign < len(SIGNS)]
    return NONE.union(*places, PHRASES_LOOKED_FOR if len(phrases) > 1 else NONE)
