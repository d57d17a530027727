"""The documents of ai-with-rag: embedded once, updated where they changed, and never failing each other."""

import json
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import psycopg
import pytest

from infra.local.stack import Stack
from tests.embedding_stand_ins import Embeddings, openai_answer, refusing, vector_of
from tests.functions import anybody
from tests.functions.anybody import ANYTHING, GENEROUS, Headers
from tests.functions.test_refusals import assert_refused
from tests.stand_ins import Proxy, serving
from tests.users import User

MODEL = "of-the-documents"
GUIDE = "# Staking\n\n{intro}\n\n## Risks\n\nSome are slashed.\n\n## Rewards\n\nThey come every round."
LONG = "".join(f"# Pool {number}\n\nPool {number} pays its holders a fee.\n\n" for number in range(150))


@dataclass(slots=True)
class Provider(Embeddings):
    """The stand-in and where it is."""

    url: str = ""


@pytest.fixture(scope="module")
def embeddings() -> Iterator[Provider]:
    stand_in = Provider()
    with serving(stand_in.app()) as url:
        stand_in.url = url
        yield stand_in


@pytest.fixture(scope="module")
def origin(stack: Stack, embeddings: Provider) -> Iterator[str]:
    """The functions with the stand-in for embeddings, under a model that no other test's rows have."""
    with functions(stack, embeddings) as origin:
        yield origin
    with psycopg.connect(stack.database_url) as connection:
        connection.execute(
            "delete from public.documents where id in"
            " (select document_id from public.finance_knowledge where embedding_model = %s)",
            [MODEL],
        )


@pytest.fixture(scope="module")
def admin(stack: Stack) -> Headers:
    return anybody.admin(stack)


@pytest.fixture(autouse=True)
def calm(embeddings: Provider) -> Iterator[None]:
    """What a test made the stand-in do ends with it, and what it was asked is the test's own."""
    embeddings.asked.clear()
    yield
    embeddings.instead.clear()
    embeddings.seconds = 0


@pytest.fixture
def name() -> str:
    """What no other test's documents begin with."""
    return uuid.uuid4().hex


@contextmanager
def functions(stack: Stack, embeddings: Provider, **overrides: str) -> Iterator[str]:
    settings = {"EMBEDDING_BASE_URL": f"{embeddings.url}/v1", "EMBEDDING_MODEL": MODEL}
    with stack.functions(**GENEROUS, **settings, **overrides) as origin:
        yield origin


def put(origin: str, headers: Headers, *documents: Any) -> list[dict[str, Any]]:
    answer = anybody.call(origin, headers, "/documents", list(documents), "PUT")
    assert answer.status_code in (200, 207), answer.text
    outcomes: list[dict[str, Any]] = answer.json()["documents"]
    return outcomes


def passages(stack: Stack, document_id: str) -> dict[str, int]:
    """The ids of the document's passages by content."""
    query = "select content, id from public.finance_knowledge where document_id = %s order by position"
    with psycopg.connect(stack.database_url) as connection:
        return dict(connection.execute(query, [document_id]).fetchall())


def failing_on(marker: str, status: int = 413) -> Any:
    """Vectors, but for requests with the marker in a text."""

    def answer(body: dict[str, Any]) -> Any:
        if any(marker in text for text in body["input"]):
            return refusing(status)(body)
        return openai_answer([vector_of(text) for text in body["input"]])

    return answer


def test_makes_passages_of_a_document_and_embeds_each_under_its_titles(
    stack: Stack, origin: str, admin: Headers, embeddings: Provider, name: str
) -> None:
    document = {"id": name, "content": GUIDE.format(intro=name), "category": "guide", "tokenSymbol": "TON"}

    [outcome] = put(origin, admin, document)

    assert (outcome["outcome"], outcome["passages"], outcome["embedded"]) == ("created", 3, 3)
    assert embeddings.texts == [
        f"Staking\n{name}",
        "Staking > Risks\nSome are slashed.",
        "Staking > Rewards\nThey come every round.",
    ]
    assert next(iter(passages(stack, name))) == name


