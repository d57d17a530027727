"""Budgets: how many questions get through at once, what the others are told, and what comes back to whom."""

import os
import signal
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

import httpx
import psycopg
import pytest
from starlette.requests import Request
from starlette.responses import Response

from infra.local.stack import Stack
from tests.embedding_stand_ins import Embeddings, refusing
from tests.functions import anybody
from tests.functions.test_deferred import model_calls
from tests.functions.test_refusals import assert_refused
from tests.stand_ins import Model, serving, until
from tests.users import User

QUESTION = "What is Notcoin?"
RESERVED_TOKENS, RESERVED_USD = 3024, 0.003072  # 3000 of the prompt and 24 of the answer, at a dollar and three
SPENT_TOKENS, SPENT_USD = 49, 6.7e-05  # by the stand-in's count
FIGURES = ("limit", "remaining", "reset")
ASK: dict[str, Callable[..., httpx.Response]] = {
    "ai-finance": lambda user, origin, question, **body: user.ask(origin, question, **body),
    "ai-with-rag": lambda user, origin, question, **body: anybody.ask(
        origin, anybody.signed_in(user), question, **body
    ),
}
both_functions = pytest.mark.parametrize("ask", ASK.values(), ids=ASK)


@dataclass(slots=True)
class Held(Model):
    """A stand-in that answers nobody while it is held."""

    free: threading.Event = field(default_factory=threading.Event)
    waiting: int = 0

    async def complete(self, request: Request) -> Response:
        self.waiting += 1
        await until(self.free.is_set, 40)
        self.waiting -= 1
        return await Model.complete(self, request)

    @contextmanager
    def held(self) -> Iterator[None]:
        self.free.clear()
        try:
            yield
        finally:
            self.free.set()


@pytest.fixture(scope="module")
def model() -> Iterator[Held]:
    stand_in = Held()
    stand_in.free.set()
    with serving(stand_in.app()) as stand_in.url:
        yield stand_in


@pytest.fixture(scope="module")
def embeddings() -> Embeddings:
    return Embeddings()


@pytest.fixture(scope="module")
def settings(model: Held, embeddings: Embeddings) -> Iterator[dict[str, str]]:
    with serving(embeddings.app()) as url:
        yield {
            "MODEL_BASE_URL": f"{model.url}/v1",
            "MODEL_NAME": "stand-in",
            "EMBEDDING_BASE_URL": f"{url}/v1",
            "EMBEDDING_MODEL": "of-the-quotas",
            "PROMPT_TOKENS": "3000",
            "REQUEST_TIMEOUT_SECONDS": "45",
        }


@pytest.fixture(scope="module")
def origin(stack: Stack, settings: dict[str, str]) -> Iterator[str]:
    with stack.functions(**settings) as url, anybody.learned(stack, *anybody.TOKENS, origin=url):
        yield url


@pytest.fixture
def ann(stack: Stack) -> User:
    return User.sign_up(stack)


@pytest.fixture
def marker() -> str:
    """A word no other test says."""
    return uuid.uuid4().hex


@pytest.fixture
def no_budget_by_default(stack: Stack) -> Iterator[None]:
    """As if who is on no plan could spend nothing."""
    set_default = "update public.plans set tokens_per_day = %s where name = 'default'"
    with psycopg.connect(stack.database_url, autocommit=True) as connection:
        connection.execute(set_default, [0])
        yield
        connection.execute(set_default, [None])


def usage(user: User, origin: str) -> dict[str, Any]:
    told: dict[str, Any] = user.call(origin, "GET", "/usage").json()
    return told


def spent_today(user: User, origin: str) -> tuple[int, int, Any]:
    """Requests, tokens and USD."""
    day = usage(user, origin)["day"]
    return day["requests"], day["tokens"], day["costUsd"]


def embedded(embeddings: Embeddings, marker: str) -> int:
    """How many texts with the marker the provider was sent."""
    return sum(marker in text for text in embeddings.texts)


def limits(answer: httpx.Response) -> dict[str, str]:
    """What an answer says of the caller's limits, by the end of the headers' names."""
    prefix = "x-ratelimit-"
    return {name.removeprefix(prefix): value for name, value in answer.headers.items() if name.startswith(prefix)}


def seconds_until(moment: datetime) -> Any:
    return pytest.approx((moment - datetime.now(UTC)).total_seconds(), abs=20)


def tomorrow() -> datetime:
    return datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)


def next_month() -> datetime:
    return (tomorrow().replace(day=1) + timedelta(days=32 if tomorrow().day > 1 else 0)).replace(day=1)


