"""A request's figures for CloudWatch: one line of its embedded metric format, and only figures."""

import json
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from infra.local.stack import Stack
from shared import settings
from tests.functions import anybody
from tests.functions.anybody import ANYTHING
from tests.functions.delivery import invoke, queued
from tests.functions.deployments import Registry
from tests.functions.test_deferred import poll, queue_of
from tests.sql import put_export
from tests.stand_ins import ANSWER, Model
from tests.users import User

QUESTION = "What is TON token?"
NAMESPACE = "Tests/Gateway"
UNITS = {"Milliseconds", "Count", "None"}  # of the format's, those that are needed


@dataclass(frozen=True, slots=True)
class Printing:
    """The functions with metrics, and what they print."""

    url: str
    log: Path

    def blobs(self, request_id: str) -> list[dict[str, Any]]:
        """A request's metrics; they are printed when the answer is away."""
        limit = time.monotonic() + 10
        while not (found := [blob for blob in blobs_of(self.log) if blob["requestId"] == request_id]):
            assert time.monotonic() < limit, "no metrics were printed"
            time.sleep(0.05)
        return found

    def figures(self, request_id: str) -> dict[str, Any]:
        """The only metrics of a request, by their names, once they are found to be in the format."""
        [blob] = self.blobs(request_id)
        check_format(blob)
        return {metric["Name"]: blob[metric["Name"]] for metric in blob["_aws"]["CloudWatchMetrics"][0]["Metrics"]}


@pytest.fixture(scope="module")
def printing(stack: Stack, model: Model, knowledge: None) -> Iterator[Printing]:
    before = set(stack.logs.iterdir())
    chosen = {"MODEL_BASE_URL": f"{model.url}/v1", "MODEL_NAME": "stand-in", "CACHE_SECONDS": "60"}
    with stack.functions(METRICS_NAMESPACE=NAMESPACE, **chosen) as url:
        [log] = set(stack.logs.iterdir()) - before
        yield Printing(url, log)


