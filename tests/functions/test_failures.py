"""What ai-finance does when something it needs is slow, broken or gone: a clear 503, and nothing lost."""

import json
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from typing import Any

import httpx
import jwt
import pytest

from infra.local.stack import Stack
from tests.functions.test_refusals import assert_refused
from tests.stand_ins import ANSWER, Model, Proxy, serving
from tests.users import User

CLOSED = "http://127.0.0.1:9"  # the discard port: nobody listens


@contextmanager
def functions_behind(proxy: Proxy, stack: Stack, **overrides: str) -> Iterator[str]:
    """The functions' origin, with the proxy between them and Supabase."""
    with serving(proxy.app()) as url:
        issuer = f"{stack.url}/auth/v1"
        with stack.functions(SUPABASE_URL=url, SUPABASE_JWT_ISSUER=issuer, **overrides) as origin:
            yield origin


@pytest.mark.parametrize("behaviour", ["fail", "busy", "reject", "empty"])
def test_keeps_the_conversation_as_failed_when_the_model_fails(
    functions: str, stack: Stack, alice: User, behaviour: str
) -> None:
    key = uuid.uuid4().hex

    refused = alice.ask(functions, f"What is TON token? [{behaviour}]", {"Idempotency-Key": key})

    assert_refused(refused, 503, "model_unavailable")
    assert refused.json()["retryable"] is True
    row = _row(stack, alice, key)
    assert (row["status"], row["response"], row["error_code"]) == ("failed", "", "model_unavailable")


