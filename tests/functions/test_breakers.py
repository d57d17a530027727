"""Providers that rest after failures: who isn't asked meanwhile, who hears of it, who finds out when one is back."""

import json
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import httpx
import psycopg
import pytest
from starlette.responses import Response

from infra.local.stack import Stack
from shared.routing import FRESH_SECONDS
from tests.functions import anybody
from tests.functions.test_chain import QUESTION, refusing
from tests.functions.test_failures import functions_behind
from tests.functions.test_refusals import assert_refused
from tests.scripted_models import Models
from tests.stand_ins import ANSWER, Proxy
from tests.users import User

BUSY = refusing(429, retry_after="60")  # a model that says so is asked once
SHORT_SECONDS, LONG_SECONDS = 2, 60  # the rests


@pytest.fixture(scope="module")
def names(stack: Stack) -> Iterator[list[str]]:
    """Providers that nobody has heard of; each has a model of its own name."""
    new = [f"p{uuid.uuid4().hex}" for _ in range(18)]
    yield new
    with psycopg.connect(stack.database_url) as connection:
        connection.execute("delete from private.breakers where provider = any(%s)", [new])


@pytest.fixture(scope="module")
def unasked(names: list[str]) -> Iterator[str]:
    return iter(names)


@pytest.fixture(scope="module")
def spare(unasked: Iterator[str]) -> str:
    """The provider that answers where the others rest."""
    return next(unasked)


@pytest.fixture
def provider(spare: str, unasked: Iterator[str]) -> str:
    """A provider of the test's own."""
    return next(unasked)


@pytest.fixture(scope="module")
def settings(server: Models, names: list[str], spare: str) -> dict[str, str]:
    """A chain of the spare provider alone; requests name the one that is asked before it."""
    return {
        "MODEL_CHAIN": f"{spare}:{spare}",
        "ALLOWED_MODELS": ",".join(f"{name}:{name}" for name in names),
        "BREAKER_FAILURES": "2",
        "BREAKER_SECONDS": str(LONG_SECONDS),
        **server.providers(*names),
    }


@pytest.fixture(scope="module")
def origin(stack: Stack, settings: dict[str, str], knowledge: None) -> Iterator[str]:
    with stack.functions(**settings) as url:
        yield url


@pytest.fixture(scope="module")
def another(stack: Stack, settings: dict[str, str], knowledge: None) -> Iterator[str]:
    with stack.functions(**settings) as url:
        yield url


@pytest.fixture(scope="module")
def hasty(stack: Stack, settings: dict[str, str], knowledge: None) -> Iterator[str]:
    """Functions whose providers rest for a moment."""
    with stack.functions(**{**settings, "BREAKER_SECONDS": str(SHORT_SECONDS)}) as url:
        yield url


def ask(origin: str, user: User, provider: str) -> httpx.Response:
    return user.ask(origin, QUESTION, model=f"{provider}:{provider}")


def ask_in_events(origin: str, user: User, provider: str) -> str | None:
    """The provider that answered."""
    with user.ask_in_events(origin, QUESTION, model=f"{provider}:{provider}") as told:
        return provider_of(list(told)[-1][1])


def provider_of(answer: dict[str, Any]) -> str:
    return str(answer["model"]).partition(":")[0]


def fail(stack: Stack, origin: str, user: User, models: Models, provider: str) -> float:
    """Have a provider fail twice, so that it rests; gives a moment when it does."""
    models.scripts[provider] = [BUSY, BUSY]
    for _ in range(2):
        ask(origin, user, provider)
    until(lambda: is_resting(stack, provider))
    time.sleep(0.2)  # then the functions have heard of it too
    return time.monotonic()


def is_resting(stack: Stack, provider: str) -> bool:
    rests = "select exists (select from private.breakers where provider = %s and rests_until > now())"
    with psycopg.connect(stack.database_url) as connection:
        [found] = connection.execute(rests, [provider]).fetchone() or [False]
    return bool(found)


def until(seen: Callable[[], object]) -> None:
    limit = time.monotonic() + FRESH_SECONDS + 10
    while not seen():
        assert time.monotonic() < limit, "it was not seen"
        time.sleep(0.05)


@pytest.mark.parametrize("script", [[BUSY], [refusing(500, retry_after="0")] * 3], ids=["busy", "failing"])
@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_provider_that_fails_in_a_row_is_not_asked_for_a_while(
    stack: Stack,
    origin: str,
    alice: User,
    models: Models,
    provider: str,
    spare: str,
    script: Sequence[Callable[[], Response]],
    is_streamed: bool,
) -> None:
    models.scripts[provider] = [*script, *script]
    for _ in range(2):
        if is_streamed:
            assert ask_in_events(origin, alice, provider) == spare
        else:
            assert provider_of(ask(origin, alice, provider).json()) == spare
    until(lambda: is_resting(stack, provider))

    whole = ask(origin, alice, provider)
    streamed = ask_in_events(origin, alice, provider)
    cited = anybody.ask(origin, anybody.visitor(stack), QUESTION, model=f"{provider}:{provider}")

    assert [provider_of(answer.json()) for answer in (whole, cited)] == [streamed, spare] == [spare, spare]
    assert [answer.headers["x-gateway-attempts"] for answer in (whole, cited)] == ["1", "1"]
    assert len(models.asked_of(provider)) == 2 * len(script)


@pytest.mark.parametrize(
    ("script", "status"),
    [
        (refusing(401), 200),
        (refusing(422), 422),
        (refusing(400, code="context_length_exceeded"), 422),
        (lambda: Response(anybody.says(""), media_type="application/json"), 200),
    ],
    ids=["refused", "not acceptable", "too long", "empty"],
)
def test_what_is_no_sign_of_a_failing_provider_has_none_rest(
    origin: str, alice: User, models: Models, provider: str, script: Callable[[], Response], status: int
) -> None:
    models.scripts[provider] = [script] * 3

    statuses = [ask(origin, alice, provider).status_code for _ in range(3)]
    answer = ask(origin, alice, provider).json()

    assert statuses == [status] * 3
    assert provider_of(answer) == provider
    assert len(models.asked_of(provider)) == 4


