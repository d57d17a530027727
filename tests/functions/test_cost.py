"""What an answer costs: told with it, kept with it, charged once, exact where the provider says enough."""

import json
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from starlette.responses import JSONResponse, Response

from infra.local.stack import Stack
from tests.embedding_stand_ins import Embeddings
from tests.functions import anybody
from tests.functions.test_chain import Scripted, events, piece, refusing
from tests.functions.test_deferred import model_calls
from tests.functions.test_quotas import ASK, both_functions, limits, spent_today, wait_until
from tests.stand_ins import Model, serving
from tests.users import User

QUESTION = "What is Notcoin?"
PRICES = {
    "dear:large": {"input_usd": 2, "cached_input_usd": 0.5, "output_usd": 8, "reasoning_usd": 10},
    "dear:rated": {"input_usd": 1, "output_usd": 3},
    "dear:vast": {"input_usd": 4, "output_usd": 16},
    "cheap:small": {"input_usd": 0.1, "output_usd": 0.4},
}
REPORTED = {
    "prompt_tokens": 1000,
    "completion_tokens": 300,
    "total_tokens": 1300,
    "prompt_tokens_details": {"cached_tokens": 600},
    "completion_tokens_details": {"reasoning_tokens": 100},
}
TOLD = {  # 400 tokens at 2, 600 at 0.5, 200 at 8 and 100 at 10 dollars a million
    "inputTokens": 1000,
    "cachedTokens": 600,
    "outputTokens": 300,
    "reasoningTokens": 100,
    "costUsd": 0.0037,
    "estimated": False,
}
WRITTEN = {
    "input_tokens": 1000,
    "cached_tokens": 600,
    "output_tokens": 300,
    "reasoning_tokens": 100,
    "cost_usd": 0.0037,
    "is_estimated": False,
    "model_version": "dear:large",
    "status": "complete",
}


@pytest.fixture(scope="module")
def dear() -> Iterator[Scripted]:
    stand_in = Scripted()
    with serving(stand_in.app()) as stand_in.url:
        yield stand_in


@pytest.fixture(scope="module")
def settings(dear: Scripted) -> Iterator[dict[str, str]]:
    with serving(Model().app()) as cheap, serving(Embeddings().app()) as embeddings:
        providers = {"dear": {"base_url": f"{dear.url}/v1"}, "cheap": {"base_url": f"{cheap}/v1"}}
        yield {
            "MODEL_CHAIN": "dear:large, cheap:small",
            "ALLOWED_MODELS": "dear:rated, dear:unpriced",
            "CONTEXT_FALLBACKS": "dear:vast",
            "MODEL_PROVIDERS": json.dumps(providers),
            "DEAR_API_KEY": "key",
            "CHEAP_API_KEY": "key",
            "MODELS": json.dumps(PRICES),
            "EMBEDDING_BASE_URL": f"{embeddings}/v1",
            "EMBEDDING_MODEL": "of-the-costs",
            "PROMPT_TOKENS": "3000",
        }


@pytest.fixture(scope="module")
def origin(stack: Stack, settings: dict[str, str]) -> Iterator[str]:
    with stack.functions(**settings) as url, anybody.learned(stack, *anybody.TOKENS, origin=url):
        yield url


@pytest.fixture(scope="module")
def hasty(stack: Stack, settings: dict[str, str], origin: str) -> Iterator[str]:
    """Functions that give a model some seconds, and have none behind it."""
    with stack.functions(**{**settings, "MODEL_CHAIN": "dear:large", "REQUEST_TIMEOUT_SECONDS": "3"}) as url:
        yield url


@pytest.fixture
def ann(stack: Stack) -> User:
    return User.sign_up(stack)


def whole() -> Response:
    choice = {"index": 0, "message": {"role": "assistant", "content": "TON."}, "finish_reason": "stop"}
    return JSONResponse({"id": "1", "object": "chat.completion", "choices": [choice], "usage": REPORTED})


def streamed() -> Response:
    usage = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [], "usage": REPORTED}
    return events(piece("TON."), piece("", "stop"), json.dumps(usage), "[DONE]")()


def done(answer: httpx.Response) -> dict[str, Any]:
    """What the last of an answer's events says."""
    [told] = [data for name, data in anybody.events(answer) if name == "done"]
    return dict(told)


