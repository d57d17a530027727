"""What is told of a request: one log line, its figures for CloudWatch, and spans; never a text, a token or a key.

The figures are printed in the embedded metric format, which CloudWatch reads from the log:
https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html
Not by Powertools' `Metrics`, though it would cost no import: it has one set of figures and dimensions for the whole
process, in which requests that are served at once would add to each other's and print them.

Spans follow OpenTelemetry's conventions for HTTP and for generative AI, which have a repository of their own:
https://github.com/open-telemetry/semantic-conventions-genai
They go to a collector where OpenTelemetry's own variables ask for it; where they don't, its SDK isn't imported.
"""

import asyncio
import json
import logging
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from aws_lambda_powertools import Logger

from shared import errors, settings
from shared.errors import GatewayError

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span as Recorded
    from opentelemetry.trace import Tracer

    from shared.models import Spent
    from shared.providers.chat import Said, Usage

Attributes = Mapping[str, str | int | float | bool]
Kind = Literal["INTERNAL", "SERVER", "CLIENT", "CONSUMER"]

SERVICE = "supabase-ai-gateway"
UNITS = {
    "Requests": "Count",
    "Errors": "Count",
    "DurationMs": "Milliseconds",
    "OverheadMs": "Milliseconds",
    "ModelMs": "Milliseconds",
    "TimeToFirstTokenMs": "Milliseconds",
    "Attempts": "Count",
    "InputTokens": "Count",
    "OutputTokens": "Count",
    "CachedTokens": "Count",
    "CostUsd": "None",
    "CacheHits": "Count",
}
METHODS = {"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"}
FLUSH_SECONDS = 2.0  # of an invocation, for a collector that doesn't answer

logger = Logger(service=SERVICE, use_rfc3339=True)
# Lambda's runtime lets every library speak from INFO on, and httpx says whole addresses, signed ones too.
for library in ("httpx", "httpcore", "botocore", "boto3"):
    logging.getLogger(library).setLevel(logging.WARNING)


@dataclass(slots=True)
class Trace:
    """What is known of one request so far: its id, its steps' milliseconds, facts worth a log field, and headers.

    `unreported` is, by estimate, what the prompt costs of a model that was left before it said anything.
    """

    request_id: str
    timings: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    unreported: "Spent | None" = None
    started: float = field(default_factory=time.perf_counter)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time a step; steps that run side by side overlap."""
        started = time.perf_counter()
        try:
            with span(name):
                yield
        finally:
            self.timings[name] = round((time.perf_counter() - started) * 1000, 1)

    def elapsed_ms(self) -> float:
        """The request's time so far."""
        return round((time.perf_counter() - self.started) * 1000, 1)

    def overhead_ms(self) -> float:
        """What of it was spent in neither of the providers."""
        spent = self.elapsed_ms() - self.timings.get("embed", 0) - self.timings.get("model", 0)
        return round(max(0.0, spent), 1)

    def note_token(self) -> None:
        """A piece of a streamed answer goes out; the time to the first is kept."""
        if "firstTokenMs" not in self.facts:
            self.facts["firstTokenMs"] = self.elapsed_ms()


