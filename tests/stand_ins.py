"""Servers the tests put in a real one's place: real HTTP on loopback, following the documented wire shapes."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

RECEIVED_BYTES = 1024 * 1024  # that the system keeps for a server that is slow; by itself it would be any number
HELD_SECONDS = 120
ANSWER = ["TON is ", "the native coin ", "of The Open Network."]
# What an answer says of the stand-in's 40 and 9 tokens, at a dollar and three for a million.
USAGE = {
    "inputTokens": 40,
    "cachedTokens": 0,
    "outputTokens": 9,
    "reasoningTokens": 0,
    "costUsd": 6.7e-05,
    "estimated": False,
}


@dataclass(slots=True)
class Model:
    """An OpenAI-compatible chat server that does what the question says in brackets.

    [fail] 500, [busy] 429, [reject] 401, [empty] an empty answer, [silent] no answer for a minute, [slow] an
    answer after a second, [drip] pieces half a second apart, [hold] one piece, and the others once `let_go` is set,
    [break] a connection cut in mid-stream, [uncounted] no usage, [cut] an answer that hit max_tokens. A question that
    holds a key of `raw` gets that body.
    """

    url: str = ""
    raw: dict[str, bytes] = field(default_factory=dict)
    asked: list[dict[str, Any]] = field(default_factory=list)
    connections: set[Any] = field(default_factory=set)
    let_go: threading.Event = field(default_factory=threading.Event)
    abandoned: int = 0

    def app(self) -> ASGIApp:
        return Starlette(
            routes=[
                Route("/v1/chat/completions", self.complete, methods=["POST"]),
                Route("/v1/models", self.models),
            ]
        )

    def question(self, marker: str) -> str:
        """The prompt that held `marker`."""
        return next(str(body["messages"][-1]["content"]) for body in self.asked if marker in _question(body))

    def count(self, marker: str) -> int:
        """How often a prompt with `marker` was asked."""
        return sum(marker in _question(body) for body in self.asked)

    async def models(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": "stand-in", "object": "model"}]})

    async def complete(self, request: Request) -> Response:
        body = await request.json()
        self.asked.append(body)
        self.connections.add(request.client)
        question = _question(body)
        if "[fail]" in question:
            return JSONResponse({"error": {"message": "internal", "type": "server_error"}}, status_code=500)
        if "[busy]" in question:
            return JSONResponse({"error": {"message": "slow down"}}, status_code=429, headers={"retry-after": "0"})
        if "[reject]" in question:
            return JSONResponse({"error": {"message": "bad key", "type": "invalid_request_error"}}, status_code=401)
        for marker, content in self.raw.items():
            if marker in question:
                kind = "text/event-stream" if body.get("stream") else "application/json"
                return Response(content, media_type=kind)
        if "[silent]" in question:
            await self._until_gone(request, 60)
        if "[slow]" in question:
            await asyncio.sleep(1)
        if "[hold]" in question and not body.get("stream"):
            await until(self.let_go.is_set, HELD_SECONDS)
        pieces = [""] if "[empty]" in question else ANSWER
        if body.get("stream"):
            return StreamingResponse(self._chunks(question, pieces), media_type="text/event-stream")
        choice = {"index": 0, "message": {"role": "assistant", "content": "".join(pieces)}, "finish_reason": "stop"}
        if "[cut]" in question:
            choice["message"] = {"role": "assistant", "content": "A whole sentence. And then one that was"}
            choice["finish_reason"] = "length"
        usage = {"prompt_tokens": 40, "completion_tokens": 9, "total_tokens": 49}
        return JSONResponse(
            _envelope("chat.completion", [choice]) | ({} if "[uncounted]" in question else {"usage": usage})
        )

    async def _chunks(self, question: str, pieces: list[str]) -> AsyncIterator[str]:
        finished = False
        try:
            for number, piece in enumerate(pieces):
                if "[drip]" in question and number:
                    await asyncio.sleep(0.5)
                if "[hold]" in question and number:
                    await until(self.let_go.is_set, HELD_SECONDS)
                if "[break]" in question and number == 2:
                    raise ConnectionError("cut by the test")
                yield _chunk([{"index": 0, "delta": {"content": piece}, "finish_reason": None}])
            yield _chunk([{"index": 0, "delta": {}, "finish_reason": "stop"}])
            if "[uncounted]" not in question:
                yield _chunk([], usage={"prompt_tokens": 40, "completion_tokens": 9, "total_tokens": 49})
            yield "data: [DONE]\n\n"
            finished = True
        finally:
            self.abandoned += not finished

    async def _until_gone(self, request: Request, seconds: float) -> None:
        for _ in range(int(seconds * 10)):
            if await request.is_disconnected():
                self.abandoned += 1
                return
            await asyncio.sleep(0.1)


async def until(condition: Callable[[], object], seconds: float = 5) -> None:
    """Wait for what another thread does; one that waited for it would outlive a request that is cancelled.

    Raises `TimeoutError`.
    """
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@dataclass(slots=True)
class Proxy:
    """Everything goes on to `target`; paths that end as `refused` does get a 503, as `held` does wait half a second.

    Paths that end as a key of `instead` does get that body.
    """

    target: str
    instead: dict[str, str] = field(default_factory=dict)
    refused: str = "nothing"
    held: str = "nothing"
    refusals: int = 0
    holding: threading.Event = field(default_factory=threading.Event)

    def app(self) -> ASGIApp:
        return Starlette(routes=[Route("/{path:path}", self.forward, methods=["GET", "POST", "PATCH"])])

    async def forward(self, request: Request) -> Response:
        if request.url.path.endswith(self.refused):
            self.refusals += 1
            return JSONResponse({"code": "PGRST000", "message": "no connection", "details": None}, status_code=503)
        for path, content in self.instead.items():
            if request.url.path.endswith(path):
                return Response(content, media_type="application/json")
        if request.url.path.endswith(self.held):
            self.holding.set()
            await asyncio.sleep(0.5)
        headers = {key: value for key, value in request.headers.items() if key not in ("host", "content-length")}
        async with httpx.AsyncClient() as http:
            answer = await http.request(
                request.method, f"{self.target}{request.url.path}?{request.url.query}", headers=headers,
                content=await request.body(),
            )  # fmt: skip
        return Response(answer.content, answer.status_code, {"content-type": answer.headers.get("content-type", "")})


@contextmanager
def serving(app: ASGIApp) -> Iterator[str]:
    """The app on a free port of loopback; gives its origin."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVED_BYTES)
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off"))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = server.force_exit = True
        thread.join()


def _question(body: dict[str, Any]) -> str:
    return str(body["messages"][-1]["content"]).rpartition("User question: ")[2]


def _envelope(kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
    return {"id": "chatcmpl-1", "object": kind, "created": 1700000000, "model": "stand-in", "choices": choices}


def _chunk(choices: list[dict[str, Any]], **more: Any) -> str:
    return f"data: {json.dumps(_envelope('chat.completion.chunk', choices) | more)}\n\n"
