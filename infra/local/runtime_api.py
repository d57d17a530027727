"""Lambda's Runtime API for one function's process, and who invokes it: `invoke`, and a Function URL that streams.

https://docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html
"""

import asyncio
import base64
import json
import threading
import time
import uuid
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

TIMEOUT_SECONDS = 30
ANSWER_BYTES = 6 * 1024 * 1024 + 100  # of an answer that isn't streamed
ARN = "arn:aws:lambda:eu-central-1:123456789012:function:here"
TRACE_ID = "Root=1-5bef4de7-ad49b0e87f6ef6c87fc2e700;Parent=9a9197af755a6419;Sampled=1"
DOMAIN = "abcdefghijklmnopqrstuvwxyz012345.lambda-url.eu-central-1.on.aws"
METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
STREAMED = "application/vnd.awslambda.http-integration-response"
PRELUDE_END = bytes(8)
ERROR_BODY = "lambda-runtime-function-error-body"

Body = AsyncGenerator[bytes, None]


class FunctionError(Exception):
    """What went wrong in the process: `told` has errorType and errorMessage."""

    def __init__(self, told: Mapping[str, Any]) -> None:
        super().__init__(f"{told.get('errorType')}: {told.get('errorMessage')}")
        self.told = told


@dataclass(slots=True)
class Invocation:
    """An event, and its answer as it comes: headers, then pieces until None or what broke it off."""

    event: Mapping[str, Any]
    request_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    headers: asyncio.Future[Mapping[str, str]] = field(default_factory=asyncio.Future)
    pieces: asyncio.Queue[bytes | FunctionError | None] = field(default_factory=asyncio.Queue)
    writer: asyncio.StreamWriter | None = None  # of the process

    def fail(self, told: Mapping[str, Any]) -> None:
        error = FunctionError(told)
        if self.headers.done():
            self.pieces.put_nowait(error)
        else:
            self.headers.set_exception(error)

    async def body(self) -> Body:
        """Raises `FunctionError`. Who doesn't read to the end has hung up, and the process loses its connection.

        AWS would let the process go on; then nobody could see that it stops.
        """
        try:
            while piece := await self.pieces.get():
                if isinstance(piece, FunctionError):
                    raise piece
                yield piece
        except (GeneratorExit, asyncio.CancelledError):
            if self.writer:
                self.writer.close()
            raise


