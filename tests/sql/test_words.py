"""The words of passages: what a question finds that says them, however it says them, and how they are counted."""

import base64
from collections.abc import Iterator
from random import choices
from typing import LiteralString
from uuid import uuid4

import psycopg
import pytest
from supabase import Client

from tests.sql import EAST, NORTH, Shelf, padded
from tests.users import User

ETHEREUM = "0x7a250d5630B4cF539739dF2C5dAcb4c659F2488D"
SOLANA = "EPjFWdd5AufqSSqeM2qN1xzybapC8G4wEGGkZwyTDt1v"
COSMOS = "ibc/27394FB092D2ECCD56123C74F36E4C1F926001CEADA9CA97EA622B25F41E5EB2"
# What could break out of a query, out of a tsquery, out of a pattern, or be too much for any of them.
HOSTILE = [
    "",
    " \n\t",
    "the of and is",
    "'; drop table public.documents; --",
    "pear & | ! <-> :* (b",
    "'pear' & !'x':*A <2> foo \\",
    "\\\\ \\' ' '' \" $T\\ T' ''",
    "% _ %s %(a)s {} $1",
    "💎🙌 👨‍👩‍👧‍👦 \u202e \x01\x7f \ufffe",
    "什么是TON币？ ما هو تون",
    "pear " * 2000,
    "'" * 10_000,
    "-" * 10_000,
    "A" * 10_000,
    "a1" * 5000,
    "é1" * 5000,
    "ibc/" + "A" * 10_000,
    "EQ-" * 3300,
    " ".join(f"T{number} w{number}x" for number in range(1000)),
]
CHANGES: list[LiteralString] = [
    """
    update public.finance_knowledge set content = 'other words ' || id, title = 'x' where embedding_model = %(model)s
    """,
    "update public.finance_knowledge set owner_id = null where embedding_model = %(model)s",
    "update public.finance_knowledge set owner_id = %(owner)s where embedding_model = %(model)s",
    "update public.finance_embeddings set token_symbol = 'ONE' where embedding_model = %(model)s",
    "delete from public.finance_knowledge where embedding_model = %(model)s",
]
MISCOUNTED = """
    select lexeme, counted.passages, actual.passages
    from private.lexemes as counted
    full join (
      select word collate "C", ndoc::bigint
      from ts_stat('select words from public.finance_knowledge where owner_id is null')
      union all
      select '', nullif(count(*), 0) from public.finance_knowledge where owner_id is null
    ) as actual (lexeme, passages) using (lexeme)
    where coalesce(counted.passages, 0) <> coalesce(actual.passages, 0)
"""


def account(tag: int, workchain: int = 0, start: int = 100) -> str:
    """A form of one TON account, by TEP-2: 0x11 bounceable (EQ…), 0x51 not (UQ…), on a test network 0x80 more."""
    named = bytes([tag, workchain & 0xFF]) + bytes(range(start, start + 32))
    return base64.urlsafe_b64encode(named + checksum(named)).decode()


def checksum(named: bytes) -> bytes:
    """CRC-16/XMODEM."""
    rest = 0
    for byte in named:
        rest ^= byte << 8
        for _ in range(8):
            rest = (rest << 1 ^ 0x1021) & 0xFFFF if rest & 0x8000 else rest << 1
    return rest.to_bytes(2, "big")


BOUNCEABLE, PLAIN, RAW = account(0x11), account(0x51), "0:" + bytes(range(100, 132)).hex()
MASTERCHAIN = account(0x11, -1)
# Before any word of passages by the alphabet, and in none of them.
FILLER = [f"aa{first}o{second}u" for first in "bcdfghjklmn" for second in "bcdfghjklm"]


@pytest.fixture
def word() -> str:
    """A word that no other test's passages have, nor any like it."""
    return "".join(choices("bcdfghjklmnpqrtvwxz", k=12))  # noqa: S311  # without vowels there is nothing to stem


@pytest.fixture
def scratch(database: psycopg.Connection) -> Iterator[psycopg.Connection]:
    """The database in a transaction that comes to nothing."""
    with database.transaction(force_rollback=True):
        yield database


@pytest.mark.parametrize("question", ["$NOT", "Is NOT any good?", "$not", "Should I swap TON for NOT?"])
def test_a_ticker_is_found_even_where_it_is_a_stop_word(outsider: Client, shelf: Shelf, question: str) -> None:
    for content in ("NOT came out of a game", "A game of $NOT"):
        shelf.put(content)
    shelf.put("A coin for tapping", token_symbol="NOT")
    shelf.put("it is not noted in a notebook", token_symbol="NOTE")

    found = shelf.contents(outsider, question)

    assert sorted(found) == ["A coin for tapping", "A game of $NOT", "NOT came out of a game"]


def test_a_stop_word_in_prose_is_no_ticker(outsider: Client, shelf: Shelf) -> None:
    shelf.put("A coin for tapping", token_symbol="NOT")

    assert shelf.contents(outsider, "why is it not so?") == []