@dataclass(slots=True)
class Span:
    """A piece of work under way; where `recorded` is None, nothing is told of it.

    `with` makes it the parent of what begins inside, and ends it. An error's kind is kept, its words are not.
    """

    recorded: "Recorded | None" = None
    token: Any = None
    started: float = 0.0

    def __enter__(self) -> "Span":
        if self.recorded:
            from opentelemetry import context, trace

            self.token = context.attach(trace.set_span_in_context(self.recorded))
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if self.recorded:
            from opentelemetry import context

            context.detach(self.token)
            self.end(error)

    @asynccontextmanager
    async def ending(self) -> AsyncIterator[None]:
        """Ends it with what runs inside, which may be left in another task than it was begun in."""
        try:
            yield
        except BaseException as error:
            self.end(error)
            raise
        self.end()

    def end(self, failure: str | BaseException | None = None) -> None:
        """It is over, as failed where an error is given, or a failure's kind."""
        if self.recorded and self.recorded.is_recording():
            if failure:
                self.fail(failure if isinstance(failure, str) else _kind_of(failure))
            self.recorded.end()

    def fail(self, failure: str) -> None:
        if self.recorded:
            from opentelemetry.trace import StatusCode

            self.recorded.set_attribute("error.type", failure)
            self.recorded.set_status(StatusCode.ERROR)

    def note(self, attributes: Attributes) -> None:
        if self.recorded:
            self.recorded.set_attributes(attributes)

    def served(self, function: str, scope: Mapping[str, Any], status: int, code: str | None) -> None:
        """An HTTP request is answered; a path that isn't one of ours may hold anything, and stays out."""
        if not self.recorded:
            return
        self.note({"url.scheme": scope.get("scheme", "http"), "http.response.status_code": status})
        if "route" in scope:
            route = f"/{function}{scope['route'].path}"  # a router's own path has no prefix
            self.recorded.update_name(f"{_method(scope['method'])} {route}")
            self.note({"http.route": route, "url.path": path(scope) or ""})
        if code and has_failed(code):
            self.fail(code)

    def begun(self) -> None:
        """The first piece of a model's answer is there."""
        self.note({"gen_ai.response.time_to_first_chunk": time.perf_counter() - self.started})

    def used(self, usage: "Usage | None") -> None:
        """The tokens a model's server has counted; estimates are none of its."""
        if self.recorded and usage and not usage.estimated:
            self.note({"gen_ai.usage.input_tokens": usage.input_tokens})
            self.note({"gen_ai.usage.output_tokens": usage.output_tokens})
            if usage.cached_tokens:
                self.note({"gen_ai.usage.cache_read.input_tokens": usage.cached_tokens})
            if usage.reasoning_tokens:
                self.note({"gen_ai.usage.reasoning.output_tokens": usage.reasoning_tokens})

    def answered(self, said: "Said") -> None:
        """A model's whole answer is there, and all that is told of it: which model it was, and its tokens."""
        self.used(said.usage)
        if said.model:
            self.note({"gen_ai.response.model": said.model})
        self.end()


NONE = Span()


def conclude(message: str, function: str, trace: Trace, **known: Any) -> None:
    """Write the log line of what is over, and its figures where there are metrics."""
    total = trace.elapsed_ms()
    line = {"function": function, "requestId": trace.request_id, **known, "durationMs": total}
    logger.info(message, extra={**line, "timings": trace.timings, **trace.facts}, stacklevel=3)
    if namespace := settings.metrics_namespace():
        print(json.dumps(_metrics(namespace, function, trace, total)), flush=True)


def path(scope: Mapping[str, Any]) -> str | None:
    """A request's path where it is one of ours, without the token that a webhook's is known by."""
    token = scope.get("path_params", {}).get("token")
    if "route" not in scope:
        return None
    told: str = scope["path"]
    return told.replace(token, "{token}") if token else told


def has_failed(code: str | None) -> bool:
    """Whether an error's code is of a failure here, not of what was wrong with a request or of a client that left."""
    return code not in (None, "client_gone") and errors.of_code(code).status >= 500


def span(name: str, kind: Kind = "INTERNAL", attributes: Attributes | None = None) -> Span:
    """Begin a span under the one that is current."""
    tracer = _tracer()
    return _begin(tracer, name, kind, attributes) if tracer else NONE


def request_span(trace: Trace, method: str, headers: Mapping[bytes, str]) -> Span:
    """The span of an HTTP request, under the caller's own where he sent a `traceparent`; the log line has its trace."""
    tracer = _tracer()
    if tracer is None:
        return NONE
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    sent = {name: headers.get(name.encode(), "") for name in ("traceparent", "tracestate")}
    context = TraceContextTextMapPropagator().extract(sent)
    attributes = {"http.request.method": method if method in METHODS else "_OTHER"}
    begun = _begin(tracer, _method(method), "SERVER", attributes, context)
    if begun.recorded and (known_as := begun.recorded.get_span_context()).is_valid:
        trace.facts["traceId"] = f"{known_as.trace_id:032x}"
    return begun


