"""What ai-with-rag refuses: strangers, bad requests, too many of them, and what it can't serve in time."""

import asyncio
import json
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from infra.local.stack import Stack
from tests.embedding_stand_ins import Embeddings
from tests.functions import anybody
from tests.functions.anybody import ANYTHING, Headers, ask, call, search
from tests.functions.test_failures import CLOSED, functions_behind
from tests.functions.test_refusals import assert_refused
from tests.stand_ins import Model, Proxy, serving
from tests.users import User

EVENT = Path(__file__).with_name("events") / "api_gateway_v2.json"


@pytest.fixture(scope="module")
def origin(stack: Stack, model: Model) -> Iterator[str]:
    settings = {"MODEL_BASE_URL": f"{model.url}/v1", "MODEL_NAME": "stand-in", **anybody.GENEROUS}
    with stack.functions(**settings) as url:
        yield url


@pytest.fixture(scope="module")
def tokens(stack: Stack) -> Iterator[dict[str, Any]]:
    """What has a question find the passages of Notcoin, STON and slippage, and no others."""
    with anybody.learned(stack, *anybody.TOKENS) as category:
        yield {"category": category, "matchThreshold": ANYTHING}


@pytest.fixture
def visitor(stack: Stack) -> Headers:
    return anybody.visitor(stack)


@pytest.mark.parametrize("path", ["", "/search"])
@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "query"),
        ({"query": ""}, "query"),
        ({"query": " \n\t "}, "query"),
        ({"message": ""}, "message"),
        ({"query": "a", "message": "b"}, "query"),
        ({"query": "a" * 4001}, "query"),
        ({"query": "a\x00b"}, "query"),
        ({"query": "\ud800"}, "query"),
        ({"query": 7}, "query"),
        ({"query": ["a"]}, "query"),
        ({"query": "a", "tokenSymbol": ""}, "tokenSymbol"),
        ({"query": "a", "tokenSymbol": "a" * 256}, "tokenSymbol"),
        ({"query": "a", "tokenSymbol": "a\x00"}, "tokenSymbol"),
        ({"query": "a", "tokenSymbol": {"a": 1}}, "tokenSymbol"),
        ({"query": "a", "tokenAddress": "a" * 256}, "tokenAddress"),
        ({"query": "a", "tokenAddress": 7}, "tokenAddress"),
        ({"query": "a", "category": "a" * 256}, "category"),
        ({"query": "a", "matchCount": 0}, "matchCount"),
        ({"query": "a", "matchCount": 21}, "matchCount"),
        ({"query": "a", "matchCount": 1.5}, "matchCount"),
        ({"query": "a", "matchThreshold": 1.1}, "matchThreshold"),
        ({"query": "a", "matchThreshold": float("nan")}, "matchThreshold"),
        ({"query": "a", "matchThreshold": float("inf")}, "matchThreshold"),
        ({"query": "a", "matchThreshold": float("-inf")}, "matchThreshold"),
        ({"query": "a", "matchThreshold": "near"}, "matchThreshold"),
        ([], "body"),
        ("text", "body"),
        (None, "body"),
    ],
)
def test_names_the_field_of_a_bad_request(origin: str, visitor: Headers, path: str, body: Any, field: str) -> None:
    refused = httpx.post(
        f"{origin}/ai-with-rag{path}",
        content=json.dumps(body),  # httpx would refuse the lone surrogate and the numbers that are none
        headers=visitor | {"Content-Type": "application/json"},
    )

    assert assert_refused(refused, 422, "invalid_request").startswith(field)


@pytest.mark.parametrize("path", ["", "/search"])
def test_refuses_a_body_over_64_kb(origin: str, visitor: Headers, path: str) -> None:
    refused = call(origin, visitor, path, {"query": "a" * 100_000})

    assert_refused(refused, 413, "body_too_large")


def test_refuses_whom_it_cannot_trust_and_says_what_to_send(stack: Stack, origin: str, alice: User) -> None:
    keys = stack.keys
    good = {"apikey": keys.publishable}
    claims = jwt.decode(alice.token, options={"verify_signature": False})
    expired = jwt.encode(claims | {"exp": int(time.time()) - 60}, keys.jwt_secret)
    strangers: list[Headers] = [
        {},
        {"apikey": ""},
        {"apikey": "sb_publishable_wrong"},
        {"apikey": keys.publishable[:-1]},
        {"apikey": keys.jwt_secret},
        good | {"Authorization": ""},
        good | {"Authorization": "Bearer"},
        good | {"Authorization": "Bearer undefined"},
        good | {"Authorization": f"Bearer {expired}"},
        good | {"Authorization": f"Bearer {alice.token[:-2]}"},
        good | {"Authorization": f"Basic {keys.publishable}"},
        {"apikey": keys.secret, "Authorization": f"Bearer {keys.secret}x"},
    ]

    answers = [search(origin, headers, "What is TON?") for headers in strangers]

    messages = [assert_refused(answer, 401, "unauthenticated") for answer in answers]
    assert "publishable key" in messages[0]
    assert "expired" in messages[8]