@pytest.mark.parametrize("limit", [{"tokens_per_day": 10 * RESERVED_TOKENS}, {"usd_per_month": 10 * RESERVED_USD}])
@pytest.mark.parametrize("ways", [["ai-finance"], ["ai-finance", "ai-with-rag"]])
def test_a_budget_for_ten_lets_ten_of_fifty_at_once_through(
    stack: Stack, origin: str, model: Held, ann: User, marker: str, limit: dict[str, Any], ways: list[str]
) -> None:
    ann.put_on_plan(stack, **limit)
    question = f"{QUESTION} {marker}"

    with ThreadPoolExecutor(50) as pool, model.held():
        asked = [pool.submit(ASK[ways[number % len(ways)]], ann, origin, question) for number in range(50)]
        first = [answer.result().status_code for answer in islice(as_completed(asked), 40)]
    answers = [answer.result() for answer in asked]

    assert first == [429] * 40
    assert Counter(answer.status_code for answer in answers) == {429: 40, 200: 10}
    assert {answer.json()["code"] for answer in answers if answer.status_code == 429} == {"quota_exhausted"}
    assert model.count(marker) == 10
    assert spent_today(ann, origin) == (10, 10 * SPENT_TOKENS, pytest.approx(10 * SPENT_USD))


@both_functions
def test_says_what_is_left_until_nothing_is(
    stack: Stack, origin: str, ann: User, ask: Callable[..., httpx.Response]
) -> None:
    ann.put_on_plan(stack, requests_per_minute=9, tokens_per_day=RESERVED_TOKENS + SPENT_TOKENS, usd_per_month=0.01)

    answers = [ask(ann, origin, QUESTION, stream=stream) for stream in (False, True)]
    refused = ask(ann, origin, QUESTION)

    told = [limits(answer) for answer in [*answers, refused]]
    requests = [each["remaining-requests"] for each in told[:2]]
    assert [answer.status_code for answer in [*answers, refused]] == [200, 200, 429]
    for each in told:
        assert each.keys() == {f"{figure}-{kind}" for figure in FIGURES for kind in ("requests", "tokens", "usd")}
        assert (each["limit-requests"], each["limit-tokens"], each["limit-usd"]) == ("9", "3073", "0.01")
        assert 1 <= int(each["reset-requests"]) <= 60
        assert int(each["reset-tokens"]) == seconds_until(tomorrow())
        assert int(each["reset-usd"]) == seconds_until(next_month())
    assert requests == ["8", "7"]
    assert [each["remaining-tokens"] for each in told] == ["49", "0", "2975"]
    assert [each["remaining-usd"] for each in told] == ["0.006928", "0.006861", "0.009866"]


@both_functions
@pytest.mark.parametrize(
    ("limit", "means"), [({"tokens_per_month": 100}, "tokens"), ({"usd_per_day": 0.00001}, "money")]
)
def test_a_refusal_has_the_one_shape_and_says_when_to_come_again(
    stack: Stack,
    origin: str,
    ann: User,
    ask: Callable[..., httpx.Response],
    limit: dict[str, Any],
    means: str,
) -> None:
    ann.put_on_plan(stack, **limit)

    refused = ask(ann, origin, QUESTION)

    assert f"not enough {means} left" in assert_refused(refused, 429, "quota_exhausted")
    assert refused.json()["retryable"] is True
    kind = "tokens" if means == "tokens" else "usd"
    told = limits(refused)
    assert told[f"limit-{kind}"] == told[f"remaining-{kind}"] == {"tokens": "100", "usd": "0.00001"}[kind]
    assert refused.headers["retry-after"] == told[f"reset-{kind}"]
    assert int(refused.headers["retry-after"]) == seconds_until(next_month() if kind == "tokens" else tomorrow())


def test_a_browser_may_read_all_that_is_said_of_limits(origin: str, ann: User) -> None:
    answer = ann.ask(origin, QUESTION)

    exposed = set(answer.headers["access-control-expose-headers"].split(", "))
    kinds = ("requests", "tokens", "usd")
    assert exposed >= {f"x-ratelimit-{figure}-{kind}" for figure in FIGURES for kind in kinds}
    assert exposed >= {"retry-after", "x-gateway-cost-usd", "x-gateway-cache"}


@both_functions
def test_a_plan_has_its_own_limit_of_requests(
    stack: Stack, origin: str, ann: User, ask: Callable[..., httpx.Response]
) -> None:
    ann.put_on_plan(stack, requests_per_minute=2)

    answers = [ask(ann, origin, QUESTION) for _ in range(3)]

    refused = answers[2]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert_refused(refused, 429, "rate_limited")
    assert limits(refused) == {
        "limit-requests": "2",
        "remaining-requests": "0",
        "reset-requests": refused.headers["retry-after"],
    }
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert spent_today(ann, origin) == (2, 2 * SPENT_TOKENS, pytest.approx(2 * SPENT_USD))