@pytest.mark.parametrize(
    "content",
    [
        b"<html>maintenance</html>",
        b"{}",
        b"[1]",
        b"null",
        b"",
        b'{"choices": []}',
        b'{"choices": [{"message": null}]}',
        b'{"choices": [{"message": {"content": ["a"]}}]}',
        b"\xff\xfe",
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_takes_an_answer_that_is_not_the_apis_for_a_failure(
    functions: str, stack: Stack, model: Model, alice: User, content: bytes, stream: bool
) -> None:
    key = uuid.uuid4().hex
    model.raw[key] = b"data: " + content + b"\n\n" if stream else content

    answer = alice.ask(functions, f"What is TON token? {key}", {"Idempotency-Key": key}, stream=stream)

    if stream:
        assert '"code":"model_unavailable"' in answer.text.rpartition("event: error")[2]
    else:
        assert_refused(answer, 503, "model_unavailable")
    row = _row(stack, alice, key)
    assert (row["status"], row["error_code"]) == ("failed", "model_unavailable")


@pytest.mark.parametrize(
    "usage",
    [
        "null",
        '{"prompt_tokens": null}',
        '{"prompt_tokens": "7", "completion_tokens": 1.5}',
        '{"prompt_tokens": 2147483648, "completion_tokens": 9}',
        f'{{"prompt_tokens": 40, "completion_tokens": {10**30}}}',
    ],
)
def test_keeps_an_answer_whose_text_and_usage_are_odd(
    functions: str, stack: Stack, model: Model, alice: User, usage: str
) -> None:
    key = uuid.uuid4().hex
    message = r'{"role": "assistant", "content": "TON\u0000 is \ud800 fine."}'
    choice = f'{{"index": 0, "message": {message}, "finish_reason": "stop"}}'
    model.raw[key] = f'{{"id": "1", "choices": [{choice}], "usage": {usage}}}'.encode()

    answer = alice.ask(functions, f"What is TON token? {key}", {"Idempotency-Key": key})

    assert answer.json()["response"] == "TON is ? fine."
    assert answer.json()["usage"]["estimated"] is True
    assert _row(stack, alice, key)["response"] == "TON is ? fine."


def test_says_in_the_one_shape_that_something_unforeseen_happened(stack: Stack, alice: User) -> None:
    key = uuid.uuid4().hex
    proxy = Proxy(stack.url, instead={"/rpc/search_finance_knowledge": "[{}]"})
    with functions_behind(proxy, stack) as origin:
        answer = alice.ask(origin, "What is TON token?", {"Idempotency-Key": key})

    assert_refused(answer, 500, "internal")
    assert _row(stack, alice, key)["error_code"] == "internal"


@pytest.mark.parametrize("content", ['"<html>maintenance</html>"', '{"outcome": "odd"}'])
def test_takes_a_page_for_a_database_that_is_away(stack: Stack, alice: User, content: str) -> None:
    proxy = Proxy(stack.url, instead={"/rpc/open_turn": content})
    with functions_behind(proxy, stack) as origin:
        answer = alice.ask(origin, "What is TON token?")

    assert_refused(answer, 503, "database_unavailable")


def test_takes_vectors_that_are_none_for_a_failure(stack: Stack, alice: User) -> None:
    vectors = ["[0, 0]", "[1e300]", '["a"]', "[[1]]", "null", "[]", str([1] * 1537), "[NaN]", "[Infinity]"]
    odd = Proxy(stack.url)
    with serving(odd.app()) as url, stack.functions(EMBEDDING_BASE_URL=url) as origin:
        for vector in vectors:
            odd.instead = {"/embeddings": f'{{"data": [{{"index": 0, "embedding": {vector}}}]}}'}
            key = uuid.uuid4().hex

            answer = alice.ask(origin, "What is TON token?", {"Idempotency-Key": key})

            assert_refused(answer, 503, "embedding_unavailable")
            assert _row(stack, alice, key)["status"] == "failed"


@pytest.mark.parametrize("behaviour", ["fail", "empty"])
def test_streams_the_models_failure_as_an_error(functions: str, stack: Stack, alice: User, behaviour: str) -> None:
    with alice.ask_in_events(functions, f"What is TON token? [{behaviour}]") as events:
        told = list(events)

    assert [name for name, _ in told] == ["sources", "error"]
    assert told[1][1]["code"] == "model_unavailable"
    assert told[1][1].keys() == {"error", "code", "requestId", "retryable"}


def test_gives_up_at_the_deadline_and_hangs_up_on_the_model(
    stack: Stack, model: Model, knowledge: None, alice: User
) -> None:
    key, abandoned = uuid.uuid4().hex, model.abandoned
    settings = {"MODEL_BASE_URL": f"{model.url}/v1", "MODEL_NAME": "stand-in", "REQUEST_TIMEOUT_SECONDS": "2"}
    with stack.functions(**settings) as origin:
        whole = alice.ask(origin, "What is TON token? [silent]", {"Idempotency-Key": key})
        with alice.ask_in_events(origin, "What is TON token? [silent]") as events:
            told = list(events)

    assert_refused(whole, 504, "deadline_exceeded")
    assert told[-1][1]["code"] == "deadline_exceeded"
    assert _row(stack, alice, key)["status"] == "failed"
    limit = time.monotonic() + 10
    while model.abandoned < abandoned + 2 and time.monotonic() < limit:
        time.sleep(0.05)
    assert model.abandoned == abandoned + 2


def test_says_that_the_model_is_down(stack: Stack, knowledge: None, alice: User) -> None:
    with stack.functions(MODEL_BASE_URL=f"{CLOSED}/v1") as origin:
        refused = alice.ask(origin, "What is TON token?")

    assert_refused(refused, 503, "model_unavailable")


def test_keeps_the_conversation_as_failed_when_embeddings_are_down(stack: Stack, alice: User) -> None:
    key = uuid.uuid4().hex
    with stack.functions(EMBEDDING_BASE_URL=f"{CLOSED}/v1") as origin:
        refused = alice.ask(origin, "What is TON token?", {"Idempotency-Key": key})

    assert_refused(refused, 503, "embedding_unavailable")
    assert _row(stack, alice, key)["error_code"] == "embedding_unavailable"


def test_says_that_the_database_is_down(stack: Stack, alice: User) -> None:
    with stack.functions(SUPABASE_URL=CLOSED, SUPABASE_JWT_ISSUER=f"{stack.url}/auth/v1") as origin:
        asked = alice.ask(origin, "What is TON token?")
        listed = alice.call(origin, "GET", "/threads")

    assert_refused(asked, 503, "database_unavailable")
    assert_refused(listed, 503, "database_unavailable")


def test_returns_an_answer_that_could_not_be_written_and_the_queue_writes_it(
    stack: Stack, model: Model, knowledge: None, alice: User
) -> None:
    key = uuid.uuid4().hex
    proxy = Proxy(stack.url, refused="/rpc/close_turn")
    with functions_behind(
        proxy,
        stack,
        MODEL_BASE_URL=f"{model.url}/v1",
        MODEL_NAME="stand-in",
    ) as origin:
        answer = alice.ask(origin, "What is TON token?", {"Idempotency-Key": key})

    assert answer.status_code == 200
    assert answer.json()["response"] == "".join(ANSWER)
    assert proxy.refusals == 1
    row = _row(stack, alice, key)
    assert row["id"] == answer.json()["conversationId"]
    assert (row["response"], row["status"]) == ("".join(ANSWER), "complete")


def test_writes_answers_with_a_legacy_service_role_key(stack: Stack, alice: User) -> None:
    key = uuid.uuid4().hex
    legacy = jwt.encode({"role": "service_role", "exp": 4102444800}, stack.keys.jwt_secret)
    with stack.functions(SUPABASE_SECRET_KEY="", SUPABASE_SERVICE_ROLE_KEY=legacy, QUEUE_URL="") as origin:
        alice.ask(origin, "Give me a recipe for borscht", {"Idempotency-Key": key})

    assert _row(stack, alice, key)["status"] == "complete"


def test_returns_an_answer_even_when_the_queue_is_gone_too(
    stack: Stack, model: Model, knowledge: None, alice: User
) -> None:
    proxy = Proxy(stack.url, refused="/rpc/close_turn")
    with functions_behind(
        proxy,
        stack,
        MODEL_BASE_URL=f"{model.url}/v1",
        MODEL_NAME="stand-in",
        AWS_ENDPOINT_URL=CLOSED,
    ) as origin:
        answer = alice.ask(origin, "What is TON token?")

    assert answer.status_code == 200
    assert answer.json()["response"] == "".join(ANSWER)


def test_keeps_a_question_whose_client_left_before_the_first_event(stack: Stack, knowledge: None, alice: User) -> None:
    key = uuid.uuid4().hex
    proxy = Proxy(stack.url, held="/rpc/search_finance_knowledge")
    with functions_behind(proxy, stack) as origin:
        connection = HTTPConnection(origin.removeprefix("http://"))
        headers = {"Authorization": f"Bearer {alice.token}", "Idempotency-Key": key, "Content-Type": "application/json"}
        connection.request("POST", "/ai-finance", '{"message": "What is TON token?", "stream": true}', headers)
        assert proxy.holding.wait(10)
        connection.close()

        row = _row(stack, alice, key)

    assert (row["status"], row["response"], row["error_code"]) == ("failed", "", "client_gone")


def test_logs_one_line_a_request_and_one_a_failed_try_without_texts_tokens_or_keys(
    stack: Stack, model: Model, knowledge: None, alice: User
) -> None:
    secret = uuid.uuid4().hex
    before = set(stack.logs.iterdir())
    with stack.functions(MODEL_BASE_URL=f"{model.url}/v1", MODEL_NAME="stand-in") as origin:
        answer = alice.ask(origin, f"What is TON token? {secret}", {"x-request-id": "logged-1"}).json()
        alice.ask(origin, f"What is TON token? {secret} [fail]", {"x-request-id": "logged-2"})
        httpx.post(f"{origin}/ai-finance", json={"message": secret}, headers={"Authorization": f"Bearer {secret}"})
    [log] = set(stack.logs.iterdir()) - before

    text = log.read_text()
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    [line] = [line for line in lines if line.get("requestId") == "logged-1"]
    *tries, failed = [line for line in lines if line.get("requestId") == "logged-2"]
    assert line["status"] == 200
    assert line["conversationId"] == answer["conversationId"]
    assert {"auth", "open", "embed", "match", "model", "close"} <= line["timings"].keys()
    assert (line["inputTokens"], line["outputTokens"]) == (40, 9)
    assert (failed["status"], failed["code"]) == (503, "model_unavailable")
    assert [(line["model"], line["try"], line["failure"]) for line in tries] == [
        ("stand-in", number, "failing") for number in (1, 2, 3)
    ]
    keys = stack.keys
    for kept_out in (secret, alice.token, keys.secret, keys.jwt_secret, ANSWER[1].strip()):
        assert kept_out not in text


def _row(stack: Stack, user: User, key: str) -> dict[str, Any]:
    client = user.client(stack)
    limit = time.monotonic() + 20
    while not (rows := client.table("conversations").select("*").eq("idempotency_key", key).execute().data):
        assert time.monotonic() < limit, "the conversation was not written"
        time.sleep(0.1)
    found: dict[str, Any] = rows[0]  # type: ignore[assignment]
    return found