def only_call(stack: Stack, user: User) -> dict[str, Any]:
    """The one call that the user has made, once it is settled."""
    limit = time.monotonic() + 10
    while any(call["state"] == "reserved" for call in model_calls(stack, user)) and time.monotonic() < limit:
        time.sleep(0.05)
    [call] = model_calls(stack, user)
    return call


def part(row: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: row[name] for name in names}


@both_functions
def test_cached_and_reasoning_tokens_have_their_own_price(
    stack: Stack, origin: str, dear: Scripted, ann: User, ask: Callable[..., httpx.Response]
) -> None:
    dear.script = [whole]

    answer = ask(ann, origin, QUESTION)

    assert answer.json()["usage"] == TOLD
    assert answer.headers["x-gateway-cost-usd"] == "0.0037"
    assert part(only_call(stack, ann), *WRITTEN) == WRITTEN
    assert spent_today(ann, origin) == (1, 1300, 0.0037)


@both_functions
def test_a_stream_costs_the_same(
    stack: Stack, origin: str, dear: Scripted, ann: User, ask: Callable[..., httpx.Response]
) -> None:
    dear.script = [streamed]

    answer = ask(ann, origin, QUESTION, stream=True)

    assert done(answer)["usage"] == TOLD
    assert part(only_call(stack, ann), *WRITTEN) == WRITTEN
    assert spent_today(ann, origin) == (1, 1300, 0.0037)


@pytest.mark.parametrize(("reply", "stream"), [(whole, False), (streamed, True)])
def test_the_conversation_keeps_what_its_answer_cost(
    stack: Stack, origin: str, dear: Scripted, ann: User, reply: Callable[[], Response], stream: bool
) -> None:
    dear.script = [reply]
    answer = ann.ask(origin, QUESTION, stream=stream)
    conversation_id = (done(answer) if stream else answer.json())["conversationId"]

    told = ann.call(origin, "GET", f"/conversations/{conversation_id}").json()

    assert told["usage"] == TOLD
    assert part(ann.conversation(stack, conversation_id), *WRITTEN) == WRITTEN


@both_functions
@pytest.mark.parametrize("stream", [False, True])
def test_what_the_provider_does_not_count_is_estimated_and_never_free(
    stack: Stack, origin: str, ann: User, ask: Callable[..., httpx.Response], stream: bool
) -> None:
    answer = ask(ann, origin, f"{QUESTION} [uncounted]", stream=stream)

    usage, call = (done(answer) if stream else answer.json())["usage"], only_call(stack, ann)
    assert usage["estimated"] is call["is_estimated"] is True
    assert usage["inputTokens"] == call["input_tokens"] > 50
    assert usage["outputTokens"] == call["output_tokens"] > 0
    assert usage["costUsd"] == call["cost_usd"] == (2 * usage["inputTokens"] + 8 * usage["outputTokens"]) / 1e6
    assert spent_today(ann, origin)[2] == usage["costUsd"]


@both_functions
def test_a_model_without_a_price_is_not_free(
    stack: Stack, origin: str, ann: User, ask: Callable[..., httpx.Response]
) -> None:
    usage = ask(ann, origin, QUESTION, model="dear:unpriced").json()["usage"]

    assert part(usage, "inputTokens", "outputTokens", "estimated") == {
        "inputTokens": 40,
        "outputTokens": 9,
        "estimated": True,
    }
    assert usage["costUsd"] > 0
    assert part(only_call(stack, ann), "cost_usd", "is_estimated") == {
        "cost_usd": usage["costUsd"],
        "is_estimated": True,
    }


@both_functions
def test_an_answer_that_breaks_off_is_charged_by_estimate(
    stack: Stack, origin: str, ann: User, ask: Callable[..., httpx.Response]
) -> None:
    broken = ask(ann, origin, f"{QUESTION} [break]", stream=True)

    assert "event: error" in broken.text
    assert_partial(stack, origin, ann, "model_unavailable")


