"""Answers of ai-with-rag that are kept: for whom and for what they do again, and what is never among them."""

import time
import uuid
from collections.abc import Iterator
from typing import Any

import httpx
import psycopg
import pytest

from infra.local.stack import Stack
from tests.embedding_stand_ins import Embeddings
from tests.functions import anybody
from tests.functions.anybody import NOT, Headers, ask, says, streams
from tests.functions.test_chain import Scripted, refusing
from tests.functions.test_deferred import model_calls
from tests.functions.test_failures import functions_behind
from tests.functions.test_quotas import ASK, spent_today
from tests.stand_ins import ANSWER, Proxy, serving
from tests.users import User

QUESTION = "What is Notcoin?"
FREE = {
    "inputTokens": 0,
    "cachedTokens": 0,
    "outputTokens": 0,
    "reasoningTokens": 0,
    "costUsd": 0,
    "estimated": False,
}


@pytest.fixture(scope="module")
def model() -> Iterator[Scripted]:
    stand_in = Scripted()
    with serving(stand_in.app()) as stand_in.url:
        yield stand_in


@pytest.fixture(scope="module")
def settings(model: Scripted) -> Iterator[dict[str, str]]:
    with serving(Embeddings().app()) as url:
        yield {
            "MODEL_BASE_URL": f"{model.url}/v1",
            "MODEL_CHAIN": "own:first, own:second",
            "ALLOWED_MODELS": "own:third",
            "EMBEDDING_BASE_URL": f"{url}/v1",
            "EMBEDDING_MODEL": "of-the-cache",
            "CACHE_SECONDS": "60",
        }


@pytest.fixture(scope="module")
def origin(stack: Stack, settings: dict[str, str]) -> Iterator[str]:
    with stack.functions(**settings) as url:
        yield url


@pytest.fixture(scope="module")
def category(stack: Stack, origin: str) -> Iterator[str]:
    """What only the passages of Notcoin, STON and slippage are filed under."""
    with anybody.learned(stack, *anybody.TOKENS, origin=origin) as name:
        yield name


@pytest.fixture(scope="module")
def notcoin(stack: Stack, origin: str) -> Iterator[str]:
    """A category of one passage, which every question finds first."""
    with anybody.learned(stack, anybody.TOKENS[0], origin=origin) as name:
        yield name


@pytest.fixture
def visitor(stack: Stack) -> Headers:
    return anybody.visitor(stack)


@pytest.fixture
def marker() -> str:
    """A word no other test says."""
    return uuid.uuid4().hex


def hits(*answers: httpx.Response) -> list[str | None]:
    """What each answer says of the cache."""
    return [answer.headers.get("x-gateway-cache") for answer in answers]


def said(answer: httpx.Response) -> str:
    """The text of an answer, whole or in events."""
    if answer.headers["content-type"].startswith("text/event-stream"):
        return "".join(data["token"] for name, data in anybody.events(answer) if name == "token")
    text: str = answer.json()["response"]
    return text


def test_the_same_question_again_costs_nothing(
    origin: str, model: Scripted, category: str, visitor: Headers, marker: str
) -> None:
    model.raw[marker] = says("Notcoin grew out of a game [1]. Its price moves [3].")

    first, again = (ask(origin, visitor, f"{QUESTION} {marker}", category=category) for _ in range(2))

    assert hits(first, again) == ["miss", "hit"]
    assert model.count(marker) == 1
    for same in ("response", "citations", "sources", "flags", "model"):
        assert first.json()[same] == again.json()[same]
    assert (again.json()["citations"], len(again.json()["sources"])) == ([1, 3], 3)
    assert again.json()["usage"] == FREE
    assert (again.headers["x-gateway-cost-usd"], again.headers["x-gateway-attempts"]) == ("0", "0")
    assert "x-gateway-cache" in again.headers["access-control-expose-headers"]


