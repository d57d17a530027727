"""The HTTP client's connections, as a server sees them."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest

from shared import connections

HEAD_END = b"\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Server:
    """Notes of each request how much of its body came with the first bytes that could be read."""

    def __init__(self) -> None:
        self.first: list[int] = []
        self.whole: list[int] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while received := await reader.read(2**20):
                head, _, body = received.partition(HEAD_END)
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                self.first.append(len(body))
                while len(body) < length:
                    body += await reader.read(2**20)
                self.whole.append(len(body))
                writer.write(ANSWER)
        finally:
            writer.close()


async def post(bodies: list[bytes]) -> Server:
    noted = Server()
    server = await asyncio.start_server(noted.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, httpx.AsyncClient(trust_env=False) as http:
        connections.send_at_once(http)
        for body in bodies:
            answer = await http.post(f"http://127.0.0.1:{port}/", content=body)
            assert answer.text == "ok"
    return noted


def test_a_request_comes_whole() -> None:
    bodies = [b"x" * (1 + 997 * number) for number in range(20)]

    noted = asyncio.run(post(bodies))

    assert noted.first == [len(body) for body in bodies]


def test_a_long_body_comes_whole_in_the_end() -> None:
    noted = asyncio.run(post([b"x" * 3_000_000, b"y"]))

    assert noted.whole == [3_000_000, 1]


async def pieces() -> AsyncIterator[bytes]:
    for _ in range(40):
        yield b"z" * 10_000


def test_what_is_streamed_goes_out_while_it_is_made() -> None:
    """Else a long upload would stand in memory whole."""

    async def upload() -> int:
        received = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readexactly(100_000)
            received.set()
            while not (await reader.read(2**20)).endswith(b"0\r\n\r\n"):
                pass
            writer.write(ANSWER)

        async def slow() -> AsyncIterator[bytes]:
            async for piece in pieces():
                yield piece
            await asyncio.wait_for(received.wait(), 10)

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server, httpx.AsyncClient(trust_env=False) as http:
            connections.send_at_once(http)
            return (await http.post(f"http://127.0.0.1:{port}/", content=slow())).status_code

    assert asyncio.run(upload()) == 200


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\n"], ids=["nothing", "half a head"])
def test_a_server_that_hangs_up_is_an_error_of_httpx(answer: bytes) -> None:
    async def ask() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(10)
            writer.write(answer)
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server, httpx.AsyncClient(trust_env=False) as http:
            connections.send_at_once(http)
            with pytest.raises(httpx.TransportError):
                await http.post(f"http://127.0.0.1:{port}/", content=b"x")

    asyncio.run(ask())