def test_the_same_document_again_is_neither_embedded_nor_written(
    stack: Stack, origin: str, admin: Headers, embeddings: Provider, name: str
) -> None:
    document = {"id": name, "content": GUIDE.format(intro=name)}
    put(origin, admin, document)
    before = passages(stack, name)
    embeddings.asked.clear()

    [outcome] = put(origin, admin, document)

    assert (outcome["outcome"], outcome["passages"], outcome["embedded"]) == ("unchanged", 3, 0)
    assert embeddings.asked == []
    assert passages(stack, name) == before


def test_a_change_embeds_what_changed_and_keeps_the_other_passages(
    stack: Stack, origin: str, admin: Headers, embeddings: Provider, name: str
) -> None:
    put(origin, admin, {"id": name, "content": GUIDE.format(intro="Before.")})
    before = passages(stack, name)
    embeddings.asked.clear()

    [outcome] = put(origin, admin, {"id": name, "content": GUIDE.format(intro=f"After {name}.")})

    after = passages(stack, name)
    assert (outcome["outcome"], outcome["embedded"]) == ("updated", 1)
    assert embeddings.texts == [f"Staking\nAfter {name}."]
    assert next(iter(after)) == f"After {name}."
    assert {content: after[content] for content in after if content in before} == {
        content: id for content, id in before.items() if content != "Before."
    }


def test_a_change_of_the_fields_alone_embeds_nothing(
    stack: Stack, origin: str, admin: Headers, embeddings: Provider, name: str
) -> None:
    document = {"id": name, "title": name, "content": "Coins are locked."}
    put(origin, admin, document)
    before = passages(stack, name)
    embeddings.asked.clear()

    [outcome] = put(origin, admin, document | {"category": name, "metadata": {"reviewed": True}})

    assert (outcome["outcome"], outcome["embedded"]) == ("updated", 0)
    assert embeddings.asked == []
    assert passages(stack, name) == before
    found = anybody.search(origin, admin, "Coins", category=name, matchThreshold=ANYTHING).json()["sources"]
    assert [source["metadata"] for source in found] == [{"reviewed": True}]


def test_two_documents_with_one_text_have_it_embedded_once(
    stack: Stack, origin: str, admin: Headers, embeddings: Provider, name: str
) -> None:
    one, two, three = ({"id": f"{name}/{n}", "title": "Same", "content": name} for n in range(3))

    outcomes = put(origin, admin, one, two)
    [later] = put(origin, admin, three)

    assert [outcome["outcome"] for outcome in [*outcomes, later]] == ["created"] * 3
    assert later["embedded"] == 0
    assert embeddings.texts == [f"Same\n{name}"]


def test_without_an_id_a_document_is_known_by_what_it_says(origin: str, admin: Headers, name: str) -> None:
    [first] = put(origin, admin, {"content": name})
    [again] = put(origin, admin, {"content": name})
    [other] = put(origin, admin, {"content": f"{name}."})

    assert (first["outcome"], again["outcome"], other["outcome"]) == ("created", "unchanged", "created")
    assert first["id"] == again["id"] != other["id"]


def test_without_an_id_the_same_text_for_another_token_or_user_is_another_document(
    origin: str, admin: Headers, alice: User, name: str
) -> None:
    said = {"content": name}

    outcomes = put(origin, admin, said, {**said, "tokenSymbol": "TON"}, {**said, "ownerId": alice.user_id})

    assert [outcome["outcome"] for outcome in outcomes] == ["created"] * 3
    assert len({outcome["id"] for outcome in outcomes}) == 3


