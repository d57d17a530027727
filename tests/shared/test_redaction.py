"""What must not be in training data: found, numbered, told from what only looks like it."""

import json
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from shared import redaction, signs
from shared.redaction import Kind, Redactor, published
from tests.shared import redaction_examples
from tests.shared.test_grounding import BECH32, BITCOIN, NOT, NOT_RAW, SOLANA, STON, TRON, WBTC, bounceless
from tests.shared.test_guards import EXTENDED, HASH, IMPORT_FORMAT, LONG_PHRASE, PHRASE, SIGNATURE, SPANISH

EXAMPLES = [json.loads(line) for line in redaction_examples.FILE.read_text(encoding="utf-8").splitlines()]
KNOWLEDGE = Path(__file__).parents[2] / "sql" / "knowledge"
ANY_LETTERS_CASE = {"i": "ı", "I": "İ", "s": "ſ", "S": "ſ", "k": "\u212a", "K": "\u212a"}
ODD = "\u00a0\u2009\u3000\x0b\x1c\x85\n\t٣ßẞéПа’—–…“”\u200b\\_*😀０Ａ\ufffc\ud83d: .,-/()@+="
SECRET: tuple[Kind, ...] = ("SEED_PHRASE", "PRIVATE_KEY", "API_KEY", "JWT", "WALLET", "TX_HASH")


def redacted(text: str, *known: str) -> str:
    return Redactor(published(known)).redact(text)


def found(text: str) -> Counter[tuple[int, int, str]]:
    """Where the redactor finds what, as places in the text."""
    shown = Redactor()._find(text)
    return Counter((finding.start, finding.end, finding.kind) for finding in shown)


def labelled(text: str, spans: list[dict[str, str]]) -> Counter[tuple[int, int, str]]:
    places: Counter[tuple[int, int, str]] = Counter()
    end = 0
    for span in spans:
        start = text.index(span["text"], end)
        end = start + len(span["text"])
        places[start, end, span["type"]] += 1
    return places


def test_the_examples_are_what_their_script_writes() -> None:
    assert len(EXAMPLES) >= 320
    assert redaction_examples.FILE.read_text(encoding="utf-8") == redaction_examples.lines()


def test_the_examples_are_found_and_nothing_else() -> None:
    right: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    missed: Counter[str] = Counter()
    for example in EXAMPLES:
        got, want = found(example["text"]), labelled(example["text"], example["spans"])
        right.update(kind for _, _, kind in got & want)
        wrong.update(kind for _, _, kind in got - want)
        missed.update(kind for _, _, kind in want - got)

    def precision(*kinds: str) -> float:
        return sum(right[kind] for kind in kinds) / max(1, sum(right[kind] + wrong[kind] for kind in kinds))

    def recall(*kinds: str) -> float:
        return sum(right[kind] for kind in kinds) / max(1, sum(right[kind] + missed[kind] for kind in kinds))

    rows = [f"{'type':12} {'right':>5} {'wrong':>5} {'missed':>6} {'precision':>9} {'recall':>6}"] + [
        f"{kind:12} {right[kind]:5} {wrong[kind]:5} {missed[kind]:6} {precision(kind):9.3f} {recall(kind):6.3f}"
        for kind in get_args(Kind)
    ]
    table = "\n" + "\n".join(rows)
    assert all(recall(kind) >= 0.99 and precision(kind) >= 0.95 for kind in SECRET), table
    assert precision(*get_args(Kind)) >= 0.95, table
    assert recall(*get_args(Kind)) >= 0.95, table


