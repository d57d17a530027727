"""ai-with-rag's search: what is found, by whom, and who may put something there to be found."""

import uuid
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from infra.local.stack import Stack
from tests.functions import anybody
from tests.functions.anybody import ANYTHING, NOT, Headers, call, search
from tests.functions.test_refusals import assert_refused
from tests.stand_ins import Model
from tests.users import User

NOT_BOUNCELESS = "UQAvlWFDxGF2lXm67y4yzC17wYKD9A0guwPkMs1gOsM__I5W"


@pytest.fixture(scope="module")
def origin(stack: Stack, model: Model) -> Iterator[str]:
    settings = {"MODEL_BASE_URL": f"{model.url}/v1", "MODEL_NAME": "stand-in", **anybody.GENEROUS}
    with stack.functions(**settings) as url:
        yield url


@pytest.fixture(scope="module")
def category(stack: Stack) -> Iterator[str]:
    """What only the passages of Notcoin, STON and slippage are filed under."""
    with anybody.learned(stack, *anybody.TOKENS) as name:
        yield name


@pytest.fixture
def name(stack: Stack) -> Iterator[str]:
    """An id and a category for documents of a test's own."""
    with anybody.a_category(stack) as category:
        yield category


@pytest.fixture(scope="module")
def admin(stack: Stack) -> Headers:
    return anybody.admin(stack)


@pytest.fixture
def visitor(stack: Stack) -> Headers:
    return anybody.visitor(stack)


def titles(answer: Any) -> list[str]:
    return [source["title"] for source in answer.json()["sources"]]


def test_finds_the_best_first_without_the_model(origin: str, model: Model, category: str, visitor: Headers) -> None:
    asked = len(model.asked)

    answer = search(origin, visitor, "What is the price difference of slippage?", category=category)

    assert titles(answer)[0] == "Slippage"
    assert answer.json().keys() == {"sources", "timings"}
    assert {"auth", "count", "embed", "search"} <= answer.json()["timings"].keys()
    assert len(model.asked) == asked


def test_finds_as_many_as_asked_for(origin: str, category: str, visitor: Headers) -> None:
    counts = [
        len(titles(search(origin, visitor, "TON", category=category, matchThreshold=ANYTHING, **wanted)))
        for wanted in ({}, {"matchCount": 1}, {"matchCount": 20})
    ]

    assert counts == [3, 1, 3]


@pytest.mark.parametrize(
    "filters",
    [
        {"tokenSymbol": "NOT"},
        {"tokenSymbol": "$not"},
        {"tokenSymbol": " $NOT "},
        {"tokenAddress": NOT},
        {"tokenAddress": NOT_BOUNCELESS},
        {"tokenSymbol": "NOT", "tokenAddress": NOT},
    ],
)
def test_finds_only_what_passes_the_filters(
    origin: str, category: str, visitor: Headers, filters: dict[str, str]
) -> None:
    answer = search(origin, visitor, "slippage", category=category, matchThreshold=ANYTHING, **filters)

    assert titles(answer) == ["Notcoin"]


@pytest.mark.parametrize(
    "filters",
    [
        {"tokenSymbol": "NOSUCH"},
        {"tokenSymbol": "$"},
        {"tokenSymbol": "%"},
        {"tokenSymbol": "' or 1=1 --"},
        {"tokenAddress": "0x" + "0" * 40},
        {"category": "no such thing"},
        {"tokenSymbol": "NOT", "tokenAddress": "0x" + "0" * 40},
    ],
)
def test_finding_nothing_is_no_error(origin: str, visitor: Headers, filters: dict[str, str]) -> None:
    answer = search(origin, visitor, "What is Notcoin?", matchThreshold=ANYTHING, **filters)

    assert answer.status_code == 200
    assert answer.json()["sources"] == []


@pytest.mark.parametrize(
    "query",
    [
        "'); drop table public.finance_knowledge; --",
        "a & | ! <-> :*",
        "!!! ((( ))) <2> :A*",
        "\"Notcoin' \\ \\' \\\\ % _ $$ $1 ;",
        "{} [] null NaN -1 \x01\x7f",
        "🚀🚀 TON \u202e نوت 不",
        "'" * 400,
        "not " * 200,
    ],
)
def test_a_query_is_only_ever_text(origin: str, category: str, visitor: Headers, query: str) -> None:
    answer = search(origin, visitor, query, category=category, matchThreshold=ANYTHING)

    assert answer.status_code == 200, answer.text
    assert len(titles(answer)) == 3