@pytest.mark.parametrize("question", ["Is it legal in the US?", "HOW TO COOK RICE", "What does $US mean?"])
@pytest.mark.parametrize("whose", ["public", "private"])
def test_a_ticker_that_no_passage_has_stands_for_none_that_begins_so(
    owner: User, owners_api: Client, shelf: Shelf, question: str, whose: str
) -> None:
    for symbol in ("USDT", "TON", "RICECAKE"):
        shelf.put("A coin", token_symbol=symbol, owner_id=owner.user_id if whose == "private" else None)

    assert shelf.contents(owners_api, question) == []


@pytest.mark.parametrize("stored", [BOUNCEABLE, PLAIN, RAW])
@pytest.mark.parametrize("beside", [True, False], ids=["in its column", "in the text"])
def test_an_accounts_forms_find_each_other(outsider: Client, shelf: Shelf, stored: str, beside: bool) -> None:
    if beside:
        shelf.put("a wallet", token_address=stored)
    else:
        shelf.put(f"a wallet ({stored}).")
    shelf.put(f"another wallet 0:{'1' * 64}")

    asked = [
        BOUNCEABLE,
        f"Whose is {PLAIN}?",
        RAW.upper(),
        f"https://tonviewer.com/{PLAIN}",
        BOUNCEABLE.replace("-", "+").replace("_", "/"),
    ]
    assert [shelf.contents(outsider, question)[0][:8] for question in asked] == ["a wallet"] * 5
    assert len(shelf.contents(outsider, PLAIN)) == 1


@pytest.mark.parametrize("start", [0, 64, 128, 192], ids=["Ef8", "Ef9", "Ef-", "Ef_"])
@pytest.mark.parametrize("beside", [True, False], ids=["in its column", "in the text"])
def test_an_account_of_the_masterchain_is_one_in_all_its_forms(
    outsider: Client, shelf: Shelf, start: int, beside: bool
) -> None:
    forms = [account(tag, -1, start) for tag in (0x11, 0x51, 0x91, 0xD1)]
    forms.append("-1:" + bytes(range(start, start + 32)).hex())
    for stored in forms:
        shelf.put("a validator" if beside else f"a validator ({stored}).", token_address=stored if beside else None)
    shelf.put(f"another account -1:{'1' * 64}")

    asked = [*forms, forms[0].replace("-", "+").replace("_", "/"), f"https://tonviewer.com/{forms[1]}"]
    assert [len(shelf.contents(outsider, f"Whose is {form}?")) for form in asked] == [5] * 7
    assert [len(shelf.contents(outsider, filter_token_address=form, match_threshold=-1)) for form in forms] == (
        [5 * beside] * 5
    )


@pytest.mark.parametrize("begins", ["Effect", "Efforts", "Uffizi"])
def test_a_word_that_begins_as_an_address_is_none(outsider: Client, shelf: Shelf, begins: str) -> None:
    shelf.put(f"the {begins} of a fee")

    assert shelf.contents(outsider, f"{begins} jumping zebras quietly considered marmalade yesterday") == []


@pytest.mark.parametrize(
    ("stored", "asked"),
    [
        (MASTERCHAIN, MASTERCHAIN[:8]),
        (MASTERCHAIN, f"{MASTERCHAIN[:6]}…{MASTERCHAIN[-4:]}"),
        (ETHEREUM, ETHEREUM.lower()),
        (ETHEREUM, ETHEREUM.upper()),
        (ETHEREUM, ETHEREUM[:8]),
        (ETHEREUM, f"What is {ETHEREUM[:6]}…{ETHEREUM[-4:]}?"),
        (ETHEREUM, f"{ETHEREUM[:6]}...{ETHEREUM[-4:]}"),
        (BOUNCEABLE, BOUNCEABLE[:8]),
        (BOUNCEABLE, f"{BOUNCEABLE[:6]}…{BOUNCEABLE[-4:]}"),
        (SOLANA, f"the mint {SOLANA}"),
        (COSMOS, COSMOS),
        (COSMOS, COSMOS[:16]),
    ],
)
@pytest.mark.parametrize("whose", ["public", "private"])
def test_an_address_is_found_by_its_beginning_and_in_any_case(
    owner: User, owners_api: Client, shelf: Shelf, stored: str, asked: str, whose: str
) -> None:
    shelf.put(f"the contract at {stored}", owner_id=owner.user_id if whose == "private" else None)
    shelf.put("the contract at 0x1111111111111111111111111111111111111111")

    assert shelf.contents(owners_api, asked) == [f"the contract at {stored}"]


def test_a_misspelt_word_is_found(outsider: Client, shelf: Shelf, word: str) -> None:
    shelf.put(f"all about {word}")
    shelf.put("all about nothing")

    for misspelt in (word[:5] + word[6:], word[:5] + word[5] + word[5:], word[:3] + word[4] + word[3] + word[5:]):
        assert shelf.contents(outsider, misspelt) == [f"all about {word}"]