@pytest.mark.parametrize(
    ("bad", "place"),
    [
        ({"content": "PK\x03\x04\x00\x00binary"}, "content"),
        ({"content": "\x89PNG\r\n\x1a\n"}, "content"),
        ({"content": "\ufffd\ufffd\ufffd rubbish"}, "content"),
        ({"content": "a\ud800b"}, "content"),
        ({"content": " \n "}, "content"),
        ({"content": None}, "content"),
        ({"content": "x " * 600_000}, "content"),
        ({"content": '{"a": ', "format": "json"}, "content"),
        ({"content": '{"a": "\\u0000"}', "format": "json"}, "content"),
        ({"content": '"\\u0000"', "format": "json"}, "content"),
        ({"content": json.loads("[" * 40 + '"x"' + "]" * 40)}, "content"),
        ({"content": [{"name": f"Token {number}"} for number in range(2001)]}, "content"),
        ({}, "content"),
        ({"content": "x", "title": "a\x00b"}, "title"),
        ({"content": "x", "title": 7}, "title"),
        ({"content": "x", "format": "pdf"}, "format"),
        ({"content": "x", "metadata": {"a": "b" * 20_000}}, "metadata"),
        ({"content": "x", "metadata": {"a": ["\x00"]}}, "metadata"),
        ({"content": "x", "metadata": {"a\ud800": 1}}, "metadata"),
        ({"content": "x", "metadata": {"a": float("nan")}}, "metadata"),
        ({"content": "x", "metadata": []}, "metadata"),
        ({"content": "x", "ownerId": 10**12}, "ownerId"),
        ({"content": "x", "ownerId": "1"}, "ownerId"),
        ({"content": "x", "id": "i" * 256}, "id"),
        ({"content": "x", "id": ""}, "id"),
    ],
)
def test_a_bad_document_says_what_is_wrong_and_fails_no_other(
    stack: Stack, origin: str, admin: Headers, name: str, bad: dict[str, Any], place: str
) -> None:
    good = {"id": f"{name}/good", "content": "Good."}
    sent = json.dumps([{"id": f"{name}/bad"} | bad, good])  # httpx would refuse what a client in the wild can send

    answer = httpx.put(
        f"{origin}/functions/v1/ai-with-rag/documents",
        content=sent,
        headers=admin | {"Content-Type": "application/json"},
        timeout=50,
    )

    refused, fine = answer.json()["documents"]
    assert answer.status_code == 207
    assert (refused["outcome"], refused["code"], refused["retryable"]) == ("failed", "invalid_request", False)
    assert refused["error"].startswith(f"{place}: ")
    assert fine["outcome"] == "created"
    assert passages(stack, f"{name}/bad") == {}


def test_two_documents_of_one_id_are_refused_with_the_id(stack: Stack, origin: str, admin: Headers, name: str) -> None:
    refused = anybody.call(origin, admin, "/documents", [{"id": name, "content": text} for text in "ab"], "PUT")

    assert name in assert_refused(refused, 422, "invalid_request")
    assert passages(stack, name) == {}


def test_ten_megabytes_are_too_much(origin: str, admin: Headers) -> None:
    refused = anybody.call(origin, admin, "/documents", {"content": "a" * 10_000_000}, "PUT")

    assert_refused(refused, 413, "body_too_large")


def test_one_document_that_cannot_be_embedded_fails_alone(
    stack: Stack, origin: str, admin: Headers, embeddings: Provider, name: str
) -> None:
    documents = [{"id": f"{name}/{n}", "title": name, "content": f"{text} {name}"} for n, text in enumerate("abXcd")]
    for status, retryable in ((413, False), (500, True)):
        embeddings.instead = [failing_on("X", status)] * 99

        outcomes = put(origin, admin, *documents)

        assert [outcome["outcome"] == "failed" for outcome in outcomes] == [False, False, True, False, False]
        assert outcomes[2]["retryable"] is retryable
        for document in documents:
            anybody.call(origin, admin, f"/documents/{document['id']}", method="DELETE")


def test_a_document_that_fails_takes_no_text_from_a_later_one(
    stack: Stack, origin: str, admin: Headers, embeddings: Provider, name: str
) -> None:
    shared, ownerless = {"title": "Same", "content": name}, 10**9
    others = ({"id": f"{name}/b{n:03}", "title": name, "content": f"Text {n}."} for n in range(70))

    first, *_, last = put(
        origin, admin, {**shared, "id": f"{name}/a", "ownerId": ownerless}, *others, {**shared, "id": f"{name}/c"}
    )

    assert (first["outcome"], first["code"]) == ("failed", "invalid_request")
    assert (last["outcome"], last["passages"], last["embedded"]) == ("created", 1, 1)


def test_a_provider_that_is_down_is_left_alone_soon_and_nothing_is_half_written(
    stack: Stack, origin: str, admin: Headers, embeddings: Provider, name: str
) -> None:
    known = {"id": f"{name}/known", "title": name, "content": "Known."}
    put(origin, admin, known)
    embeddings.asked.clear()
    embeddings.instead = [refusing(500)] * 99

    outcomes = put(origin, admin, *({"id": f"{name}/{n}", "title": name, "content": f"{n}."} for n in range(20)), known)

    assert {outcome["code"] for outcome in outcomes[:-1]} == {"embedding_unavailable"}
    assert outcomes[-1]["outcome"] == "unchanged"
    assert len(embeddings.asked) < 20  # three tries of all of them, and of three alone
    assert passages(stack, f"{name}/0") == {}


