"""A function of the tests' own: what it is asked, more than Lambda returns, and answers that break."""

import base64
import os
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse

from shared import web
from shared.invocations import ANSWER_BYTES, Handler

router = APIRouter()


@router.put("/scope/{name}")
async def scope(request: Request, name: str) -> dict[str, Any]:
    """What the app sees of a request."""
    told = {key: value for key, value in request.scope.items() if isinstance(value, str | None)}
    context = request.scope["aws.context"]
    return told | {
        "name": name,
        "headers": [[name.decode(), value.decode()] for name, value in request.scope["headers"]],
        "query_string": request.scope["query_string"].decode(),
        "client": request.scope["client"],
        "server": request.scope["server"],
        "asgi": request.scope["asgi"],
        "event": request.scope["aws.event"],
        "body": base64.b64encode(await request.body()).decode(),
        "trace_id": os.environ["_X_AMZN_TRACE_ID"],
        "memory": context.memory_limit_in_mb,
        "function": [context.function_name, context.invoked_function_arn],
        "has_time": 0 < context.get_remaining_time_in_millis() <= 30_000,
        "has_id": len(context.aws_request_id) == 36,
    }


@router.get("/large")
async def large() -> Response:
    return Response("x" * (ANSWER_BYTES + 1000), media_type="text/plain")


@router.get("/cookies")
async def cookies() -> Response:
    response = Response("two cookies", media_type="text/plain")
    response.set_cookie("a", "1")
    response.set_cookie("b", "2")
    return response


@router.get("/raise")
async def fail() -> Response:
    raise ValueError("a secret of the user's")


@router.get("/break")
async def break_off() -> Response:
    async def pieces() -> AsyncIterator[str]:
        yield "a piece"
        raise ValueError("a secret of the user's")

    return StreamingResponse(pieces(), media_type="text/plain")


app = web.create_app("echo", router)
handler = Handler(app)
