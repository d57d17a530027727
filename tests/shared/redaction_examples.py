"""Writes `redaction_examples.jsonl`: texts with what must be found in them, made from a fixed seed, nobody's data.

`python -m tests.shared.redaction_examples`
"""

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

from mnemonic import Mnemonic

from shared.grounding import BASE58

FILE = Path(__file__).with_suffix(".jsonl")
BECH32 = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
MARKED = re.compile(r"⟦([A-Z_]+):(.*?)⟧", re.DOTALL)  # how a text is written below
_turn = count()


def chance(size: int) -> bytes:
    """The next bytes of the seed."""
    return hashlib.shake_256(f"redaction {next(_turn)}".encode()).digest(size)


def letters(alphabet: str, size: int) -> str:
    return "".join(alphabet[byte % len(alphabet)] for byte in chance(size))


def base58(raw: bytes, checked: bool = False) -> str:
    if checked:
        raw += hashlib.sha256(hashlib.sha256(raw).digest()).digest()[:4]
    number, text = int.from_bytes(raw), ""
    while number:
        number, rest = divmod(number, 58)
        text = BASE58[rest] + text
    return "1" * (len(raw) - len(raw.lstrip(b"\0"))) + text


def bech32(prefix: str, version: int, program: bytes) -> str:
    def polymod(values: list[int]) -> int:
        check = 1
        for value in values:
            top, check = check >> 25, (check & 0x1FFFFFF) << 5 ^ value
            for place, generator in enumerate((0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)):
                check ^= generator if top >> place & 1 else 0
        return check

    bits = "".join(f"{byte:08b}" for byte in program)
    bits += "0" * (-len(bits) % 5)
    values = [version, *(int(bits[place : place + 5], 2) for place in range(0, len(bits), 5))]
    expanded = [*(ord(sign) >> 5 for sign in prefix), 0, *(ord(sign) & 31 for sign in prefix)]
    check = polymod([*expanded, *values, *[0] * 6]) ^ (0x2BC830A3 if version else 1)
    return f"{prefix}1" + "".join(BECH32[value] for value in [*values, *(check >> 5 * (5 - i) & 31 for i in range(6))])


