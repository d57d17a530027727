"""The edge of a function: its ASGI app, CORS, request ids, limits, one error shape, one log line."""

import re
import uuid
import warnings
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from types import MappingProxyType
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Header, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from postgrest import AsyncPostgrestClient
from pydantic.alias_generators import to_camel
from pydantic.warnings import UnsupportedFieldAttributeWarning
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared import auth, database, quotas, settings, telemetry
from shared.clients import Clients, kept
from shared.errors import (
    BodyTooLarge,
    Forbidden,
    GatewayError,
    InvalidJson,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    Unauthenticated,
)
from shared.models import Deadline
from shared.telemetry import Trace, logger
from shared.wire import Pending, Wire

# FastAPI says so of its own `Body`, and silences it where models are built at once.
warnings.filterwarnings("ignore", category=UnsupportedFieldAttributeWarning)

Events = AsyncGenerator[tuple[str, Wire], None]
ErrorShape = Callable[[GatewayError, str], tuple[int, dict[str, Any]]]  # with the request's id, to status and body
BODY_BYTES = 64 * 1024
CLOSING_SECONDS = 5  # a write that fails, and the queue after it
# What OpenAI's client for browsers says of itself.
STAINLESS = (
    *(b"arch", b"lang", b"os", b"package-version", b"runtime", b"runtime-version"),
    *(b"helper-method", b"retry-count", b"timeout"),
)
PREFLIGHT = [
    (b"access-control-allow-methods", b"GET, POST, PUT, PATCH, DELETE, OPTIONS"),
    # What supabase-js, OpenAI's and tracing clients send, and this API's own.
    (
        b"access-control-allow-headers",
        b"authorization, x-client-info, apikey, content-type, accept, cache-control, idempotency-key, prefer, "
        b"x-request-id, x-retry-count, traceparent, tracestate, baggage, openai-organization, openai-project, "
        + b", ".join(b"x-stainless-" + fact for fact in STAINLESS),
    ),
    (b"access-control-max-age", b"86400"),
]
EXPOSED = (
    b"x-request-id, retry-after, location, preference-applied, x-gateway-model, x-gateway-attempts, "
    b"x-gateway-overhead-ms, x-gateway-cost-usd, x-gateway-cache, "
    + b", ".join(
        b"x-ratelimit-%s-%s" % (figure, kind)
        for kind in (b"requests", b"tokens", b"usd")
        for figure in (b"limit", b"remaining", b"reset")
    )
)
STREAM_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}  # proxies must not collect the events
REQUEST_ID = re.compile(r"[A-Za-z0-9_.:=-]{1,64}")


async def _clients() -> Clients:
    return await kept()


async def _caller(request: Request, clients: Annotated[Clients, Depends(_clients)]) -> auth.Caller:
    with trace(request).step("auth"):
        caller = await clients.verifier.verify(request.headers.get("authorization"))
    trace(request).facts["authUserId"] = caller.auth_user_id
    return caller


async def _database(
    clients: Annotated[Clients, Depends(_clients)], caller: Annotated[auth.Caller, Depends(_caller)]
) -> AsyncPostgrestClient:
    return database.as_caller(clients.http, clients.settings, caller)


async def _anybody(request: Request, clients: Annotated[Clients, Depends(_clients)]) -> auth.Anybody:
    headers = request.headers
    with trace(request).step("auth"):
        caller = await clients.verifier.identify(headers.get("authorization"), headers.get("apikey"))
    known = {"apiKey": caller.value} if isinstance(caller, auth.ApiKey) else {"authUserId": caller.auth_user_id}
    trace(request).facts.update(known)
    return caller


async def _anybodys_database(
    clients: Annotated[Clients, Depends(_clients)], caller: Annotated[auth.Anybody, Depends(_anybody)]
) -> AsyncPostgrestClient:
    """Row level security sees who calls: a user, a visitor, or with the secret key the gateway itself."""
    if isinstance(caller, auth.Caller):
        return database.as_caller(clients.http, clients.settings, caller)
    if caller is auth.ApiKey.SECRET:
        return database.as_gateway(clients.http, clients.settings)
    return database.as_visitor(clients.http, clients.settings)