def test_private_passages_are_their_owners_alone(
    stack: Stack, origin: str, category: str, admin: Headers, alice: User, bob: User
) -> None:
    with psycopg.connect(stack.database_url) as connection:
        connection.execute(
            "insert into public.finance_knowledge"
            " (content, title, category, token_symbol, owner_id, embedding, embedding_model, content_hash)"
            " select 'Of Alice alone', 'Private', category, 'NOT', %s, embedding, embedding_model, %s"
            " from public.finance_knowledge where category = %s and token_symbol = 'NOT'",
            [alice.user_id, uuid.uuid4().hex, category],
        )
    callers = {
        "alice": anybody.signed_in(alice),
        "bob": anybody.signed_in(bob),
        "visitor": anybody.visitor(stack),
        "server": anybody.server(stack),
        "admin": admin,
    }

    found = {
        name: titles(search(origin, headers, "Of Alice alone", tokenSymbol="NOT", category=category))
        for name, headers in callers.items()
    }

    assert "Private" in found.pop("alice")
    assert [name for name, those in found.items() if "Private" in those] == []


def test_an_admin_and_a_server_are_told_why_a_passage_is_found(
    stack: Stack, origin: str, category: str, admin: Headers, visitor: Headers
) -> None:
    asked: dict[str, Any] = {"query": "What is Notcoin, $NOT?", "category": category, "matchThreshold": ANYTHING}
    plain = search(origin, visitor, **asked).json()

    for headers in (admin, anybody.server(stack)):
        told = search(origin, headers, explain=True, **asked).json()

        ranks = [source.pop("ranks") for source in told["sources"]]
        assert told["sources"] == plain["sources"]
        assert (told.keys(), told["threshold"]) == ({"sources", "threshold", "timings"}, ANYTHING)
        assert set(ranks[0]) == {"meaning", "words", "names"}
        assert (ranks[0]["names"]["rank"], ranks[0]["words"]["rank"]) == (1, 1)
        assert sum(listed["share"] for listed in ranks[0].values()) == pytest.approx(told["sources"][0]["score"])


def test_nobody_else_is_told_why(origin: str, visitor: Headers, alice: User) -> None:
    assert_refused(search(origin, anybody.signed_in(alice), "What is NOT?", explain=True), 403, "forbidden")
    assert_refused(search(origin, visitor, "What is NOT?", explain=True), 401, "unauthenticated")
    assert search(origin, visitor, "What is NOT?", explain=False).status_code == 200


@pytest.mark.parametrize("part", ["id", "title", "symbol", "category"])
def test_documents_are_searched_by_what_they_are_called(stack: Stack, origin: str, name: str, part: str) -> None:
    odd = f"50%_{name[:8]}"
    document = {"id": f"{name}/{odd}", "title": f"The Zub {odd}", "tokenSymbol": f"Z{odd}", "category": name}
    others = {"id": f"{name}/other", "content": "Zub is another.", "category": name}
    call(origin, anybody.server(stack), "/documents", [{**document, "content": f"Zub is {name}."}, others], "PUT")
    words = {"id": odd.upper(), "title": f"zub 50%25_{name[:8]}", "symbol": f"z50%25_{name[:8]}", "category": name}

    listed = call(
        origin, anybody.server(stack), f"/documents?containing={words[part].replace('50%_', '50%25_')}", method="GET"
    )

    found = [each["id"] for each in listed.json()["documents"]]
    assert found == ([document["id"], others["id"]] if part == "category" else [document["id"]])