@pytest.mark.parametrize(("first", "then"), [(True, False), (False, True), (True, True)])
def test_an_answer_in_events_and_a_whole_one_are_the_same(
    origin: str, model: Scripted, category: str, visitor: Headers, marker: str, first: bool, then: bool
) -> None:
    model.raw[marker] = streams("Notcoin is", " a game's [1", "]", ".") if first else says("Notcoin is a game's [1].")

    answers = [
        ask(origin, visitor, f"{QUESTION} {marker}", category=category, stream=stream) for stream in (first, then)
    ]

    assert hits(*answers) == ["miss", "hit"]
    assert [said(answer) for answer in answers] == ["Notcoin is a game's [1]."] * 2
    assert model.count(marker) == 1


@pytest.mark.parametrize(
    "spelling",
    [
        "what IS the Café {}?",
        "  What\tis the\n Café   {}? ",
        "What is the Café {}",
        "What is the Café {} ?!…",
        "What is the Cafe\u0301 {}？",
    ],
)
def test_how_a_question_is_spelt_does_not_matter(
    origin: str, model: Scripted, notcoin: str, visitor: Headers, marker: str, spelling: str
) -> None:
    first = ask(origin, visitor, f"What is the Café {marker}?", category=notcoin)

    again = ask(origin, visitor, spelling.format(marker), category=notcoin)

    assert hits(first, again) == ["miss", "hit"]
    assert model.count(marker) == 1


@pytest.mark.parametrize(
    ("question", "other"),
    [
        ("Should I buy NOT {}?", "Should I not buy NOT {}?"),
        ("Should I buy NOT {} for TON?", "Should I buy TON {} for NOT?"),
        ("Is it 10{}2?", "Is it 10{}²?"),
        (f"Is it {NOT}? {{}}", f"Is it {NOT.replace('AvlW', 'AVlw')}? {{}}"),
    ],
    ids=["another word", "another order", "a raised digit", "another case in an address"],
)
def test_another_question_is_answered_anew(
    origin: str, model: Scripted, notcoin: str, visitor: Headers, marker: str, question: str, other: str
) -> None:
    answers = [ask(origin, visitor, text.format(marker), category=notcoin) for text in (question, other)]

    assert hits(*answers) == ["miss", "miss"]
    assert model.count(marker) == 2


@pytest.mark.parametrize("body", [{"matchCount": 2}, {"model": "third"}], ids=["fewer passages", "another model"])
def test_another_request_is_answered_anew(
    origin: str, model: Scripted, category: str, visitor: Headers, marker: str, body: dict[str, Any]
) -> None:
    answers = [ask(origin, visitor, f"{QUESTION} {marker}", category=category, **each) for each in ({}, body)]

    assert hits(*answers) == ["miss", "miss"]
    assert model.count(marker) == 2


def test_another_filter_that_finds_the_same_is_answered_anew(
    stack: Stack, origin: str, model: Scripted, visitor: Headers, marker: str
) -> None:
    with anybody.learned(stack, anybody.TOKENS[0] | {"content": marker}, origin=origin) as category:
        answers = [
            ask(origin, visitor, f"{QUESTION} {marker}", category=category, **filters)
            for filters in ({}, {"tokenSymbol": "NOT"}, {"tokenAddress": NOT})
        ]

    assert len({answer.json()["sources"][0]["id"] for answer in answers}) == 1
    assert hits(*answers) == ["miss"] * 3


@pytest.mark.parametrize("change", [{"content": "Notcoin is a coin."}, {"title": "NOT"}, {"source": "https://a.io"}])
def test_a_document_that_changes_takes_its_answers_with_it(
    stack: Stack, origin: str, model: Scripted, visitor: Headers, marker: str, change: dict[str, str]
) -> None:
    question = f"{QUESTION} {marker}"
    with anybody.learned(stack, anybody.TOKENS[0], origin=origin) as category:
        first, again = (ask(origin, visitor, question, category=category) for _ in range(2))
        document = anybody.TOKENS[0] | {"id": f"{category}/0", "category": category} | change
        anybody.call(origin, anybody.server(stack), "/documents", [document], "PUT")

        after = ask(origin, visitor, question, category=category)

    assert hits(first, again, after) == ["miss", "hit", "miss"]
    assert change.get("content", anybody.TOKENS[0]["content"]) in after.json()["sources"][0]["content"]


