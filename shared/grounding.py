"""Whether an answer stands on its sources: its citations checked, its addresses and links looked for in them.

A citation is a bracket with passage numbers of up to three digits and nothing else, in any of the forms models
write: `[1]`, `[1, 2]`, `[1-3]`, `[^1]`, `【1】`, `【1†source】`. It leaves as `[1]`, `[1][2]`, …, without the
numbers of which there is no passage. A markdown link (`[1](https://…)`) is none, nor is `[0.3%]` or `[2024]`.
"""

import base64
import binascii
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

FlagKind = Literal["unknown_address", "unknown_url"]

OPENING, INSIDE, CLOSING = r"[\[【［]\^?", r"[\d\s,;–—-]", r"[\]】］]"
BLANKS = 4  # before a citation, at most, that belong to it
BARE = rf"{OPENING}({INSIDE}{{1,40}})(?:†[^\[\]【】]{{0,40}})?{CLOSING}(?!\()"
CITATION, BARE_CITATION = re.compile(rf"([ \t]{{0,{BLANKS}}}){BARE}"), re.compile(BARE)
NUMBERED = re.compile(rf"{OPENING}({INSIDE}{{1,40}})(?:†[^\[\]【】]{{0,40}})?{CLOSING}")
NUMBERS = re.compile(r"\s*\d{1,3}(?:\s*[-–—,;]\s*\d{1,3})*\s*")
# What may yet become a citation: an end without its beginning's fate, at most that long.
UNSETTLED = re.compile(rf"[ \t]{{0,4}}(?:{OPENING}{INSIDE}{{0,40}}(?:†[^\[\]【】]{{0,40}})?{CLOSING}?)?$")

# What hides in a text: zero-width and direction characters, the tags of U+E0000, and markdown's backslashes.
INVISIBLE = re.compile(r"[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff\U000e0000-\U000e007f]|\\(?=[_*~.-])")
ADDRESS = re.compile(
    r"(?<![\w-])(?:"
    r"(?P<friendly>[EUk0][Qf](?=[\w+/-]{0,47}\d)(?:[\w+/-]{46}|[\w-]{44,48}))"  # TON's 48, and slips of a letter or two
    r"|(?P<raw>-?\d:[0-9a-fA-F]{64})"
    r"|(?P<hex>0[xX][0-9a-fA-F]{38,42})"  # Ethereum's 40, and slips
    r"|(?P<bech32>(?:bc|tb|ltc|addr|cosmos|osmo)1[02-9ac-hj-np-z]{11,98}|(?:BC|TB)1[02-9AC-HJ-NP-Z]{11,98})"
    r"|(?P<base58>[1-9A-HJ-NP-Za-km-z]{26,44})"
    r")(?![\w-])",
    re.ASCII,
)
BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
BASE58_BYTES = {25, 32}  # Bitcoin's, Tron's and their like; Solana's
TON_TAGS = {0x11, 0x51, 0x91, 0xD1}  # bounceable or not, each of the main or a test network

LABELS, PORT, PATH = r"(?:[^\W_](?:[\w-]*[^\W_])?\.)+", r"(?::\d{2,5})?", r"[^\s<>\"'`|\\^{}\[\]【】]*"
URL = re.compile(rf"(?<![\w+.-])[a-zA-Z][a-zA-Z0-9+.-]{{1,20}}://\w{PATH}")
# Ends that stand for a site when a word has them; not those that are files' (md, py, sh, so, sol) or code's (id, name).
SITES = (
    "com|org|net|io|co|me|ai|app|dev|xyz|fi|finance|financial|exchange|network|foundation|money|cash|bank|fund|capital"
    "|ventures|trade|trading|market|markets|fun|gg|ly|ag|cc|tv|ws|in|is|it|to|su|ru|ua|by|kz|uk|eu|de|fr|es|pt|nl|ch|pl"
    "|cz|tr|ir|cn|jp|kr|hk|sg|vn|br|ca|au|info|biz|pro|top|site|online|store|shop|club|live|life|space|website|web|link"
    "|click|page|tech|cloud|digital|world|today|news|wiki|support|help|center|team|zone|global|agency|services|systems"
    "|solutions|games|game|gift|gifts|win|vip|wtf|lol|art|pw|icu|ton|eth"
)
# GMX.IO is one, and so is STON.fi; "coin.The" and "coin.TON" lack a space. Before a path any end will do.
DOMAIN = re.compile(
    rf"(?<![\w/.-])(?:(?:{LABELS}(?:{SITES})|(?:[A-Z0-9][A-Z0-9-]*\.)+(?:{SITES.upper()}))"
    rf"(?![\w-]|\.[^\W\d_]){PORT}(?:[/?#]{PATH})?|{LABELS}[a-z]{{2,24}}{PORT}/[\w~@%+-]{PATH})"
)
TRAILING = ".,;:!?'\"*_~)}>»”’…"


@dataclass(frozen=True, slots=True)
class Flag:
    """Something in an answer that stands in none of its sources: an address to send to, a site to go to."""

    kind: FlagKind
    text: str