class RuntimeApi:
    """`address` is for AWS_LAMBDA_RUNTIME_API; `url` is the function's; `connections` counts those of the process."""

    def __init__(self) -> None:
        self.address = self.url = ""
        self.connections = 0
        self.loop: asyncio.AbstractEventLoop | None = None
        self.waiting: asyncio.Queue[Invocation] = asyncio.Queue()
        self.current: Invocation | None = None
        self.init_error: dict[str, Any] | None = None

    def invoke(self, event: Mapping[str, Any], timeout_seconds: float = TIMEOUT_SECONDS) -> Any:
        """The function's result, of a streamed one what comes to the same. Raises `FunctionError`, `TimeoutError`."""
        assert self.loop
        return asyncio.run_coroutine_threadsafe(self._invoke(event), self.loop).result(timeout_seconds)

    async def serve_process(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A connection of the process."""
        self.connections += 1
        with suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            while True:
                path, headers = await _head(reader)
                writer.write(await self._answer(path, headers, reader, writer))
                await writer.drain()
        if self.current and self.current.writer is writer:
            self.current.fail({"errorType": "Runtime.ExitError", "errorMessage": "The process has ended."})
        writer.close()

    async def call(self, request: Request) -> Response:
        """A request to the Function URL."""
        invocation = self._put(_function_url_event(request, await request.body()))
        body = invocation.body()
        try:
            headers = await invocation.headers
            if headers.get("content-type") != STREAMED:
                return _buffered(json.loads(await _whole(body)))
            prelude = await anext(body)
            while PRELUDE_END not in prelude:
                prelude += await anext(body)
        except FunctionError:
            return JSONResponse({"Message": "Internal Server Error"}, status_code=502)
        told, _, first = prelude.partition(PRELUDE_END)
        return _with_headers(StreamingResponse(_all(first, body)), json.loads(told))

    async def _invoke(self, event: Mapping[str, Any]) -> Any:
        invocation = self._put(event)
        headers = await invocation.headers
        whole = await _whole(invocation.body())
        if headers.get("content-type") != STREAMED:
            return json.loads(whole)
        told, _, body = whole.partition(PRELUDE_END)
        return {**json.loads(told), "body": body.decode()}

    def _put(self, event: Mapping[str, Any]) -> Invocation:
        invocation = Invocation(event)
        if self.init_error:
            invocation.fail(self.init_error)
        else:
            self.waiting.put_nowait(invocation)
        return invocation

    async def _answer(
        self, path: str, headers: dict[str, str], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bytes:
        *_, request_id, verb = path.split("/")
        if verb == "next":
            self.current = await self.waiting.get()
            self.current.writer = writer
            return _next(self.current)
        if request_id == "init":
            self.init_error = json.loads(await _whole(_body(reader, headers)))
            while not self.waiting.empty():
                self.waiting.get_nowait().fail(self.init_error)
            return _response(202)
        assert self.current and self.current.request_id == request_id
        status = await _pass_on(self.current, verb, headers, _body(reader, headers))
        self.current = None
        return _response(status)


@contextmanager
def serving() -> Iterator[RuntimeApi]:
    """Both on free ports of loopback, in a thread."""
    api, ready = RuntimeApi(), threading.Event()
    app = Starlette(routes=[Route("/{path:path}", api.call, methods=METHODS)])
    front = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical", lifespan="off"))

    async def serve() -> None:
        api.loop = asyncio.get_running_loop()
        back = await asyncio.start_server(api.serve_process, "127.0.0.1", 0)
        serving = asyncio.create_task(front.serve())
        while not front.started:  # noqa: ASYNC110  # uvicorn has nothing to wait for
            await asyncio.sleep(0.001)
        api.address, api.url = f"127.0.0.1:{_port(back)}", f"http://127.0.0.1:{_port(front.servers[0])}"
        ready.set()
        await serving
        back.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    ready.wait()
    try:
        yield api
    finally:
        front.should_exit = front.force_exit = True
        thread.join()


async def _pass_on(invocation: Invocation, verb: str, headers: dict[str, str], body: Body) -> int:
    """The process' answer to who has asked for it; the status the process gets."""
    if verb == "error":
        invocation.fail(json.loads(await _whole(body)))
        return 202
    if headers.get("lambda-runtime-function-response-mode") != "streaming":
        answer = await _whole(body)
        if len(answer) > ANSWER_BYTES:
            invocation.fail({"errorType": "Function.ResponseSizeTooLarge", "errorMessage": f"{len(answer)} bytes"})
            return 413
        body = _all(answer, body)
    invocation.headers.set_result(headers)
    async for piece in body:
        invocation.pieces.put_nowait(piece)
    if ERROR_BODY in headers:
        invocation.fail(json.loads(base64.b64decode(headers[ERROR_BODY])))
    invocation.pieces.put_nowait(None)
    return 202


async def _head(reader: asyncio.StreamReader) -> tuple[str, dict[str, str]]:
    """A request's path and headers."""
    line, _, rest = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").partition("\r\n")
    return line.split(" ")[1], _headers(rest)


def _headers(lines: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in lines.splitlines() if line)
    return {name.lower(): value.strip() for name, _, value in pairs}


async def _body(reader: asyncio.StreamReader, headers: dict[str, str]) -> Body:
    """A request's body as it comes; the headers that may follow it join the others."""
    if "chunked" not in headers.get("transfer-encoding", "").lower():
        yield await reader.readexactly(int(headers.get("content-length", 0)))
        return
    while size := int(await reader.readuntil(b"\r\n"), 16):
        yield (await reader.readexactly(size + 2))[:-2]
    while (line := await reader.readuntil(b"\r\n")) != b"\r\n":
        headers |= _headers(line.decode("latin-1"))


async def _whole(body: Body) -> bytes:
    return b"".join([piece async for piece in body])


async def _all(first: bytes, rest: Body) -> Body:
    async with aclosing(rest):
        yield first
        async for piece in rest:
            yield piece


def _next(invocation: Invocation) -> bytes:
    deadline_ms = int((time.time() + TIMEOUT_SECONDS) * 1000)
    headers = {
        "Lambda-Runtime-Aws-Request-Id": invocation.request_id,
        "Lambda-Runtime-Deadline-Ms": deadline_ms,
        "Lambda-Runtime-Invoked-Function-Arn": ARN,
        "Lambda-Runtime-Trace-Id": TRACE_ID,
    }
    return _response(200, json.dumps(invocation.event).encode(), headers)


def _response(status: int, body: bytes = b"{}", headers: Mapping[str, Any] | None = None) -> bytes:
    told = {"Content-Type": "application/json", "Content-Length": len(body), **(headers or {})}
    lines = "".join(f"{name}: {value}\r\n" for name, value in told.items())
    return f"HTTP/1.1 {status} Told\r\n{lines}\r\n".encode() + body


def _function_url_event(request: Request, body: bytes) -> dict[str, Any]:
    """The request as Lambda gives it to the function."""
    path, client = request.scope["raw_path"].decode(), request.client
    http = {"method": request.method, "path": path, "protocol": "HTTP/1.1", "sourceIp": client.host if client else ""}
    cookies = request.headers.get("cookie")
    return {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": path,
        "rawQueryString": request.url.query,
        **({"cookies": cookies.split("; ")} if cookies else {}),
        "headers": {name: value for name, value in request.headers.items() if name != "cookie"},
        "requestContext": {"domainName": DOMAIN, "http": http, "stage": "$default"},
        "body": base64.b64encode(body).decode(),
        "isBase64Encoded": True,
    }


def _buffered(result: Mapping[str, Any]) -> Response:
    body = str(result.get("body", ""))
    return _with_headers(Response(base64.b64decode(body) if result["isBase64Encoded"] else body), result)


def _with_headers(response: Response, told: Mapping[str, Any]) -> Response:
    response.status_code = told["statusCode"]
    response.headers.update(told["headers"])
    for cookie in told.get("cookies", []):
        response.headers.append("set-cookie", cookie)
    return response


def _port(server: asyncio.AbstractServer) -> int:
    assert isinstance(server, asyncio.Server)
    port: int = server.sockets[0].getsockname()[1]
    return port