async def _admins_database(
    caller: Annotated[auth.Anybody, Depends(_anybody)],
    db: Annotated[AsyncPostgrestClient, Depends(_anybodys_database)],
) -> AsyncPostgrestClient:
    """An admin acts through his own token, past policies of his own; the secret key's holder as the gateway."""
    named(caller)
    return db


async def _actor(caller: Annotated[auth.Anybody, Depends(_anybody)]) -> str:
    """Who does what only admins may, as it is written down."""
    return named(caller)


async def _gateways_database(clients: Annotated[Clients, Depends(_clients)]) -> AsyncPostgrestClient:
    """For what nobody may do by himself; who may have it done is decided beside it."""
    return database.as_gateway(clients.http, clients.settings)


def named(caller: auth.Anybody) -> str:
    """An admin, as what he does is written down. Raises `Unauthenticated` and `Forbidden` for others."""
    if caller is auth.ApiKey.PUBLISHABLE:
        raise Unauthenticated("This is for admins: send an admin's access token, or the secret key.")
    if isinstance(caller, auth.Caller):
        if not caller.is_admin:
            raise Forbidden("This is for admins: users whose app_metadata.role is admin.")
        return f"user {caller.auth_user_id}"
    return "secret key"


def trace(request: Request) -> Trace:
    """The request's trace, made at the edge."""
    found: Trace = request.scope["trace"]
    return found


def deadline(request: Request, limit_seconds: float) -> Deadline:
    """When the model must have answered: the limit, or what Lambda leaves, less a share to write the answer down."""
    context = request.scope.get("aws.context")
    left = min(limit_seconds, context.get_remaining_time_in_millis() / 1000) if context else limit_seconds
    return Deadline.after(left - min(CLOSING_SECONDS, left / 4))


def address(request: Request) -> str:
    """Where the request comes from, as the server or API Gateway saw it: X-Forwarded-For is anybody's to write."""
    return request.client.host if request.client else "unknown"


Prefer = Annotated[str | None, Header(max_length=255)]
ClientsOf = Annotated[Clients, Depends(_clients)]
CallerOf = Annotated[auth.Caller, Depends(_caller)]
ActorOf = Annotated[str, Depends(_actor)]
DatabaseOf = Annotated[AsyncPostgrestClient, Depends(_database)]
GatewaysDatabaseOf = Annotated[AsyncPostgrestClient, Depends(_gateways_database)]
AnybodyOf = Annotated[auth.Anybody, Depends(_anybody)]
AnybodysDatabaseOf = Annotated[AsyncPostgrestClient, Depends(_anybodys_database)]
AdminsDatabaseOf = Annotated[AsyncPostgrestClient, Depends(_admins_database)]


def create_app(
    name: str,
    router: APIRouter,
    larger_bodies: Mapping[str, int] = MappingProxyType({}),
    error_shapes: Mapping[str, ErrorShape] = MappingProxyType({}),
) -> ASGIApp:
    """The function's app, at `/functions/v1/<name>` as supabase.functions.invoke calls it, and at `/<name>`.

    A body has up to 64 KB; `larger_bodies` gives the bytes of methods that take more, `error_shapes` how errors look
    under a path that isn't this API's own.
    """
    app = FastAPI(
        title=name,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # its own has queries in it, and errors' words
    )
    for prefix in (f"/functions/v1/{name}", f"/{name}"):
        app.include_router(router, prefix=prefix)
    app.add_exception_handler(GatewayError, _refuse)
    app.add_exception_handler(RequestValidationError, _refuse_invalid)
    app.add_exception_handler(HTTPException, _refuse_unrouted)
    app.add_exception_handler(Exception, _apologise)
    return Edge(name, app, larger_bodies, error_shapes)


