"""The embedded stack's only public origin: what lite and the functions answer, and what lite lacks."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import uvicorn
from psycopg_pool import AsyncConnectionPool
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infra.local import access_tokens, auth_admin, playground, storage
from infra.local.auth_admin import AuthError
from infra.local.forwarding import LIMITS, forward, streamed, whole
from infra.local.keys import Keys
from infra.local.object_store import ObjectStore
from infra.local.realtime import Realtime
from infra.local.storage_callers import MOST_BYTES, UPLOAD_SECONDS, Storage
from infra.local.storage_errors import StorageError, drained
from shared import connections

MEGABYTE = 1024 * 1024
KEEP_ALIVE_SECONDS = 75  # as Kong's; a client that drops a connection of its own after a minute never meets the end
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
CODES = {404: "not_found", 405: "method_not_allowed", 413: "payload_too_large"}
# lite answers a preflight for a table only, and lets no other origin read what Auth says.
CORS = Middleware(
    CORSMiddleware,
    allow_origins=["*"],
    allow_methods=["*"],
    allow_headers=["*"],
    expose_headers=["content-range", "content-location", "preference-applied", "link", "x-total-count"],
)
STORAGE_CORS = Middleware(
    CORSMiddleware,
    allow_origins=["*"],
    allow_methods=["*"],
    allow_headers=["*"],
    expose_headers=[
        *("accept-ranges", "content-range", "etag", "location", "tus-extension", "tus-max-size", "tus-resumable"),
        *("tus-version", "upload-expires", "upload-length", "upload-metadata", "upload-offset"),
    ],
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
        aws_url=environment["AWS_ENDPOINT_URL"],
        most_bytes=int(environment.get("FILE_SIZE_LIMIT", MOST_BYTES)),  # both as Supabase's own storage names them
        upload_seconds=int(environment.get("TUS_URL_EXPIRY_MS", 1000 * UPLOAD_SECONDS)) // 1000,
    )
    uvicorn.run(
        app,
        port=int(environment["GATEWAY_PORT"]),
        log_level="warning",
        server_header=False,  # with the date, what the upstreams send themselves
        date_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=1,  # an open event stream would keep it up for ever
    )


NAMED = {"application_name": "gateway"}


def create(
    keys: Keys,
    supabase_url: str,
    lite_url: str,
    functions_url: str,
    database_url: str,
    aws_url: str,
    most_bytes: int,
    upload_seconds: int,
) -> Starlette:
    """The gateway in front of lite at `lite_url`, of the functions at `functions_url`, of moto at `aws_url`.

    Storage takes files of at most `most_bytes`, and gives a resumable upload `upload_seconds`.
    """
    http = connections.tuned(httpx.AsyncClient(limits=LIMITS, trust_env=False))
    check = AsyncConnectionPool.check_connection  # after a restart of the database the old connections are dead
    pool = AsyncConnectionPool(database_url, min_size=1, max_size=4, open=False, check=check, kwargs=NAMED)
    realtime = Realtime(keys, database_url, pool)
    stored = Storage(keys, pool, ObjectStore(http, aws_url), most_bytes, upload_seconds)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        async with http, pool, asyncio.TaskGroup() as tasks:
            following = tasks.create_task(realtime.follow())
            yield
            following.cancel()

    async def lite(request: Request) -> Response:
        return streamed(await forward(request, http, lite_url))

    async def functions(request: Request) -> Response:
        return streamed(await forward(request, http, functions_url))

    async def session(request: Request) -> Response:
        answer = await forward(request, http, lite_url)
        body = await answer.aread()
        if answer.is_success:
            completed = await access_tokens.complete(json.loads(body), keys, f"{supabase_url}/auth/v1", pool)
            body = json.dumps(completed).encode()
        return whole(answer, body)

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
            Mount("/storage/v1", routes=storage.routes(stored), middleware=[STORAGE_CORS]),
            Mount(
                "/functions/v1",
                routes=[Route("/{path:path}", functions, methods=METHODS)],
                middleware=[limited_to_6],
            ),
            *playground.routes(keys.publishable),
        ],
        lifespan=lifespan,
        exception_handlers={
            HTTPException: refused,
            AuthError: refused_by_auth,
            StorageError: refused_by_storage,
            httpx.TimeoutException: timed_out,
            httpx.TransportError: unavailable,
            ClientDisconnect: abandoned,
        },
    )


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


async def refused_by_storage(request: Request, error: Exception) -> Response:
    assert isinstance(error, StorageError)
    await drained(request)
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


def _answer(status: int, body: dict[str, object]) -> Response:
    return JSONResponse(body, status, {"access-control-allow-origin": "*"})


if __name__ == "__main__":
    main()
