"""A stand-in for Replicate on loopback: predictions that are created, looked at, streamed and canceled."""

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

ANSWER = ["TON is ", "the native coin ", "of The Open Network."]
METRICS = {"predict_time": 0.5, "input_token_count": 40, "output_token_count": 9}
DONE = "event: done\ndata: {}\n\n"
CREATING = ("/v1/models/{owner}/{name}/predictions", "/v1/predictions", "/v1/deployments/{owner}/{name}/predictions")


@dataclass(frozen=True, slots=True)
class Asked:
    """One request; its path is without /v1."""

    path: str
    headers: Mapping[str, str]
    body: dict[str, Any]


@dataclass(slots=True)
class Replicate:
    """One prediction, which ends as `status` at the look `looks`; 0 is its creation, if that was asked to wait.

    Until then it is processing, with half of its tokens where it was asked to wait, as Replicate itself does.
    `events` is what the stream sends, a number a pause in seconds. `urls` replaces addresses; None leaves one out.
    `instead` holds answers for create, get, stream and cancel, one a request.
    """

    looks: int = 1
    status: Any = "succeeded"
    output: Any = field(default_factory=lambda: [*ANSWER])
    error: Any = None
    metrics: Any = field(default_factory=lambda: {**METRICS})
    events: list[str | bytes | float] = field(default_factory=lambda: [*map(output, ANSWER), DONE])
    urls: dict[str, Any] = field(default_factory=dict)
    creation_seconds: float = 0
    instead: dict[str, list[Callable[[], Response]]] = field(default_factory=lambda: defaultdict(list))
    created: list[Asked] = field(default_factory=list)
    looked: list[Asked] = field(default_factory=list)
    streamed: list[Asked] = field(default_factory=list)
    canceled: list[Asked] = field(default_factory=list)

    def app(self) -> ASGIApp:
        creating = [Route(path, self.create, methods=["POST"]) for path in CREATING]
        return Starlette(
            routes=[
                *creating,
                Route("/v1/predictions/heat2o", self.get),
                Route("/v1/predictions/heat2o/cancel", self.cancel, methods=["POST"]),
                Route("/v1/streams/heat2o", self.stream),
            ]
        )

    async def create(self, request: Request) -> Response:
        self.created.append(await _asked(request))
        await asyncio.sleep(self.creation_seconds)
        if self.instead["create"]:
            return self.instead["create"].pop(0)()
        waits = request.headers.get("prefer", "").startswith("wait")
        if waits and self.looks == 0:
            return JSONResponse(self._over(request), 201)
        running = self._running(request, "processing" if waits else "starting")
        half = {"output": ANSWER[:1]} if waits else {}
        return JSONResponse(running | half, 201)

    async def get(self, request: Request) -> Response:
        self.looked.append(await _asked(request))
        if self.instead["get"]:
            return self.instead["get"].pop(0)()
        if len(self.looked) < self.looks:
            return JSONResponse(self._running(request, "processing") | {"output": ANSWER[:1]})
        return JSONResponse(self._over(request))

    async def cancel(self, request: Request) -> Response:
        self.canceled.append(await _asked(request))
        if self.instead["cancel"]:
            return self.instead["cancel"].pop(0)()
        return JSONResponse(self._running(request, "canceled"))

    async def stream(self, request: Request) -> Response:
        self.streamed.append(await _asked(request))
        if self.instead["stream"]:
            return self.instead["stream"].pop(0)()
        return StreamingResponse(self._sent(), media_type="text/event-stream")

    async def _sent(self) -> AsyncIterator[bytes]:
        for event in self.events:
            if isinstance(event, float):
                await asyncio.sleep(event)
            else:
                yield event.encode() if isinstance(event, str) else event

    def _running(self, request: Request, status: str) -> dict[str, Any]:
        home = f"{request.base_url}v1"
        urls = {
            "get": f"{home}/predictions/heat2o",
            "cancel": f"{home}/predictions/heat2o/cancel",
            "stream": f"{home}/streams/heat2o",
        } | self.urls
        known = {name: address for name, address in urls.items() if address is not None}
        return {"id": "heat2o", "logs": "", "error": None, "status": status, "urls": known}

    def _over(self, request: Request) -> dict[str, Any]:
        ended = {"status": self.status, "output": self.output, "error": self.error, "metrics": self.metrics}
        return self._running(request, "") | ended


def output(text: str) -> str:
    """An event of the stream; each line of the text is a line of data."""
    lines = "".join(f"data: {line}\n" for line in text.split("\n"))
    return f"event: output\nid: 1690212292:0\n{lines}\n"


def refusing(status: int, detail: str = "refused", headers: Mapping[str, str] | None = None) -> Callable[[], Response]:
    """An error in Replicate's shape."""
    return lambda: JSONResponse({"title": "Refused", "detail": detail, "status": status}, status, headers)


def saying(content: str, status: int = 200) -> Callable[[], Response]:
    """This body."""
    return lambda: Response(content, status, media_type="application/json")


async def _asked(request: Request) -> Asked:
    content = await request.body()
    return Asked(request.url.path.removeprefix("/v1"), dict(request.headers), json.loads(content) if content else {})