class Edge:
    """Outside of FastAPI: request id, body limit, the last catch, the log line. Plain ASGI, for it is on every path."""

    def __init__(
        self, name: str, app: ASGIApp, larger_bodies: Mapping[str, int], error_shapes: Mapping[str, ErrorShape]
    ) -> None:
        self.name = name
        self.app = app
        self.larger_bodies = larger_bodies
        self.error_shapes = error_shapes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = {key: value.decode("latin-1") for key, value in scope["headers"]}
        given_id = headers.get(b"x-request-id", "")
        trace = scope["trace"] = Trace(given_id if REQUEST_ID.fullmatch(given_id) else str(uuid.uuid4()))
        scope["error_shape"] = self._error_shape(scope["path"])
        with telemetry.request_span(trace, scope["method"], headers) as span:
            status = await self._serve(scope, receive, send, headers, trace)
            span.served(self.name, scope, status, trace.facts.get("code"))

    async def _serve(self, scope: Scope, receive: Receive, send: Send, headers: dict[bytes, str], trace: Trace) -> int:
        status = 0

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", trace.request_id.encode()),
                    *_gateway_headers(trace),
                    *((name.encode(), value.encode()) for name, value in trace.headers.items()),
                    *_cors(headers.get(b"origin", "")),
                    *(PREFLIGHT if scope["method"] == "OPTIONS" else []),
                ]
            await send(message)

        try:
            if scope["method"] == "OPTIONS":
                await Response(status_code=204)(scope, receive, send_marked)
            else:
                limit = self.larger_bodies.get(scope["method"], BODY_BYTES)
                await self.app(scope, await _bounded(headers, receive, limit), send_marked)
        except GatewayError as error:
            await _answer(error, scope)(scope, receive, send_marked)
        except ClientDisconnect:
            trace.facts["code"] = "client_gone"
        except Exception as error:
            trace.facts.setdefault("code", GatewayError.code)
            logger.error("unforeseen", extra={"requestId": trace.request_id, **_where(error)})
        finally:
            path = telemetry.path(scope)
            telemetry.conclude("request", self.name, trace, method=scope["method"], path=path, status=status)
        return status

    def _error_shape(self, path: str) -> ErrorShape:
        under = path.removeprefix("/functions/v1").removeprefix(f"/{self.name}")
        return next((shape for start, shape in self.error_shapes.items() if under.startswith(start)), _own_shape)


async def event_stream(events: Events) -> "EventStream":
    """The events as a response."""
    return await frame_stream(_encoded(events))


async def frame_stream(frames: AsyncGenerator[str, None]) -> "EventStream":
    """Events as they go out; the first is taken here, so that their source ends as one that has begun."""
    return EventStream(await anext(frames), frames)


class EventStream(StreamingResponse):
    """Server-sent events; their source is closed as soon as the client is gone."""

    def __init__(self, first: str, rest: AsyncGenerator[str, None]) -> None:
        super().__init__(_all(first, rest), media_type="text/event-stream", headers=STREAM_HEADERS)
        self.rest = rest

    async def stream_response(self, send: Send) -> None:
        async with aclosing(self.rest):
            await super().stream_response(send)


def wants_stream(request: Request, asked: bool) -> bool:
    """Whether to answer in events: asked for in the body or by the Accept header."""
    return asked or "text/event-stream" in request.headers.get("accept", "").lower()


def whole(answer: Wire) -> Response:
    """An answer as the response: FastAPI would check it once more before it wrote it."""
    return Response(answer.model_dump_json(by_alias=True), media_type="application/json")


def later(request: Request, wait_seconds: int, pending: Pending) -> JSONResponse:
    """202: where the answer will be, which is also what is said of how the request was taken."""
    name = request.url.path.rstrip("/")
    headers = {
        "location": f"{name}/conversations/{pending.conversation_id}",
        "preference-applied": f"wait={wait_seconds}" if wait_seconds else "respond-async",
        "retry-after": "1",
    }
    return JSONResponse(pending.model_dump(by_alias=True, mode="json"), status_code=202, headers=headers)


async def _encoded(events: Events) -> AsyncGenerator[str, None]:
    async with aclosing(events):
        async for name, data in events:
            yield f"event: {name}\ndata: {data.model_dump_json(by_alias=True)}\n\n"