@pytest.mark.parametrize("function", ["ai-finance", "ai-with-rag"])
def test_an_answer_whose_reader_left_is_charged_by_estimate(
    stack: Stack, origin: str, ann: User, function: str
) -> None:
    question = f"{QUESTION} [drip]"
    asking = {
        "ai-finance": lambda: ann.ask_in_events(origin, question),
        "ai-with-rag": lambda: anybody.ask_in_events(origin, anybody.signed_in(ann), question),
    }

    with asking[function]() as told:
        next(event for event in told if event[0] == "token")

    assert_partial(stack, origin, ann, "client_gone")


@pytest.mark.parametrize("function", ["ai-finance", "ai-with-rag"])
def test_who_leaves_before_the_first_piece_pays_for_the_prompt_the_model_got(
    stack: Stack, origin: str, dear: Scripted, ann: User, function: str
) -> None:
    marker = uuid.uuid4().hex
    question = f"{QUESTION} [silent] {marker}"
    asking = {
        "ai-finance": lambda: ann.ask_in_events(origin, question),
        "ai-with-rag": lambda: anybody.ask_in_events(origin, anybody.signed_in(ann), question),
    }

    with asking[function]() as told:
        next(told)
        wait_until(lambda: dear.count(marker) > 0)

    assert_prompt_charged(stack, origin, ann, "client_gone")


@both_functions
@pytest.mark.parametrize("stream", [False, True])
def test_a_model_that_is_too_late_has_cost_the_prompt_it_got(
    stack: Stack, hasty: str, ann: User, ask: Callable[..., httpx.Response], stream: bool
) -> None:
    late = ask(ann, hasty, f"{QUESTION} [silent]", stream=stream)

    assert "deadline_exceeded" in late.text
    assert stream or float(late.headers["x-gateway-cost-usd"]) > 0
    assert_prompt_charged(stack, hasty, ann, "deadline_exceeded")


def test_a_conversation_keeps_what_its_half_answer_cost(stack: Stack, origin: str, ann: User) -> None:
    ann.ask(origin, f"{QUESTION} [break]", stream=True)

    call = only_call(stack, ann)
    told = ann.call(origin, "GET", f"/conversations/{call['conversation_id']}").json()

    assert (told["status"], told["usage"]["estimated"]) == ("partial", True)
    assert told["usage"]["costUsd"] == call["cost_usd"] > 0


def test_an_answer_of_wrong_citations_alone_has_cost_too(stack: Stack, origin: str, dear: Scripted, ann: User) -> None:
    marker = uuid.uuid4().hex
    dear.raw[marker] = anybody.says("[8] [9]")

    refused = ASK["ai-with-rag"](ann, origin, f"{QUESTION} {marker}")

    assert refused.status_code == 503
    assert refused.headers["x-gateway-cost-usd"] == "0.000152"
    assert spent_today(ann, origin) == (1, 49, 0.000152)


@pytest.mark.parametrize("stream", [False, True])
def test_the_same_answer_for_the_same_key_is_not_charged_again(
    stack: Stack, origin: str, ann: User, stream: bool
) -> None:
    key = {"Idempotency-Key": uuid.uuid4().hex}

    first, again = (ann.ask(origin, QUESTION, key, stream=stream) for _ in range(2))

    usages = [(done(answer) if stream else answer.json())["usage"] for answer in (first, again)]
    assert usages[0] == usages[1]
    assert usages[0]["costUsd"] == 0.000152
    assert only_call(stack, ann)["cost_usd"] == 0.000152
    assert spent_today(ann, origin) == (1, 49, 0.000152)


@both_functions
@pytest.mark.parametrize("stream", [False, True])
def test_the_model_that_answered_is_charged(
    stack: Stack, origin: str, dear: Scripted, ann: User, ask: Callable[..., httpx.Response], stream: bool
) -> None:
    dear.script = [refusing(401)]

    answer = ask(ann, origin, QUESTION, stream=stream)

    told = done(answer) if stream else answer.json()
    assert (told["model"], told["usage"]["costUsd"]) == ("cheap:small", 7.6e-06)  # 40 tokens at 0.1, 9 at 0.4
    assert part(only_call(stack, ann), "model_version", "cost_usd") == {
        "model_version": "cheap:small",
        "cost_usd": 7.6e-06,
    }
    assert stream or answer.headers["x-gateway-cost-usd"] == "0.0000076"