def test_a_wrong_key_is_said_once(origin: str, admin: Headers, embeddings: Provider, name: str) -> None:
    embeddings.instead = [refusing(401)] * 99

    outcomes = put(origin, admin, *({"id": f"{name}/{n}", "title": name, "content": f"{n}."} for n in range(5)))

    assert {outcome["code"] for outcome in outcomes} == {"misconfigured"}
    assert "EMBEDDING_API_KEY" in outcomes[0]["error"]
    assert len(embeddings.asked) == 1


def test_what_the_deadline_cut_off_is_retryable_and_goes_on_from_there(
    stack: Stack, origin: str, admin: Headers, embeddings: Provider, name: str
) -> None:
    documents = [{"id": f"{name}/{n}", "content": LONG.replace("Pool", f"{name} {n}")} for n in range(4)]
    with functions(stack, embeddings, REQUEST_TIMEOUT_SECONDS="8") as hurried:
        embeddings.seconds = 0.6  # of 16 texts, two batches at a time
        first = put(hurried, admin, *documents)
        embeddings.seconds = 0
    second = put(origin, admin, *documents)

    late = [outcome for outcome in first if outcome["outcome"] == "failed"]
    assert late
    assert {(outcome["code"], outcome["retryable"]) for outcome in late} == {("deadline_exceeded", True)}
    assert "failed" not in {outcome["outcome"] for outcome in second}
    assert 0 < sum(outcome["embedded"] for outcome in second) < 600
    assert all(len(passages(stack, document["id"])) == 150 for document in documents)


def test_a_long_document_is_written_whole_or_not_at_all_and_goes_on_where_it_broke_off(
    stack: Stack, origin: str, admin: Headers, embeddings: Provider, name: str
) -> None:
    text = LONG.replace("Pool", name)
    put(origin, admin, {"id": name, "content": f"Before {name}."})
    embeddings.instead = [embeddings._vectors] * 6 + [refusing(401)] * 9  # of 16 texts each

    [broken] = put(origin, admin, {"id": name, "content": text})
    kept = passages(stack, name)
    embeddings.instead.clear()
    [whole] = put(origin, admin, {"id": name, "content": text})

    assert (broken["outcome"], list(kept)) == ("failed", [f"Before {name}."])
    assert (whole["outcome"], whole["passages"]) == ("updated", 150)
    assert whole["embedded"] == 150 - 64
    assert len(passages(stack, name)) == 150


