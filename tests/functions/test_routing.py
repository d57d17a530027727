"""Whom a question goes to first: the served version that is the user's, or the model it names; the chain is behind."""

import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import psycopg
import pytest
from pydantic import SecretStr
from starlette.requests import Request
from starlette.responses import Response

from infra.local.stack import Stack
from shared.models import Model
from shared.providers import openai_compatible
from shared.routing import FRESH_SECONDS, Version, chosen
from shared.settings import ModelFacts
from tests.functions import anybody
from tests.functions.test_chain import NOBODY, QUESTION, refusing
from tests.functions.test_failures import functions_behind
from tests.functions.test_refusals import assert_refused
from tests.scripted_models import Models
from tests.sql import put_versions, retire
from tests.stand_ins import ANSWER, Proxy
from tests.users import User

ALLOWED = ["tuned:first", "spare:second", "more:third"]
CHAIN = {"MODEL_CHAIN": "tuned:first, spare:second", "ALLOWED_MODELS": "more:third"}
PLAIN = {"MODEL_CHAIN": "spare:first", "ALLOWED_MODELS": "more:third"}
WEIGHTS = {"small": 0.3, "large": 0.7}


@dataclass(slots=True)
class Watched(Proxy):
    """A proxy that counts the looks at the routes."""

    looks: int = 0

    async def forward(self, request: Request) -> Response:
        self.looks += request.url.path.endswith("/rpc/gateway_state")
        return await Proxy.forward(self, request)


@contextmanager
def a_family(stack: Stack, versions: Mapping[str, Mapping[str, Any]], name: str | None = None) -> Iterator[str]:
    """A model's name, with these versions of it in `model_metadata`, which go in the end."""
    name = name or uuid.uuid4().hex
    with psycopg.connect(stack.database_url, autocommit=True) as connection:
        put_versions(connection, name, versions)
        try:
            yield name
        finally:
            retire(connection, name)


@pytest.fixture(scope="module")
def family(stack: Stack) -> Iterator[str]:
    """A model's name: two versions of it are served to those who have its provider, and others are not.

    Of models that are called after it, a version can't be asked; but for the canary `twin`, who gets next to no users.
    """
    versions: dict[str, dict[str, Any]] = {
        "small": {"traffic_weight": WEIGHTS["small"]},
        "large": {"traffic_weight": WEIGHTS["large"], "is_active": True},
        "weightless": {"traffic_weight": 0},
        "retired": {},
    }
    active: dict[str, dict[str, Any]] = {
        "homeless": {"provider": None},
        "nameless": {"provider_model": None},
        "unknown": {"provider": uuid.uuid4().hex},
        "keyless": {"provider": "groq"},
    }
    twins = {
        "keyless": {"provider": "groq", "provider_model": "any", "traffic_weight": 1 - 1e-9, "is_active": True},
        "twin": {"provider": "tuned", "provider_model": "first", "traffic_weight": 1e-9},
    }
    with ExitStack() as families:
        asked = {name: {"provider": "tuned", "provider_model": name, **columns} for name, columns in versions.items()}
        family = families.enter_context(a_family(stack, asked))
        for name, columns in active.items():
            unasked = {"provider": "tuned", "provider_model": name, "is_active": True, **columns}
            families.enter_context(a_family(stack, {name: unasked}, f"{family}-{name}"))
        families.enter_context(a_family(stack, twins, f"{family}-twin"))
        yield family


@pytest.fixture(scope="module")
def settings(server: Models) -> dict[str, str]:
    return {**CHAIN, **anybody.GENEROUS, **server.providers("tuned", "spare", "more")}


@pytest.fixture(scope="module")
def origin(stack: Stack, settings: dict[str, str], family: str, knowledge: None) -> Iterator[str]:
    with stack.functions(**settings) as url:
        yield url


@pytest.fixture(scope="module")
def watched(stack: Stack, server: Models, knowledge: None) -> Iterator[tuple[Watched, str]]:
    """Functions that were started when nobody said which versions are served, and the proxy they ask."""
    proxy = Watched(stack.url, refused="/rpc/gateway_state")
    with functions_behind(proxy, stack, **PLAIN, **server.providers("spare", "more", "late")) as url:
        yield proxy, url


@pytest.fixture(scope="module")
def people(stack: Stack, alice: User, bob: User) -> list[User]:
    return [alice, bob, *(User.sign_up(stack) for _ in range(2))]


def version(name: str, weight: float) -> Version:
    chat = openai_compatible.connect(httpx.AsyncClient(), NOBODY, SecretStr("none"))
    return Version(Model(name, f"tuned:{name}", "tuned", name, chat, ModelFacts()), weight)


def chosen_by_all(weights: dict[str, float]) -> list[str | None]:
    """The version of each of a thousand users."""
    versions = [version(name, weight) for name, weight in weights.items()]
    models = [chosen(versions, f"user {number}") for number in range(1000)]
    return [model.name if model else None for model in models]