def test_a_provider_that_had_no_time_left_is_asked_again(
    stack: Stack, settings: dict[str, str], knowledge: None, alice: User, models: Models, provider: str, spare: str
) -> None:
    with stack.functions(**{**settings, "REQUEST_TIMEOUT_SECONDS": "4"}) as hasty:
        well = ask(hasty, alice, provider).json()
        models.held.add(provider)
        answers = [ask(hasty, alice, provider).json() for _ in range(3)]
    models.held.clear()

    assert [provider_of(answer) for answer in (well, *answers)] == [provider, spare, spare, spare]
    assert len(models.asked_of(provider)) == 4
    assert not is_resting(stack, provider)


def test_a_provider_that_is_later_than_its_model_may_be_is_not_asked_for_a_while(
    stack: Stack, settings: dict[str, str], knowledge: None, alice: User, models: Models, provider: str, spare: str
) -> None:
    limits = json.dumps({f"{provider}:{provider}": {"timeout_seconds": 1}})
    models.held.add(provider)
    with stack.functions(**{**settings, "MODELS": limits}) as strict:
        for _ in range(2):
            assert provider_of(ask(strict, alice, provider).json()) == spare
        until(lambda: is_resting(stack, provider))
        ask(strict, alice, provider)
    models.held.clear()

    assert len(models.asked_of(provider)) == 2


def test_an_answer_ends_the_row_of_failures(origin: str, alice: User, models: Models, provider: str) -> None:
    for _ in range(3):
        models.scripts[provider] = [BUSY]

        answers = [ask(origin, alice, provider).json() for _ in range(2)]

        assert provider_of(answers[1]) == provider
    assert len(models.asked_of(provider)) == 6


def test_other_instances_let_a_provider_rest_that_never_failed_them(
    stack: Stack, origin: str, another: str, alice: User, models: Models, provider: str, spare: str
) -> None:
    before = ask(another, alice, provider).json()

    fail(stack, origin, alice, models, provider)
    until(lambda: provider_of(ask(another, alice, provider).json()) == spare)
    asked = len(models.asked_of(provider))
    after = ask(another, alice, provider)

    assert provider_of(before) == provider
    assert (provider_of(after.json()), after.headers["x-gateway-attempts"]) == (spare, "1")
    assert len(models.asked_of(provider)) == asked


def test_after_its_rest_one_of_many_calls_finds_out_that_a_provider_is_well(
    stack: Stack, hasty: str, alice: User, models: Models, provider: str, spare: str
) -> None:
    began = fail(stack, hasty, alice, models, provider)
    time.sleep(began + SHORT_SECONDS - time.monotonic())
    models.held.add(provider)
    models.scripts[provider] = [lambda: Response(anybody.says("It is."), media_type="application/json")]

    with ThreadPoolExecutor(6) as threads:
        calls = [threads.submit(ask, hasty, alice, provider) for _ in range(6)]
        done = as_completed(calls)
        others = [next(done).result().json() for _ in range(5)]
        asked = len(models.asked_of(provider))
        models.held.clear()
        first = next(done).result().json()
    later = [ask(hasty, alice, provider).json() for _ in range(2)]

    assert [provider_of(answer) for answer in others] == [spare] * 5
    assert asked == 2 + 1
    assert first["response"] == "It is."
    assert [provider_of(answer) for answer in later] == [provider] * 2


def test_one_failure_after_a_rest_makes_the_next_one_longer_and_who_can_ask_nobody_hears_when_to_come_back(
    stack: Stack, settings: dict[str, str], origin: str, alice: User, models: Models, unasked: Iterator[str]
) -> None:
    short, long = next(unasked), next(unasked)
    fail(stack, origin, alice, models, long)
    chain = {"MODEL_CHAIN": f"{short}:{short}, {long}:{long}", "BREAKER_SECONDS": str(SHORT_SECONDS)}
    with stack.functions(**{**settings, **chain}) as lone:
        began = fail(stack, lone, alice, models, short)
        first = alice.ask(lone, QUESTION)

        time.sleep(began + SHORT_SECONDS - time.monotonic())
        models.scripts[short] = [BUSY]
        alice.ask(lone, QUESTION)
        until(lambda: is_resting(stack, short))
        second = alice.ask(lone, QUESTION)
        with alice.ask_in_events(lone, QUESTION) as told:
            [*_, (name, error)] = told

    for refused in (first, second):
        assert_refused(refused, 503, "model_unavailable")
    assert (name, error["code"], error["retryable"]) == ("error", "model_unavailable", True)
    assert 0 < int(first.headers["retry-after"]) <= SHORT_SECONDS < int(second.headers["retry-after"]) <= 4
    assert (len(models.asked_of(short)), len(models.asked_of(long))) == (3, 2)


def test_answers_come_where_nobody_can_note_who_fails(
    stack: Stack, settings: dict[str, str], alice: User, models: Models, provider: str, spare: str
) -> None:
    models.scripts[provider] = [BUSY] * 3
    proxy = Proxy(stack.url, refused="/rpc/note_provider")

    with functions_behind(proxy, stack, **settings) as origin:
        answers = [ask(origin, alice, provider).json() for _ in range(4)]

    assert [provider_of(answer) for answer in answers] == [spare, spare, spare, provider]
    assert [answer["response"] for answer in answers] == ["".join(ANSWER)] * 4
    assert proxy.refusals == 4
