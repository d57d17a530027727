"""What is between a browser and the functions: connections that are cut, and gateways that don't stream."""

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import httpx
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tests.stand_ins import Proxy

BYTES = 65536


class Cable:
    """A port of loopback whose connections go on to `target`, until they are cut."""

    def __init__(self, target: str) -> None:
        self.url = httpx.URL(target)
        self.server = socket.create_server(("127.0.0.1", 0))
        self.origin = f"http://127.0.0.1:{self.server.getsockname()[1]}"
        self.ends: list[tuple[socket.socket, socket.socket]] = []
        self.accepting = threading.Thread(target=self._accept, daemon=True)
        self.accepting.start()

    def cut(self, is_noticed: bool = True) -> None:
        """Both ends of all connections are gone; the functions' end stays open if nobody there notices."""
        cut, self.ends = self.ends, []
        for near, far in cut:
            for end in (near, far) if is_noticed else (near,):
                _shut(end)

    def close(self) -> None:
        _shut(self.server)
        self.accepting.join(5)
        self.server.close()
        self.cut()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self.server.accept()
                far = socket.create_connection((self.url.host, self.url.port or 80))
                self.ends.append((near, far))
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while piece := source.recv(BYTES):
                with suppress(OSError):  # a reader who is gone isn't noticed
                    sink.sendall(piece)
        if any(source in pair for pair in self.ends):  # nobody has cut it
            _shut(sink)


@contextmanager
def cable(target: str) -> Iterator[Cable]:
    """A cable to `target`, cut when it is left."""
    laid = Cable(target)
    try:
        yield laid
    finally:
        laid.close()


@dataclass(slots=True)
class NoStreams(Proxy):
    """A gateway that passes on whole answers only, and nothing of streams: it refuses or gives up on those.

    One that gives up has passed the question on, and the function goes on with it. Where it stumbles, the function has
    no database for the first look at a conversation.
    """

    gives_up: bool = False
    stumbles: bool = False
    looks: int = 0
    unheard: set["asyncio.Task[None]"] = field(default_factory=set)
    asked: list[str | None] = field(default_factory=list)

    async def forward(self, request: Request) -> Response:
        if "/conversations/" in request.url.path:
            return await self._look(request)
        body = await request.body()
        if not (body and json.loads(body).get("stream")):
            if request.url.path.endswith("/ai-finance"):
                self.asked.append(request.headers.get("prefer"))
            return await Proxy.forward(self, request)
        if not self.gives_up:
            return Response("<h1>502 Bad Gateway</h1>", 502, media_type="text/html")
        headers = {key: value for key, value in request.headers.items() if key not in ("host", "content-length")}
        passing_on = asyncio.create_task(self._pass_on(f"{self.target}{request.url.path}", headers, body))
        self.unheard.add(passing_on)
        await asyncio.sleep(0.5)
        return JSONResponse({"message": "Endpoint request timed out"}, 504)

    async def _look(self, request: Request) -> Response:
        told = {"error": "No database.", "code": "database_unavailable", "requestId": "1", "retryable": True}
        found = JSONResponse(told, 503) if self.stumbles else await Proxy.forward(self, request)
        self.stumbles = False
        self.looks += 1
        return found

    async def _pass_on(self, url: str, headers: dict[str, str], body: bytes) -> None:
        async with httpx.AsyncClient(trust_env=False, timeout=50) as http:
            await http.post(url, headers=headers, content=body)


@dataclass(slots=True)
class NoRenewals(Proxy):
    """An Auth that never answers who wants a session renewed."""

    renewals: int = 0

    async def forward(self, request: Request) -> Response:
        if request.query_params.get("grant_type") != "refresh_token":
            return await Proxy.forward(self, request)
        self.renewals += 1
        while (await request.receive())["type"] != "http.disconnect":
            pass
        return Response()


def _shut(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
