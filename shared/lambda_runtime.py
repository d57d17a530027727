"""Lambda's runtime for the functions that stream, in place of AWS's own for Python, which returns answers whole.

Neither Mangum nor awslambdaric streams. The Lambda Web Adapter does, but is a binary that only AWS runs; this loop is
tried against a Runtime API here (`infra.local.runtime_api`), as the functions are that awslambdaric runs.

A Function URL's event is answered as it is written; whatever else comes goes to the handler, as from awslambdaric.
Everything is of one invocation, for Lambda sends no second one before the first is answered: writes to the Runtime API
hold the event loop up, and when the process asks for the next, nothing of the last is left to do.

Lambda doesn't say that a client has hung up, and takes the rest of the answer. Where it does not, because the
connection to the Runtime API is gone, the app hears of it as from any server, and leaves the model alone.

https://docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html
https://docs.aws.amazon.com/lambda/latest/dg/runtimes-custom.html#runtimes-custom-response-streaming
"""

import asyncio
import base64
import importlib
import json
import os
import socket
import sys
import time
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # an import that fails is to be reported
    from starlette.types import Message

    from shared.invocations import Handler

ROOT = "/2018-06-01/runtime"
ERROR_TYPE, ERROR_BODY = "Lambda-Runtime-Function-Error-Type", "Lambda-Runtime-Function-Error-Body"
STREAMED = {
    "Content-Type": "application/vnd.awslambda.http-integration-response",
    "Lambda-Runtime-Function-Response-Mode": "streaming",
    "Transfer-Encoding": "chunked",
    "Trailer": f"{ERROR_TYPE}, {ERROR_BODY}",
}
PRELUDE_END = bytes(8)


class Unfinished(Exception):
    """The app has returned before its answer was whole."""


@dataclass(frozen=True, slots=True)
class Context:
    """What a handler is told of its invocation and function."""

    aws_request_id: str
    invoked_function_arn: str
    deadline_ms: int  # since 1970
    function_name = os.environ.get("AWS_LAMBDA_FUNCTION_NAME")
    function_version = os.environ.get("AWS_LAMBDA_FUNCTION_VERSION")
    memory_limit_in_mb = os.environ.get("AWS_LAMBDA_FUNCTION_MEMORY_SIZE")
    log_group_name = os.environ.get("AWS_LAMBDA_LOG_GROUP_NAME")
    log_stream_name = os.environ.get("AWS_LAMBDA_LOG_STREAM_NAME")

    def get_remaining_time_in_millis(self) -> int:
        return max(0, self.deadline_ms - int(time.time() * 1000))


class Stream:
    """An answer that goes out as an ASGI app writes it: what the app receives from, and sends to."""

    def __init__(self, http: HTTPConnection, request_id: str, body: bytes) -> None:
        self.http = http
        self.request_id = request_id
        self.body: bytes | None = body
        self.has_begun = self.is_whole = self.is_lost = False
        self.over = asyncio.Event()

    async def receive(self) -> "Message":
        if self.body is not None:
            body, self.body = self.body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self.over.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: "Message") -> None:
        if message["type"] == "http.response.start":
            self._begin(_prelude(message["status"], message.get("headers", ())))
            return
        if body := message.get("body", b""):
            self._write(_chunk(body))
        if not message.get("more_body", False):
            self.is_whole = True
            self._end("")

    def break_off(self, error: Exception) -> None:
        """Say in the trailers that the answer isn't whole; the client's connection is cut then."""
        told = {ERROR_TYPE: type(error).__name__, ERROR_BODY: base64.b64encode(_told(error, self.request_id)).decode()}
        self._end("".join(f"{name}: {value}\r\n" for name, value in told.items()))

    def close(self) -> None:
        """Hear that the Runtime API has it, so that the connection can take the next request."""
        try:
            if not self.is_lost:
                self.http.getresponse().read()
        except (OSError, HTTPException):
            self.is_lost = True
        if self.is_lost:
            self.http.close()

    def _begin(self, prelude: bytes) -> None:
        self.http.putrequest("POST", f"{ROOT}/invocation/{self.request_id}/response", skip_accept_encoding=True)
        for name, value in STREAMED.items():
            self.http.putheader(name, value)
        self.http.endheaders()
        self.has_begun = True
        # What can be read before the end is most likely that the Runtime API doesn't listen any more.
        asyncio.get_running_loop().add_reader(self.http.sock, self._hear)
        self._write(_chunk(prelude + PRELUDE_END))

    def _write(self, data: bytes) -> None:
        if not self.is_lost:
            try:
                self.http.send(data)
            except OSError:
                self._lose()

    def _end(self, trailers: str) -> None:
        self._write(f"0\r\n{trailers}\r\n".encode())
        self._hear_no_more()

    def _hear(self) -> None:
        """An end of the connection is a loss; what else Lambda says before the answer is whole is read after it."""
        try:
            is_over = self.http.sock.recv(1, socket.MSG_PEEK) == b""
        except OSError:
            is_over = True
        if is_over:
            self._lose()
        else:
            asyncio.get_running_loop().remove_reader(self.http.sock)

    def _lose(self) -> None:
        self.is_lost = True
        self._hear_no_more()

    def _hear_no_more(self) -> None:
        asyncio.get_running_loop().remove_reader(self.http.sock)
        self.over.set()