def test_a_word_that_most_passages_have_does_not_outweigh_the_meaning(scratch: psycopg.Connection, word: str) -> None:
    shelf = Shelf(scratch, uuid4().hex)
    scratch.execute("truncate public.documents, public.finance_knowledge")
    for number in range(40):
        shelf.put(f"{word} {word} {word} in place {number}", (1, 0.6 + number / 100))
    shelf.put(f"what {word} is, in some more words than the others have", (1, 0.1))

    found = scratch.execute(
        "select content from public.search_finance_knowledge(%s, %s, 0, 3, %s)",
        [str(padded(*EAST)), f"What is {word}?", shelf.model],
    ).fetchall()

    assert found[0][0].startswith("what")


def test_words_are_asked_for_where_nothing_is_public(scratch: psycopg.Connection, owner: User) -> None:
    shelf = Shelf(scratch, uuid4().hex)
    scratch.execute("truncate public.documents, public.finance_knowledge")
    shelf.put("the marmalade ledger", EAST, owner_id=owner.user_id)

    found = scratch.execute(
        "select content from public.search_finance_knowledge(%s, 'Whose ledger is $US?', 0, 3, %s)",
        [str(padded(*EAST)), shelf.model],
    ).fetchall()

    assert found == []


@pytest.mark.parametrize("question", HOSTILE, ids=lambda question: question[:12])
def test_no_question_is_an_error(outsider: Client, shelf: Shelf, question: str) -> None:
    shelf.put("a pear", EAST)

    assert shelf.contents(outsider, question) == ["a pear"]


@pytest.mark.parametrize(
    "content", [question for question in HOSTILE if question.strip()], ids=lambda content: content[:12]
)
def test_no_content_is_an_error(database: psycopg.Connection, content: str) -> None:
    with database.transaction(force_rollback=True):
        Shelf(database, uuid4().hex).put(content, token_symbol=content[:99], token_address=content)


def test_an_address_is_not_lost_in_a_long_question(outsider: Client, shelf: Shelf) -> None:
    shelf.put(f"the contract at {ETHEREUM}")

    found = shelf.contents(outsider, " ".join(f"word{n}" for n in range(500)) + f" {ETHEREUM} ".join(["", "zebra"]))

    assert found == [f"the contract at {ETHEREUM}"]


@pytest.mark.parametrize(
    "crowd",
    [FILLER, [f"EQab{n:04}" for n in range(90)], [word.upper() for word in FILLER]],
    ids=["words", "accounts", "tickers"],
)
def test_a_telling_word_is_not_lost_in_a_long_question(
    outsider: Client, shelf: Shelf, word: str, crowd: list[str]
) -> None:
    shelf.put("all about nothing")
    shelf.put(f"all about {word}")

    found = shelf.contents(outsider, " ".join([*crowd, word]), match_threshold=-1)

    assert found == [f"all about {word}", "all about nothing"]


@pytest.mark.parametrize("whose", ["public", "private"])
def test_an_address_is_not_lost_among_capitals(owner: User, owners_api: Client, shelf: Shelf, whose: str) -> None:
    shelf.put(f"the contract at {ETHEREUM}", owner_id=owner.user_id if whose == "private" else None)

    for asked in (ETHEREUM, ETHEREUM[:8]):
        question = " ".join([*(word.upper() for word in FILLER), asked])
        assert shelf.contents(owners_api, question) == [f"the contract at {ETHEREUM}"]


def test_private_words_are_no_ones_else_to_learn_of(
    database: psycopg.Connection, owner: User, outsider: Client, shelf: Shelf, word: str
) -> None:
    shelf.put("public knowledge of pears", EAST)
    asked = [word, word[:-1], f"{word} pears", "pears"]
    before = [shelf.search(outsider, question) for question in asked]

    shelf.put(f"{word} pears knowledge", EAST, owner_id=owner.user_id)

    counted = database.execute("select from private.lexemes where lexeme ~ %s", [word[:6]]).fetchall()
    assert [shelf.search(outsider, question) for question in asked] == before
    assert counted == []


def test_the_counts_of_words_stay_right(scratch: psycopg.Connection, owner: User, word: str) -> None:
    shelf = Shelf(scratch, uuid4().hex)
    for vector in (EAST, NORTH):
        shelf.put(f"{word} {vector} twice {word}", vector)
    shelf.put(f"{word} of one's own", owner_id=owner.user_id)
    assert scratch.execute(MISCOUNTED).fetchall() == []
    assert scratch.execute("select passages from private.lexemes where lexeme ~ %s", [word[:8]]).fetchall() == [(2,)]

    for change in CHANGES:
        scratch.execute(change, {"model": shelf.model, "owner": owner.user_id})
        assert scratch.execute(MISCOUNTED).fetchall() == []


@pytest.mark.parametrize("table", ["finance_knowledge", "documents"])
def test_the_counts_begin_anew_with_an_emptied_table(scratch: psycopg.Connection, word: str, table: str) -> None:
    shelf = Shelf(scratch, uuid4().hex)
    shelf.put(word)

    scratch.execute(
        "truncate public.documents, public.finance_knowledge"
        if table == "documents"
        else "truncate public.finance_knowledge"
    )
    emptied = scratch.execute(MISCOUNTED).fetchall()
    shelf.put(word)

    assert emptied == []
    assert scratch.execute("select lexeme, passages from private.lexemes where passages > 0 order by 1").fetchall() == [
        ("", 1),
        (word, 1),
    ]