def versions_of(origin: str, users: Sequence[User]) -> list[str]:
    return [user.ask(origin, QUESTION).json()["model"] for user in users]


def until(seen: Callable[[], object]) -> None:
    """Waits for what the functions see within seconds."""
    limit = time.monotonic() + FRESH_SECONDS + 10
    while not seen():
        assert time.monotonic() < limit, "it was not seen"
        time.sleep(0.2)


def test_a_served_version_is_asked_before_the_chain(
    stack: Stack, origin: str, alice: User, models: Models, family: str
) -> None:
    answered = alice.ask(origin, QUESTION)
    with alice.ask_in_events(origin, QUESTION) as told:
        [done] = [event for name, event in told if name == "done"]

    answer = answered.json()
    name, _, served = answer["model"].partition("@")
    assert (name, served in WEIGHTS) == (family, True)
    assert done["model"] == answered.headers["x-gateway-model"] == answer["model"]
    assert alice.conversation(stack, answer["conversationId"])["model_version"] == answer["model"]
    assert [body["model"] for body in models.asked] == [served, served]


def test_a_visitor_has_a_version_too(stack: Stack, origin: str, models: Models, family: str) -> None:
    answers = [anybody.ask(origin, anybody.visitor(stack), QUESTION).json() for _ in range(2)]

    assert answers[0]["model"] == answers[1]["model"]
    assert answers[0]["model"] in {f"{family}@{version}" for version in WEIGHTS}


def test_a_user_has_the_same_version_wherever_he_asks(
    stack: Stack, settings: dict[str, str], origin: str, models: Models, people: list[User], family: str
) -> None:
    with stack.functions(**settings) as another:
        answered = [versions_of(place, people) for place in (origin, another)] + [versions_of(origin, people[:1])]

    assert answered[0] == answered[1]
    assert answered[0][:1] == answered[2]
    assert set(answered[0]) <= {f"{family}@{version}" for version in WEIGHTS}


def test_the_chain_takes_over_from_a_version_that_fails(origin: str, alice: User, models: Models) -> None:
    models.scripts = {name: [refusing(401)] for name in WEIGHTS}

    answered = alice.ask(origin, QUESTION)

    assert (answered.json()["model"], answered.headers["x-gateway-attempts"]) == ("tuned:first", "2")


def test_a_version_that_is_in_the_chain_is_not_asked_there_again(
    origin: str, alice: User, models: Models, family: str
) -> None:
    models.scripts = {"first": [refusing(401)]}

    answer = alice.ask(origin, QUESTION, model=f"{family}-twin@twin").json()

    assert answer["model"] == "spare:second"
    assert [body["model"] for body in models.asked] == ["first", "second"]


def test_the_chain_answers_where_no_version_can_be_asked(
    stack: Stack, alice: User, models: Models, knowledge: None
) -> None:
    unknown, keyless = (
        {"1": {"provider": provider, "provider_model": "1", "is_active": True}}
        for provider in (uuid.uuid4().hex, "groq")
    )
    with (
        a_family(stack, unknown),
        a_family(stack, keyless),
        stack.functions(**PLAIN, **models.providers("spare", "more")) as origin,
    ):
        answer = alice.ask(origin, QUESTION).json()

    assert (answer["response"], answer["model"]) == ("".join(ANSWER), "spare:first")


@pytest.mark.parametrize(
    "address", ["https://a:b.endpoints.huggingface.cloud", "https://a.endpoints.huggingface.cloud/\1"]
)
def test_the_chain_takes_over_from_a_version_at_an_address_that_is_none(
    stack: Stack, alice: User, models: Models, knowledge: None, address: str
) -> None:
    odd = {"1": {"provider": "huggingface", "provider_model": address, "is_active": True}}
    with (
        a_family(stack, odd),
        stack.functions(**PLAIN, **models.providers("spare", "more"), HUGGINGFACE_API_KEY="hf") as origin,
    ):
        answer = alice.ask(origin, QUESTION)

    assert (answer.status_code, answer.json()["model"]) == (200, "spare:first")


@pytest.mark.parametrize("name", ALLOWED)
@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_question_may_name_its_model(
    stack: Stack, origin: str, alice: User, models: Models, name: str, is_streamed: bool
) -> None:
    visitor = anybody.visitor(stack)
    if is_streamed:
        with alice.ask_in_events(origin, QUESTION, model=name) as told:
            answers = [event for kind, event in told if kind == "done"]
        with anybody.ask_in_events(origin, visitor, QUESTION, model=name) as told:
            answers += [event for kind, event in told if kind == "done"]
    else:
        answers = [
            alice.ask(origin, QUESTION, model=name).json(),
            anybody.ask(origin, visitor, QUESTION, model=name).json(),
        ]

    assert [answer["model"] for answer in answers] == [name, name]
    assert [body["model"] for body in models.asked] == [name.partition(":")[2]] * 2