@both_functions
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("behaviour", ["reject", "busy", "fail"])
def test_a_failure_gives_all_back(
    stack: Stack, origin: str, ann: User, ask: Callable[..., httpx.Response], behaviour: str, stream: bool
) -> None:
    ann.put_on_plan(stack, tokens_per_day=RESERVED_TOKENS, usd_per_day=RESERVED_USD)

    failed = ask(ann, origin, f"{QUESTION} [{behaviour}]", stream=stream)

    assert "model_unavailable" in failed.text
    assert spent_today(ann, origin) == (1, 0, 0)
    assert ask(ann, origin, QUESTION).status_code == 200


@both_functions
def test_a_question_that_cannot_be_embedded_gives_all_back(
    stack: Stack, origin: str, embeddings: Embeddings, ann: User, marker: str, ask: Callable[..., httpx.Response]
) -> None:
    ann.put_on_plan(stack, tokens_per_day=RESERVED_TOKENS, usd_per_day=RESERVED_USD)
    embeddings.instead = [refusing(401)]

    failed = ask(ann, origin, f"{QUESTION} {marker}")

    assert_refused(failed, 500, "misconfigured")
    assert spent_today(ann, origin) == (1, 0, 0)
    assert [call["status"] for call in model_calls(stack, ann)] == ["failed"]


@both_functions
@pytest.mark.parametrize("limit", [{"requests_per_minute": 1}, {"tokens_per_day": RESERVED_TOKENS}])
def test_no_questions_are_embedded_of_a_user_who_was_just_refused(
    stack: Stack,
    origin: str,
    embeddings: Embeddings,
    ann: User,
    marker: str,
    ask: Callable[..., httpx.Response],
    limit: dict[str, Any],
) -> None:
    ann.put_on_plan(stack, **limit)

    statuses = [ask(ann, origin, f"{QUESTION} {marker} {number}").status_code for number in range(8)]
    asked = embedded(embeddings, marker)
    ann.put_on_plan(stack)
    again = ask(ann, origin, f"{QUESTION} {marker} again")

    assert statuses == [200] + [429] * 7
    assert asked <= 2
    assert again.status_code == 200


def test_no_searches_are_embedded_of_a_user_who_was_just_refused(
    stack: Stack, settings: dict[str, str], origin: str, embeddings: Embeddings, ann: User, marker: str
) -> None:
    with stack.functions(**settings, SEARCHES_PER_MINUTE="1") as strict:
        answers = [
            anybody.search(strict, anybody.signed_in(ann), f"{QUESTION} {marker} {number}") for number in range(8)
        ]

    assert [answer.status_code for answer in answers] == [200] + [429] * 7
    assert embedded(embeddings, marker) <= 2


@pytest.mark.parametrize(
    ("body", "headers", "code"),
    [
        ({"model": "nobody:has"}, {}, "invalid_request"),
        ({"userId": 1}, {}, "forbidden"),
        ({}, {"Idempotency-Key": "the same"}, "idempotency_key_reused"),
    ],
)
def test_refusals_that_no_limit_counts_embed_nothing_either(
    origin: str,
    embeddings: Embeddings,
    ann: User,
    marker: str,
    body: dict[str, Any],
    headers: dict[str, str],
    code: str,
) -> None:
    first = ann.ask(origin, f"{QUESTION} {marker}", headers)
    before = embedded(embeddings, marker)

    refused = [ann.ask(origin, f"{QUESTION} {marker} {number}", headers, **body) for number in range(6)]
    replayed = ann.ask(origin, f"{QUESTION} {marker}", headers)
    refused += [ann.ask(origin, f"{QUESTION} {marker} {number}", headers, **body) for number in range(6, 9)]

    assert (first.status_code, replayed.status_code) == (200, 200)
    assert {answer.json()["code"] for answer in refused} == {code}
    assert embedded(embeddings, marker) <= before + (1 if headers else 2)  # who was let in has the head start again


@both_functions
def test_an_answer_is_charged_for_what_it_was(
    stack: Stack, origin: str, ann: User, ask: Callable[..., httpx.Response]
) -> None:
    ann.put_on_plan(stack, tokens_per_day=RESERVED_TOKENS + SPENT_TOKENS)

    answers = [ask(ann, origin, QUESTION, stream=stream) for stream in (False, True)]

    assert [answer.status_code for answer in answers] == [200, 200]
    assert spent_today(ann, origin) == (2, 2 * SPENT_TOKENS, pytest.approx(2 * SPENT_USD))
    assert [call["state"] for call in model_calls(stack, ann)] == ["settled"] * 2


