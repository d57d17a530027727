"""What must go no further than the gateway: seed phrases and private keys that a user pastes into a question."""

import hashlib
import re
from functools import cache

from mnemonic import Mnemonic

from shared.errors import SecretInMessage
from shared.grounding import BASE58

PHRASE_WORDS = 12  # the shortest of BIP-39; TON's have 24 of the same list
WORD = re.compile(r"[a-z]+", re.IGNORECASE)
# By their own form: PEM, BIP-32's extended keys, and a Solana key pair as its tools write it.
KEYS = re.compile(
    rf"-----BEGIN [A-Z ]*PRIVATE KEY-----|\b[xyztuv]prv[{BASE58}]{{100,112}}\b"
    r"|\[\s*(?:\d{1,3}\s*,\s*){63}\d{1,3}\s*\]"
)
IMPORT_FORMAT = re.compile(rf"\b[5KL9c][{BASE58}]{{50,51}}\b")  # Bitcoin's WIF
# By what is said of them, for hashes and signatures look the same.
NAMED = re.compile(
    r"(?:private|secret|signing)[\s_-]*key|\bseed\b|приватн\w*\s+ключ|секретн\w*\s+ключ|privat\w*\s+schlüssel"
    r"|clave\s+privada|clé\s+privée|chave\s+privada",
    re.IGNORECASE,
)
UNMARKED = re.compile(rf"(?<!\w)(?:(?:0x)?[0-9a-fA-F]{{64}}|[{BASE58}]{{86,88}})(?!\w)")
NEAR_CHARACTERS = 80


def refuse_secrets(message: str) -> None:
    """Raises `SecretInMessage` for a message that holds a seed phrase or a private key."""
    if _has_phrase(message) or KEYS.search(message) or _has_import_format(message) or _has_named_key(message):
        raise SecretInMessage(
            "This looks like a seed phrase or a private key. It was neither kept nor sent on. Never paste it anywhere:"
            " whoever has it has the wallet. If anybody may have seen it, move the funds to a new one."
        )


def _has_phrase(message: str) -> bool:
    """Twelve words of BIP-39's list in a row, whatever numbers and signs stand between them.

    Prose doesn't do that: the list has none of the, of, is, to and and.
    """
    run = 0
    for word in WORD.findall(message):
        run = run + 1 if word.lower() in _words() else 0
        if run == PHRASE_WORDS:
            return True
    return False


def _has_import_format(message: str) -> bool:
    return any(_is_checked(match[0]) for match in IMPORT_FORMAT.finditer(message))


def _has_named_key(message: str) -> bool:
    """A key that something nearby says is one."""
    for match in UNMARKED.finditer(message):
        start = max(0, match.start() - NEAR_CHARACTERS)
        if NAMED.search(message[start : match.start()]) or NAMED.search(message[match.end() :][:NEAR_CHARACTERS]):
            return True
    return False


def _is_checked(text: str) -> bool:
    """Whether it is base58 with its four bytes of checksum, as Bitcoin has it."""
    number = 0
    for character in text:
        number = number * 58 + BASE58.index(character)
    raw = number.to_bytes(40, "big").lstrip(b"\0")
    return hashlib.sha256(hashlib.sha256(raw[:-4]).digest()).digest()[:4] == raw[-4:]


@cache
def _words() -> frozenset[str]:
    return frozenset(Mnemonic("english").wordlist)
