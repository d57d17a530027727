"""A request sent on to the server behind the gateway, and its answer sent back, piece by piece."""

import asyncio
from collections.abc import AsyncIterator, Iterable

import httpx
from starlette.background import BackgroundTask
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse

# A function's silence is cut after 150 seconds, as on a hosted project. Node and uvicorn drop an idle
# connection after five: it must be dropped here first, or a request meets one that is being closed.
TIMEOUT = httpx.Timeout(150, connect=5)
LIMITS = httpx.Limits(max_connections=None, keepalive_expiry=2)
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
Headers = list[tuple[bytes, bytes]]


async def forward(
    request: Request,
    http: httpx.AsyncClient,
    origin: str,
    target: bytes | None = None,
    headers: Headers | None = None,
) -> httpx.Response:
    """The upstream's answer up to its body. A client that leaves before it takes the upstream request along.

    `target`, a path with its query, and `headers` are the request's own unless they are given.
    """
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
    if target is None:
        target = request.scope["raw_path"] + b"?" * bool(request.scope["query_string"]) + request.scope["query_string"]
    # Built by hand: the client's `build_request` would add headers, and rewrite the path and the query.
    upstream = httpx.Request(
        request.method,
        origin,
        headers=end_to_end(request.headers.raw, b"host") if headers is None else headers,
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


def streamed(answer: httpx.Response, *dropped: bytes) -> Response:
    """The answer as its pieces arrive; it is closed after the last one, or as soon as the client leaves."""
    response = StreamingResponse(answer.aiter_raw(), answer.status_code, background=BackgroundTask(answer.aclose))
    response.raw_headers = end_to_end(answer.headers.raw, *dropped)
    return response


def whole(answer: httpx.Response, body: bytes, *dropped: bytes) -> Response:
    """The answer with another body in its place."""
    response = Response(body, answer.status_code)
    kept = end_to_end(answer.headers.raw, b"content-length", b"content-encoding", *dropped)
    response.raw_headers = [*kept, (b"content-length", str(len(body)).encode())]
    return response


def end_to_end(headers: Iterable[tuple[bytes, bytes]], *dropped: bytes) -> Headers:
    """The headers that aren't about this one connection, without those named."""
    headers = [(name.lower(), value) for name, value in headers]
    named = {name.strip() for key, value in headers if key == b"connection" for name in value.lower().split(b",")}
    return [(name, value) for name, value in headers if name not in HOP_BY_HOP | named | {*dropped}]
