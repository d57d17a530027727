"""The functions as processes of Lambda: under AWS's own runtime, and under the one that streams."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from infra.local.runtime_api import FunctionError
from infra.local.stack import Stack
from tests import lambda_processes
from tests.functions import anybody
from tests.functions.deployments import clients
from tests.lambda_processes import BUFFERED, HANDLER, STREAMING, LambdaProcess
from tests.stand_ins import ANSWER, Model, serving
from tests.users import User

EVENTS = Path(__file__).with_name("events")
ECHO = "tests.functions.echo.handler.handler"
QUESTION = "What is TON token?"
WORDS = [piece.strip() for piece in ANSWER]


@dataclass(slots=True)
class Halting(Model):
    """Says as many pieces of its answer as the test has let it."""

    allowed: int = 0

    async def _chunks(self, question: str, pieces: list[str]) -> AsyncIterator[str]:
        said = 0
        async with aclosing(Model._chunks(self, question, pieces)) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                while said >= self.allowed and said < len(pieces):  # noqa: ASYNC110  # another thread lets it go
                    await asyncio.sleep(0.005)
                said += 1
                yield chunk


@pytest.fixture
def halting() -> Iterator[Halting]:
    model = Halting()
    with serving(model.app()) as model.url:
        yield model


@pytest.fixture(params=[BUFFERED, STREAMING])
def runtime(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def echoes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, LambdaProcess]]:
    """The tests' own function under each runtime."""
    folder = tmp_path_factory.mktemp("echoes")
    with ExitStack() as held:
        yield {
            runtime: held.enter_context(lambda_processes.running(ECHO, runtime, {}, folder / runtime))
            for runtime in (BUFFERED, STREAMING)
        }


@pytest.fixture
def echo(echoes: dict[str, LambdaProcess], runtime: str) -> LambdaProcess:
    return echoes[runtime]


@pytest.fixture
def streamed_echo(echoes: dict[str, LambdaProcess]) -> LambdaProcess:
    return echoes[STREAMING]


def event(name: str, user: User | None = None) -> dict[str, Any]:
    recorded: dict[str, Any] = json.loads((EVENTS / f"{name}.json").read_text())
    if user:
        recorded["headers"]["authorization"] = f"Bearer {user.token}"
    return recorded


def settings(stack: Stack, model: Model) -> dict[str, str]:
    return {**stack.environment, "MODEL_BASE_URL": f"{model.url}/v1", "MODEL_NAME": "stand-in"}


def test_answers_recorded_events_one_after_another_over_kept_connections(
    stack: Stack, model: Model, knowledge: None, alice: User, runtime: str, tmp_path: Path
) -> None:
    before = set(model.connections)

    with lambda_processes.running(
        HANDLER.format("ai_finance"), runtime, settings(stack, model), tmp_path / "log"
    ) as process:
        answers = [process.invoke(event(name, alice)) for name in ("api_gateway_v2", "function_url", "api_gateway_v2")]
        batch = process.invoke(event("sqs"))
        again = process.invoke(event("function_url", alice))

    assert [answer["statusCode"] for answer in [*answers, again]] == [200] * 4
    assert {json.loads(answer["body"])["response"] for answer in [*answers, again]} == {"".join(ANSWER)}
    assert batch == {"batchItemFailures": [{"itemIdentifier": "059f36b4-87a3-44ab-83d2-661975830a7d"}]}
    assert len(model.connections - before) == 1
    if runtime == STREAMING:
        assert process.api.connections == 1


def test_takes_what_comes_to_deploy_model(stack: Stack, runtime: str, tmp_path: Path) -> None:
    training, _ = clients(stack)
    training.put_object(Bucket="training", Key="runs/of a recorded event/manifest.json", Body=b"no manifest")

    with lambda_processes.running(
        HANDLER.format("deploy_model"), runtime, stack.environment, tmp_path / "log"
    ) as process:
        batch = process.invoke(event("sqs_partial"))
        object_made = process.invoke(event("s3"))
        scheduled = process.invoke(event("scheduled_rule"))

    assert batch == {"batchItemFailures": [{"itemIdentifier": "c80e8021-a70a-42c7-a470-796e1186f753"}]}
    assert (object_made, scheduled) == (None, None)
    [read] = [line for line in process.lines() if line.get("message") == "a manifest that can't be deployed"]
    assert read["key"] == "runs/of a recorded event/manifest.json"