def model_span(operation: Literal["chat", "embeddings"], provider: str, model: str, base_url: str) -> Span:
    """The span of one call to a model."""
    tracer = _tracer()
    if tracer is None:
        return NONE
    server = urlsplit(base_url)
    attributes: Attributes = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": provider,
        "gen_ai.request.model": model,
        "server.address": server.hostname or "",
        "server.port": server.port or (443 if server.scheme == "https" else 80),
    }
    return _begin(tracer, f"{operation} {model}", "CLIENT", attributes)


def flush() -> None:
    """Send what has ended before Lambda freezes the process.

    In a thread that is left alone after a while: the SDK's own `force_flush` takes as long as the exporter does.
    """
    if provider := _provider():
        sending = threading.Thread(target=provider.force_flush, daemon=True)
        sending.start()
        sending.join(FLUSH_SECONDS)


def _metrics(namespace: str, function: str, trace: Trace, total: float) -> dict[str, Any]:
    figures, model, code = _figures(trace, total), trace.facts.get("model"), trace.facts.get("code")
    metrics = [{"Name": name, "Unit": UNITS[name]} for name in figures]
    dimensions = [["function"], ["function", "model"]] if model else [["function"]]
    directive = {"Namespace": namespace, "Dimensions": dimensions, "Metrics": metrics}
    return {
        "_aws": {"Timestamp": int(time.time() * 1000), "CloudWatchMetrics": [directive]},
        "function": function,
        **({"model": model} if model else {}),
        "requestId": trace.request_id,
        **({"code": code} if code else {}),
        **figures,
    }


def _figures(trace: Trace, total: float) -> dict[str, float]:
    """A request's figures, without those that say nothing of it."""
    facts, cache_use = trace.facts, trace.headers.get("x-gateway-cache")
    figures = {
        "Requests": 1,
        "Errors": int(has_failed(facts.get("code"))),
        "DurationMs": total,
        "OverheadMs": trace.overhead_ms() if "attempts" in facts else None,
        "ModelMs": trace.timings.get("model"),
        "TimeToFirstTokenMs": facts.get("firstTokenMs"),
        "Attempts": facts.get("attempts"),
        "InputTokens": facts.get("inputTokens"),
        "OutputTokens": facts.get("outputTokens"),
        "CachedTokens": facts.get("cachedTokens"),
        # Without tokens, it is of an answer that somebody else has paid for: a worker, which counts it.
        "CostUsd": facts.get("costUsd") if "inputTokens" in facts else None,
        "CacheHits": int(cache_use == "hit") if cache_use else None,
    }
    return {name: figure for name, figure in figures.items() if figure is not None}


def _begin(
    tracer: "Tracer", name: str, kind: Kind, attributes: Attributes | None, context: "Context | None" = None
) -> Span:
    from opentelemetry.trace import SpanKind

    recorded = tracer.start_span(name, context, SpanKind[kind], attributes)
    return Span(recorded, started=time.perf_counter())


def _method(method: str) -> str:
    """A method as spans are named by it: a client may send any word for one."""
    return method if method in METHODS else "HTTP"


def _kind_of(error: BaseException) -> str:
    if isinstance(error, GatewayError):
        return error.code
    return "cancelled" if isinstance(error, asyncio.CancelledError | GeneratorExit) else type(error).__name__


@cache
def _tracer() -> "Tracer | None":
    provider = _provider()
    return provider.get_tracer(SERVICE) if provider else None


@cache
def _provider() -> "TracerProvider | None":
    """What sends the spans, in a thread of its own. It isn't made the process's, which other libraries write to."""
    if not settings.exports_spans():
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        logger.warning("no spans: OpenTelemetry's SDK isn't installed, which is the extra `otel`")
        return None
    named = OTELResourceDetector().detect().attributes
    provider = TracerProvider(resource=Resource.create({"service.name": SERVICE, **named}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider
