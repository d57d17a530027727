"""Citations settled while an answer is said, and addresses and links that its sources don't have."""

import base64
import binascii
import itertools

import pytest

from shared.grounding import Citations, Flag, cited, defused, uncited, unknown

NOT = "EQAvlWFDxGF2lXm67y4yzC17wYKD9A0guwPkMs1gOsM__NOT"
NOT_RAW = "0:2f956143c461769579baef2e32cc2d7bc18283f40d20bb03e432cd603ac33ffc"
STON = "EQA2kCVNwVsil2EM2mB0SkXytxCqQjS4mttjDpnXmwG9T6bO"
WBTC = "0x2260FAC5E5542a773Aa44fBCfeDf7C193bc2C599"
SOLANA = "EPjFWdd5AufqSSqeM2qN1xzybapC8G4wEGGkZwyTDt1v"
BITCOIN = "1BvBMSEYstWetqTFn5Au4m4GFg7xJaNVN2"
BECH32 = "bc1qar0srrr7xfkvy5l643lydnw9re59gtzzwf5mdq"
TRON = "TR7NHqjeKQxGTCi8q8ZY4pL8otSzgjLj6t"
# An answer about three passages, as the model says it: as it leaves, and the passages it cites.
CITED = {
    "TON is a coin [1].": ("TON is a coin [1].", [1]),
    "Gas[2] and fees[1][2].": ("Gas[2] and fees[1][2].", [2, 1]),
    "A [9] coin [0]. [17]": ("A coin.", []),
    "A coin [1, 9, 2].": ("A coin [1][2].", [1, 2]),
    "A coin [1; 3].": ("A coin [1][3].", [1, 3]),
    "A coin [1-3], [2–9].": ("A coin [1][2][3], [2][3].", [1, 2, 3]),
    "A coin [3-1].": ("A coin.", []),
    "A coin 【1】, 【2†source】, [^3].": ("A coin [1], [2], [3].", [1, 2, 3]),
    "A coin [1](https://a.b) [1] (so).": ("A coin [1](https://a.b) [1] (so).", [1]),
    "From [0.3%] to [5 TON], [2024], [x], [ ], [].": ("From [0.3%] to [5 TON], [2024], [x], [ ], [].", []),
    "[docs](https://a.b/c[1])": ("[docs](https://a.b/c[1])", [1]),
    "[[1]] [[9]]": ("[[1]] []", [1]),
    "Broken off [1": ("Broken off [1", []),
    "Broken off [": ("Broken off [", []),
}


def flags(answer: str, *known: str) -> list[str]:
    """What the answer says that isn't known."""
    return [flag.text for flag in unknown(answer, known)]


def bounceless(address: str) -> str:
    """The same account in its UQ form."""
    body = b"\x51" + base64.urlsafe_b64decode(address)[1:34]
    return base64.urlsafe_b64encode(body + binascii.crc_hqx(body, 0).to_bytes(2)).decode()


@pytest.mark.parametrize("said", CITED)
def test_citations_of_passages_stay_and_others_go(said: str) -> None:
    citations = Citations(3)

    text = citations.hear(said) + citations.rest()

    assert (text, citations.numbers) == CITED[said]
    assert citations.text == text


@pytest.mark.parametrize("said", CITED)
def test_a_stream_says_the_same_however_it_is_cut(said: str) -> None:
    for first, second in itertools.combinations(range(len(said) + 1), 2):
        citations = Citations(3)

        pieces = [citations.hear(piece) for piece in (said[:first], said[first:second], said[second:])]

        assert ("".join(pieces) + citations.rest(), citations.numbers) == CITED[said]


def test_a_stream_holds_back_no_more_than_what_may_become_a_citation() -> None:
    citations = Citations(3)

    pieces = [citations.hear(piece) for piece in ("TON", " is [", "a", "] coin [", "1", "]", ".", " [" + "1" * 50)]

    assert pieces == ["TON", " is", " [a", "] coin", "", "", " [1].", " [" + "1" * 50]


@pytest.mark.parametrize("address", [NOT, WBTC, SOLANA, BITCOIN, BECH32, TRON, NOT_RAW])
def test_an_address_that_no_source_has_is_told(address: str) -> None:
    answer = f"Send it to {address}."

    assert unknown(answer, ["TON is a coin."]) == [Flag("unknown_address", address)]
    assert flags(answer, f"Its address is {address}, they say.") == []


@pytest.mark.parametrize(
    ("said", "known"),
    [
        (bounceless(NOT), NOT),
        (NOT, bounceless(NOT)),
        (NOT_RAW, NOT),
        (NOT, NOT_RAW.upper()),
        (NOT.replace("_", "\\_"), NOT),
        (NOT.replace("_", "/").replace("-", "+"), NOT),
        (WBTC.lower(), WBTC),
        (BECH32.upper(), BECH32),
        (f"`{NOT}`", f"https://tonviewer.com/{NOT}?section=code"),
    ],
)
def test_an_account_is_known_in_each_of_its_forms(said: str, known: str) -> None:
    assert [flag for flag in unknown(said, [known]) if flag.kind == "unknown_address"] == []


@pytest.mark.parametrize(
    "said",
    [
        STON,
        NOT[:-1] + "S",
        NOT[:-1],
        NOT + "A",
        "\u200b".join(STON),
        WBTC[:-1],
        WBTC + "0",
        SOLANA[:-1] + "w",
    ],
)
def test_an_address_like_a_known_one_is_told(said: str) -> None:
    told = unknown(f"Send it to {said} now.", [NOT, WBTC, SOLANA])

    assert [flag.kind for flag in told] == ["unknown_address"]


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("See https://evil.example/claim.", ["https://evil.example/claim"]),
        ("See (https://evil.example/a_(b)).", ["https://evil.example/a_(b)"]),
        ("See [STON](https://evil.example/x) now", ["https://evil.example/x"]),
        ("See **evil.fi**, or t.me/evil_bot!", ["evil.fi", "t.me/evil_bot"]),
        ("See www.evil.com/a/, EVIL.IO and claim.ston.fi:8080.", ["www.evil.com/a/", "EVIL.IO", "claim.ston.fi:8080"]),
        ("See https://ston.fi@evil.com/swap", ["https://ston.fi@evil.com/swap"]),
        ("See https://ston.fi/airdrop", ["https://ston.fi/airdrop"]),
        ("Open ton://transfer/me or tg://resolve?domain=x", ["ton://transfer/me", "tg://resolve?domain=x"]),
        ("Ask support@evil.com, evil.com or evil.com", ["evil.com"]),
        ("See evil.example/x, notco.in and 1inch.rocks/a", ["evil.example/x", "notco.in", "1inch.rocks/a"]),
        ("See stоn.fi", ["stоn.fi"]),  # a Cyrillic о
    ],
)
def test_a_link_that_no_source_has_is_told(said: str, told: list[str]) -> None:
    assert flags(said, "Swap at https://ston.fi/swap or in the app.") == told


@pytest.mark.parametrize(
    "said",
    [
        "ston.fi",
        "STON.fi.",
        "http://www.STON.fi/",
        "https://ston.fi/swap/",
        "(https://ston.fi/swap).",
        "**https://ston.fi/swap?ft=TON#top**",
        "<https://ston.fi/swap>",
    ],
)
def test_a_link_is_known_by_host_and_path(said: str) -> None:
    assert flags(f"Swap at {said} today", "Swap at https://ston.fi/swap.") == []


@pytest.mark.parametrize(
    "said",
    [
        "It costs $1.25, 0.3% or 1.000.000,50 USDT, at most 5.co-operators.",
        "Block 41234567 of 2024-11-02T10:00:00Z has version v1.2.3 and 24/7 10:30.",
        "E.g. this, i.e. that, a.k.a. the U.S. coin, etc. at 5 p.m.",
        "It is in handler.py, README.md, data.json, Jetton.sol, main.rs, node.js, libssl.so and index.html.",
        "It is a coin.The network is fast.TON is its coin.",
        "At 1.5m/day, 0.5k/s, v2.0/v2.1, e.g./i.e., 3.x/4.x and src/main.py/x it is fine.",
        "TON/USDT and TEP-74, ERC-20, SHA-256; shard 0:8000, gas 0x1f",
        f"The transaction is 0x{'ab' * 32}, its hash {'d41d8cd98f00b204' * 4}.",
        "Its id is 550e8400-e29b-41d4-a716-446655440000.",
        "Donaudampfschifffahrtselektrizitaetenhauptbetriebswerk is a word.",
        "msg.value, block.number and tx.origin are of Solidity.",
    ],
)
def test_what_only_looks_like_an_address_or_a_link_is_none(said: str) -> None:
    assert flags(said) == []


def test_each_is_told_once_in_the_order_of_the_answer() -> None:
    told = flags(f"evil.com {NOT} {bounceless(NOT)} evil.com/ https://evil.com {WBTC}")

    assert told == ["evil.com", NOT, WBTC]


@pytest.mark.parametrize(
    ("start", "unit"),
    [
        *(
            ("", unit)
            for unit in ("a", "[1 ", " ", "a.b", "a-", "EQ", "EQ+", "+EQ", "http://", "1,", "(", "【1†", "\u200b")
        ),
        ("https://a", ")"),
        ("https://a(", "."),
    ],
)
def test_no_text_takes_long(start: str, unit: str) -> None:
    text = start + unit * 200_000

    unknown(text, [text])
    Citations(3).hear(text)
    defused(text)  # the test's time limit holds


def test_a_passage_is_one_line_without_numbers_of_its_own() -> None:
    text = "Fine.\n[2] Official address: X\r\u2028【3】 y\x0b[ 4 , 5 ]\n\n【6†source】 [ok]"

    assert defused(text) == "Fine. (2) Official address: X (3) y ( 4 , 5 ) (6) [ok]"


@pytest.mark.parametrize(
    "text", [*CITED, "[1]", "a     [1] \t[2]", "a [1", "a [1](", "a\n[1][2024] 【1】", "[[1]]", ""]
)
def test_a_text_without_citations_is_what_citations_of_no_passage_leave(text: str) -> None:
    none, all_of_them = Citations(0), Citations(999)

    assert uncited(text) == none.hear(text) + none.rest()
    all_of_them.hear(text)
    all_of_them.rest()
    assert [number for number in cited(text) if number] == all_of_them.numbers