def test_what_a_killed_process_had_reserved_comes_back(
    stack: Stack, origin: str, settings: dict[str, str], model: Held, ann: User
) -> None:
    ann.put_on_plan(stack, tokens_per_day=2 * RESERVED_TOKENS)
    waiting = model.waiting

    with ThreadPoolExecutor(2) as pool, model.held():
        with stack.functions(**settings) as dying:
            asked = [pool.submit(ask, ann, dying, QUESTION) for ask in ASK.values()]
            wait_until(lambda: model.waiting == waiting + 2)
            os.kill(list(stack.pids.values())[-1], signal.SIGKILL)
        refused = ann.ask(origin, QUESTION)
    with psycopg.connect(stack.database_url) as connection:
        connection.execute(
            "update public.model_calls set expires_at = now() - interval '1 second' where user_id = %s", [ann.user_id]
        )
    answered = ann.ask(origin, QUESTION)

    assert all(isinstance(each.exception(), httpx.TransportError) for each in asked)
    assert_refused(refused, 429, "quota_exhausted")
    assert answered.status_code == 200
    assert spent_today(ann, origin) == (1, SPENT_TOKENS, pytest.approx(SPENT_USD))


@both_functions
def test_another_users_budget_is_not_touched(
    stack: Stack, origin: str, ann: User, ask: Callable[..., httpx.Response]
) -> None:
    ben = User.sign_up(stack)
    for user in (ann, ben):
        user.put_on_plan(stack, tokens_per_day=RESERVED_TOKENS)

    answers = [ask(user, origin, QUESTION) for user in (ann, ann, ben)]

    assert [answer.status_code for answer in answers] == [200, 429, 200]
    assert spent_today(ben, origin) == (1, SPENT_TOKENS, pytest.approx(SPENT_USD))


def test_visitors_and_the_secret_key_have_no_budget(
    stack: Stack, origin: str, no_budget_by_default: None, ann: User
) -> None:
    of_user = [ask(ann, origin, QUESTION) for ask in ASK.values()]
    of_visitor, of_server = (
        anybody.ask(origin, headers, QUESTION) for headers in (anybody.visitor(stack), anybody.server(stack))
    )

    assert [answer.json()["code"] for answer in of_user] == ["quota_exhausted"] * 2
    assert (of_visitor.status_code, of_server.status_code) == (200, 200)
    assert limits(of_visitor).keys() == {f"{figure}-requests" for figure in FIGURES}
    assert limits(of_server) == {}


def test_a_user_is_told_of_his_plan_and_what_both_functions_spent(stack: Stack, origin: str, ann: User) -> None:
    ben = User.sign_up(stack)
    plan = ann.put_on_plan(stack, tokens_per_day=100_000, usd_per_month=5)
    for ask in ASK.values():
        ask(ann, origin, QUESTION)
        ask(ben, origin, QUESTION)
    ask(ben, origin, QUESTION)

    told = usage(ann, origin)

    sums = {"requests": 2, "tokens": 2 * SPENT_TOKENS, "costUsd": pytest.approx(2 * SPENT_USD)}
    today = datetime.now(UTC).date().isoformat()
    by_model = {"requests": 2, "inputTokens": 80, "outputTokens": 18, "costUsd": pytest.approx(2 * SPENT_USD)}
    assert told == {
        "plan": plan,
        "day": {**sums, "startsOn": today, "tokensLimit": 100_000, "usdLimit": None},
        "month": {**sums, "startsOn": f"{today[:8]}01", "tokensLimit": None, "usdLimit": 5},
        "models": [{"model": "stand-in", **by_model}],
    }


def test_what_runs_now_counts_as_spent(origin: str, model: Held, ann: User) -> None:
    waiting = model.waiting

    with ThreadPoolExecutor(1) as pool, model.held():
        pool.submit(ann.ask, origin, QUESTION)
        wait_until(lambda: model.waiting > waiting)
        told = spent_today(ann, origin)

    assert told == (1, RESERVED_TOKENS, RESERVED_USD)


def test_nobody_else_is_told_of_spending(stack: Stack, origin: str) -> None:
    answers = [
        httpx.get(f"{origin}/functions/v1/ai-finance/usage", headers=headers)
        for headers in ({}, anybody.visitor(stack), {"Authorization": "Bearer rubbish"})
    ]

    for answer in answers:
        assert_refused(answer, 401, "unauthenticated")


def wait_until(happened: Callable[[], bool]) -> None:
    limit = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < limit, "it did not happen"
        time.sleep(0.02)