def test_redacting_again_changes_nothing() -> None:
    for example in EXAMPLES:
        redactor = Redactor()

        once = redactor.redact(example["text"])

        assert redactor.redact(once) == once
        assert Redactor().redact(once) == once
        assert len(once) <= len(example["text"]) + 20 * (1 + len(example["spans"]))


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        (f"From {NOT} to {STON}.", "From <WALLET_1> to <WALLET_2>."),
        (
            f"{WBTC}, {SOLANA}, {BITCOIN}, {BECH32}, {TRON}",
            "<WALLET_1>, <WALLET_2>, <WALLET_3>, <WALLET_4>, <WALLET_5>",
        ),
        (f"/tx-{WBTC}-x and wallet_{NOT}", "/tx-<WALLET_1>-x and wallet_<WALLET_2>"),
        (f"tx {HASH}, sig {SIGNATURE}", "tx <TX_HASH_1>, sig <TX_HASH_2>"),
        (f"private key {HASH}", "private key <PRIVATE_KEY_1>"),
        (f"I never gave my private key; tx hash: {HASH}", "I never gave my private key; tx hash: <TX_HASH_1>"),
        (f"{IMPORT_FORMAT} and {EXTENDED}", "<PRIVATE_KEY_1> and <PRIVATE_KEY_2>"),
        (f"My seed phrase: {PHRASE}. Help!", "My seed phrase: <SEED_PHRASE_1>. Help!"),
        (LONG_PHRASE, "<SEED_PHRASE_1>"),
        ("pay to DE89 3704 0044 0532 0130 00 NOW", "pay to <IBAN_1> NOW"),
        ("card 4242 4242 4242 4242.", "card <CARD_1>."),
        ("My name is Jane Roe. Jane pays.", "My name is <NAME_1>. <NAME_1> pays."),
        ("My name is Jane Roe. Jane's and Roe's", "My name is <NAME_1>. <NAME_1>'s and <NAME_1>'s"),
        ("My name is Will May. May it? Will it? Will May", "My name is <NAME_1>. May it? Will it? <NAME_1>"),
        ("Jane Roe-Li! Thanks, Jane. My name is Jane Roe-Li", "<NAME_1>! Thanks, <NAME_1>. My name is <NAME_1>"),
        ("call me at +49 (0)151 2345-6789!", "call me at <PHONE_1>!"),
        ("postgres://app:pa55w0rd@db.example.com/x", "postgres://app:<PASSWORD_1>@db.example.com/x"),
        ("tg://resolve?domain=jane_doe and @Jane_Doe", "tg://resolve?domain=<USERNAME_1> and <USERNAME_1>"),
    ],
)
def test_a_finding_becomes_a_placeholder(text: str, clean: str) -> None:
    assert redacted(text) == clean


@pytest.mark.parametrize(
    "text",
    [
        *redaction_examples.CLEAN[:10],
        IMPORT_FORMAT[:-1] + "K is no key, its checksum is wrong",
        "DE89 3704 0044 0532 0130 01 has a wrong checksum",
        "4242 4242 4242 4243 has one as well",
        " ".join(PHRASE.split()[:5]),
        "The password is stored as a hash, the pin is optional.",
        "Token contract, tokens per second: 104715; secret sauce",
        "I'm Bullish. My name is required. Best regards",
        "@dataclass(frozen=True) and @media print",
        "+5.25% and +1 000 000 USDT, -3.5, 1e18",
        "call 12345678 TON",
        "std::chrono::seconds, 10:30:45, aa:bb:cc:dd:ee:ff",
        "EQ, UQ, 0x, bc1 and T are prefixes",
        "",
    ],
)
def test_what_only_looks_like_one_stays(text: str) -> None:
    assert redacted(text) == text


def test_a_value_keeps_its_number_in_each_spelling_and_in_every_turn() -> None:
    redactor = Redactor()

    first = redactor.redact(f"I sent from {NOT} to {STON}, mail Jane@Example.com")
    second = redactor.redact(
        f"{bounceless(NOT)} = {NOT_RAW} = {NOT_RAW.upper()}; jane@example.com; {WBTC} {WBTC.lower()}"
    )

    assert first == "I sent from <WALLET_1> to <WALLET_2>, mail <EMAIL_1>"
    assert second == "<WALLET_1> = <WALLET_1> = <WALLET_1>; <EMAIL_1>; <WALLET_3> <WALLET_3>"
    assert redactor.counts == {"WALLET": 7, "EMAIL": 2}


@pytest.mark.parametrize("known", [NOT, f"The contract is {bounceless(NOT)}.", NOT_RAW])
def test_a_published_address_stays_in_each_of_its_spellings(known: str) -> None:
    text = f"{NOT}, {bounceless(NOT)} and {NOT_RAW}"

    assert redacted(f"{text}; {STON}", known) == f"{text}; <WALLET_1>"


def test_a_published_channel_stays_and_a_published_secret_does_not() -> None:
    known = f"News: t.me/toncoin, help@example.org. Never type {PHRASE}"

    assert redacted(f"@toncoin, help@example.org; {PHRASE}", known) == "@toncoin, help@example.org; <SEED_PHRASE_1>"


