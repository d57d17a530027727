"""What ai-finance refuses, and how: one error shape, readable by a browser, saying what to do."""

import uuid
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from infra.local.stack import Stack
from tests.stand_ins import Model
from tests.users import User

TOO_LONG = "a" * 4001
NOBODY = "2f1f0cf7-3d3b-4d4e-8f0a-5b9a3a4f8f41"


def assert_refused(response: httpx.Response, status: int, code: str) -> str:
    """Checks the one shape and the headers every error has; gives its message."""
    body = response.json()
    assert (response.status_code, body["code"]) == (status, code), body
    assert body.keys() == {"error", "code", "requestId", "retryable"}
    assert body["requestId"] == response.headers["x-request-id"]
    assert response.headers["access-control-allow-origin"] == "*"
    message: str = body["error"]
    return message


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "message"),
        ({"message": ""}, "message"),
        ({"message": " \n\t "}, "message"),
        ({"message": TOO_LONG}, "message"),
        ({"message": "a\x00b"}, "message"),
        ({"message": "\ud800"}, "message"),
        ({"message": 7}, "message"),
        ({"message": None}, "message"),
        ({"message": "hi", "threadId": "no uuid"}, "threadId"),
        ({"message": "hi", "matchCount": 0}, "matchCount"),
        ({"message": "hi", "matchCount": 21}, "matchCount"),
        ({"message": "hi", "matchCount": "many"}, "matchCount"),
        ({"message": "hi", "matchThreshold": 1.5}, "matchThreshold"),
        ({"message": "hi", "stream": "perhaps"}, "stream"),
        ({"message": "hi", "userId": [1]}, "userId"),
        ([], "body"),
        ("text", "body"),
        (None, "body"),
    ],
)
def test_names_the_field_of_a_bad_request(functions: str, alice: User, body: Any, field: str) -> None:
    import json  # httpx would refuse the lone surrogate that a browser can send

    refused = httpx.post(
        f"{functions}/ai-finance",
        content=json.dumps(body),
        headers={"Authorization": f"Bearer {alice.token}", "Content-Type": "application/json"},
    )

    message = assert_refused(refused, 422, "invalid_request")
    assert message.startswith(field)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"{'message': 'hi'}", b"[" * 30000])
def test_refuses_a_body_that_is_not_json(functions: str, alice: User, content: bytes) -> None:
    refused = httpx.post(
        f"{functions}/ai-finance",
        content=content,
        headers={"Authorization": f"Bearer {alice.token}", "Content-Type": "application/json"},
    )

    assert_refused(refused, 400, "invalid_json")


def test_refuses_a_body_over_64_kb(functions: str, alice: User) -> None:
    refused = alice.ask(functions, "a" * 70_000)

    assert_refused(refused, 413, "body_too_large")


def test_refuses_an_endless_body_of_unknown_length(functions: str, alice: User) -> None:
    def pieces() -> Iterator[bytes]:
        yield b'{"message": "'
        for _ in range(100):
            yield b"a" * 1000

    refused = httpx.post(
        f"{functions}/ai-finance", content=pieces(), headers={"Authorization": f"Bearer {alice.token}"}
    )

    assert_refused(refused, 413, "body_too_large")


@pytest.mark.parametrize("user_id", [1_000_000, "1000000", NOBODY, "somebody", "", -1, 10**30])
def test_refuses_another_users_id(functions: str, alice: User, user_id: Any) -> None:
    refused = alice.ask(functions, "What is TON token?", userId=user_id)

    assert_refused(refused, 403, "forbidden")


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "", {"message": "hi"}),
        ("POST", "/feedback", {"conversationId": 1, "feedback": 1}),
        ("GET", "/threads", None),
        ("GET", f"/threads/{NOBODY}", None),
    ],
)
def test_asks_for_a_signed_in_user_on_every_route(functions: str, method: str, path: str, body: Any) -> None:
    refused = httpx.request(method, f"{functions}/functions/v1/ai-finance{path}", json=body)

    assert_refused(refused, 401, "unauthenticated")