def main() -> None:
    """Answer invocations for as long as Lambda lets the process live."""
    http = HTTPConnection(os.environ["AWS_LAMBDA_RUNTIME_API"])
    try:
        module, _, name = os.environ["_HANDLER"].rpartition(".")
        handler = getattr(importlib.import_module(module), name)
    except Exception as error:
        _log("the function can't be imported", error, errorMessage=str(error))
        _post_error(http, f"{ROOT}/init/error", error, "")
        sys.exit(1)
    while True:
        _answer_next(http, handler)


def _answer_next(http: HTTPConnection, handler: "Handler") -> None:
    """Wait for an invocation, and answer it."""
    headers, content = _request(http, "GET", f"{ROOT}/invocation/next")
    request_id = headers["lambda-runtime-aws-request-id"]
    context = Context(
        request_id, headers["lambda-runtime-invoked-function-arn"], int(headers["lambda-runtime-deadline-ms"])
    )
    _set_trace_id(headers.get("lambda-runtime-trace-id"))
    try:
        event = json.loads(content)
        if _is_function_url(event):
            handler.loop.run_until_complete(_stream(http, handler, event, context))
            return
        answer = json.dumps(handler(event, context), ensure_ascii=False).encode()
    except Exception as error:
        _log("an invocation failed", error, requestId=request_id)
        _post_error(http, f"{ROOT}/invocation/{request_id}/error", error, request_id)
    else:
        _request(http, "POST", f"{ROOT}/invocation/{request_id}/response", answer)


def _is_function_url(event: Any) -> bool:
    """Whether an event is a request to the function's own URL, the only caller that streams."""
    request = event.get("requestContext") if isinstance(event, dict) else None
    return isinstance(request, dict) and ".lambda-url." in str(request.get("domainName"))


async def _stream(http: HTTPConnection, handler: "Handler", event: dict[str, Any], context: Any) -> None:
    """Have the app answer; raises what goes wrong before it has begun."""
    from shared import telemetry

    request = handler.adapter.infer(event, context)
    stream = Stream(http, context.aws_request_id, request.body)
    try:
        await handler.app(request.scope, stream.receive, stream.send)
        if not (stream.is_whole or stream.is_lost):
            raise Unfinished
    except Exception as error:
        if not stream.has_begun:
            raise
        _log("an answer broke off", error, requestId=context.aws_request_id)
        if not stream.is_whole:
            stream.break_off(error)
    finally:
        if stream.has_begun:
            stream.close()
        telemetry.flush()


def _prelude(status: int, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Status, headers and cookies as JSON; a header that is there twice is one with both values."""
    told: dict[str, str] = {}
    cookies = []
    for key, raw in headers:
        name, value = key.decode("latin-1").lower(), raw.decode("latin-1")
        if name == "set-cookie":
            cookies.append(value)
        elif name != "content-length":  # it goes out in chunks
            told[name] = f"{told[name]},{value}" if name in told else value
    return json.dumps({"statusCode": status, "headers": told, "cookies": cookies}).encode()


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _request(
    http: HTTPConnection, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> tuple[dict[str, str], bytes]:
    """The answer's headers, in lower case, and its body."""
    http.request(method, path, body, {"Content-Type": "application/json", **(headers or {})})
    response = http.getresponse()
    return {name.lower(): value for name, value in response.getheaders()}, response.read()


def _post_error(http: HTTPConnection, path: str, error: Exception, request_id: str) -> None:
    _request(http, "POST", path, _told(error, request_id), {ERROR_TYPE: type(error).__name__})


def _told(error: Exception, request_id: str) -> bytes:
    """An error as Lambda tells it to who has invoked the function."""
    told = {
        "errorMessage": str(error),
        "errorType": type(error).__name__,
        "requestId": request_id,
        "stackTrace": _stack(error),
    }
    return json.dumps(told).encode()


def _stack(error: Exception) -> list[str]:
    return traceback.format_tb(error.__traceback__)


def _log(message: str, error: Exception, **known: str) -> None:
    """One line for CloudWatch, without an error's words: what is wrong with an event may be in them."""
    line = {"level": "ERROR", "message": message, "errorType": type(error).__name__, **known}
    print(json.dumps(line | {"stackTrace": _stack(error)}), flush=True)


def _set_trace_id(trace_id: str | None) -> None:
    """Where AWS's SDKs look for the X-Ray trace they are part of."""
    if trace_id:
        os.environ["_X_AMZN_TRACE_ID"] = trace_id
    else:
        os.environ.pop("_X_AMZN_TRACE_ID", None)


if __name__ == "__main__":
    main()