def test_does_not_know_strange_paths_and_methods(origin: str, visitor: Headers) -> None:
    assert_refused(call(origin, visitor, "/nothing"), 404, "not_found")
    assert_refused(call(origin, visitor, "", method="GET"), 405, "method_not_allowed")
    assert_refused(call(origin, visitor, "/documents", {}), 405, "method_not_allowed")
    assert_refused(call(origin, visitor, "/documents/x", {}, "PUT"), 405, "method_not_allowed")


@pytest.mark.parametrize("path", ["", "/search", "/documents"])
def test_answers_a_preflight_without_credentials(origin: str, path: str) -> None:
    preflight = httpx.options(
        f"{origin}/functions/v1/ai-with-rag{path}",
        headers={"Origin": "https://app.example", "Access-Control-Request-Method": "PUT"},
    )

    assert preflight.status_code == 204
    assert preflight.headers["access-control-allow-origin"] == "*"
    assert {"PUT", "DELETE"} <= set(preflight.headers["access-control-allow-methods"].split(", "))
    assert {"authorization", "apikey"} <= set(preflight.headers["access-control-allow-headers"].split(", "))


def test_limits_what_a_user_asks_apart_from_what_he_searches(
    stack: Stack, model: Model, tokens: dict[str, Any]
) -> None:
    user, other = (anybody.signed_in(User.sign_up(stack)) for _ in range(2))
    limits = {"TURNS_PER_MINUTE": "2", "SEARCHES_PER_MINUTE": "3"}
    with stack.functions(MODEL_BASE_URL=f"{model.url}/v1", MODEL_NAME="stand-in", **limits) as origin:
        asked = [ask(origin, user, "What is Notcoin?", **tokens) for _ in range(3)]
        searched = [search(origin, user, "What is Notcoin?", **tokens) for _ in range(4)]
        unaffected = ask(origin, other, "What is Notcoin?", **tokens)

    assert [answer.status_code for answer in asked] == [200, 200, 429]
    assert [answer.status_code for answer in searched] == [200, 200, 200, 429]
    assert_refused(asked[2], 429, "rate_limited")
    assert 1 <= int(asked[2].headers["retry-after"]) <= 60
    assert unaffected.status_code == 200


def test_a_refused_question_does_not_reach_the_model(stack: Stack, model: Model, tokens: dict[str, Any]) -> None:
    user, marker = anybody.signed_in(User.sign_up(stack)), uuid.uuid4().hex
    settings = {"MODEL_BASE_URL": f"{model.url}/v1", "MODEL_NAME": "stand-in", "TURNS_PER_MINUTE": "3"}
    with stack.functions(**settings) as origin, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: ask(origin, user, f"What is Notcoin? {marker}", **tokens), range(12)))

    assert sorted(answer.status_code for answer in answers) == [200] * 3 + [429] * 9
    assert model.count(marker) == 3


def test_the_secret_key_is_not_counted(stack: Stack, tokens: dict[str, Any]) -> None:
    limits = {"SEARCHES_PER_MINUTE": "1", "ANONYMOUS_SEARCHES_PER_MINUTE": "1"}
    with stack.functions(**limits) as origin:
        answers = [search(origin, anybody.server(stack), "What is Notcoin?", **tokens) for _ in range(3)]

    assert [answer.status_code for answer in answers] == [200] * 3


def test_limits_visitors_by_the_address_that_the_server_saw(stack: Stack, tmp_path: Path) -> None:
    lines = (f"203.0.113.{n}" for n in (1, 1, 2)), ("2001:db8:1::1", "2001:db8:1::2", "2001:db8:2::1")
    addresses = [address for group in lines for address in group]
    files = [visit(stack, tmp_path, number, address) for number, address in enumerate(addresses)]

    statuses = invoke(stack, files, ANONYMOUS_SEARCHES_PER_MINUTE="1")

    assert statuses == [200, 429, 200, 200, 429, 200]


def test_takes_no_address_from_a_header(stack: Stack) -> None:
    with stack.functions(ANONYMOUS_SEARCHES_PER_MINUTE="1") as origin:
        statuses = [
            search(
                origin, anybody.visitor(stack) | {"X-Forwarded-For": f"203.0.113.{n}"}, "What is Notcoin?"
            ).status_code
            for n in range(3)
        ]

    assert statuses[1:] == [429, 429]


def test_a_visitor_over_his_limit_does_not_reach_the_embedding_provider(stack: Stack) -> None:
    embeddings = Embeddings()
    with (
        serving(embeddings.app()) as url,
        stack.functions(
            ANONYMOUS_SEARCHES_PER_MINUTE="1", EMBEDDING_BASE_URL=f"{url}/v1", EMBEDDING_MODEL="of-the-limits"
        ) as origin,
    ):
        answers = [search(origin, anybody.visitor(stack), f"What is {n}?").status_code for n in range(4)]

    assert answers[1:] == [429] * 3
    assert len(embeddings.asked) == answers.count(200)