def test_no_store_neither_reads_nor_writes(
    origin: str, model: Scripted, category: str, visitor: Headers, marker: str
) -> None:
    own = {"category": category}

    before = ask(origin, visitor | {"Cache-Control": "no-store"}, f"{QUESTION} {marker}", **own)
    kept = ask(origin, visitor, f"{QUESTION} {marker}", **own)
    after = ask(origin, visitor | {"Cache-Control": "max-age=0, No-Store"}, f"{QUESTION} {marker}", **own)

    assert hits(before, kept, after) == [None, "miss", None]
    assert model.count(marker) == 3


def test_no_cache_has_a_new_answer_kept(
    origin: str, model: Scripted, category: str, visitor: Headers, marker: str
) -> None:
    answers = []
    for text, headers in (("Old.", {}), ("New.", {"Cache-Control": "no-cache"}), ("Never.", {})):
        model.raw[marker] = says(text)
        answers.append(ask(origin, visitor | headers, f"{QUESTION} {marker}", category=category))

    assert [said(answer) for answer in answers] == ["Old.", "New.", "New."]
    assert hits(*answers) == ["miss", None, "hit"]


def test_a_page_may_say_how_the_cache_is_used(origin: str) -> None:
    preflight = httpx.options(
        f"{origin}/functions/v1/ai-with-rag",
        headers={"Origin": "https://app.example", "Access-Control-Request-Headers": "cache-control"},
    )

    assert "cache-control" in preflight.headers["access-control-allow-headers"].split(", ")


def test_an_answer_is_kept_for_its_time_only(
    stack: Stack, origin: str, model: Scripted, category: str, visitor: Headers, marker: str
) -> None:
    with psycopg.connect(stack.database_url) as connection:
        connection.execute("delete from private.cached_answers")
    ask(origin, visitor, f"{QUESTION} {marker}", category=category)
    with psycopg.connect(stack.database_url) as connection:
        left = connection.execute("select max(expires_at) - now() from private.cached_answers").fetchone()
        connection.execute("update private.cached_answers set expires_at = now() - interval '1 second'")

    again = ask(origin, visitor, f"{QUESTION} {marker}", category=category)

    assert left and 50 < left[0].total_seconds() <= 60
    assert hits(again) == ["miss"]
    assert model.count(marker) == 2


@pytest.mark.parametrize(
    ("behaviour", "stream"), [("reject", False), ("reject", True), ("empty", False), ("break", True)]
)
def test_no_failure_is_kept(
    origin: str, model: Scripted, category: str, visitor: Headers, marker: str, behaviour: str, stream: bool
) -> None:
    question = f"{QUESTION} {marker} [{behaviour}]"
    ask(origin, visitor, question, category=category, stream=stream)
    asked = model.count(marker)

    again = ask(origin, visitor, question, category=category, stream=stream)

    assert hits(again) == ["miss"]
    assert model.count(marker) == 2 * asked > 0


def test_an_answer_of_wrong_citations_alone_is_not_kept(
    origin: str, model: Scripted, category: str, visitor: Headers, marker: str
) -> None:
    model.raw[marker] = says("[8] [9]")

    answers = [ask(origin, visitor, f"{QUESTION} {marker}", category=category) for _ in range(2)]

    assert hits(*answers) == ["miss", "miss"]
    assert model.count(marker) == 2


def test_an_answer_nobody_heard_the_end_of_is_not_kept(
    origin: str, model: Scripted, category: str, visitor: Headers, marker: str
) -> None:
    abandoned, question = model.abandoned, f"{QUESTION} {marker} [drip]"
    with anybody.ask_in_events(origin, visitor, question, category=category) as told:
        next(event for event in told if event[0] == "token")
    limit = time.monotonic() + 10
    while model.abandoned == abandoned and time.monotonic() < limit:
        time.sleep(0.02)

    again = ask(origin, visitor, question, category=category)

    assert (hits(again), said(again)) == (["miss"], "".join(ANSWER))
    assert model.count(marker) == 2