def test_takes_the_schedule_of_export_training_data(stack: Stack, runtime: str, tmp_path: Path) -> None:
    handler = HANDLER.format("export_training_data")
    with lambda_processes.running(handler, runtime, stack.environment, tmp_path / "log") as process:
        assert process.invoke(event("scheduler")) is None


@pytest.mark.parametrize("recorded", ["s3", "scheduler"])
def test_an_event_that_nobody_knows_is_an_error_of_its_kind(echo: LambdaProcess, recorded: str) -> None:
    with pytest.raises(FunctionError) as raised:
        echo.invoke(event(recorded))

    assert raised.value.told["errorType"] == "UnknownEvent"
    assert raised.value.told["stackTrace"]
    assert "manifest.json" not in echo.log.read_text()


def test_an_event_that_only_looks_like_a_function_urls_is_an_error(streamed_echo: LambdaProcess) -> None:
    with pytest.raises(FunctionError):
        streamed_echo.invoke({"requestContext": {"domainName": "x.lambda-url.eu-central-1.on.aws"}})

    assert streamed_echo.invoke(event("function_url_put"))["statusCode"] == 200


def test_a_function_that_cant_be_imported_says_so(runtime: str, tmp_path: Path) -> None:
    with (
        lambda_processes.running("functions.of_nobody.handler.handler", runtime, {}, tmp_path / "log") as process,
        pytest.raises(FunctionError, match="of_nobody"),
    ):
        process.invoke(event("scheduler"))


def test_an_apps_scope_is_the_same_under_both_runtimes(echoes: dict[str, LambdaProcess]) -> None:
    told = [[echoes[runtime].invoke(event("function_url_put")) for _ in range(2)] for runtime in (BUFFERED, STREAMING)]

    buffered, streamed = ([json.loads(answer["body"]) for answer in answers] for answers in told)
    assert streamed == buffered
    assert buffered[0]["name"] == "a b"
    assert ["cookie", "session=1a2b; theme=dark"] in buffered[0]["headers"]
    assert buffered[0]["client"] == ["203.0.113.7", 0]
    assert buffered[0]["memory"] == "512"
    assert buffered[0]["has_time"] and buffered[0]["has_id"]


def test_answers_the_function_url_with_its_headers_and_cookies(streamed_echo: LambdaProcess) -> None:
    answer = httpx.get(f"{streamed_echo.api.url}/echo/cookies")

    assert (answer.status_code, answer.text) == (200, "two cookies")
    assert [cookie.partition(";")[0] for cookie in answer.headers.get_list("set-cookie")] == ["a=1", "b=2"]
    assert answer.headers["access-control-allow-origin"] == "*"
    assert answer.headers["x-request-id"]


def test_an_answer_too_large_is_a_413_that_says_so(echo: LambdaProcess) -> None:
    recorded = event("api_gateway_v2")
    recorded["requestContext"]["http"] |= {"method": "GET", "path": "/echo/large"}

    answer = echo.invoke(recorded)

    assert answer["statusCode"] == 413
    assert json.loads(answer["body"])["code"] == "answer_too_large"


def test_streams_what_is_too_large_to_return(streamed_echo: LambdaProcess) -> None:
    answer = httpx.get(f"{streamed_echo.api.url}/echo/large", timeout=30)

    assert answer.status_code == 200
    assert len(answer.content) > 6 * 1024 * 1024


def test_an_error_before_the_answer_is_the_apps_own(streamed_echo: LambdaProcess) -> None:
    answer = httpx.get(f"{streamed_echo.api.url}/echo/raise")

    assert answer.status_code == 500
    assert "secret" not in answer.text + streamed_echo.log.read_text()


def test_an_error_in_mid_stream_cuts_the_connection(streamed_echo: LambdaProcess) -> None:
    recorded = event("function_url")
    recorded["requestContext"]["http"] |= {"method": "GET", "path": "/echo/break"}

    with (
        httpx.stream("GET", f"{streamed_echo.api.url}/echo/break") as answer,
        pytest.raises(httpx.RemoteProtocolError),
    ):
        assert answer.status_code == 200
        answer.read()
    with pytest.raises(FunctionError, match="Unfinished"):
        streamed_echo.invoke(recorded)

    assert httpx.get(f"{streamed_echo.api.url}/echo/cookies").status_code == 200
    assert "secret" not in streamed_echo.log.read_text()


