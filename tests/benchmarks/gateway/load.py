"""Load on loopback: so many connections kept alive, each with one request at a time, timed as its caller sees it.

Written on asyncio's streams, for a whole HTTP client would take more of the two cores than what it measures.
"""

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

SPREAD_SECONDS = 0.22  # about an upstream's own time: connections begin spread over it, and don't go in one wave


class Refused(RuntimeError):
    """An answer that is not 200, or a connection that broke: nothing of such a run counts."""


@dataclass(frozen=True, slots=True)
class Call:
    """One POST of JSON."""

    path: str
    headers: Mapping[str, str]
    body: Mapping[str, Any]

    def encoded(self) -> bytes:
        content = json.dumps(self.body).encode()
        lines = [f"POST {self.path} HTTP/1.1", "host: 127.0.0.1", "content-type: application/json"]
        lines += [f"content-length: {len(content)}", *(f"{name}: {value}" for name, value in self.headers.items())]
        return "\r\n".join([*lines, "", ""]).encode() + content


@dataclass(frozen=True, slots=True)
class Timed:
    """An answer, how long its caller waited for it, and when it was there."""

    whole_ms: float
    ended: float
    body: bytes

    def steps(self) -> dict[str, float]:
        """The milliseconds of our own steps, as the answer tells them."""
        steps: dict[str, float] = json.loads(self.body)["timings"]
        return steps


async def run(
    origin: str,
    calls: Sequence[Call],
    connection_count: int,
    each: Callable[[int], None] = lambda count: None,
    spread_seconds: float = SPREAD_SECONDS,
) -> list[Timed]:
    """The answers in the order they came; `each` is told how many there are. Raises `Refused`."""
    waiting, answers = iter([call.encoded() for call in calls]), list[Timed]()
    try:
        async with asyncio.TaskGroup() as connections:
            for place in range(connection_count):
                connections.create_task(
                    _connection(origin, place * spread_seconds / connection_count, waiting, answers, each)
                )
    except ExceptionGroup as failed:
        first = failed.exceptions[0]
        raise first if isinstance(first, Refused) else Refused(f"the connection broke: {first!r}") from failed
    return answers


async def _connection(
    origin: str, pause_seconds: float, waiting: Iterator[bytes], answers: list[Timed], each: Callable[[int], None]
) -> None:
    address = urlsplit(origin)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    await asyncio.sleep(pause_seconds)
    try:
        for call in waiting:
            started = time.perf_counter()
            writer.write(call)
            body = await _read(reader)
            ended = time.perf_counter()
            answers.append(Timed((ended - started) * 1000, ended, body))
            each(len(answers))
    finally:
        writer.close()


async def _read(reader: asyncio.StreamReader) -> bytes:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = head.partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0]
    body = await reader.readexactly(int(length))
    if not head.startswith(b"http/1.1 200 "):
        raise Refused(body[:500].decode(errors="replace"))
    return body