async def _all(first: str, rest: AsyncIterator[str]) -> AsyncIterator[str]:
    yield first
    async for frame in rest:
        yield frame


async def _bounded(headers: dict[bytes, str], receive: Receive, limit: int) -> Receive:
    """A receive that replays the body, read here whole so that the limit in bytes holds however it is sent."""
    declared = headers.get(b"content-length", "0")
    if declared.isdigit() and int(declared) > limit:
        raise _too_large(limit)
    body, more = bytearray(), True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > limit:
            raise _too_large(limit)
    replay = [{"type": "http.request", "body": bytes(body), "more_body": False}]

    async def replayed() -> Message:
        return replay.pop() if replay else await receive()

    return replayed


def _cors(origin: str) -> list[tuple[bytes, bytes]]:
    """CORS headers for a page of `origin`; they are on every answer, or a browser would hide the errors."""
    origins = settings.allowed_origins()
    exposed = (b"access-control-expose-headers", EXPOSED)
    if "*" in origins:
        return [(b"access-control-allow-origin", b"*"), exposed]
    allowed = [(b"access-control-allow-origin", origin.encode("latin-1")), exposed] if origin in origins else []
    return [*allowed, (b"vary", b"Origin")]


def _gateway_headers(trace: Trace) -> list[tuple[bytes, bytes]]:
    """Which model answered, after how many attempts, its cost, and the time that was spent in neither of the providers.

    Events begin before any of that is known.
    """
    facts = trace.facts
    told = {
        b"x-gateway-model": facts.get("model"),
        b"x-gateway-attempts": facts.get("attempts"),
        b"x-gateway-overhead-ms": f"{trace.overhead_ms():.1f}" if "attempts" in facts else None,
        b"x-gateway-cost-usd": quotas.plain(facts["costUsd"]) if "costUsd" in facts else None,
    }
    return [(name, str(value).encode()) for name, value in told.items() if value is not None]


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"The body is larger than {limit // 1024} KB.")


async def _refuse(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, GatewayError)
    if error.__cause__ is not None:
        trace(request).facts["cause"] = type(error.__cause__).__name__
    return _answer(error, request.scope)


async def _apologise(request: Request, _: Exception) -> JSONResponse:
    return _answer(GatewayError(), request.scope)  # the error goes on to the edge, which logs it


async def _refuse_invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    problem = error.errors()[0]
    if problem["type"] == "json_invalid":
        return _answer(InvalidJson("The body is not valid JSON."), request.scope)
    if problem["type"] == "model_attributes_type" and len(problem["loc"]) == 1:
        return _answer(InvalidRequest("body: send a JSON object, with Content-Type: application/json."), request.scope)
    place = str(problem["loc"][1]) if len(problem["loc"]) > 1 else "body"
    if problem["loc"][0] == "path":  # it has a name of our own only
        place = to_camel(place)
    return _answer(InvalidRequest(f"{place}: {problem['msg']}."), request.scope)


async def _refuse_unrouted(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return _answer(NotFound(f"There is nothing at {request.url.path}."), request.scope)
    if error.status_code == 405:
        return _answer(MethodNotAllowed(f"{request.method} is not allowed here."), request.scope)
    return _answer(InvalidJson("The request can't be read."), request.scope)


def _answer(error: GatewayError, scope: Scope) -> JSONResponse:
    trace: Trace = scope["trace"]
    trace.facts["code"] = error.code
    status, body = scope["error_shape"](error, trace.request_id)
    wait = error.retry_after_seconds
    headers = {"retry-after": str(wait)} if wait else None
    return JSONResponse(body, status_code=status, headers=headers)


def _own_shape(error: GatewayError, request_id: str) -> tuple[int, dict[str, Any]]:
    return error.status, error.body(request_id)


def _where(error: Exception) -> dict[str, Any]:
    """An error's kind and place, not its words: they may hold a user's text."""
    frame = error.__traceback__
    while frame and frame.tb_next:
        frame = frame.tb_next
    place = f"{frame.tb_frame.f_code.co_filename}:{frame.tb_lineno}" if frame else "?"
    return {"kind": type(error).__name__, "place": place}
