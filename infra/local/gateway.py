"""The embedded stack's only public origin: what lite and the functions answer, and what lite lacks."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import httpx
import uvicorn
from psycopg_pool import AsyncConnectionPool
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infra.local import access_tokens, auth_admin
from infra.local.auth_admin import AuthError
from infra.local.keys import Keys
from infra.local.realtime import Realtime

MEGABYTE = 1024 * 1024
# A function's silence is cut after 150 seconds, as on a hosted project. Node and uvicorn drop an idle
# connection after five: it must be dropped here first, or a request meets one that is being closed.
TIMEOUT = httpx.Timeout(150, connect=5)
LIMITS = httpx.Limits(max_connections=None, keepalive_expiry=2)
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
HOP_BY_HOP = {
    b"connection",
    b"keep-alive",
    b"proxy-authenticate",
    b"proxy-authorization",
    b"te",
    b"trailer",
    b"transfer-encoding",
    b"upgrade",
}
CODES = {404: "not_found", 405: "method_not_allowed", 413: "payload_too_large"}
# lite answers a preflight for a table only, and lets no other origin read what Auth says.
CORS = Middleware(
    CORSMiddleware,
    allow_origins=["*"],
    allow_methods=["*"],
    allow_headers=["*"],
    expose_headers=["content-range", "content-location", "preference-applied", "link", "x-total-count"],
)


def main() -> None:
    """Serve the gateway that the environment describes."""
    environment = os.environ
    app = create(
        keys=Keys.from_environment(),
        supabase_url=environment["SUPABASE_URL"],
        lite_url=environment["LITE_URL"],
        functions_url=environment["FUNCTIONS_URL"],
        database_url=environment["DATABASE_URL"],
    )
    uvicorn.run(
        app,
        port=int(environment["GATEWAY_PORT"]),
        log_level="warning",
        server_header=False,  # with the date, what the upstreams send themselves
        date_header=False,
        timeout_graceful_shutdown=1,  # an open event stream would keep it up for ever
    )


NAMED = {"application_name": "gateway"}


def create(keys: Keys, supabase_url: str, lite_url: str, functions_url: str, database_url: str) -> Starlette:
    """The gateway in front of lite at `lite_url` and of the functions at `functions_url`."""
    http = httpx.AsyncClient(limits=LIMITS, trust_env=False)
    check = AsyncConnectionPool.check_connection  # after a restart of the database the old connections are dead
    pool = AsyncConnectionPool(database_url, min_size=1, max_size=4, open=False, check=check, kwargs=NAMED)
    realtime = Realtime(keys, database_url, pool)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        async with http, pool, asyncio.TaskGroup() as tasks:
            following = tasks.create_task(realtime.follow())
            yield
            following.cancel()

    async def lite(request: Request) -> Response:
        return _streamed(await _forward(request, http, lite_url))

    async def functions(request: Request) -> Response:
        return _streamed(await _forward(request, http, functions_url))

    async def session(request: Request) -> Response:
        answer = await _forward(request, http, lite_url)
        body = await answer.aread()
        if answer.is_success:
            completed = await access_tokens.complete(json.loads(body), keys, f"{supabase_url}/auth/v1", pool)
            body = json.dumps(completed).encode()
        return _whole(answer, body)

    sessions = [Route(f"/{name}", session, methods=["POST"]) for name in ("token", "signup", "verify")]
    anything = Route("/{path:path}", lite, methods=METHODS)
    broadcasts = [
        Route("/api/broadcast", realtime.broadcast, methods=["POST"]),
        Route("/api/broadcast/{topic:path}/events/{event}", realtime.broadcast, methods=["POST"]),
    ]
    limited_to_10 = Middleware(limited, byte_count=10 * MEGABYTE)
    limited_to_6 = Middleware(limited, byte_count=6 * MEGABYTE)  # Lambda takes no more
    return Starlette(
        routes=[
            Route("/", index),
            Route("/health", health),
            Mount("/rest/v1", routes=[anything], middleware=[CORS, limited_to_10]),
            Mount(
                "/auth/v1",
                routes=[*auth_admin.routes(keys, pool), *sessions, anything],
                middleware=[CORS, limited_to_10],
            ),
            Mount(
                "/realtime/v1",
                routes=[WebSocketRoute("/websocket", realtime.websocket), *broadcasts],
                middleware=[CORS, limited_to_10],
            ),
            Mount(
                "/functions/v1",
                routes=[Route("/{path:path}", functions, methods=METHODS)],
                middleware=[limited_to_6],
            ),
        ],
        lifespan=lifespan,
        exception_handlers={
            HTTPException: refused,
            AuthError: refused_by_auth,
            httpx.TimeoutException: timed_out,
            httpx.TransportError: unavailable,
            ClientDisconnect: abandoned,
        },
    )


async def index(_request: Request) -> Response:
    services = ["/rest/v1", "/auth/v1", "/realtime/v1", "/functions/v1"]
    return _answer(200, {"message": "The embedded Supabase stack", "services": services})


async def health(_request: Request) -> Response:
    return _answer(200, {"status": "ok"})


def limited(app: ASGIApp, byte_count: int) -> ASGIApp:
    """`app` with request bodies of at most `byte_count`, whether or not their length is told beforehand."""

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > byte_count:
                raise too_large
            return message

        too_large = HTTPException(413, f"The request body is larger than {byte_count} bytes")
        if int(dict(scope["headers"]).get(b"content-length", 0)) > byte_count:
            raise too_large
        await app(scope, counted, send)

    return guarded


async def refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _answer(error.status_code, {"message": error.detail, "code": CODES.get(error.status_code, "bad_request")})


async def refused_by_auth(_request: Request, error: Exception) -> Response:
    assert isinstance(error, AuthError)
    return error.response()


async def unavailable(request: Request, _error: Exception) -> Response:
    message = f"What serves {request.url.path} is not answering"
    return _answer(503, {"message": message, "code": "upstream_unavailable"})


async def timed_out(request: Request, _error: Exception) -> Response:
    message = f"What serves {request.url.path} took too long"
    return _answer(504, {"message": message, "code": "upstream_timeout"})


async def abandoned(_request: Request, _error: Exception) -> Response:
    """Nobody is left to read it; 499 is what nginx would log."""
    return Response(status_code=499)


async def _forward(request: Request, http: httpx.AsyncClient, origin: str) -> httpx.Response:
    """The upstream's answer up to its body. A client that leaves before it takes the upstream request along."""
    has_body = "content-length" in request.headers or "transfer-encoding" in request.headers
    body_sent = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        async for piece in request.stream():
            yield piece
        body_sent.set()

    async def client_leaves() -> None:
        await body_sent.wait()
        while (await request.receive())["type"] != "http.disconnect":
            pass

    if not has_body:
        body_sent.set()
    # Built by hand: the client's `build_request` would add headers, and rewrite the path and the query.
    target = request.scope["raw_path"] + b"?" * bool(request.scope["query_string"]) + request.scope["query_string"]
    upstream = httpx.Request(
        request.method,
        origin,
        headers=_end_to_end(request.headers.raw, b"host"),
        content=body() if has_body else None,
        extensions={"target": target, "timeout": TIMEOUT.as_dict()},
    )
    answering = asyncio.create_task(http.send(upstream, stream=True))
    leaving = asyncio.create_task(client_leaves())
    try:
        await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            raise ClientDisconnect
        return await answering
    finally:
        answering.cancel()
        leaving.cancel()


def _streamed(answer: httpx.Response) -> Response:
    """The answer as its pieces arrive; it is closed after the last one, or as soon as the client leaves."""
    response = StreamingResponse(answer.aiter_raw(), answer.status_code, background=BackgroundTask(answer.aclose))
    response.raw_headers = _end_to_end(answer.headers.raw)
    return response


def _whole(answer: httpx.Response, body: bytes) -> Response:
    response = Response(body, answer.status_code)
    kept = _end_to_end(answer.headers.raw, b"content-length", b"content-encoding")
    response.raw_headers = [*kept, (b"content-length", str(len(body)).encode())]
    return response


def _end_to_end(headers: Iterable[tuple[bytes, bytes]], *dropped: bytes) -> list[tuple[bytes, bytes]]:
    """The headers that aren't about this one connection, without those named."""
    headers = [(name.lower(), value) for name, value in headers]
    named = {name.strip() for key, value in headers if key == b"connection" for name in value.lower().split(b",")}
    return [(name, value) for name, value in headers if name not in HOP_BY_HOP | named | {*dropped}]


def _answer(status: int, body: dict[str, object]) -> Response:
    return JSONResponse(body, status, {"access-control-allow-origin": "*"})


if __name__ == "__main__":
    main()
