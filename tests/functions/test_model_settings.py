"""What the settings say of models: addresses, keys, limits and prices, and who answers what the others won't take."""

import json
import time
import uuid
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest

from infra.local.stack import Stack
from tests.functions import anybody
from tests.functions.anybody import says
from tests.functions.test_chain import QUESTION, refusing
from tests.functions.test_refusals import assert_refused
from tests.scripted_models import Models
from tests.sql import put_on_plan
from tests.stand_ins import ANSWER, serving
from tests.users import User

TOO_LONG = refusing(400, code="context_length_exceeded")
UNACCEPTABLE = refusing(400, code="content_filter")
FILE = {
    "*": {"input_usd": 100, "output_usd": 1000},
    "priced:*": {"input_usd": 200},
    "priced:exactly": {"input_usd": 300, "output_usd": 3000},
}
TABLE: dict[str, dict[str, Any]] = {
    "*": {"output_usd": 2000},
    "priced:exactly": {"output_usd": 5000},
    "one:hurried": {"timeout_seconds": 1},
    "one:terse": {"max_tokens": 7},
    "one:talkative": {"max_tokens": 7000},
    "one:plain": {"system_prompt": False},
    "one:small": {"context_tokens": 60},
    "one:thinking": {"input_usd": 100, "cached_input_usd": 10, "output_usd": 1000, "reasoning_usd": 4000},
    "one:frugal": {"input_usd": 100, "cached_input_usd": 0, "output_usd": 1000},
}
DETOURS = {
    "MODEL_CHAIN": "one:first, one:second",
    "ALLOWED_MODELS": "one:small",
    "CONTEXT_FALLBACKS": "one:long, one:longer",
    "CONTENT_FALLBACKS": "one:kind, one:kinder",
    "MODELS": '{"one:small": {"context_tokens": 60}, "one:kinder": {"input_usd": 900, "output_usd": 900}}',
}


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Models]:
    models = Models()
    with serving(models.app()) as models.url:
        yield models


@pytest.fixture(scope="module")
def origin(
    stack: Stack, server: Models, elsewhere: Models, tmp_path_factory: pytest.TempPathFactory, knowledge: None
) -> Iterator[str]:
    """The functions with the file and the table; requests may name any of their models."""
    file = tmp_path_factory.mktemp("models") / "models.json"
    file.write_text(json.dumps(FILE))
    address = {"base_url": f"{elsewhere.url}/v1/", "key_name": "A_KEY_OF_ITS_OWN"}
    table = {**TABLE, "one:elsewhere": address, "own:alone": address}
    settings = {
        "MODEL_BASE_URL": "",
        "MODEL_CHAIN": "one:first",
        "ALLOWED_MODELS": ", ".join([*(name for name in table if name != "*"), "priced:somehow"]),
        "MODELS": json.dumps(table),
        "MODELS_FILE": str(file),
        "A_KEY_OF_ITS_OWN": "another-key",
        **server.providers("one", "priced"),
    }
    with stack.functions(**settings) as url:
        yield url


@pytest.fixture(scope="module")
def detoured(stack: Stack, server: Models, knowledge: None) -> Iterator[str]:
    """The functions with models for what is too long or not acceptable; the models have no prices."""
    with stack.functions(**DETOURS, **anybody.GENEROUS, **server.providers("one")) as url:
        yield url


def answered_by(origin: str, user: User, is_streamed: bool, **body: Any) -> str:
    """The model that answered."""
    if not is_streamed:
        return str(user.ask(origin, QUESTION, **body).json()["model"])
    with user.ask_in_events(origin, QUESTION, **body) as told:
        events = list(told)
    assert "".join(event["token"] for name, event in events if name == "token") == "".join(ANSWER)
    return str(events[-1][1]["model"])


def names(models: Models) -> list[str]:
    return [body["model"] for body in models.asked]