def test_tokens_go_out_as_the_model_says_them(
    stack: Stack, halting: Halting, knowledge: None, alice: User, tmp_path: Path
) -> None:
    handler, told = HANDLER.format("ai_finance"), []
    with lambda_processes.running(handler, STREAMING, settings(stack, halting), tmp_path / "log") as process:
        for question in range(2):
            halting.allowed = 0
            with alice.ask_in_events(process.api.url, f"{QUESTION} {question}") as events:
                told.append(_as_they_come(halting, events))

    assert told == [["sources", *WORDS, "done"]] * 2
    assert process.api.connections == 1


def test_ai_with_rag_streams_to_a_visitor(stack: Stack, halting: Halting, tmp_path: Path) -> None:
    handler, visitor = HANDLER.format("ai_with_rag"), anybody.visitor(stack)
    chosen = {**settings(stack, halting), **anybody.GENEROUS}
    with (
        anybody.learned(stack, *anybody.TOKENS) as category,
        lambda_processes.running(handler, STREAMING, chosen, tmp_path / "log") as process,
        anybody.ask_in_events(
            process.api.url, visitor, QUESTION, category=category, matchThreshold=anybody.ANYTHING
        ) as events,
    ):
        told = _as_they_come(halting, events)

    assert told == ["sources", *WORDS, "done"]


def test_a_client_that_hangs_up_stops_the_model(
    stack: Stack, halting: Halting, knowledge: None, alice: User, tmp_path: Path
) -> None:
    handler = HANDLER.format("ai_finance")
    with lambda_processes.running(handler, STREAMING, settings(stack, halting), tmp_path / "log") as process:
        with alice.ask_in_events(process.api.url, QUESTION) as events:
            halting.allowed = 1
            next(name for name, _ in events if name == "token")
        limit = time.monotonic() + 20
        while not halting.abandoned and time.monotonic() < limit:
            time.sleep(0.01)
        assert halting.abandoned == 1

        halting.allowed = len(ANSWER)
        assert alice.ask(process.api.url, QUESTION).status_code == 200
    assert "client_gone" in {line.get("code") for line in process.lines()}


def test_what_breaks_in_the_model_is_the_streams_last_event(
    stack: Stack, model: Model, knowledge: None, alice: User, tmp_path: Path
) -> None:
    handler, told = HANDLER.format("ai_finance"), []
    with lambda_processes.running(handler, STREAMING, settings(stack, model), tmp_path / "log") as process:
        for question in (f"{QUESTION} [fail]", f"{QUESTION} [break]"):
            with alice.ask_in_events(process.api.url, question) as events:
                told.append([name for name, _ in events])
        refused = alice.ask(process.api.url, "", stream=True)

    assert told == [["sources", "error"], ["sources", "token", "token", "error"]]
    assert refused.status_code == 422


@pytest.mark.parametrize("function", ["ai_finance", "ai_with_rag", "deploy_model", "export_training_data"])
def test_what_isnt_set_is_named_by_the_first_answer_and_counted(function: str, runtime: str, tmp_path: Path) -> None:
    recorded = event("api_gateway_v2")
    recorded["requestContext"]["http"]["path"] = f"/{function.replace('_', '-')}"
    recorded["body"] = json.dumps({"message": QUESTION, "modelName": "a", "baseModel": "b", "source": "s3://c/d"})

    with lambda_processes.running(HANDLER.format(function), runtime, {}, tmp_path / "log") as process:
        answer = process.invoke(recorded)

    told = json.loads(answer["body"])
    assert (answer["statusCode"], told["code"]) == (500, "misconfigured")
    assert {"SUPABASE_URL", "SUPABASE_SECRET_KEY", "MODEL_NAME"} <= set(
        told["error"].strip(".").replace(",", "").split()
    )
    [figures] = [line for line in process.lines() if "_aws" in line]
    assert figures["_aws"]["CloudWatchMetrics"][0]["Namespace"] == "SupabaseAiGateway"
    assert (figures["function"], figures["Errors"]) == (function.replace("_", "-"), 1)


def _as_they_come(model: Halting, events: Iterator[tuple[str, Any]]) -> list[str]:
    """The events in their order, or what a token says; the model says its next when the last is here."""
    told = []
    for name, data in events:
        told.append(data["token"].strip() if name == "token" else name)
        model.allowed += 1
    return told
