"""What the embedded stack's tests share: servers and clients in real processes, and what stands behind the gateway."""

import asyncio
import gzip
import json
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any
from uuid import uuid4

import httpx
import psycopg
from postgrest import APIError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from infra.local import parts
from tests.stand_ins import until

UNKNOWN_TO_LITE = {"PGRST202", "PGRST205"}  # a function or a table it hasn't seen yet


@dataclass
class Functions:
    """What stands behind /functions/v1: it shows what arrived, and answers as the test wants it to."""

    url: str = ""
    told: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    arrived: threading.Event = field(default_factory=threading.Event)
    left_alone: threading.Event = field(default_factory=threading.Event)

    def app(self) -> Starlette:
        routes = [
            Route("/functions/v1/events", self.events),
            Route("/functions/v1/silence", self.silence),
            Route("/functions/v1/thinking", self.thinking, methods=["POST"]),
            Route("/functions/v1/compressed", self.compressed),
            Route("/functions/v1/{path:path}", self.mirror, methods=["GET", "POST", "OPTIONS"]),
        ]
        return Starlette(routes=routes)

    async def events(self, _request: Request) -> Response:
        """Three events, each only once the test has asked for it."""

        async def lines() -> AsyncIterator[str]:
            for number in range(3):
                await until(lambda: self.told.acquire(blocking=False), 10)
                yield f"data: {number}\n\n"

        return StreamingResponse(lines(), media_type="text/event-stream")

    async def silence(self, _request: Request) -> Response:
        async def lines() -> AsyncIterator[str]:
            try:
                yield "data: 0\n\n"
                await asyncio.Event().wait()
            finally:
                self.left_alone.set()

        return StreamingResponse(lines(), media_type="text/event-stream")

    async def thinking(self, request: Request) -> Response:
        self.arrived.set()
        while (await request.receive())["type"] != "http.disconnect":
            pass
        self.left_alone.set()
        return Response()

    async def compressed(self, _request: Request) -> Response:
        return Response(gzip.compress(b"small"), headers={"content-encoding": "gzip"})

    async def mirror(self, request: Request) -> Response:
        seen = {
            "method": request.method,
            "target": f"{request.scope['raw_path'].decode()}?{request.url.query}",
            "headers": dict(request.headers),
            "bytes": len(await request.body()),
        }
        response = JSONResponse(seen, 418)
        response.set_cookie("a", "1")
        response.set_cookie("b", "2")
        return response


def email_address() -> str:
    """An email address nobody has signed up with."""
    return f"{uuid4().hex}@example.com"


def reload_schema(database: psycopg.Connection, ask: Callable[[], object], seconds: float = 5) -> bool:
    """Tell the API that the schema has changed; whether `ask` then finds what is new."""
    database.execute("notify pgrst, 'reload schema'")
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            ask()
        except APIError as error:
            if error.code not in UNKNOWN_TO_LITE:
                raise
            time.sleep(0.02)
        else:
            return True
    return False


@contextmanager
def running(command: Sequence[str], address: str, **options: Any) -> Iterator[None]:
    """A server's process, from its first answer at `address` to its end."""
    with TemporaryFile("w+b") as log, subprocess.Popen(command, stdout=log, stderr=log, **options) as process:
        try:
            while not _answers(address):
                log.seek(0)
                assert process.poll() is None, log.read().decode()
                time.sleep(0.02)
            yield
        finally:
            process.terminate()


def run_node(script: str, *arguments: str) -> Any:
    """What the script beside the tests prints, which is JSON."""
    done = subprocess.run(
        [parts.node(), str(Path(__file__).with_name(script)), *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _answers(address: str) -> bool:
    try:
        httpx.get(address, trust_env=False)
    except httpx.TransportError:
        return False
    return True