def counting(prompt: int, cached: int, said: int, reasoning: int) -> dict[str, Any]:
    """Usage as an OpenAI-compatible server reports it."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": said,
        "total_tokens": prompt + said,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }


def test_a_model_may_have_an_address_and_a_key_of_its_own(
    origin: str, alice: User, models: Models, elsewhere: Models
) -> None:
    named = ["one:elsewhere", "alone", "one:first"]

    answers = [alice.ask(origin, QUESTION, model=name).json() for name in named]

    assert [answer["model"] for answer in answers] == named
    assert elsewhere.keys == {"elsewhere": "Bearer another-key", "alone": "Bearer another-key"}
    assert (names(models), models.keys["first"]) == (["first"], "Bearer key-of-one")


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_slow_model_is_given_up_after_its_own_time(
    origin: str, alice: User, models: Models, is_streamed: bool
) -> None:
    models.held = {"hurried"}
    started = time.monotonic()

    answered = answered_by(origin, alice, is_streamed, model="one:hurried")

    models.held = set()
    assert (answered, names(models)) == ("one:first", ["hurried", "first"])
    assert time.monotonic() - started < 10  # its share of a request's time is more


@pytest.mark.parametrize(("name", "limit"), [("first", 24), ("terse", 7), ("talkative", 24)])
def test_a_model_says_no_more_than_its_own_limit_and_everybodys(
    origin: str, alice: User, models: Models, name: str, limit: int
) -> None:
    alice.ask(origin, QUESTION, model=f"one:{name}")

    assert [body["max_tokens"] for body in models.asked] == [limit]


def test_a_model_without_a_place_for_the_systems_words_has_them_before_the_question(
    origin: str, alice: User, models: Models
) -> None:
    for name in ("one:first", "one:plain"):
        alice.ask(origin, QUESTION, model=name)

    usual, [merged] = (body["messages"] for body in models.asked)
    assert [message["role"] for message in usual] == ["system", "user"]
    assert merged == {"role": "user", "content": "\n\n".join(message["content"] for message in usual)}


def test_a_prompt_that_is_longer_than_a_models_context_is_not_sent_to_it(
    origin: str, alice: User, models: Models
) -> None:
    message = assert_refused(alice.ask(origin, QUESTION, model="one:small"), 422, "invalid_request")

    assert "longer than the model reads" in message
    assert models.asked == []


@pytest.mark.parametrize(
    ("name", "input_usd", "output_usd"),
    [("one:first", 100, 2000), ("priced:somehow", 200, 2000), ("priced:exactly", 300, 5000)],
)
@pytest.mark.parametrize("is_streamed", [False, True])
def test_the_price_nearest_to_the_model_holds_and_the_tables_goes_before_the_files(
    stack: Stack,
    origin: str,
    alice: User,
    models: Models,
    name: str,
    input_usd: int,
    output_usd: int,
    is_streamed: bool,
) -> None:
    if is_streamed:
        with alice.ask_in_events(origin, QUESTION, model=name) as told:
            answer = list(told)[-1][1]
    else:
        answered = alice.ask(origin, QUESTION, model=name)
        answer = answered.json()
        assert float(answered.headers["x-gateway-cost-usd"]) == answer["usage"]["costUsd"]

    cost_usd = (40 * input_usd + 9 * output_usd) / 1_000_000
    kept = alice.conversation(stack, answer["conversationId"])
    assert (answer["usage"]["costUsd"], answer["usage"]["estimated"]) == (cost_usd, False)
    assert (kept["cost_usd"], kept["is_estimated"]) == (cost_usd, False)


@pytest.mark.parametrize(
    ("name", "cost_usd"),
    [
        ("thinking", (40 * 100 + 60 * 10 + 30 * 1000 + 20 * 4000) / 1_000_000),
        ("frugal", (40 * 100 + 50 * 1000) / 1_000_000),
        ("first", (100 * 100 + 50 * 2000) / 1_000_000),
    ],
    ids=["at prices of their own", "at none", "at no price of their own"],
)
@pytest.mark.parametrize("is_streamed", [False, True])
def test_cached_and_reasoning_tokens_cost_what_they_cost(
    origin: str, alice: User, models: Models, name: str, cost_usd: float, is_streamed: bool
) -> None:
    marker, usage = uuid.uuid4().hex, counting(100, cached=60, said=50, reasoning=20)
    piece = {"choices": [{"index": 0, "delta": {"content": "Yes."}, "finish_reason": "stop"}]}
    chunks = [json.dumps(chunk) for chunk in (piece, {"choices": [], "usage": usage})]
    whole = json.dumps({**json.loads(says("Yes.")), "usage": usage})
    models.raw[marker] = "".join(f"data: {each}\n\n" for each in chunks).encode() if is_streamed else whole.encode()

    if is_streamed:
        with alice.ask_in_events(origin, f"{QUESTION} {marker}", model=f"one:{name}") as told:
            answer = list(told)[-1][1]
    else:
        answer = alice.ask(origin, f"{QUESTION} {marker}", model=f"one:{name}").json()

    assert answer["usage"] == {
        "inputTokens": 100,
        "cachedTokens": 60,
        "outputTokens": 50,
        "reasoningTokens": 20,
        "costUsd": cost_usd,
        "estimated": False,
    }


def test_a_model_without_a_price_is_not_taken_for_free(
    stack: Stack, detoured: str, alice: User, models: Models
) -> None:
    answers = [
        alice.ask(detoured, QUESTION).json(),
        anybody.ask(detoured, anybody.visitor(stack), QUESTION).json(),
    ]

    assert [answer["usage"]["estimated"] for answer in answers] == [True, True]
    assert all(answer["usage"]["costUsd"] > 0 for answer in answers)
    assert alice.conversation(stack, answers[0]["conversationId"])["is_estimated"] is True


@pytest.mark.parametrize(
    ("refusal", "name"), [(TOO_LONG, "long"), (UNACCEPTABLE, "kind")], ids=["too long", "not acceptable"]
)
@pytest.mark.parametrize("is_streamed", [False, True])
def test_what_a_model_will_not_take_goes_to_the_models_that_are_there_for_it(
    stack: Stack, detoured: str, alice: User, models: Models, refusal: Any, name: str, is_streamed: bool
) -> None:
    models.scripts = {"first": [refusal]}

    answered = answered_by(detoured, alice, is_streamed)

    assert (answered, names(models)) == (f"one:{name}", ["first", name])


def test_a_prompt_that_is_too_long_for_a_model_goes_to_one_that_reads_more(
    stack: Stack, detoured: str, alice: User, models: Models
) -> None:
    answers = [
        alice.ask(detoured, QUESTION, model="one:small").json(),
        anybody.ask(detoured, anybody.visitor(stack), QUESTION, model="one:small").json(),
    ]

    assert [answer["model"] for answer in answers] == ["one:long", "one:long"]
    assert names(models) == ["long", "long"]


@pytest.mark.parametrize(
    ("refusal", "detour"),
    [(TOO_LONG, ["long", "longer"]), (UNACCEPTABLE, ["kind", "kinder"])],
    ids=["too long", "not acceptable"],
)
def test_the_models_for_it_are_asked_in_their_order(
    detoured: str, alice: User, models: Models, refusal: Any, detour: list[str]
) -> None:
    models.scripts = {name: [refusal] for name in ("first", detour[0])}

    answer = alice.ask(detoured, QUESTION).json()

    assert (answer["model"], names(models)) == (f"one:{detour[1]}", ["first", *detour])


@pytest.mark.parametrize(
    ("refusal", "detour", "says"),
    [(TOO_LONG, ["long", "longer"], "longer than"), (UNACCEPTABLE, ["kind", "kinder"], "doesn't take it")],
    ids=["too long", "not acceptable"],
)
@pytest.mark.parametrize("is_streamed", [False, True])
def test_what_nobody_takes_is_the_callers_to_change(
    detoured: str, alice: User, models: Models, refusal: Any, detour: list[str], says: str, is_streamed: bool
) -> None:
    models.scripts = {name: [refusal] for name in ("first", *detour)}

    if is_streamed:
        with alice.ask_in_events(detoured, QUESTION) as told:
            refused = list(told)[-1][1]
        message = refused["error"]
        assert (refused["code"], refused["retryable"]) == ("invalid_request", False)
    else:
        message = assert_refused(alice.ask(detoured, QUESTION), 422, "invalid_request")

    assert says in message
    assert names(models) == ["first", *detour]


def test_what_is_long_for_the_one_that_is_kind_is_not_taken_in_a_circle(
    detoured: str, alice: User, models: Models
) -> None:
    models.scripts = {"first": [UNACCEPTABLE], "kind": [TOO_LONG], "kinder": [TOO_LONG]}

    refused = alice.ask(detoured, QUESTION)

    assert_refused(refused, 422, "invalid_request")
    assert names(models) == ["first", "kind", "kinder"]


@pytest.mark.parametrize("status", [401, 429])
def test_other_failures_are_the_chains(detoured: str, alice: User, models: Models, status: int) -> None:
    models.scripts = {name: [refusing(status, retry_after="60")] for name in ("first", "second")}

    refused = alice.ask(detoured, QUESTION)

    assert_refused(refused, 503, "model_unavailable")
    assert names(models) == ["first", "second"]


def test_what_an_answer_may_cost_is_reserved_by_the_dearest_that_may_give_it(
    stack: Stack, detoured: str, models: Models
) -> None:
    user = User.sign_up(stack)
    with psycopg.connect(stack.database_url) as connection:
        put_on_plan(connection, user.user_id, usd_per_day=Decimal("0.1"))

    refused = user.ask(detoured, QUESTION)

    assert_refused(refused, 429, "quota_exhausted")
    assert models.asked == []


@pytest.mark.parametrize(
    ("table", "file", "wrong"),
    [
        ("{", None, ["MODELS", "MODELS_FILE"]),
        ('{"one:a": {"price": 1}}', "[]", ["MODELS", "MODELS_FILE"]),
        ("{}", '{"one:a": {"input_usd": -1}}', ["MODELS_FILE"]),
    ],
    ids=["no JSON, no file", "unknown facts, no table", "impossible facts"],
)
def test_a_table_that_cannot_be_read_names_its_setting(
    stack: Stack, alice: User, models: Models, tmp_path: Path, table: str, file: str | None, wrong: list[str]
) -> None:
    path = tmp_path / "models.json"
    if file:
        path.write_text(file)

    with stack.functions(MODELS=table, MODELS_FILE=str(path)) as origin:
        message = assert_refused(alice.ask(origin, QUESTION), 500, "misconfigured")

    assert message == f"Missing or malformed settings: {', '.join(wrong)}."


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"ALLOWED_MODELS": "two:b"}, "ALLOWED_MODELS: two:b is no provider:model of own, openai, "),
        (
            {"CONTENT_FALLBACKS": "own:b", "MODEL_BASE_URL": ""},
            "CONTENT_FALLBACKS: own:b is no provider:model of openai",
        ),
    ],
    ids=["unknown", "nowhere"],
)
def test_a_model_that_cannot_be_asked_names_the_setting_it_stands_in(
    stack: Stack, alice: User, models: Models, settings: dict[str, str], says: str
) -> None:
    with stack.functions(**{"MODEL_CHAIN": "one:first", **models.providers("one"), **settings}) as origin:
        message = assert_refused(alice.ask(origin, QUESTION), 500, "misconfigured")

    assert message.startswith(says)


def test_all_keys_that_are_missing_are_named_at_once(stack: Stack, alice: User) -> None:
    chain = {"MODEL_CHAIN": "groq:a, together:b", "ALLOWED_MODELS": "openai:c", "MODEL_BASE_URL": "", "MODEL_NAME": ""}
    with stack.functions(**chain, GROQ_API_KEY="", TOGETHER_API_KEY="", OPENAI_API_KEY="") as origin:
        answer = alice.call(origin, "GET", "/threads")

    assert answer.status_code == 500
    assert [key in answer.json()["error"] for key in ("GROQ_API_KEY", "TOGETHER_API_KEY", "OPENAI_API_KEY")] == [
        True
    ] * 3