def test_a_question_may_name_another_served_version(
    stack: Stack, origin: str, alice: User, models: Models, family: str
) -> None:
    names = [f"{family}@{version}" for version in WEIGHTS]

    answers = [alice.ask(origin, QUESTION, model=name).json() for name in names]
    answers += [anybody.ask(origin, anybody.visitor(stack), QUESTION, model=name).json() for name in names]

    assert [answer["model"] for answer in answers] == names * 2


def test_the_chain_takes_over_from_a_named_model_that_fails(origin: str, alice: User, models: Models) -> None:
    models.scripts = {"second": [refusing(401)]}

    answer = alice.ask(origin, QUESTION, model="spare:second").json()

    assert answer["model"] == "tuned:first"
    assert [body["model"] for body in models.asked] == ["second", "first"]


def test_a_model_that_is_not_allowed_is_refused_before_anything_is_kept_or_charged(
    stack: Stack, origin: str, alice: User, models: Models, family: str
) -> None:
    for name in ("spare:forbidden", "first", "own:first", f"{family}@weightless", f"{family}-keyless@keyless"):
        key = uuid.uuid4().hex
        spent = alice.call(origin, "GET", "/usage").json()
        refused = alice.ask(origin, QUESTION, {"Idempotency-Key": key}, model=name)
        refused_too = anybody.ask(origin, anybody.signed_in(alice), QUESTION, model=name)

        for answer in (refused, refused_too):
            message = assert_refused(answer, 422, "invalid_request")
            listed = message.removeprefix("model: not one of ").removesuffix(".").split(", ")
            assert listed == [*ALLOWED, *(f"{family}@{served}" for served in WEIGHTS), f"{family}-twin@twin"]
        assert alice.client(stack).table("conversations").select("id").eq("idempotency_key", key).execute().data == []
        assert alice.call(origin, "GET", "/usage").json() == spent
    assert models.asked == []


def test_weights_are_shares_of_the_users() -> None:
    served = chosen_by_all(WEIGHTS)

    assert 250 < served.count("small") < 350
    assert served.count("large") == 1000 - served.count("small")
    assert chosen_by_all({"small": 3, "large": 7}) == served
    assert set(chosen_by_all({})) == {None}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"a": 0.3, "b": 0.7}, {"a": 0.6, "b": 0.7}),
        ({"a": 1, "b": 1, "c": 1}, {"a": 1, "b": 2, "c": 1}),
        ({"a": 1, "b": 1}, {"a": 1, "b": 1, "c": 1}),
        ({"b": 1, "c": 1}, {"a": 1, "b": 1, "c": 1}),
    ],
    ids=["one of two", "one of three", "a new one, last", "a new one, first"],
)
def test_a_version_whose_weight_grows_keeps_its_users_and_gets_more(
    before: dict[str, float], after: dict[str, float]
) -> None:
    [grown] = [name for name in after if after[name] > before.get(name, 0)]

    served = list(zip(chosen_by_all(before), chosen_by_all(after), strict=True))

    assert {new for old, new in served if old != new} == {grown}
    assert {new for old, new in served if old == grown} <= {grown}


@pytest.mark.parametrize("after", [{"b": 1, "c": 1}, {"a": 1, "b": 1, "c": 0.5}], ids=["gone", "less"])
def test_only_users_of_a_version_whose_weight_falls_have_another(after: dict[str, float]) -> None:
    before = {"a": 1.0, "b": 1.0, "c": 1.0}
    [fallen] = [name for name in before if after.get(name, 0) < before[name]]

    served = list(zip(chosen_by_all(before), chosen_by_all(after), strict=True))

    assert {old for old, new in served if old != new} == {fallen}


def test_the_chain_answers_where_nobody_says_which_versions_are_served(
    watched: tuple[Watched, str], models: Models, alice: User
) -> None:
    _, origin = watched

    answers = [alice.ask(origin, QUESTION, model=model).json() for model in (None, None, "more:third")]

    assert [answer["model"] for answer in answers] == ["spare:first", "spare:first", "more:third"]


def test_changes_of_the_rows_are_seen_within_seconds_without_a_look_at_every_call(
    stack: Stack, watched: tuple[Watched, str], models: Models, alice: User
) -> None:
    proxy, origin = watched
    started, looks, proxy.refused = time.monotonic(), proxy.looks, "nothing"

    with a_family(stack, {"1": {"provider": "late", "provider_model": "1", "is_active": True}}) as name:
        added = f"{name}@1"
        until(lambda: versions_of(origin, [alice]) == [added])
        proxy.refused, refusals = "/rpc/gateway_state", proxy.refusals
        until(lambda: versions_of(origin, [alice]) and proxy.refusals > refusals)
        kept = versions_of(origin, [alice])
        proxy.refused = "nothing"
    until(lambda: versions_of(origin, [alice]) == ["spare:first"])
    seconds = time.monotonic() - started

    assert kept == [added]
    assert 3 <= proxy.looks - looks <= seconds / FRESH_SECONDS + 1
    assert len(models.asked) > 2 * (proxy.looks - looks)