@pytest.mark.parametrize(
    "body",
    [
        {"conversationId": 1, "feedback": 2},
        {"conversationId": 1},
        {"conversationId": 0, "feedback": 1},
        {"conversationId": 2**63, "feedback": 1},
        {"conversationId": "x", "feedback": 1},
        {"conversationId": 1, "feedback": True},
    ],
)
def test_refuses_a_bad_rating(functions: str, alice: User, body: Any) -> None:
    refused = alice.call(functions, "POST", "/feedback", body)

    assert_refused(refused, 422, "invalid_request")


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=x", "before=0", "before=x"])
def test_refuses_a_bad_page(functions: str, alice: User, query: str) -> None:
    refused = alice.call(functions, "GET", f"/threads?{query}")

    assert_refused(refused, 422, "invalid_request")


def test_does_not_know_strange_paths_and_methods(functions: str, alice: User) -> None:
    strange = alice.call(functions, "GET", "/nothing/here")
    unknown = httpx.get(f"{functions}/functions/v1/no-such-function")
    method = alice.call(functions, "DELETE", "/threads")
    thread = alice.call(functions, "GET", f"/threads/{uuid.uuid4()}")

    assert_refused(strange, 404, "not_found")
    assert_refused(unknown, 404, "not_found")
    assert_refused(method, 405, "method_not_allowed")
    assert_refused(thread, 404, "not_found")


@pytest.mark.parametrize("key", ["", "k" * 256])
def test_refuses_a_strange_idempotency_key(functions: str, alice: User, key: str) -> None:
    refused = alice.ask(functions, "What is TON token?", {"Idempotency-Key": key})

    assert "dempotency-" in assert_refused(refused, 422, "invalid_request").title()


@pytest.mark.parametrize("path", ["/functions/v1/ai-finance", "/ai-finance/threads", "/functions/v1/nothing"])
def test_answers_a_preflight_without_credentials(functions: str, path: str) -> None:
    preflight = httpx.options(
        f"{functions}{path}",
        headers={"Origin": "https://app.example", "Access-Control-Request-Method": "POST"},
    )

    assert preflight.status_code == 204
    assert preflight.headers["access-control-allow-origin"] == "*"
    allowed = preflight.headers["access-control-allow-headers"]
    assert {"authorization", "x-client-info", "apikey", "content-type", "idempotency-key"} <= set(allowed.split(", "))


def test_opens_answers_to_the_configured_origins_only(stack: Stack) -> None:
    with stack.functions(ALLOWED_ORIGINS="https://app.example, https://beta.example") as origin:
        answers = {
            page: httpx.get(f"{origin}/ai-finance/threads", headers={"Origin": page})
            for page in ("https://beta.example", "https://evil.example")
        }

    friend, stranger = answers["https://beta.example"], answers["https://evil.example"]
    assert friend.status_code == 401
    assert friend.headers["access-control-allow-origin"] == "https://beta.example"
    assert friend.headers["vary"] == stranger.headers["vary"] == "Origin"
    assert "access-control-allow-origin" not in stranger.headers


def test_keeps_a_sane_request_id_and_replaces_an_odd_one(functions: str) -> None:
    sane = httpx.get(f"{functions}/ai-finance/threads", headers={"x-request-id": "trace-1:a.b"})
    odd = httpx.get(f"{functions}/ai-finance/threads", headers={"x-request-id": 'a" injected: b'})

    assert sane.headers["x-request-id"] == "trace-1:a.b"
    uuid.UUID(odd.headers["x-request-id"])


def test_limits_questions_a_minute(stack: Stack, knowledge: None) -> None:
    user = User.sign_up(stack)
    with stack.functions(TURNS_PER_MINUTE="2") as origin:
        answers = [user.ask(origin, "Give me a recipe for borscht") for _ in range(3)]

    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert_refused(answers[2], 429, "rate_limited")
    assert 1 <= int(answers[2].headers["retry-after"]) <= 60


def test_a_seed_phrase_goes_nowhere(stack: Stack, functions: str, model: Model, alice: User) -> None:
    phrase = "legal winner thank year wave sausage worth useful legal winner thank yellow"
    asked = len(model.asked)

    refused = alice.ask(functions, f"What is TON? {phrase}")
    by_visitor = httpx.post(
        f"{functions}/ai-with-rag/search", json={"query": phrase}, headers={"apikey": stack.keys.publishable}
    )

    for response in (refused, by_visitor):
        assert "seed phrase" in assert_refused(response, 422, "secret_in_message")
    kept = alice.client(stack).table("conversations").select("id").like("message", "%sausage%").execute().data
    assert (kept, len(model.asked)) == ([], asked)