def keccak256(message: bytes) -> bytes:
    mask = (1 << 64) - 1

    def rotated(lane: int, by: int) -> int:
        return (lane << by % 64 | lane >> 64 - by % 64) & mask

    padded = message + b"\x01" + b"\0" * (134 - len(message)) + b"\x80"  # one block will do
    lanes = [[0] * 5 for _ in range(5)]
    for place in range(17):
        lanes[place % 5][place // 5] = int.from_bytes(padded[8 * place : 8 * place + 8], "little")
    register = 1
    for _ in range(24):
        columns = [lanes[x][0] ^ lanes[x][1] ^ lanes[x][2] ^ lanes[x][3] ^ lanes[x][4] for x in range(5)]
        mixed = [columns[(x + 4) % 5] ^ rotated(columns[(x + 1) % 5], 1) for x in range(5)]
        lanes = [[lanes[x][y] ^ mixed[x] for y in range(5)] for x in range(5)]
        x, y, current = 1, 0, lanes[1][0]
        for step in range(24):
            x, y = y, (2 * x + 3 * y) % 5
            current, lanes[x][y] = lanes[x][y], rotated(current, (step + 1) * (step + 2) // 2)
        for y in range(5):
            row = [lanes[x][y] for x in range(5)]
            for x in range(5):
                lanes[x][y] = row[x] ^ (~row[(x + 1) % 5] & row[(x + 2) % 5])
        for place in range(7):
            register = (register << 1 ^ (register >> 7) * 0x71) % 256
            if register & 2:
                lanes[0][0] ^= 1 << (1 << place) - 1
    return b"".join(lanes[x][0].to_bytes(8, "little") for x in range(4))


def evm() -> str:
    """With EIP-55's checksum in its case."""
    plain = chance(20).hex()
    digest = keccak256(plain.encode()).hex()
    return "0x" + "".join(a.upper() if int(b, 16) > 7 else a for a, b in zip(plain, digest, strict=False))


def ton(account: bytes = b"", tag: int = 0x11, workchain: int = 0) -> str:
    body = bytes([tag, workchain % 256]) + (account or chance(32))
    return base64.urlsafe_b64encode(body + binascii.crc_hqx(body, 0).to_bytes(2)).decode()


def phrase(words: int = 12, language: str = "english") -> str:
    """BIP-39's, with its checksum."""
    return Mnemonic(language).to_mnemonic(chance(words * 4 // 3))


def iban(country: str, account: str) -> str:
    digits = "".join(str(int(sign, 36)) for sign in account + country + "00")
    return f"{country}{98 - int(digits) % 97:02}{account}"


def card(prefix: str, length: int = 16) -> str:
    body = prefix + letters("0123456789", length - 1 - len(prefix))
    total = sum(
        (2 * int(digit) - 9 * (int(digit) > 4)) if place % 2 == 0 else int(digit)
        for place, digit in enumerate(reversed(body))
    )
    return body + str(-total % 10)


def grouped(text: str, sign: str = " ") -> str:
    return sign.join(text[place : place + 4] for place in range(0, len(text), 4))


def jwt() -> str:
    parts = (b'{"alg":"HS256","typ":"JWT"}', b'{"sub":"' + chance(6).hex().encode() + b'"}', chance(32))
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)


def hidden(text: str) -> str:
    """With a zero-width space after every fifth character."""
    return "\u200b".join(text[place : place + 5] for place in range(0, len(text), 5))


DIGITS = "0123456789"
ALPHANUMERIC = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"

WALLETS: list[tuple[str, Callable[[], str]]] = [
    ("ton", ton),
    ("ton not bounceable", lambda: ton(tag=0x51)),
    ("ton raw", lambda: f"0:{chance(32).hex()}"),
    ("ton masterchain", lambda: ton(workchain=-1)),
    ("evm", evm),
    ("solana", lambda: base58(b"\x07" + chance(31))),
    ("bitcoin", lambda: base58(b"\0" + chance(20), checked=True)),
    ("bitcoin script", lambda: base58(b"\x05" + chance(20), checked=True)),
    ("bech32", lambda: bech32("bc", 0, chance(20))),
    ("taproot", lambda: bech32("bc", 1, chance(32))),
    ("tron", lambda: base58(b"\x41" + chance(20), checked=True)),
]
WALLET_TEXTS = [
    "What is the balance of ⟦WALLET:{}⟧?",
    "Отправь 12.5 TON на ⟦WALLET:{}⟧, пожалуйста.",
    "Mein Wallet:⟦WALLET:{}⟧\nWarum kommt nichts an?",
    "¿Puedes mirar https://explorer.example/address/⟦WALLET:{}⟧?tab=history por favor?",
    '```\nsend(to="⟦WALLET:{}⟧", amount=1_000_000)\n```',
    "**⟦WALLET:{}⟧** (mine), not 2024-11-02.",
    "我的钱包⟦WALLET:{}⟧收不到币",
]
HASHES: list[tuple[str, Callable[[], str]]] = [
    ("hex", lambda: chance(32).hex()),
    ("evm", lambda: "0x" + chance(32).hex()),
    ("ton", lambda: base64.b64encode(b"\x5a" + chance(31)).decode()),
    ("solana", lambda: base58(b"\x2a" + chance(63))),
]
HASH_TEXTS = [
    "What happened in transaction ⟦TX_HASH:{}⟧?",
    "Почему транзакция ⟦TX_HASH:{}⟧ не прошла?",
    "tx: ⟦TX_HASH:{}⟧, block 41234567",
    "Siehe https://explorer.example/tx/⟦TX_HASH:{}⟧ bitte",
    "(hash ⟦TX_HASH:{}⟧) failed with exit code 37",
]
PHRASE_TEXTS = [
    "⟦SEED_PHRASE:{}⟧",
    "my seed phrase is: ⟦SEED_PHRASE:{}⟧. Is it still safe?",
    "Моя сид-фраза ⟦SEED_PHRASE:{}⟧ что делать",
    'Recovery words "⟦SEED_PHRASE:{}⟧" do not import',
    "I cannot log in with ⟦SEED_PHRASE:{}⟧\n\nWhat now?",
    '{{"mnemonic": "⟦SEED_PHRASE:{}⟧"}}',
]
KEY_TEXTS = [
    "my secret key ⟦PRIVATE_KEY:{}⟧ does not import",
    "Private key: ⟦PRIVATE_KEY:{}⟧.",
    "приватный ключ ⟦PRIVATE_KEY:{}⟧ — он верный?",
    "export PRIVATE_KEY=⟦PRIVATE_KEY:{}⟧",
]
API_KEY_TEXTS = [
    "My key is ⟦API_KEY:{}⟧ and I get 401.",
    "export KEY=⟦API_KEY:{}⟧\npython main.py",
    "Ключ ⟦API_KEY:{}⟧, почему 403?",
]


def examples() -> Iterator[str]:
    """The texts, with what must be found between ⟦KIND: and ⟧."""
    for _, make in WALLETS:
        yield from (text.format(make()) for text in WALLET_TEXTS)
    for make in (ton, evm):
        yield f"Check ⟦WALLET:{hidden(make())}⟧ now"
        yield f"_⟦WALLET:{make()}⟧_ is mine"
    yield f"ton://transfer/⟦WALLET:{ton()}⟧?amount=1000000000&text=hi"
    yield f"From ⟦WALLET:{evm()}⟧→⟦WALLET:{evm()}⟧, 250 USDT"
    yield f"⟦WALLET:{ton()}⟧/⟦WALLET:{ton(tag=0x51)}⟧;⟦WALLET:{evm()}⟧,"
    yield f"It is cut off: ⟦WALLET:{ton()[:31]}⟧"
    yield f"It is cut off: ⟦WALLET:{evm()[:29]}⟧…"
    yield f"⟦WALLET:{ton().replace('_', '/').replace('-', '+')}⟧ in the other alphabet"
    yield f"кошелек⟦WALLET:{ton()}⟧деньги"
    yield f"⟦WALLET:{bech32('bc', 0, chance(32)).upper()}⟧ from a QR code"
    yield f"ethereum:⟦WALLET:{evm()}⟧@1?value=2.014e18"
    yield f"https://etherscan.example/token/⟦WALLET:{evm()}⟧?a=⟦WALLET:{evm().lower()}⟧#code"
    yield f'{{"wallet":"⟦WALLET:{ton(tag=0x51)}⟧","network":"-239"}}'
    yield f"кошелёк ⟦WALLET:{evm().replace('a', 'а', 1).replace('e', 'е', 1)}⟧, с чужими буквами"

    for _, make in HASHES:
        yield from (text.format(make()) for text in HASH_TEXTS)
    yield f"https://tonscan.example/tx/⟦TX_HASH:{base64.urlsafe_b64encode(chance(32)).decode().replace('=', '%3D')}⟧"
    yield f"Calldata ⟦TX_HASH:0xa9059cbb{chance(64).hex()}⟧ means what?"

    for length in (12, 15, 18, 21, 24):
        yield from (text.format(phrase(length)) for text in PHRASE_TEXTS)
    yield f"⟦SEED_PHRASE:{phrase().replace(' ', ', ')}⟧"
    yield f"⟦SEED_PHRASE:{phrase(24).upper()}⟧"
    yield f"⟦SEED_PHRASE:{phrase().replace(' ', chr(10))}⟧\n"
    numbered = "\n".join(f"{number}. {word}" for number, word in enumerate(phrase(24).split(), 1))
    yield f"My words:\n1. ⟦SEED_PHRASE:{numbered[3:]}⟧\nHelp me!"
    words = phrase(24).split()
    yield f"⟦SEED_PHRASE:{' '.join([*words[:11], 'aple', *words[12:]])}⟧ has a slip"
    yield f"secret phrase: ⟦SEED_PHRASE:{' '.join(phrase().split()[:8])}⟧"
    yield f"My recovery phrase is ⟦SEED_PHRASE:{' '.join(phrase().split()[:10])}⟧ and the rest I lost"
    yield f"seed is ⟦SEED_PHRASE:{hidden(phrase())}⟧"

    for make in (
        lambda: chance(32).hex(),
        lambda: "0x" + chance(32).hex(),
        lambda: base58(b"\x80" + chance(32), checked=True),
        lambda: base58(b"\x80" + chance(32) + b"\x01", checked=True),
        lambda: base58(bytes.fromhex("0488ade4") + chance(74), checked=True),
        lambda: base58(b"\x2b" + chance(63)),
    ):
        yield from (text.format(make()) for text in KEY_TEXTS)
    body = grouped(base64.b64encode(chance(192)).decode(), "")
    lines = "\n".join(body[place : place + 64] for place in range(0, 256, 64))
    yield f"Is it right?\n⟦PRIVATE_KEY:-----BEGIN PRIVATE KEY-----\n{lines}\n-----END PRIVATE KEY-----⟧\nThanks"
    yield f"⟦PRIVATE_KEY:-----BEGIN RSA PRIVATE KEY-----\n{lines}⟧\nand it is cut off here"
    yield f"id.json holds ⟦PRIVATE_KEY:{json.dumps(list(chance(64)))}⟧"
    yield f"⟦PRIVATE_KEY:{json.dumps(list(chance(64)), separators=(',', ':'))}⟧"
    yield f"nostr ⟦PRIVATE_KEY:nsec1{letters(BECH32, 58)}⟧"
    yield f"stellar ⟦PRIVATE_KEY:S{letters('ABCDEFGHIJKLMNOPQRSTUVWXYZ234567', 55)}⟧!"

    for key in (
        "sk-proj-" + letters(ALPHANUMERIC, 64),
        "sk-" + letters(ALPHANUMERIC, 48),
        "sk-ant-api03-" + letters(ALPHANUMERIC, 60),
        "sb_secret_" + letters(ALPHANUMERIC, 31),
        "sbp_" + chance(20).hex(),
        "AKIA" + letters("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", 16),
        "ghp_" + letters(ALPHANUMERIC, 36),
        "github_pat_" + letters(ALPHANUMERIC, 60),
        "sk_live_" + letters(ALPHANUMERIC, 24),
        "AIza" + letters(ALPHANUMERIC, 35),
        f"xoxb-{letters(DIGITS, 12)}-{letters(ALPHANUMERIC, 24)}",
        f"{letters('123456789', 10)}:AA{letters(ALPHANUMERIC, 33)}",
        "hf_" + letters(ALPHANUMERIC, 34),
        "r8_" + letters(ALPHANUMERIC, 37),
    ):
        yield from (text.format(key) for text in API_KEY_TEXTS)
    for text in (
        "api_key=⟦API_KEY:{}⟧",
        '{{"apiKey": "⟦API_KEY:{}⟧"}}',
        "Authorization: Bearer ⟦API_KEY:{}⟧",
        "AWS_SECRET_ACCESS_KEY=⟦API_KEY:{}⟧ in my .env",
        "мой api key: ⟦API_KEY:{}⟧",
        "https://api.example/v2?access_token=⟦API_KEY:{}⟧&limit=10",
    ):
        yield text.format(letters(ALPHANUMERIC, 40))
    for text in (
        "Token ⟦JWT:{}⟧ expired",
        "Authorization: Bearer ⟦JWT:{}⟧",
        "jwt=⟦JWT:{}⟧;",
        "?auth=⟦JWT:{}⟧&x=1",
        "⟦JWT:{}⟧",
    ):
        yield text.format(jwt())

    yield f"https://api.telegram.example/bot⟦API_KEY:{letters('123456789', 10)}:AA{letters(ALPHANUMERIC, 33)}⟧/getMe"
    yield f"rotate ⟦API_KEY:rk_live_{letters(ALPHANUMERIC, 30)}⟧, ⟦API_KEY:ASIA{letters('ABCDEFGH234567', 16)}⟧"
    yield f"cut off: ⟦JWT:{jwt()[:60]}⟧..."
    yield f"hash=⟦TX_HASH:{base64.b64encode(b'z' + chance(31)).decode()}⟧"
    yield f"lt:47011234000003 hash:⟦TX_HASH:{chance(32).hex().upper()}⟧"
    yield f"my eth wallet: ⟦WALLET:{evm()[2:]}⟧"
    yield f"[⟦WALLET:{ton()}⟧](https://tonviewer.example/⟦WALLET:{ton(tag=0x51)}⟧/transactions)"
    yield f"wallet-⟦WALLET:{evm()}⟧-old and addr=⟦WALLET:{evm()}⟧&x"
    yield f"⟦SEED_PHRASE:{phrase().title()}⟧"
    yield f'{{"words": ["⟦SEED_PHRASE:{phrase(24).replace(" ", chr(34) + ", " + chr(34))}⟧"]}}'
    yield f"⟦SEED_PHRASE:{phrase().replace(' ', '-')}⟧"
    yield f"⟦SEED_PHRASE:{phrase().replace(' ', ' | ')}⟧ |"
    yield f"My secret recovery phrase is ⟦SEED_PHRASE:{phrase()}⟧ and my password is ⟦PASSWORD:Qwerty,2⟧"
    yield f"I wrote ⟦SEED_PHRASE:{phrase(24)}⟧. Then I lost it"
    yield from PEOPLE
    for country, account in (
        ("DE", letters(DIGITS, 18)),
        ("FR", letters(DIGITS, 23)),
        ("GB", "NWBK" + letters(DIGITS, 14)),
        ("ES", letters(DIGITS, 20)),
        ("AE", letters(DIGITS, 19)),
    ):
        yield f"IBAN ⟦IBAN:{grouped(iban(country, account))}⟧ bitte"
        yield f"Cash out to ⟦IBAN:{iban(country, account)}⟧."
    for prefix, length in (("4", 16), ("51", 16), ("2200", 16), ("34", 15), ("62", 16)):
        yield f"my card ⟦CARD:{card(prefix, length)}⟧ was declined"
    yield f"карта ⟦CARD:{grouped(card('2202'))}⟧, оплата не прошла"
    yield f"card ⟦CARD:{grouped(card('4'), '-')}⟧ exp 12/29"
    yield from (text.replace("{hash}", chance(32).hex()) for text in CLEAN)
    yield from told_phrases()
    yield from named_keys()


def told_phrases() -> Iterator[str]:
    """Seed phrases in other words than BIP-39's English ones in a row."""
    for text, language in (
        ("mi frase semilla: ⟦SEED_PHRASE:{}⟧", "spanish"),
        ("mi frase de recuperación es ⟦SEED_PHRASE:{}⟧. ¿Es segura?", "spanish"),
        ("助记词: ⟦SEED_PHRASE:{}⟧", "chinese_simplified"),
        ("我的助记词是 ⟦SEED_PHRASE:{}⟧，无法导入", "chinese_simplified"),
        ("ma phrase: ⟦SEED_PHRASE:{}⟧", "french"),
        ("Ma phrase de récupération est : ⟦SEED_PHRASE:{}⟧.", "french"),
        ("моя сид-фраза: ⟦SEED_PHRASE:{}⟧", "russian"),
        ("La mia frase segreta: ⟦SEED_PHRASE:{}⟧", "italian"),
        ("Minha frase de recuperação: ⟦SEED_PHRASE:{}⟧", "portuguese"),
        ("シードフレーズ：⟦SEED_PHRASE:{}⟧", "japanese"),
        ("시드 문구: ⟦SEED_PHRASE:{}⟧", "korean"),
    ):
        yield text.format(phrase(language=language))
    yield f"моя сид фраза ⟦SEED_PHRASE:{' '.join(phrase().split()[:5])}⟧"
    yield f"My wallet is ⟦SEED_PHRASE:{' '.join(letter_for_letter(phrase()))}⟧"
    for words, slips in ((12, [5]), (12, [9]), (24, [3]), (24, [7, 16])):
        told = phrase(words).split()
        told = [f"{word[:2]}u{word[3:]}qk" if place in slips else word for place, word in enumerate(told)]
        yield f"It is ⟦SEED_PHRASE:{' '.join(told)}⟧, isn't it?"
        yield f"My seed phrase: ⟦SEED_PHRASE:{' '.join(told)}⟧"
    told = phrase().split()
    yield f"the words are ⟦SEED_PHRASE:{' '.join(told[:6])} and then {' '.join(told[6:])}⟧."
    ordinals = re.findall(r"\w+", "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth")
    for between in " word ", " ", " word is ", " is ":
        told = [f"{ordinal}{between}{word}" for ordinal, word in zip(ordinals, phrase().split(), strict=True)]
        yield f"Look: {ordinals[0]}{between}⟦SEED_PHRASE:{', '.join(told).removeprefix(ordinals[0] + between)}⟧."


def named_keys() -> Iterator[str]:
    """Keys by what is said of them or where they go, and what is broken into lines."""
    for text in (
        "секретный ключ: ⟦API_KEY:{}⟧",
        "ключ апи: ⟦API_KEY:{}⟧, не работает",
        "мой ключ — ⟦API_KEY:{}⟧",
        "API-Schlüssel: ⟦API_KEY:{}⟧",
        "mi clave api: ⟦API_KEY:{}⟧",
        "Ma clé d'API est ⟦API_KEY:{}⟧",
        "API密钥：⟦API_KEY:{}⟧",
        "my key is ⟦API_KEY:{}⟧",
        "token ⟦API_KEY:{}⟧",
        "wss://eth.g.⟦API_KEY:alchemy.com/v2/{}⟧",
        "https://⟦API_KEY:discord.com/api/webhooks/1234567890123456789/{}⟧",
    ):
        yield text.format(letters(ALPHANUMERIC, 64))
    yield f"https://mainnet.⟦API_KEY:infura.io/v3/{chance(16).hex()}⟧ is down"
    for sign in ("Authorization: Basic ", "-H 'authorization: basic ", '"Authorization": "Basic '):
        yield f"{sign}⟦API_KEY:{base64.b64encode(b'jane:' + chance(6).hex().encode()).decode()}⟧"
    for at, between in ((30, "\n"), (60, "\r\n  "), (76, "\n")):
        token = jwt()
        yield f"It is ⟦JWT:{token[:at]}{between}{token[at:]}⟧\nThanks"
    token = jwt()
    yield f"⟦JWT:{chr(10).join(token[place : place + 32] for place in range(0, len(token) - 16, 32))}⟧\n\nis it valid?"
    for version, prefix in (("0488b21e", "my xpub"), ("04b24746", "zpub here")):
        yield f"{prefix}: ⟦WALLET:{base58(bytes.fromhex(version) + chance(74), checked=True)}⟧, see my balance"
    for said in ("my tx hash is", "hash", "хэш:"):
        yield f"{said} ⟦TX_HASH:{base64.urlsafe_b64encode(chance(32)).decode().rstrip('=')}⟧, where is it?"
    for at, between in ((24, " "), (30, "\n"), (12, "\n    ")):
        address = ton()
        yield f"Send to ⟦WALLET:{address[:at]}{between}{address[at:]}⟧, please"


def letter_for_letter(text: str) -> list[str]:
    """Its words with Cyrillic letters in the place of Latin ones."""
    return text.translate(str.maketrans("aco", "асо")).split()


PEOPLE = [
    "reach me: ⟦EMAIL:john.smith@example.com⟧ or ⟦PHONE:+1-415-555-2671⟧",
    "tel:⟦PHONE:+14155552671⟧",
    "appelle-moi au ⟦PHONE:06 12 34 56 78⟧",
    "⟦PHONE:+971 50 123 4567⟧, ⟦PHONE:+55 11 91234-5678⟧",
    "My name is ⟦NAME:Nguyễn Văn An⟧",
    "Mi nombre es ⟦NAME:María del Carmen⟧.",
    "Sincerely,\nDr. ⟦NAME:Jane Roe⟧",
    "Thanks!\n\n- ⟦NAME:Bob⟧",
    "my password is ⟦PASSWORD:$ecret123⟧; pw: password: ⟦PASSWORD:xK9_y⟧",
    "my pass is ⟦PASSWORD:hunter2⟧ and pw: ⟦PASSWORD:hunter3⟧",
    "login: bob / password: ⟦PASSWORD:S3cret#1⟧",
    "[⟦IP:2001:db8::1⟧]:443",
    "join https://t.me/⟦USERNAME:joinchat/AAAAAEkk2WdoDrB4⟧ now",
    "Write to ⟦EMAIL:jane.doe+ton@example.com⟧.",
    "Моя почта ⟦EMAIL:ivan_p@mail.example.ru⟧, жду",
    "mailto:⟦EMAIL:a.b@sub.example.co.uk⟧?subject=x",
    "Mail an <⟦EMAIL:JUERGEN@EXAMPLE.DE⟧>;",
    "⟦EMAIL:jane (at) example (dot) com⟧ is mine",
    "⟦EMAIL:jane[at]example.org⟧ please",
    "https://app.example/?email=⟦EMAIL:jane%40example.net⟧&x=1",
    "邮箱⟦EMAIL:li.wei@example.cn⟧。",
    "⟦EMAIL:почта@пример.рф⟧ тоже",
    "⟦EMAIL:x@example.com⟧,⟦EMAIL:y@example.com⟧",
    "Call ⟦PHONE:+49 151 23456789⟧ please",
    "My number is ⟦PHONE:+1 (415) 555-2671⟧.",
    "Тел. ⟦PHONE:+7 (916) 123-45-67⟧",
    "Звоните ⟦PHONE:8 (916) 123-45-67⟧ после 10:00",
    "телефон ⟦PHONE:89161234567⟧",
    "⟦PHONE:+442079460958⟧ is my mobile",
    "Mi teléfono es ⟦PHONE:612 345 678⟧",
    "Ruf mich an: ⟦PHONE:0151 2345678⟧",
    "phone: ⟦PHONE:415-555-2671⟧",
    "⟦PHONE:(415) 555-2671⟧ works too",
    "whatsapp ⟦PHONE:+33 6 12 34 56 78⟧",
    "https://wa.me/⟦PHONE:4915123456789⟧",
    "我的手机号码是⟦PHONE:13812345678⟧",
    "mobile ⟦PHONE:0044 20 7946 0958⟧",
    "My name is ⟦NAME:John Smith⟧ and I lost 5 TON.",
    "Меня зовут ⟦NAME:Иван Петров⟧, я из Казани.",
    "меня зовут ⟦NAME:ольга⟧, помогите",
    "Ich heiße ⟦NAME:Jürgen Müller⟧.",
    "Mein Name ist ⟦NAME:Anna⟧, guten Tag",
    "Je m'appelle ⟦NAME:Zoé Dupont⟧.",
    "Me llamo ⟦NAME:José García⟧ y tengo USDT",
    "Where is my swap?\n\nBest regards,\nJohn Smith".replace("John Smith", "⟦NAME:John Smith⟧"),
    "Помогите!\nС уважением,\n⟦NAME:Мария Иванова⟧",
    "Danke\nMit freundlichen Grüßen\n⟦NAME:Karl Groß⟧\n",
    "my name's ⟦NAME:Mary O'Neill⟧!",
    "My name is ⟦NAME:Oleg⟧. ⟦NAME:Oleg⟧ is the owner.",
    "my password is ⟦PASSWORD:Tr0ub4dor&3⟧, I cannot log in",
    "Password: ⟦PASSWORD:hunter2⟧",
    "пароль: ⟦PASSWORD:qwerty123⟧, не пускает",
    "Mein Passwort ist ⟦PASSWORD:Sommer2024!⟧",
    "mi contraseña es ⟦PASSWORD:gato_1984⟧",
    "password = '⟦PASSWORD:correcthorse⟧'",
    "postgres://app:⟦PASSWORD:s3cr3tpw⟧@db.example.com:5432/app",
    "My PIN is ⟦PASSWORD:4821⟧",
    "пароль ⟦PASSWORD:zx81spectrum⟧ правильный?",
    "Logged in from ⟦IP:203.0.113.77⟧ at 10:30",
    "http://⟦IP:198.51.100.4⟧:8080/x",
    "IP ⟦IP:2001:db8:85a3::8a2e:370:7334⟧, not mine",
    "айпи ⟦IP:198.51.100.23⟧, это не я",
    "Send it to ⟦WALLET:anna-maria.ton⟧, please",
    "is ⟦WALLET:jane99.eth⟧ the same as ⟦WALLET:jane99.ton⟧?",
    "The price of the coin.TON is up, and so is ETH.eth",
    "open https://docs.example.org/index.ton.html or main.tonic",
    "Write ⟦USERNAME:@jane_doe99⟧ on Telegram",
    "https://t.me/⟦USERNAME:jane_doe99⟧",
    "Пишите ⟦USERNAME:@ivan_petrov⟧, или t.me/⟦USERNAME:ivan_petrov⟧",
    "telegram: ⟦USERNAME:janedoe⟧",
    "Join t.me/⟦USERNAME:+AbCdEf123456⟧ now",
    "(⟦USERNAME:@crypto_hans⟧)",
    "Email: ⟦EMAIL:Ivan.Petrov@Mail.Example.Ru⟧",
    "⟦EMAIL:Foo@Bar.Com⟧ or ⟦EMAIL:FOO@BAR.Org⟧",
    "⟦EMAIL:o'brien@example.com⟧, or 'ask ⟦EMAIL:d’arcy@example.com⟧'",
    "{'email':'⟦EMAIL:bob@example.com⟧'}",
    "почта: ⟦EMAIL:иван.petrov@example.ru⟧",
    "⟦EMAIL:ПОЧТА@ПРИМЕР.РФ⟧",
    "手机号 ⟦PHONE:13812345678⟧",
    "我的手机号是⟦PHONE:13812345678⟧，请联系我",
    "mon numéro est le ⟦PHONE:06 12 34 56 78⟧",
    "appelez-moi au ⟦PHONE:0612345678⟧",
    "joignable : ⟦PHONE:06.12.34.56.78⟧",
    "my number is ⟦PHONE:415 555 2671⟧",
    "contact ⟦PHONE:4155552671⟧",
    "вотсап ⟦PHONE:89112223344⟧",
    "ватсап: ⟦PHONE:9112223344⟧",
    "телефон — ⟦PHONE:89991234567⟧",
    "⟦PHONE:89991234567⟧ это мой",
    "⟦PHONE:8-911-2223344⟧ и ⟦PHONE:8 495 123 45 67⟧",
    "офис: ⟦PHONE:8 (4852) 12-34-56⟧",
    "⟦PHONE:07911 123456⟧ is mine, ⟦PHONE:0151 23456789⟧ my wife's",
    "電話 ⟦PHONE:090-1234-5678⟧",
    "전화 ⟦PHONE:010-1234-5678⟧",
    "мой номер ⟦PHONE:9161234567⟧, позвоните на номер ⟦PHONE:9161234568⟧",
    "Mi número es ⟦PHONE:612345678⟧; meu número: ⟦PHONE:912345678⟧",
    "номер телефона: ⟦PHONE:9161234567⟧",
    "cell: ⟦PHONE:4155552671⟧, or text me at ⟦PHONE:4155552672⟧",
    "call ⟦PHONE:415-555-2671⟧",
    "My name is ⟦NAME:Ivan Petrov⟧. Mr ⟦NAME:Petrov⟧'s transfer failed, ⟦NAME:Petrov⟧ again",
    "Me llamo ⟦NAME:José Luis García López⟧ y tengo USDT",
    "my name is ⟦NAME:john smith⟧",
    "hi, my name is ⟦NAME:john smith⟧ and I lost 5 TON. ⟦NAME:John⟧ again",
    "my name is ⟦NAME:ahmed⟧, please help",
    "Меня зовут ⟦NAME:иван петров⟧",
    "меня зовут ⟦NAME:иван петров⟧ помогите вывести",
    "我叫⟦NAME:王伟⟧",
    "我的名字是⟦NAME:李小龙⟧，请帮忙",
    "cardholder: ⟦NAME:John Smith⟧",
    "Account holder name: ⟦NAME:JANE ROE⟧, card lost",
    "Full name: ⟦NAME:Ivan Petrov⟧",
    "Full name: ⟦NAME:Madonna⟧, passport lost",
    "My name is ⟦NAME:Will⟧. It is stuck. Will it work?",
    "My name is ⟦NAME:Mark Price⟧. Price of TON? ⟦NAME:Mark Price⟧ asks to mark it",
]

CLEAN = [
    "price went from 0.00001234 to 0.00005678, lt 1700000000000 ms",
    "The number 8 916 blocks, номер блока 41234567, номер заявки 12345678",
    "(-1,8000000000000000,41234567), seqno:41234567, GMT+0200",
    "token=TON&amount=100, access token expires_in 3600",
    "mobile 2.0 release 2024.11.02, tel aviv 1000000",
    "My name is Tonkeeper Support; My phone number isn't accepted",
    "@contextmanager\ndef held(self): ...",
    "select model_name, version, action, model_name, model_id from public.model_history where version = model",
    "sha256: {hash}",
    "secret_key: process.env.SUPABASE_SECRET_KEY, jwt_secret = settings.supabase_jwt_secret",
    "password=$PASSWORD, password: ********, password: %s, password: {password}",
    "https://t.me/toncoin_news/123 is a post",
    "The price is $1,234.56, up 12.5% since 2024-11-02T10:00:00Z.",
    "I have 1 000 000 000 jettons and +500 000 000 more",
    "+100000000 USDT came in block 41234567.",
    "Swap 1234567890123456 nanotons, lt 47011234000003",
    "1000000000000000000 wei is 1 ETH",
    "Gas 21000, gwei 35.5, nonce 1024, seqno 48123456",
    "Between 10:30 and 18:00 on 12.05.2024 or 05/12/2024",
    "TON/USDT, STON, NOT, DOGS, wBTC and ETH-USDC at 0.3%",
    "How do I swap a token in a market where the price of the coin is very small and the pool has a large fee?",
    "Please check the current gas price before you trade, then wait for the bridge to finish.",
    "Abandon hope: the market will crash again, I will sell coin and cash and exit.",
    "What is a seed phrase, and where do I keep my secret words safe?",
    "The doc is 550e8400-e29b-41d4-a716-446655440000.",
    "See handler.py line 120, README.md and v1.2.3.4 of the app",
    "Version 10.15.7.1 and 127.0.0.1:54321 and 192.168.1.10",
    "My password is not working, what do I do?",
    "Password is required. The password must be at least 8 characters.",
    "I forgot my password: please help",
    "password: str = Field(...)",
    "DATABASE_URL=postgres://user:${PASSWORD}@localhost/app",
    "api_key = os.environ['OPENAI_API_KEY']",
    "token: toncoin, secret: none, api key is missing",
    "The access token of the user is read from the settings",
    "@property\ndef price(self): ...",
    "@pytest.fixture and npm i @supabase/supabase-js",
    "Ask @wallet_bot or t.me/CryptoTestBot",
    "My name is on the list, isn't it?",
    "The token's name is Notcoin. I am Long Bitcoin.",
    "Thanks,\nit works now",
    "It is an ERC-20; std::vector<int> a::b; 0x1f; 0xa9059cbb",
    "0x0000000000000000000000000000000000000000 and 0x000000000000000000000000000000000000dEaD",
    "sha256:{hash} is the file's checksum",
    "My wallet EQAv…9NOT and 0x12ab…34cd",
    "commit 8f997f9c2b1d4e5f60718293a4b5c6d7e8f90a1b",
    "Call me when block 41234567 is out. My phone cost 1299.99 EUR.",
    "The phone has 128000000 bytes; phone 13 is 1 200 000 RUB",
    "Комиссия 0,05 TON, курс 5,42, всего 1 250 000 рублей за 2024 год",
    "Der Kurs liegt bei 5,42 €, das sind 1.250.000,00 € am 24.12.2024",
    "El precio es 1.234,56 y la comisión 0,3 %",
    "价格是5.42美元，区块41234567",
    "<WALLET_1> sent 5 TON to <WALLET_2>",
    "1. buy 2. sell 3. hold; 4 4 4 4",
    "Slippage 0.5-1%, 3-5 minutes, 1-2-3, 24/7, 100x",
    "Order 4000000000000000 and id 5500000000000001",
    "a@b, user@host, git@github.com:ston-fi/sdk.git",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "Donaudampfschifffahrtselektrizitaetenhauptbetriebswerk",
    "eyJ is how a JWT starts, sk- how a key does, AKIA too",
    "https://ston.fi/swap?ft=TON&tt=USDT&fa=100",
    "Contract exit code -14, opcode 0x0f8a7ea5, query_id 13835058055282163712",
    "APY 12.345678901% for 365 days, TVL $1234567890.12",
    "The best regards paid, i.e. rewards, are high.",
    "Recovery phrase: Settings → Security → Backup → Show recovery phrase → Enter PIN → Done → Close → Finish",
    "Seed phrase: twelve random English words generated during wallet setup, giving full access to funds.",
    "My seed phrase: I wrote it down somewhere but now I cannot find the paper, what should I do next?",
    "мои слова: ты всегда помогаешь мне, когда биржа опять не выводит деньги на мой кошелёк",
    "Mi frase favorita: no hay que vender nunca en pánico porque el mercado siempre vuelve a subir",
    "First swap TON, second stake STON, third wait: token, pool, fee, price and gas can change any time.",
    "助记词是由12个或24个单词组成的，请不要告诉任何人，也不要截图",
    "Wallet backup, key, token; then secret number, code and exit",
    "npm i react@18.2.0 @types/node@Latest, java.lang.Object@1b6d3586, a@b.c",
    "Блок номер 41234567, блок номер: 38912345, номер блока 41234567",
    "el bloque número 41234567; o bloco número 41234568",
    "транзакция номер 46545654000003, заявка номер 1234567, заказ номер: 7654321",
    "le numéro 41234567 et le numéro de bloc 41234568; order number 1234567",
    "BTC call 65000-70000 spread, ETH call 3500-4000",
    "call 1234567 gas, a cell 12345678 refs, signal 10000001, text 7654321",
    "the contact form 1234567, call 1 234 567 users",
    "block 89991234567, lt: 89991234567, amount=89991234567, заказ 89991234567",
    "89991234567 nanotons, 89 991 234 567 RUB, 84951234567 TON, 83412345678 gas",
    '{"value": "89991234567", "id": 83991234567}',
    "Full name: Toncoin\nSymbol: TON. Toncoin is the native coin, Toncoin again",
    "Full name: Notcoin. Notcoin is a game; Full name: Tether USD, its symbol is USDT",
    "my name is not shown; my name is wrong in the app; my name is still wrong. my name is verified, it says",
    "my name is connected with the wallet, my name is being used by somebody else",
    "меня зовут на работу, меня зовут в чат",
    "我叫外卖，我叫你去",
    "Cardholder Verification Method; account holder: you",
    "Je m'appelle comment? Me llamo la atención que no funcione",
    "the LP token TON/USDT-LP-DeDust-v2, token liquid-staking-v2-pool and token jUSDT-TON-stonfi-lp-v1",
    "token: liquid-staking-v2-pool; Authorization: Basic authentication, Authorization: Basic <credentials>",
    "see https://docs.infura.io/api/networks and https://www.alchemy.com/docs/get-started",
    "the transaction hash is internationalization-of-the-explorers-page; REQUIRED something-longer",
    "type\nDynamic: home-page\nDynamic: keywords\nDynamic: license\nDynamic: license-file\nDynamic: project-url",
    "EQUITY something-longer is required, UQ something-else-again",
]


def labelled(marked: str) -> dict[str, object]:
    spans = [{"text": text, "type": kind} for kind, text in MARKED.findall(marked)]
    return {"text": MARKED.sub(r"\2", marked), "spans": spans}


def lines() -> str:
    global _turn
    _turn = count()
    return "".join(json.dumps(labelled(text), ensure_ascii=False) + "\n" for text in examples())


if __name__ == "__main__":
    FILE.write_text(lines(), encoding="utf-8")