def test_a_placeholder_in_the_text_is_nobody_elses() -> None:
    assert redacted(f"<WALLET_1> paid {NOT}, <EMAIL_7>") == "<WALLET_1> paid <WALLET_2>, <EMAIL_7>"


@pytest.mark.parametrize(
    "written",
    [
        "\u200b".join(NOT),
        NOT.replace("_", "\\_"),
        "\u2060".join(WBTC),
        WBTC.replace("a", "а"),  # Cyrillic
        "".join(chr(ord(sign) + 0xFEE0) for sign in WBTC),  # wide
        "\ufe0f".join(BITCOIN),
    ],
)
def test_nothing_hides_an_address(written: str) -> None:
    assert redacted(f"Send to {written} 👩‍💻") == "Send to <WALLET_1> 👩‍💻"


@pytest.mark.parametrize(
    "unit",
    [
        *(
            "EQ",
            "0x",
            "eyJ",
            "sk-",
            "+1 ",
            "1:",
            "a@",
            "a.",
            "[1,",
            "::",
            "\u200b",
            "legal the ",
            "password is ",
            "DE11 ",
        ),
        *("my name is Al ", "Regards,\n", "-----BEGIN PRIVATE KEY-----", "/tx/", f"{HASH} private key "),
        *("助记词是", "my seed phrase: abaco ", "eyJaaaa\n", "EQaaaaaaaa ", "8 ", "my name is john, ", "token a-"),
    ],
)
def test_no_text_takes_long(unit: str) -> None:
    text = (unit * 20_000)[:20_000]

    clean = redacted(text)

    assert len(clean) <= 2 * len(text)  # the test's time limit holds


def test_many_values_take_no_longer() -> None:
    text = " ".join(f"a{number}@example.com" for number in range(800)) + "".join(
        f" My name is {first}{second}ia."
        for first in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
        for second in "abcdefghijklmnopqrstuvwxyz"
    )

    redactor = Redactor()

    assert redactor.redact(text).endswith(" My name is <NAME_676>.")
    assert redactor.counts == {"EMAIL": 800, "NAME": 676}


def test_the_signs_leave_out_no_recogniser_that_finds_something() -> None:
    for text in [*(example["text"] for example in EXAMPLES), *surroundings(), *mixtures(3_000)]:
        shown, _ = redaction._shown(text)

        assert redaction._find(shown) == redaction._find(shown, is_thorough=True), text


@pytest.mark.parametrize(
    "text",
    [
        "best regards İpek.\n",
        "с уважением İpek\n",
        "VIELE GRÜẞE,\nJürgen",
        *(
            f"{word} 2345678"
            for word in ("whats\u2003app", "celular", "llámame", "TİM mobıl", "позвони мне по", "手机：", "MI NÚMERO")
        ),
        *(
            f"{word} Xy12"
            for word in ("senha é", "mot\u0020de passe:", "pın code to", "ŞIFREM:", "пароль от a.b c —", "密码是")
        ),
        *(f"{said} Anna" for said in ("mi chiamo", "ICH HEIẞE", "je m’appelle", "мене звати", "My Full name İs")),
        *(
            f"{word} 2345678"
            for word in (
                "手机号是",
                "電話番号は",
                "мой номеp телефона —",
                "MON NUMÉRO EST LE",
                "tel\u00a0—\u2009",
                "전화번호:",
            )
        ),
        *(f"{said} john" for said in ("my name is", "меня зовут", "ME LLAMO")),
        *(f"{said} John" for said in ("CARDHOLDER:", "card holder name:")),
        "我叫王伟",
        *(
            f"{said} aB3dE5fG7hJ9kL1m"
            for said in ("ключ апи\u00a0—", "API密钥：", "CLÉ D’API EST", "api-ſchlüssel:", "my key İs")
        ),
        "Authorization:\u2003Basic amFuZTpzZWNyZXQ=",
        f"{NOT[:20]}\u00a0\n{NOT[20:]}",
        f"хэш:\u2003{'aB3' * 14}x",
        "First word legal, second winner, third thank, fourth year, fifth wave, sixth sausage, seventh worth,"
        " eighth useful, ninth legal, tenth winner, eleventh thank, twelfth yellow",
        f"mi frase semilla\u00a0es {SPANISH}",
        f"МОЯ СИД\u2003ФРАЗА — {SPANISH}",
        f"сид-фраза {' '.join(PHRASE.split()[:5])}",
        "ſecret=aB3dE5fG7hJ9kL1m",
        "a（at）b, a[ at ]example[\u00a0dot ]org",
        "card 4242\u00a04242\u00a04242\u00a04242",
        "٣٣٣.1.1.1 or 8.8.8.8",
    ],
)
def test_a_sign_is_wide_enough_for_its_recogniser(text: str) -> None:
    shown, _ = redaction._shown(text)

    finding = {place for place, each in enumerate(redaction.RECOGNISERS) if list(each.find(shown))}

    assert finding <= redaction.suspects(shown)


