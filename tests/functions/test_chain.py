"""The chain of models: which is asked next, which once more, and what goes to the caller."""

import json
import math
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from infra.local.stack import Stack
from tests.functions.test_refusals import assert_refused
from tests.replicate_stand_in import Replicate
from tests.runpod_stand_in import RunPod
from tests.stand_ins import ANSWER, USAGE, Model, serving
from tests.users import User

QUESTION = "What is TON?"
NOBODY = "http://127.0.0.1:9/v1"


@dataclass(slots=True)
class Scripted(Model):
    """A stand-in that gives its script's answers first."""

    script: list[Callable[[], Response]] = field(default_factory=list)

    async def complete(self, request: Request) -> Response:
        if not self.script:
            return await Model.complete(self, request)
        self.asked.append(await request.json())
        return self.script.pop(0)()


def refusing(status: int, code: str = "any", message: str = "no", **headers: str) -> Callable[[], Response]:
    error = {"message": message, "type": "error", "code": code}
    return lambda: JSONResponse({"error": error}, status, {key.replace("_", "-"): headers[key] for key in headers})


def events(*lines: str) -> Callable[[], Response]:
    return lambda: Response("".join(f"data: {line}\n\n" for line in lines), media_type="text/event-stream")


def piece(text: str, finish: str | None = None) -> str:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    return json.dumps({"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]})


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[Scripted, Scripted]]:
    first, second = Scripted(), Scripted()
    with serving(first.app()) as first.url, serving(second.app()) as second.url:
        yield first, second


@contextmanager
def chained(stack: Stack, servers: tuple[Scripted, Scripted], **settings: str) -> Iterator[str]:
    providers = {name: {"base_url": f"{server.url}/v1"} for name, server in zip(("one", "two"), servers, strict=True)}
    chosen = {
        "MODEL_CHAIN": "one:a, two:b",
        "MODEL_PROVIDERS": json.dumps(providers | {"nobody": {"base_url": NOBODY}}),
        "ONE_API_KEY": "key-of-one",
        "TWO_API_KEY": "key-of-two",
        "NOBODY_API_KEY": "none",
    }
    with stack.functions(**{**chosen, **settings}) as origin:
        yield origin


@pytest.fixture(scope="module")
def origin(stack: Stack, servers: tuple[Scripted, Scripted], knowledge: None) -> Iterator[str]:
    with chained(stack, servers) as url:
        yield url


@pytest.fixture
def both(servers: tuple[Scripted, Scripted]) -> tuple[Scripted, Scripted]:
    """Both servers, as if nobody had asked them anything."""
    for server in servers:
        server.asked.clear()
        server.script.clear()
    return servers


def asked(both: tuple[Scripted, Scripted]) -> tuple[int, int]:
    return len(both[0].asked), len(both[1].asked)


def test_the_first_model_of_the_chain_answers(
    stack: Stack, origin: str, alice: User, both: tuple[Scripted, Scripted]
) -> None:
    answer = alice.ask(origin, QUESTION).json()

    assert (answer["response"], answer["model"]) == ("".join(ANSWER), "one:a")
    assert alice.conversation(stack, answer["conversationId"])["model_version"] == "one:a"
    assert both[0].asked[0]["model"] == "a"
    assert asked(both) == (1, 0)


@pytest.mark.parametrize("status", [401, 402, 403, 404])
def test_a_provider_that_refuses_is_asked_once_and_the_next_one_answers(
    stack: Stack, origin: str, alice: User, both: tuple[Scripted, Scripted], status: int
) -> None:
    both[0].script = [refusing(status)]

    answer = alice.ask(origin, QUESTION).json()

    assert (answer["response"], answer["model"]) == ("".join(ANSWER), "two:b")
    assert alice.conversation(stack, answer["conversationId"])["model_version"] == "two:b"
    assert asked(both) == (1, 1)


@pytest.mark.parametrize(
    ("script", "counts"),
    [
        ([refusing(429, retry_after="0")], (2, 0)),
        ([refusing(408, retry_after="0")], (2, 0)),
        ([refusing(429)], (2, 0)),
        ([refusing(503)], (2, 0)),
        ([refusing(500, retry_after="0")] * 2, (3, 0)),
        ([refusing(500, retry_after="0")] * 3, (3, 1)),
        ([refusing(429, retry_after="60")], (1, 1)),
        ([refusing(429, code="insufficient_quota", retry_after="0")], (1, 1)),
        ([lambda: Response("<html>", media_type="text/html")] * 3, (3, 1)),
        ([lambda: JSONResponse({"choices": []})], (2, 0)),
    ],
    ids=[
        "429",
        "408",
        "429 without a time",
        "503",
        "500 twice",
        "500 always",
        "a minute",
        "no money",
        "rubbish",
        "none",
    ],
)
def test_a_model_is_asked_again_where_that_may_help(
    origin: str, alice: User, both: tuple[Scripted, Scripted], script: Any, counts: tuple[int, int]
) -> None:
    both[0].script = list(script)

    answered = alice.ask(origin, QUESTION)

    assert answered.json()["response"] == "".join(ANSWER)
    assert asked(both) == counts
    assert answered.headers["x-gateway-attempts"] == str(sum(counts))
    assert answered.headers["x-gateway-model"] == ("two:b" if counts[1] else "one:a")
    assert 0 < float(answered.headers["x-gateway-overhead-ms"]) < 5000
    assert "x-gateway-attempts" in answered.headers["access-control-expose-headers"]


@pytest.mark.parametrize(
    ("refusal", "says"),
    [
        (refusing(400, code="context_length_exceeded"), "longer than the model reads"),
        (refusing(413, message="input is too long"), "longer than the model reads"),
        (refusing(400, code="content_filter", message="maximum harm"), "doesn't take it"),
        (refusing(422), "doesn't take it"),
    ],
)
def test_what_is_wrong_with_the_request_goes_to_the_caller(
    stack: Stack, origin: str, alice: User, both: tuple[Scripted, Scripted], refusal: Any, says: str
) -> None:
    both[0].script = [refusal]

    message = assert_refused(alice.ask(origin, QUESTION), 422, "invalid_request")

    assert says in message
    assert asked(both) == (1, 0)


def test_the_last_failure_is_the_answer_where_nobody_answers(
    origin: str, alice: User, both: tuple[Scripted, Scripted]
) -> None:
    both[0].script, both[1].script = [refusing(401)], [refusing(429, retry_after="60")]

    answer = alice.ask(origin, QUESTION)

    assert "busy" in assert_refused(answer, 503, "model_unavailable")
    assert answer.headers["retry-after"] == "60"


def test_a_provider_that_is_not_there_costs_less_than_the_deadline(
    stack: Stack, alice: User, both: tuple[Scripted, Scripted]
) -> None:
    with chained(stack, both, MODEL_CHAIN="nobody:x,two:b") as origin:
        answer = alice.ask(origin, QUESTION).json()

    assert answer["model"] == "two:b"


def test_a_silent_model_leaves_time_for_the_next_one(
    stack: Stack, alice: User, both: tuple[Scripted, Scripted]
) -> None:
    marker = uuid.uuid4().hex
    both[1].raw[marker] = json.dumps(
        {"choices": [{"index": 0, "message": {"role": "assistant", "content": "Yes."}, "finish_reason": "stop"}]}
    ).encode()
    with chained(stack, both, REQUEST_TIMEOUT_SECONDS="4") as origin:
        answer = alice.ask(origin, f"{QUESTION} [silent] {marker}").json()

    assert (answer["response"], answer["model"]) == ("Yes.", "two:b")
    assert both[0].abandoned == 1


@pytest.mark.parametrize(
    "script",
    [
        [refusing(401)],
        [refusing(500, retry_after="0")] * 3,
        [events()] * 3,
        [events(json.dumps({"error": {"message": "overloaded"}}))] * 3,
        [events(piece("", "stop"), "[DONE]")],
    ],
    ids=["refused", "failing", "nothing", "an error", "empty"],
)
def test_a_stream_that_has_not_begun_is_taken_over(
    origin: str, alice: User, both: tuple[Scripted, Scripted], script: Any
) -> None:
    both[0].script = list(script)

    with alice.ask_in_events(origin, QUESTION) as told:
        heard = list(told)

    assert "".join(event["token"] for name, event in heard if name == "token") == "".join(ANSWER)
    assert [event["model"] for name, event in heard if name == "done"] == ["two:b"]
    assert asked(both) == (len(script), 1)


def test_a_stream_that_has_begun_is_not(
    stack: Stack, origin: str, alice: User, both: tuple[Scripted, Scripted]
) -> None:
    both[0].script = [events(piece("TON is "))]

    with alice.ask_in_events(origin, question := f"{QUESTION} {uuid.uuid4().hex}") as told:
        heard = list(told)

    kept: Any = alice.client(stack).table("conversations").select("*").eq("message", question).execute().data[0]
    assert [name for name, _ in heard] == ["sources", "token", "error"]
    assert (kept["status"], kept["response"], kept["model_version"]) == ("partial", "TON is", "one:a")
    assert asked(both) == (1, 0)


def test_a_model_that_falls_silent_in_mid_answer_ends_it(
    stack: Stack, alice: User, both: tuple[Scripted, Scripted]
) -> None:
    with (
        chained(stack, both, STALL_SECONDS="0.2") as origin,
        alice.ask_in_events(origin, f"{QUESTION} [drip]") as told,
    ):
        heard = list(told)

    assert [name for name, _ in heard] == ["sources", "token", "error"]
    assert "fell silent" in heard[-1][1]["error"]


def test_replicate_answers_whole_and_in_events(stack: Stack, alice: User, both: tuple[Scripted, Scripted]) -> None:
    replicate = Replicate(looks=2)
    with serving(replicate.app()) as url:
        providers = {"near": {"base_url": f"{url}/v1", "wire": "replicate"}}
        chosen = {"MODEL_CHAIN": "near:meta/llama", "MODEL_PROVIDERS": json.dumps(providers), "NEAR_API_KEY": "r8"}
        with chained(stack, both, **chosen) as origin:
            whole = alice.ask(origin, QUESTION).json()
            with alice.ask_in_events(origin, QUESTION) as told:
                heard = list(told)

    assert (whole["response"], whole["model"], whole["usage"]) == ("".join(ANSWER), "near:meta/llama", USAGE)
    assert [event["token"] for name, event in heard if name == "token"] == ANSWER
    assert heard[-1][0] == "done"
    assert heard[-1][1]["usage"] == USAGE


def test_a_job_at_runpod_that_fails_is_cancelled_or_over_and_the_next_one_answers(
    stack: Stack, alice: User, both: tuple[Scripted, Scripted]
) -> None:
    runpod = RunPod(polls=math.inf)
    with serving(runpod.app()) as url:
        providers = {"pod": {"base_url": f"{url}/v2", "wire": "runpod"}, "two": {"base_url": f"{both[1].url}/v1"}}
        chosen = {"MODEL_CHAIN": "pod:abc123,two:b", "MODEL_PROVIDERS": json.dumps(providers), "POD_API_KEY": "rpa"}
        with chained(stack, both, REQUEST_TIMEOUT_SECONDS="6", **chosen) as origin:
            answer = alice.ask(origin, QUESTION).json()

    assert (answer["response"], answer["model"]) == ("".join(ANSWER), "two:b")
    assert runpod.operations[-1] == "cancel"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"MODEL_CHAIN": "one"}, "one is no provider:model"),
        ({"MODEL_CHAIN": "three:c"}, "three:c is no provider:model of own, openai, together"),
        ({"MODEL_CHAIN": "openai:gpt-4o-mini", "OPENAI_API_KEY": ""}, "OPENAI_API_KEY"),
        ({"MODEL_PROVIDERS": "{"}, "MODEL_PROVIDERS"),
        ({"MODEL_PROVIDERS": '{"one": {"base_url": "http://x", "wire": "telex"}}'}, "MODEL_PROVIDERS"),
    ],
)
def test_a_chain_that_cannot_be_asked_names_the_setting(
    stack: Stack, alice: User, both: tuple[Scripted, Scripted], settings: dict[str, str], says: str
) -> None:
    with chained(stack, both, **settings) as origin:
        message = assert_refused(alice.ask(origin, QUESTION), 500, "misconfigured")

    assert says in message