@dataclass(slots=True)
class Citations:
    """An answer's citations of `count` passages, checked while it is being said.

    `text` is what has been let out, `numbers` the passages it cites, in the order of their first use.
    """

    count: int
    text: str = ""
    numbers: list[int] = field(default_factory=list)
    held: str = ""

    def hear(self, piece: str) -> str:
        """What may go out now: all but an end that could still become a citation."""
        heard = self.held + piece
        unsettled = UNSETTLED.search(heard)
        settled = unsettled.start() if unsettled else len(heard)
        self.held = heard[settled:]
        return self._let_out(heard[:settled])

    def rest(self) -> str:
        """What was held back, when nothing more comes."""
        held, self.held = self.held, ""
        return self._let_out(held)

    def _let_out(self, heard: str) -> str:
        settled = CITATION.sub(self._checked, heard)
        self.text += settled
        return settled

    def _checked(self, citation: re.Match[str]) -> str:
        if not NUMBERS.fullmatch(citation[2]):
            return citation[0]
        valid = [number for number in dict.fromkeys(_numbers(citation[2])) if 1 <= number <= self.count]
        self.numbers += [number for number in valid if number not in self.numbers]
        return citation[1] * bool(valid) + "".join(f"[{number}]" for number in valid)


def defused(text: str) -> str:
    """A passage's text on one line and without numbers in brackets, so that it can't pass for two passages."""
    return NUMBERED.sub(r"(\1)", " ".join(text.split()))


def uncited(text: str) -> str:
    """The text without citations."""
    pieces, end = [], 0
    for citation in _citations(text):
        before = text[end : citation.start()]
        blanks = len(before) - len(before.rstrip(" \t"))
        pieces.append(before[: len(before) - min(blanks, BLANKS)])
        end = citation.end()
    return "".join(pieces) + text[end:]


def cited(text: str) -> list[int]:
    """The numbers that the text's citations name, each once, whether or not there are such passages."""
    named = (_numbers(citation[1]) for citation in _citations(text))
    return list(dict.fromkeys(number for numbers in named for number in numbers))


def visible(text: str) -> str:
    """The text without what a reader would not see."""
    return INVISIBLE.sub("", text)


def unknown(answer: str, known: Iterable[str]) -> list[Flag]:
    """The answer's addresses and URLs that stand in none of the known texts, each once, in the answer's order.

    Addresses are compared as accounts (the forms of one TON account are one, 0x in any case), URLs by host and
    path; a host alone is known by any URL of it.
    """
    said = visible(answer)
    found: list[tuple[int, FlagKind, str, str]] = [
        *((start, "unknown_address", text, account) for start, text, account in addresses(said)),
        *((start, "unknown_url", text, place) for start, text, place in _urls(said)),
    ]
    if not found:
        return []
    texts = [visible(text) for text in known]
    accounts = {account for text in texts for _, _, account in addresses(text)}
    places = {place for text in texts for _, _, place in _urls(text)}
    places |= {place.partition("/")[0] for place in places}
    flags: dict[str, Flag] = {}
    for _, kind, text, canonical in sorted(found):
        if canonical not in accounts | places:
            flags.setdefault(canonical, Flag(kind, text))
    return list(flags.values())


def addresses(text: str) -> Iterator[tuple[int, str, str]]:
    """Where an address starts, how it is written, and the account it means."""
    for match in ADDRESS.finditer(text):
        written = match[0]
        match match.lastgroup:
            case "friendly":
                yield match.start(), written, ton_account(written)
            case "base58":
                if _is_base58_address(written):
                    yield match.start(), written, written
            case _:
                yield match.start(), written, written.lower()


def ton_account(friendly: str) -> str:
    """`workchain:hash` of a TON address; one with a wrong checksum is no other's account, and stays as it is."""
    try:
        decoded = base64.b64decode(friendly.replace("-", "+").replace("_", "/"), validate=True)
    except binascii.Error:
        return friendly
    if (
        len(decoded) != 36
        or decoded[0] not in TON_TAGS
        or binascii.crc_hqx(decoded[:34], 0) != int.from_bytes(decoded[34:])
    ):
        return friendly
    return f"{int.from_bytes(decoded[1:2], signed=True)}:{decoded[2:34].hex()}"


def _citations(text: str) -> list[re.Match[str]]:
    """As `CITATION` finds them, but for the blanks before them, at each of which it would begin to look."""
    if "[" not in text and "【" not in text and "［" not in text:
        return []
    return [citation for citation in BARE_CITATION.finditer(text) if NUMBERS.fullmatch(citation[1])]


def _numbers(cited: str) -> Iterator[int]:
    for part in re.split(r"[,;]", cited):
        first, *_, last = re.findall(r"\d+", part) * 2
        yield from range(int(first), int(last) + 1)


def _is_base58_address(word: str) -> bool:
    """Whether it has the length of an address and the look of chance: no word or name has all three kinds of sign."""
    if not (re.search(r"\d", word) and re.search(r"[a-z]", word) and re.search(r"[A-Z]", word)):
        return False
    number = 0
    for character in word:
        number = number * 58 + BASE58.index(character)
    zeros = len(word) - len(word.lstrip("1"))
    return (number.bit_length() + 7) // 8 + zeros in BASE58_BYTES


def _urls(text: str) -> Iterator[tuple[int, str, str]]:
    """Where a URL or a bare domain starts, how it is written, and its host and path."""
    for match in URL.finditer(text):
        url = _trimmed(match[0])
        yield match.start(), url, _place(url)
    for match in DOMAIN.finditer(URL.sub(lambda url: " " * len(url[0]), text)):
        domain = _trimmed(match[0])
        yield match.start(), domain, _place(f"https://{domain}")


def _trimmed(url: str) -> str:
    """Without the sentence's punctuation; a bracket stays where the URL has opened it."""
    end, unopened = len(url), url.count(")") - url.count("(")
    while end and url[end - 1] in TRAILING and not (url[end - 1] == ")" and unopened <= 0):
        end -= 1
        unopened -= url[end] == ")"
    return url[:end]


def _place(url: str) -> str:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return url
    named = host.lower().removeprefix("www.").rstrip(".") + (f":{port}" if port not in (None, 80, 443) else "")
    return named + parts.path.rstrip("/")