@both_functions
def test_reserves_what_the_dearest_model_that_may_be_asked_can_cost(
    stack: Stack, origin: str, ann: User, ask: Callable[..., httpx.Response]
) -> None:
    ann.put_on_plan(stack, usd_per_day=1)

    answer = ask(ann, origin, QUESTION)

    assert limits(answer)["remaining-usd"] == "0.987616"  # 3000 tokens at 4, 24 at 16


def test_the_owner_sees_each_models_cost_latency_errors_and_thumbs(
    stack: Stack, origin: str, dear: Scripted, ann: User
) -> None:
    ids = [ann.ask(origin, QUESTION, model="dear:rated").json()["conversationId"] for _ in range(3)]
    for conversation_id, feedback in zip(ids, (1, 1, -1), strict=True):
        ann.call(origin, "POST", "/feedback", {"conversationId": conversation_id, "feedback": feedback})
    ASK["ai-with-rag"](ann, origin, QUESTION, model="dear:rated")
    callers = anybody.admin(stack), anybody.server(stack), anybody.signed_in(ann), anybody.visitor(stack)

    admin, server, user, visitor = (model_usage(stack, headers, "dear:rated") for headers in callers)

    finance, rag = admin.json()
    counts = {"calls": 3, "failed": 0, "error_rate": 0, "thumbs_up": 2, "thumbs_down": 1, "input_tokens": 120}
    assert part(finance, "function", *counts) == {"function": "ai-finance", **counts}
    assert (finance["day"], finance["cost_usd"]) == (time.strftime("%Y-%m-%d", time.gmtime()), 3 * 6.7e-05)
    assert 0 <= finance["p50_latency_ms"] <= finance["p95_latency_ms"] < 10_000
    assert (rag["function"], rag["calls"], rag["cost_usd"]) == ("ai-with-rag", 1, 6.7e-05)
    assert server.json() == admin.json()
    assert (user.status_code, user.json()) == (200, [])
    assert visitor.status_code in (401, 403)


@both_functions
@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_counts_for_the_model_that_was_asked_last(
    stack: Stack, origin: str, ann: User, ask: Callable[..., httpx.Response], stream: bool
) -> None:
    ask(ann, origin, f"{QUESTION} [reject]", stream=stream)

    call = only_call(stack, ann)
    assert (call["status"], call["model_version"]) == ("failed", "cheap:small")
    [counted] = [
        row
        for row in model_usage(stack, anybody.server(stack), "cheap:small").json()
        if row["function"] == call["function"]
    ]
    assert counted["error_rate"] == counted["failed"] / counted["calls"] > 0


def assert_partial(stack: Stack, origin: str, user: User, error_code: str) -> None:
    """Checks that the user's one call was charged for what was said of its answer."""
    call = only_call(stack, user)
    assert part(call, "status", "error_code", "is_estimated", "model_version") == {
        "status": "partial",
        "error_code": error_code,
        "is_estimated": True,
        "model_version": "dear:large",
    }
    assert call["input_tokens"] > 50
    assert 0 < call["output_tokens"] < 24
    assert call["cost_usd"] == (2 * call["input_tokens"] + 8 * call["output_tokens"]) / 1e6
    assert spent_today(user, origin)[2] == call["cost_usd"]


def assert_prompt_charged(stack: Stack, origin: str, user: User, error_code: str) -> None:
    """Checks that the user's one call was charged for its prompt alone."""
    call = only_call(stack, user)
    assert part(call, "status", "error_code", "is_estimated", "model_version", "output_tokens") == {
        "status": "failed",
        "error_code": error_code,
        "is_estimated": True,
        "model_version": "dear:large",
        "output_tokens": 0,
    }
    assert call["input_tokens"] > 50
    assert call["cost_usd"] == 2 * call["input_tokens"] / 1e6
    assert spent_today(user, origin) == (1, call["input_tokens"], call["cost_usd"])


def model_usage(stack: Stack, headers: anybody.Headers, model: str) -> httpx.Response:
    """What PostgREST shows of the model in the owner's view."""
    query = {"model_version": f"eq.{model}", "order": "function"}
    key = {"apikey": stack.keys.publishable} | headers
    return httpx.get(f"{stack.url}/rest/v1/model_usage", params=query, headers=key)
