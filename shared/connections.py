"""TCP for the HTTP client: a request's head and body leave together.

httpcore writes them apart, each with a system call that wakes the other side for a request it can't read yet; on a
small machine it then takes the processor from the one that is still writing. Here they wait until the answer is read
for, which is when the request is whole.
"""

import ssl
from collections.abc import Iterable
from typing import Any

import httpcore
import httpx

AT_ONCE = 64 * 1024  # bytes that wait; a longer body goes out as it is written


def send_at_once(http: httpx.AsyncClient) -> None:
    """Let a client's connections be such ones, for which httpx has no argument; those to a proxy stay as they are."""
    transport = http._transport
    assert isinstance(transport, httpx.AsyncHTTPTransport)
    assert isinstance(transport._pool, httpcore.AsyncConnectionPool)
    transport._pool._network_backend = Network()


class Connection(httpcore.AsyncNetworkStream):
    """A connection of httpcore's own; a write that fails late is told of by the read it waited for."""

    def __init__(self, inner: httpcore.AsyncNetworkStream) -> None:
        self.inner = inner
        self.waiting = b""
        self.timeout: float | None = None

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        await self._send()
        return await self.inner.read(max_bytes, timeout)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        self.waiting, self.timeout = self.waiting + buffer if self.waiting else buffer, timeout
        if len(self.waiting) > AT_ONCE:
            await self._send()

    async def aclose(self) -> None:
        await self.inner.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> httpcore.AsyncNetworkStream:
        return Connection(await self.inner.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        return self.inner.get_extra_info(info)

    async def _send(self) -> None:
        waiting, self.waiting = self.waiting, b""
        if waiting:
            await self.inner.write(waiting, self.timeout)


class Network(httpcore.AsyncNetworkBackend):
    """What httpcore's pool makes its connections with."""

    def __init__(self) -> None:
        self.inner = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        return Connection(await self.inner.connect_tcp(host, port, timeout, local_address, socket_options))

    async def sleep(self, seconds: float) -> None:
        await self.inner.sleep(seconds)