def test_answers_in_time_when_the_embedding_provider_does_not(
    stack: Stack, model: Model, tokens: dict[str, Any], visitor: Headers
) -> None:
    asked = len(model.asked)

    async def wait(_: Request) -> Response:
        await asyncio.sleep(8)
        return JSONResponse({})

    slow = Starlette(routes=[Route("/v1/embeddings", wait, methods=["POST"])])
    limits = {"REQUEST_TIMEOUT_SECONDS": "2", **anybody.GENEROUS}
    with (
        serving(slow) as url,
        stack.functions(EMBEDDING_BASE_URL=f"{url}/v1", **limits) as slow_origin,
        stack.functions(EMBEDDING_BASE_URL=f"{CLOSED}/v1", **anybody.GENEROUS) as closed_origin,
    ):
        started = time.monotonic()
        late = [ask(slow_origin, visitor, "What is Notcoin?"), search(slow_origin, visitor, "What is Notcoin?")]
        seconds = time.monotonic() - started
        down = ask(closed_origin, visitor, "What is Notcoin?", stream=True)

    for answer in late:
        assert_refused(answer, 504, "deadline_exceeded")
    assert seconds < 6
    assert_refused(down, 503, "embedding_unavailable")
    assert len(model.asked) == asked


def test_answers_in_time_when_the_model_does_not(
    stack: Stack, model: Model, tokens: dict[str, Any], visitor: Headers
) -> None:
    settings = {"MODEL_BASE_URL": f"{model.url}/v1", "MODEL_NAME": "stand-in", "REQUEST_TIMEOUT_SECONDS": "3"}
    with stack.functions(**settings, **anybody.GENEROUS) as origin:
        whole = ask(origin, visitor, "What is Notcoin? [silent]", **tokens)
        with anybody.ask_in_events(origin, visitor, "What is Notcoin? [silent]", **tokens) as events:
            told = list(events)

    assert_refused(whole, 504, "deadline_exceeded")
    assert (told[-1][0], told[-1][1]["code"]) == ("error", "deadline_exceeded")


def test_lets_nobody_on_whose_call_it_cannot_count(
    stack: Stack, model: Model, tokens: dict[str, Any], visitor: Headers
) -> None:
    asked = len(model.asked)
    proxy = Proxy(stack.url, refused="_call")
    with functions_behind(proxy, stack, MODEL_BASE_URL=f"{model.url}/v1", **anybody.GENEROUS) as origin:
        answers = [ask(origin, visitor, "What is Notcoin?", **tokens), search(origin, visitor, "What?", **tokens)]

    for answer in answers:
        assert_refused(answer, 503, "database_unavailable")
    assert proxy.refusals == 2
    assert len(model.asked) == asked


def test_logs_no_text_no_key_and_no_address(
    stack: Stack, model: Model, tokens: dict[str, Any], visitor: Headers
) -> None:
    secret = uuid.uuid4().hex
    before = set(stack.logs.iterdir())
    settings = {"MODEL_BASE_URL": f"{model.url}/v1", "MODEL_NAME": "stand-in", **anybody.GENEROUS}
    with stack.functions(**settings) as origin:
        answered = ask(origin, visitor | {"x-request-id": "logged-1"}, f"What is Notcoin? {secret}", **tokens)
        search(origin, {"apikey": secret}, "What is Notcoin?")
    [log] = set(stack.logs.iterdir()) - before

    assert answered.status_code == 200, answered.text
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    [line] = [line for line in lines if line.get("requestId") == "logged-1"]
    assert (line["status"], line["apiKey"], line["passages"], line["inputTokens"]) == (200, "publishable", 3, 40)
    assert {"auth", "count", "embed", "search", "model"} <= line["timings"].keys()
    for kept_out in (secret, stack.keys.publishable, stack.keys.secret, "127.0.0.1", "Notcoin"):
        assert kept_out not in str(lines)


def visit(stack: Stack, folder: Path, number: int, address: str) -> Path:
    """A visitor's search as API Gateway hands it on, with an X-Forwarded-For of the visitor's own making."""
    event = json.loads(EVENT.read_text())
    event["rawPath"] = event["requestContext"]["http"]["path"] = "/functions/v1/ai-with-rag/search"
    event["requestContext"]["http"]["sourceIp"] = address
    event["headers"] |= {"x-forwarded-for": f"198.51.100.{number}", "apikey": stack.keys.publishable}
    event["body"] = json.dumps({"query": "What is TON?", "category": "nothing"})
    file = folder / f"{number}.json"
    file.write_text(json.dumps(event))
    return file


def invoke(stack: Stack, files: list[Path], **settings: str) -> list[int]:
    """The statuses of ai-with-rag's Lambda handler for the events, in one warm process."""
    program = (
        "import json, sys, types\n"
        "from functions.ai_with_rag.handler import handler\n"
        "context = types.SimpleNamespace(get_remaining_time_in_millis=lambda: 20_000)\n"
        "results = [handler(json.load(open(file)), context) for file in sys.argv[1:]]\n"
        "print(json.dumps([result['statusCode'] for result in results]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, files)],
        env=stack.environment | settings,
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
    )
    statuses: list[int] = json.loads(done.stdout.splitlines()[-1])
    return statuses