def test_the_answer_of_a_model_that_stood_in_is_not_kept(
    origin: str, model: Scripted, category: str, visitor: Headers, marker: str
) -> None:
    model.script = [refusing(401)]

    answers = [ask(origin, visitor, f"{QUESTION} {marker}", category=category) for _ in range(3)]

    assert [answer.json()["model"] for answer in answers] == ["second", "first", "first"]
    assert hits(*answers) == ["miss", "miss", "hit"]


def test_an_answer_from_a_private_passage_is_nobody_elses_and_not_kept(
    stack: Stack, origin: str, model: Scripted, alice: User, bob: User, visitor: Headers, marker: str
) -> None:
    private = {"title": "Alice's", "content": f"Alice's plan is {marker[::-1]}.", "ownerId": alice.user_id}
    callers = [anybody.signed_in(alice), anybody.signed_in(bob), visitor, anybody.signed_in(alice)]
    texts = ["Alice's first [1].", "Everybody's [1].", "Never said.", "Alice's second [1]."]

    with anybody.learned(stack, anybody.TOKENS[0], private, origin=origin) as category:
        answers = []
        for headers, text in zip(callers, texts, strict=True):
            model.raw[marker] = says(text)
            answers.append(ask(origin, headers, f"{QUESTION} {marker}", category=category))

    told = ["Alice's first [1].", "Everybody's [1].", "Everybody's [1].", "Alice's second [1]."]
    assert [said(answer) for answer in answers] == told
    assert hits(*answers) == [None, "miss", "hit", None]
    assert [len(answer.json()["sources"]) for answer in answers] == [2, 1, 1, 2]
    assert [marker[::-1] in answer.text for answer in answers] == [True, False, False, True]


def test_a_user_and_a_visitor_share_what_is_public(
    stack: Stack, origin: str, model: Scripted, category: str, alice: User, visitor: Headers, marker: str
) -> None:
    callers = [anybody.signed_in(alice), visitor, anybody.server(stack)]

    answers = [ask(origin, headers, f"{QUESTION} {marker}", category=category) for headers in callers]

    assert hits(*answers) == ["miss", "hit", "hit"]
    assert model.count(marker) == 1


def test_nobodys_question_is_kept_or_told_to_another(
    stack: Stack, origin: str, model: Scripted, category: str, alice: User, visitor: Headers, marker: str
) -> None:
    secret = f"{QUESTION} My password is {marker}."

    of_alice = ask(origin, anybody.signed_in(alice), secret, category=category)
    of_visitor = ask(origin, visitor, f"{QUESTION} My password is?", category=category)

    with psycopg.connect(stack.database_url) as connection:
        found = connection.execute(
            "select from private.cached_answers as kept where kept::text like %s", [f"%{marker}%"]
        ).fetchall()
    assert hits(of_alice, of_visitor) == ["miss", "miss"]
    assert marker not in of_visitor.text
    assert found == []


def test_a_hit_is_counted_and_charged_as_nothing(
    stack: Stack, origin: str, category: str, visitor: Headers, marker: str
) -> None:
    user = User.sign_up(stack)
    ask(origin, visitor, f"{QUESTION} {marker}", category=category)

    answers = [
        ASK["ai-with-rag"](user, origin, f"{QUESTION} {marker}", category=category, stream=stream)
        for stream in (False, True)
    ]

    calls = model_calls(stack, user)
    assert hits(*answers) == ["hit", "hit"]
    assert spent_today(user, origin) == (2, 0, 0)
    assert [(call["status"], call["model_version"], call["cost_usd"]) for call in calls] == [
        ("complete", "first", 0)
    ] * 2
    assert [call["latency_ms"] for call in calls] == [None, None]


def test_without_the_cache_the_model_is_asked(
    stack: Stack, settings: dict[str, str], model: Scripted, category: str, visitor: Headers, marker: str
) -> None:
    proxy = Proxy(stack.url, refused="_answer")
    with functions_behind(proxy, stack, **settings) as origin:
        answers = [ask(origin, visitor, f"{QUESTION} {marker}", category=category) for _ in range(2)]

    assert [said(answer) for answer in answers] == ["".join(ANSWER)] * 2
    assert hits(*answers) == [None, None]
    assert model.count(marker) == 2
    assert proxy.refusals == 4  # read_answer and keep_answer