def test_a_long_document_stands_in_order(
    stack: Stack, origin: str, admin: Headers, embeddings: Provider, name: str
) -> None:
    text = LONG.replace("Pool", name)

    [created] = put(origin, admin, {"id": name, "content": text})
    [again] = put(origin, admin, {"id": name, "content": text})
    [shorter] = put(origin, admin, {"id": name, "content": text[: len(text) // 2]})

    assert (created["outcome"], created["passages"], created["embedded"]) == ("created", 150, 150)
    assert (again["outcome"], again["embedded"]) == ("unchanged", 0)
    assert shorter["outcome"] == "updated"
    assert len(passages(stack, name)) == shorter["passages"] < 80
    assert list(passages(stack, name))[:3] == [f"{name} {number} pays its holders a fee." for number in range(3)]


def test_uploads_of_the_same_documents_at_once_agree(stack: Stack, origin: str, admin: Headers, name: str) -> None:
    documents = [{"id": f"{name}/{n}", "title": name, "content": f"Text {n}."} for n in range(30)]

    with ThreadPoolExecutor() as pool:
        uploads = [pool.submit(put, origin, admin, *sent) for sent in (documents, documents[::-1]) * 3]

    outcomes = [outcome["outcome"] for upload in uploads for outcome in upload.result()]
    assert "failed" not in outcomes
    assert all(len(passages(stack, document["id"])) == 1 for document in documents)


def test_vectors_that_vanish_meanwhile_fail_a_document_that_can_be_sent_again(
    stack: Stack, origin: str, admin: Headers, embeddings: Provider, name: str
) -> None:
    document = {"id": name, "title": name, "content": "Gone a moment ago."}
    proxy = Proxy(stack.url, instead={"/rpc/missing_passages": "[]"})
    issuer = f"{stack.url}/auth/v1"
    with (
        serving(proxy.app()) as url,
        functions(stack, embeddings, SUPABASE_URL=url, SUPABASE_JWT_ISSUER=issuer) as late,
    ):
        [outcome] = put(late, admin, document)
    [again] = put(origin, admin, document)

    assert (outcome["outcome"], outcome["code"], outcome["retryable"]) == ("failed", "database_unavailable", True)
    assert (again["outcome"], again["embedded"]) == ("created", 1)


def test_json_is_kept_as_lines_that_can_be_read(stack: Stack, origin: str, admin: Headers, name: str) -> None:
    tokens = [{"name": f"Toncoin {name}", "decimals": 9}, {"name": f"Tether {name}", "decimals": 6}]

    [outcome] = put(origin, admin, {"id": name, "title": "Tokens", "content": tokens})

    assert outcome["passages"] == 2
    assert list(passages(stack, name)) == [f"name: {token['name']}\ndecimals: {token['decimals']}" for token in tokens]


def test_a_document_with_an_owner_is_found_by_him_alone(
    stack: Stack, origin: str, admin: Headers, alice: User, bob: User, name: str
) -> None:
    document = {"id": name, "content": f"{name} is private.", "category": name, "ownerId": alice.user_id}
    put(origin, admin, document)

    def found(headers: Headers) -> int:
        answer = anybody.search(origin, headers, f"{name} is private.", category=name, matchThreshold=ANYTHING)
        return len(answer.json()["sources"])

    private = [found(headers) for headers in map(anybody.signed_in, (alice, bob))] + [found(anybody.visitor(stack))]
    [opened] = put(origin, admin, document | {"ownerId": None})
    public = [found(anybody.signed_in(bob)), found(anybody.visitor(stack))]

    assert private == [1, 0, 0]
    assert (opened["outcome"], opened["embedded"]) == ("updated", 0)
    assert public == [1, 1]


def test_a_deleted_document_takes_its_passages_along(stack: Stack, origin: str, admin: Headers, name: str) -> None:
    put(origin, admin, {"id": f"{name}/ä#b?c", "content": GUIDE.format(intro=name)})

    deleted = anybody.call(origin, admin, f"/documents/{name}/%C3%A4%23b%3Fc", method="DELETE")
    again = anybody.call(origin, admin, f"/documents/{name}/%C3%A4%23b%3Fc", method="DELETE")
    odd = anybody.call(origin, admin, "/documents/a%00b", method="DELETE")

    assert deleted.json() == {"id": f"{name}/ä#b?c"}
    assert_refused(again, 404, "not_found")
    assert_refused(odd, 404, "not_found")
    assert passages(stack, f"{name}/ä#b?c") == {}


def test_documents_are_listed_page_by_page(origin: str, admin: Headers, name: str) -> None:
    put(origin, admin, *({"id": f"{name}/{n}", "content": GUIDE.format(intro=n), "source": "tests"} for n in range(5)))

    seen: list[dict[str, Any]] = []
    after: str | None = name
    while after and len(seen) < 5:
        page = anybody.call(origin, admin, f"/documents?limit=2&after={after}", method="GET").json()
        seen, after = [*seen, *page["documents"]], page["next"]

    assert [document["id"] for document in seen[:5]] == [f"{name}/{n}" for n in range(5)]
    first = seen[0]
    assert first.pop("updatedAt")
    assert first == {
        "id": f"{name}/0",
        "title": "Staking",
        "category": None,
        "tokenSymbol": None,
        "tokenAddress": None,
        "source": "tests",
        "metadata": {},
        "ownerId": None,
        "passages": 3,
    }


@pytest.mark.parametrize("argument", ["after", "containing"])
def test_a_list_by_a_text_that_no_database_takes_is_refused(origin: str, admin: Headers, argument: str) -> None:
    refused = anybody.call(origin, admin, f"/documents?{argument}=a%00b", method="GET")

    assert_refused(refused, 422, "invalid_request")