def test_a_conversation_is_the_same_whoever_looks_at_it() -> None:
    known = published(path.read_text(encoding="utf-8") for path in KNOWLEDGE.glob("*.jsonl"))
    texts = list(mixtures(900))

    for at in range(0, len(texts), 3):
        quick, thorough = Redactor(known), Redactor(known, is_thorough=True)

        assert quick.redact_all(texts[at : at + 3]) == thorough.redact_all(texts[at : at + 3])
        assert quick.counts == thorough.counts


def test_texts_that_are_not_suspected_would_stay() -> None:
    texts = [line for path in KNOWLEDGE.glob("*.jsonl") for line in path.read_text(encoding="utf-8").splitlines()]
    unsuspected = [text for text in texts if not redaction.is_suspected(text)]

    assert all(Redactor(is_thorough=True).redact(text) == text for text in unsuspected)
    assert len(unsuspected) > len(texts) / 2
    assert redaction.is_suspected("half a pair \ud83d, which RE2 can't read")


def test_letters_without_case_are_the_same_for_both() -> None:
    letters = {letter for letter in "".join(redaction.SIGNS) if letter.isalpha()}
    signs_of = signs.scanner(f"(?i:{letter})" for letter in sorted(letters))
    characters = "".join(map(chr, range(0xD800)))

    for place, letter in enumerate(sorted(letters)):
        for same in re.findall(re.escape(letter), characters, re.IGNORECASE):
            assert place in signs_of(signs.folded(redaction._shown(same)[0]).encode()), (letter, same)


def test_digits_and_spaces_are_the_same_for_both() -> None:
    characters = "".join(chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000)

    assert set(signs.folded("".join(re.findall(r"[^0-9]", "".join(re.findall(r"\d", characters)))))) == {"0"}
    assert re.fullmatch(r"[ \t-\r\x1c-\x1f]+", signs.folded("".join(re.findall(r"\s", characters))))


def test_a_name_is_found_in_what_was_said_before() -> None:
    assert Redactor().redact_all(["Jane here, <NAME_1>.", "Hi!", "My name is Jane"]) == [
        "<NAME_2> here, <NAME_1>.",
        "Hi!",
        "My name is <NAME_2>",
    ]


def surroundings() -> Iterator[str]:
    """Each example within a longer text, and the knowledge base."""
    texts = [line for path in KNOWLEDGE.glob("*.jsonl") for line in path.read_text(encoding="utf-8").splitlines()]
    yield from texts
    for place, example in enumerate(EXAMPLES):
        text = texts[place % len(texts)]
        half = len(text) // 2
        yield f"{text[:half]} {example['text']}{text[half:]}\n{example['text']}"


def mixtures(count: int) -> Iterator[str]:
    """Examples cut, put together and misspelt by chance, the same ones each time."""
    chance = random.Random(8)  # noqa: S311
    texts = [example["text"] for example in EXAMPLES]
    for _ in range(count):
        parts = []
        for text in chance.choices(texts, k=chance.randint(1, 4)):
            start = chance.choice([0, 0, chance.randrange(len(text))])
            written = list(text[start : start + chance.choice([1_000, 1_000, 40])])
            for _ in range(chance.choice([0, 0, 1, 5])):
                place = chance.randrange(len(written))
                sign = written[place]
                digit = chr(0x660 + int(sign)) if re.fullmatch("[0-9]", sign) else sign
                written[place] = chance.choice([chance.choice(ODD), sign.swapcase(), digit, "", sign])
            parts.append(
                "".join(ANY_LETTERS_CASE.get(sign, sign) if chance.random() < 0.005 else sign for sign in written)
            )
        yield chance.choice(["", " ", "\n", "<WALLET_1> ", "x", "1", "\u00a0", "—"]).join(parts)
