"""TCP for the HTTP client, on asyncio's streams: a request's head and body leave together.

httpcore writes them apart, each with a system call that wakes the other side for a request it can't read yet; on a
small machine it then takes the processor from the one that is still writing. Here they wait until the answer is read
for, which is when the request is whole. And httpcore's own backend, anyio's, takes a tenth of a request's time.
"""

import asyncio
import select
import ssl
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import httpcore
import httpx

AT_ONCE = 64 * 1024  # bytes that wait; a longer body goes out as it is written
HAPPY_EYEBALLS_SECONDS = 0.25  # RFC 8305's, until the other family of addresses is tried beside the first
NAMES = {"client_addr": "sockname", "server_addr": "peername"}


def tuned(http: httpx.AsyncClient) -> httpx.AsyncClient:
    """The client, with such connections and without cookies, for which httpx has no arguments.

    Connections to a proxy stay as they are. A cookie that one caller's request is answered with is nothing for the next
    one's, and httpx looks for them in every answer.
    """
    transport = http._transport
    assert isinstance(transport, httpx.AsyncHTTPTransport)
    assert isinstance(transport._pool, httpcore.AsyncConnectionPool)
    transport._pool._network_backend = Network()
    http._cookies = Forgetful()
    return http


class Forgetful(httpx.Cookies):
    """Keeps no cookies."""

    def extract_cookies(self, response: httpx.Response) -> None:
        pass


class Connection(httpcore.AsyncNetworkStream):
    """A connection; a write that fails late is told of by the read it waited for."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.waiting = b""

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        self._send()
        with _told_as(httpcore.ReadTimeout, httpcore.ReadError):
            async with asyncio.timeout(timeout):
                return await self.reader.read(max_bytes)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        self.waiting = self.waiting + buffer if self.waiting else buffer
        if len(self.waiting) > AT_ONCE:
            self._send()
            with _told_as(httpcore.WriteTimeout, httpcore.WriteError):
                async with asyncio.timeout(timeout):
                    await self.writer.drain()

    async def aclose(self) -> None:
        self.writer.close()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> httpcore.AsyncNetworkStream:
        self._send()
        with _told_as(httpcore.ConnectTimeout, httpcore.ConnectError):
            async with asyncio.timeout(timeout):
                await self.writer.start_tls(ssl_context, server_hostname=server_hostname)
        return self

    def get_extra_info(self, info: str) -> Any:
        """Of a connection that rests, `is_readable` says that the other side has closed it.

        The socket is asked itself: of what came while the process was frozen, as Lambda does between requests, the
        loop hasn't heard yet.
        """
        if info == "is_readable":
            return self.reader.at_eof() or self.writer.is_closing() or self._has_news()
        return self.writer.get_extra_info(NAMES.get(info, info))

    def _has_news(self) -> bool:
        news = select.poll()
        news.register(self.writer.get_extra_info("socket").fileno(), select.POLLIN)
        return bool(news.poll(0))

    def _send(self) -> None:
        if self.waiting:
            self.writer.write(self.waiting)
            self.waiting = b""


class Network(httpcore.AsyncNetworkBackend):
    """What httpcore's pool makes its connections with."""

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        options: dict[str, Any] = {"local_addr": (local_address, 0)} if local_address else {}
        if isinstance(asyncio.get_running_loop(), asyncio.BaseEventLoop):  # uvloop has no such thing
            options["happy_eyeballs_delay"] = HAPPY_EYEBALLS_SECONDS
        with _told_as(httpcore.ConnectTimeout, httpcore.ConnectError):
            async with asyncio.timeout(timeout):
                reader, writer = await asyncio.open_connection(host, port, **options)
        for option in socket_options or ():
            writer.get_extra_info("socket").setsockopt(*option)
        return Connection(reader, writer)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


@contextmanager
def _told_as(late: type[Exception], broken: type[Exception]) -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise late(str(error)) from error
    except (OSError, ssl.SSLError) as error:
        raise broken(str(error)) from error