def blobs_of(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{") and '"_aws"' in line]


def check_format(blob: dict[str, Any]) -> None:
    """What the specification of the embedded metric format demands of a line."""
    known = blob["_aws"]
    assert known.keys() == {"Timestamp", "CloudWatchMetrics"}
    assert isinstance(known["Timestamp"], int)
    assert abs(known["Timestamp"] / 1000 - time.time()) < 600
    [directive] = known["CloudWatchMetrics"]
    assert directive.keys() == {"Namespace", "Dimensions", "Metrics"}
    assert 0 < len(directive["Namespace"]) <= 1024
    assert directive["Dimensions"]
    for names in directive["Dimensions"]:
        assert len(names) <= 30
        assert all(isinstance(blob[name], str) and 0 < len(blob[name]) <= 1024 for name in names)
    assert 0 < len(directive["Metrics"]) <= 100
    for metric in directive["Metrics"]:
        assert metric.keys() == {"Name", "Unit"}
        assert metric["Unit"] in UNITS
        assert type(blob[metric["Name"]]) in (int, float)


def invoked(stack: Stack, function: str, event: dict[str, Any], **settings: str) -> list[dict[str, Any]]:
    """The metrics that a function's handler prints for an event."""
    done = invoke(stack, function, event, {"METRICS_NAMESPACE": NAMESPACE, **settings})
    return [json.loads(line) for line in done.stdout.splitlines() if '"_aws"' in line]


def message(body: dict[str, Any]) -> dict[str, Any]:
    return queued(json.dumps(body))


def asked(user: User, printing: Printing, question: str = QUESTION, **body: Any) -> str:
    """The id of a request that asks."""
    request_id = uuid.uuid4().hex
    user.ask(printing.url, question, {"x-request-id": request_id}, **body)
    return request_id


def test_a_whole_answers_figures(printing: Printing, alice: User) -> None:
    request_id = asked(alice, printing)

    [blob] = printing.blobs(request_id)
    figures = printing.figures(request_id)

    assert blob["_aws"]["CloudWatchMetrics"][0]["Namespace"] == NAMESPACE
    assert blob["_aws"]["CloudWatchMetrics"][0]["Dimensions"] == [["function"], ["function", "model"]]
    assert (blob["function"], blob["model"]) == ("ai-finance", "stand-in")
    assert 0 < figures.pop("ModelMs") < figures["DurationMs"]
    assert 0 < figures.pop("OverheadMs") < figures.pop("DurationMs")
    assert figures == {
        "Requests": 1,
        "Errors": 0,
        "Attempts": 1,
        "InputTokens": 40,
        "OutputTokens": 9,
        "CachedTokens": 0,
        "CostUsd": 6.7e-05,
    }


@pytest.mark.parametrize("function", ["ai-finance", "ai-with-rag"])
def test_a_streams_first_token_is_timed(printing: Printing, stack: Stack, alice: User, function: str) -> None:
    request_id = uuid.uuid4().hex
    headers = {"Authorization": f"Bearer {alice.token}", "x-request-id": request_id}
    body = {"message": f"{QUESTION} [drip]", "stream": True}
    answer = httpx.post(f"{printing.url}/{function}", json=body, headers=headers, timeout=30)

    figures = printing.figures(request_id)

    assert "event: done" in answer.text
    assert 0 < figures["TimeToFirstTokenMs"] < figures["DurationMs"] - 900  # three pieces, half a second apart
    assert figures["ModelMs"] > 900
    assert (figures["Attempts"], figures["OutputTokens"], figures["Errors"]) == (1, 9, 0)


@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_counts_as_an_error_of_the_model_that_was_asked_last(
    printing: Printing, alice: User, stream: bool
) -> None:
    request_id = asked(alice, printing, f"{QUESTION} [fail]", stream=stream)

    [blob] = printing.blobs(request_id)
    figures = printing.figures(request_id)

    assert blob["_aws"]["CloudWatchMetrics"][0]["Dimensions"] == [["function"], ["function", "model"]]
    assert (blob["code"], blob["model"]) == ("model_unavailable", "stand-in")
    assert (figures["Errors"], figures["Attempts"], figures["OutputTokens"], figures["CostUsd"]) == (1, 3, 0, 0)


def test_what_is_wrong_with_a_request_is_no_error_of_ours(printing: Printing, alice: User) -> None:
    request_ids = [asked(alice, printing, message) for message in ("", "a" * 4001, "x" * 70_000)]
    httpx.post(f"{printing.url}/ai-finance", json={"message": QUESTION}, headers={"x-request-id": "stranger"})

    for request_id in [*request_ids, "stranger"]:
        assert printing.figures(request_id).keys() == {"Requests", "Errors", "DurationMs"}
        assert printing.figures(request_id)["Errors"] == 0


def test_a_kept_answer_costs_nothing_and_is_a_hit(printing: Printing, stack: Stack) -> None:
    request_ids = [uuid.uuid4().hex, uuid.uuid4().hex]
    with anybody.learned(stack, *anybody.TOKENS) as category:
        for request_id in request_ids:
            headers = {**anybody.visitor(stack), "x-request-id": request_id}
            anybody.ask(printing.url, headers, "What is Notcoin?", category=category, matchThreshold=ANYTHING)

    first, again = (printing.figures(request_id) for request_id in request_ids)

    assert (first["CacheHits"], first["Attempts"], first["OutputTokens"]) == (0, 1, 9)
    assert (again["CacheHits"], again["Attempts"], again["OutputTokens"], again["CostUsd"]) == (1, 0, 0, 0)
    assert printing.blobs(request_ids[1])[0]["model"] == "stand-in"


def test_requests_that_are_served_at_once_have_their_own_figures(printing: Printing, alice: User) -> None:
    with ThreadPoolExecutor(8) as pool:
        request_ids = list(pool.map(lambda _: asked(alice, printing, f"{QUESTION} [slow]"), range(8)))

    for request_id in request_ids:
        figures = printing.figures(request_id)
        assert (figures["Requests"], figures["InputTokens"], figures["OutputTokens"]) == (1, 40, 9)


def test_a_deferred_answer_is_counted_by_its_worker_alone(stack: Stack, model: Model, alice: User) -> None:
    before = set(stack.logs.iterdir())
    with queue_of(stack) as queue:
        chosen = {"MODEL_BASE_URL": f"{model.url}/v1", "MODEL_NAME": "stand-in", "QUEUE_URL": queue.url}
        with (
            stack.functions(METRICS_NAMESPACE=NAMESPACE, **chosen) as url,
            stack.worker(METRICS_NAMESPACE=NAMESPACE, **chosen),
        ):
            waited = alice.ask(url, QUESTION, {"Prefer": "wait=20"})
            left = alice.ask(url, QUESTION, {"Prefer": "respond-async"})
            poll(alice, url, left.json()["conversationId"])
            time.sleep(0.5)  # the worker's line comes after the row
    blobs = [blob for log in set(stack.logs.iterdir()) - before for blob in blobs_of(log)]

    workers = [blob for blob in blobs if blob["function"] == "ai-finance-worker"]
    others = [blob for blob in blobs if blob["function"] == "ai-finance"]

    assert waited.json()["response"] == "".join(ANSWER)
    assert [(blob["model"], blob["OutputTokens"], blob["CostUsd"]) for blob in workers] == [
        ("stand-in", 9, 6.7e-05)
    ] * 2
    assert len(others) >= 2
    assert all("CostUsd" not in blob and "OutputTokens" not in blob for blob in others)
    for blob in blobs:
        check_format(blob)


def test_a_function_without_its_settings_is_counted(stack: Stack, alice: User) -> None:
    before = set(stack.logs.iterdir())
    with stack.functions(METRICS_NAMESPACE=NAMESPACE, EMBEDDING_MODEL="") as url:
        [log] = set(stack.logs.iterdir()) - before
        request_id = asked(alice, Printing(url, log))
        figures = Printing(url, log).figures(request_id)

    assert figures["Errors"] == 1


@pytest.mark.parametrize("function", ["ai-finance", "deploy-model", "export-training-data"])
def test_a_message_that_fails_is_counted_as_its_workers_error(stack: Stack, function: str) -> None:
    [blob] = invoked(stack, function, message({"nonsense": "a user's"}))

    check_format(blob)
    assert (blob["function"], blob["Errors"]) == (f"{function}-worker", 1)
    assert "a user's" not in json.dumps(blob)


def test_a_transfer_that_fails_in_a_worker_is_counted_once(stack: Stack, registry: Registry) -> None:
    source = registry.put({"pytorch_model.bin": b"\x80\x04K\x01."})
    with queue_of(stack) as queue, stack.functions(DEPLOYMENT_QUEUE_URL=queue.url) as registry.origin:
        run = {"modelName": registry.name, "baseModel": "llama", "source": source}
        begun = registry.call("POST", body=run, prefer="respond-async").json()["model"]
        event = message({"transfer": begun["id"]})
        told = [invoked(stack, "deploy-model", event) for _ in range(2)]

    counted = [[(blob["function"], blob["code"], blob["Errors"]) for blob in each] for each in told]
    assert counted == [[("deploy-model-worker", "pickle_refused", 1)], []]


def test_a_manifest_that_is_refused_is_counted(stack: Stack, registry: Registry) -> None:
    registry.put({"manifest.json": b'{"modelName": "ton"}'}, registry.name)
    event = json.loads((Path(__file__).with_name("events") / "s3.json").read_text())
    event["Records"][0]["s3"]["object"]["key"] = f"{registry.name}/manifest.json"

    [blob] = invoked(stack, "deploy-model", event)

    assert (blob["function"], blob["Errors"]) == ("deploy-model-worker", 1)


def test_an_export_that_cannot_go_on_is_counted(stack: Stack) -> None:
    with psycopg.connect(stack.database_url, autocommit=True) as database:
        id = put_export(database, status="writing")
        [blob] = invoked(stack, "export-training-data", message({"export": id}), S3_PROTOCOL_ACCESS_KEY_ID="")
        database.execute("delete from public.training_exports where id = %s", [id])

    assert (blob["function"], blob["code"]) == ("export-training-data-worker", "misconfigured")


def test_nothing_but_figures_and_names_is_printed(printing: Printing, stack: Stack, alice: User) -> None:
    secret = uuid.uuid4().hex
    request_ids = [asked(alice, printing, f"{QUESTION} {secret} {how}") for how in ("", "[fail]", "[empty]")]
    httpx.post(f"{printing.url}/ai-finance/{secret}", json={"message": secret}, headers={"x-request-id": "far"})

    text = json.dumps([printing.blobs(request_id) for request_id in [*request_ids, "far"]])

    for kept_out in (secret, alice.token, alice.auth_user_id, stack.keys.secret, ANSWER[1].strip(), QUESTION):
        assert kept_out not in text


def test_none_are_printed_unless_they_are_asked_for(stack: Stack, functions: str, alice: User) -> None:
    request_id = uuid.uuid4().hex
    alice.ask(functions, QUESTION, {"x-request-id": request_id})
    time.sleep(0.5)  # lines come after the answer

    text = "\n".join(log.read_text() for log in stack.logs.glob("functions*.log"))
    [line] = [line for line in text.splitlines() if request_id in line]

    assert "_aws" not in line


@pytest.mark.parametrize(
    ("environment", "namespace"),
    [
        ({}, None),
        ({"METRICS_NAMESPACE": "Mine"}, "Mine"),
        ({"METRICS_NAMESPACE": "off"}, None),
        ({"AWS_LAMBDA_FUNCTION_NAME": "ai-finance"}, "SupabaseAiGateway"),
        ({"AWS_LAMBDA_FUNCTION_NAME": "ai-finance", "METRICS_NAMESPACE": ""}, "SupabaseAiGateway"),
        ({"AWS_LAMBDA_FUNCTION_NAME": "ai-finance", "METRICS_NAMESPACE": "Mine"}, "Mine"),
        ({"AWS_LAMBDA_FUNCTION_NAME": "ai-finance", "METRICS_NAMESPACE": "off"}, None),
    ],
)
def test_lambda_has_metrics_unless_they_are_off(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], namespace: str | None
) -> None:
    for name in ("METRICS_NAMESPACE", "AWS_LAMBDA_FUNCTION_NAME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    assert settings.metrics_namespace.__wrapped__() == namespace