def test_an_admin_and_a_server_put_list_and_delete_documents(
    stack: Stack, origin: str, admin: Headers, visitor: Headers, name: str
) -> None:
    for headers in (admin, anybody.server(stack)):
        document = {"id": f"a/{name} é", "title": "Zub", "content": f"Zub is {name}.", "category": name}

        created, again = (call(origin, headers, "/documents", document, "PUT") for _ in range(2))
        found = search(origin, visitor, f"Zub is {name}", category=name)
        listed = call(origin, headers, f"/documents?limit=1&after=a/{name}", method="GET")
        deleted, gone = (call(origin, headers, f"/documents/a/{name}%20é", method="DELETE") for _ in range(2))

        assert [answer.status_code for answer in (created, again)] == [200, 200]
        assert created.json()["documents"][0]["outcome"] == "created"
        assert again.json()["documents"][0]["outcome"] == "unchanged"
        assert len(titles(found)) == 1
        assert listed.json()["documents"][0]["id"] == document["id"]
        assert (deleted.status_code, deleted.json()) == (200, {"id": document["id"]})
        assert_refused(gone, 404, "not_found")
        assert titles(search(origin, visitor, f"Zub is {name}", category=name)) == []


def test_takes_one_document_a_list_or_an_object_of_them(stack: Stack, origin: str, name: str) -> None:
    one, two = ({"id": f"{name}/{n}", "category": name, "content": f"Zub is {name}, {n}."} for n in range(2))

    answers = [call(origin, anybody.server(stack), "/documents", body, "PUT") for body in (one, [two], [one, two])]
    wrapped = call(origin, anybody.server(stack), "/documents", {"documents": [one, two]}, "PUT")

    assert [len(answer.json()["documents"]) for answer in [*answers, wrapped]] == [1, 1, 2, 2]
    assert {each["outcome"] for each in wrapped.json()["documents"]} == {"unchanged"}


def test_tells_which_documents_failed(stack: Stack, origin: str, name: str) -> None:
    good = {"id": f"{name}/good", "category": name, "content": f"Zub is {name}."}
    bad = {"id": f"{name}/bad", "title": "Zub", "content": 7}

    answer = call(origin, anybody.server(stack), "/documents", [bad, good, "text"], "PUT")

    told = answer.json()["documents"]
    assert answer.status_code == 207
    assert [each["outcome"] for each in told] == ["failed", "created", "failed"]
    assert told[0]["error"].startswith("content: ")


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ([], "documents"),
        ({"documents": []}, "documents"),
        ({"documents": {"id": "x", "content": "fine"}}, "documents"),
        ([{"content": "fine"}] * 101, "documents"),
        ("text", "body"),
        (None, "body"),
    ],
)
def test_refuses_documents_that_are_none(stack: Stack, origin: str, body: Any, place: str) -> None:
    refused = call(origin, anybody.server(stack), "/documents", body, "PUT")

    assert assert_refused(refused, 422, "invalid_request").startswith(place)


def test_takes_five_megabytes_of_documents_and_no_more(stack: Stack, origin: str) -> None:
    headers = anybody.server(stack)
    large = {"content": "", "metadata": {"a": "b" * 100_000}}

    taken = call(origin, headers, "/documents", [large] * 50, "PUT")
    refused = call(origin, headers, "/documents", [large] * 60, "PUT")
    posted = search(origin, headers, "a" * 100_000)

    assert [each["outcome"] for each in taken.json()["documents"]] == ["failed"] * 50  # read, and too much metadata
    assert "5120 KB" in assert_refused(refused, 413, "body_too_large")
    assert "64 KB" in assert_refused(posted, 413, "body_too_large")


@pytest.mark.parametrize(("method", "path"), [("PUT", "/documents"), ("GET", "/documents"), ("DELETE", "/documents/x")])
def test_documents_are_the_admins(stack: Stack, origin: str, alice: User, method: str, path: str) -> None:
    body = {"id": "x", "title": "Zub", "content": "Zub."} if method == "PUT" else None
    key = {"apikey": stack.keys.publishable}

    by_user = call(origin, anybody.signed_in(alice), path, body, method)
    by_visitor = call(origin, key, path, body, method)
    by_nobody = call(origin, {}, path, body, method)
    by_forger = call(origin, anybody.server(stack) | {"Authorization": "Bearer x"}, path, body, method)

    assert_refused(by_user, 403, "forbidden")
    for refused in (by_visitor, by_nobody, by_forger):
        assert_refused(refused, 401, "unauthenticated")
