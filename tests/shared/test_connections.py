"""The HTTP client's connections, as a server sees them."""

import asyncio
import socket
import ssl
import threading
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

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
        connections.tuned(http)
        for body in bodies:
            answer = await http.post(f"http://127.0.0.1:{port}/", content=body)
            assert answer.text == "ok"
    return noted


def test_a_request_comes_whole() -> None:
    bodies = [b"x" * (1 + 997 * number) for number in range(20)]

    noted = asyncio.run(post(bodies))

    assert noted.first == [len(body) for body in bodies]


def test_no_cookie_is_kept_for_the_next_caller() -> None:
    sent: list[bytes] = []

    async def ask_twice() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            for _ in range(2):
                sent.append(await reader.readuntil(HEAD_END))
                writer.write(ANSWER.replace(b"OK", b"OK\r\nset-cookie: session=alice; Path=/"))
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server, httpx.AsyncClient(trust_env=False) as http:
            connections.tuned(http)
            for _ in range(2):
                assert "set-cookie" in (await http.get(f"http://127.0.0.1:{port}/")).headers

    asyncio.run(ask_twice())

    assert len(sent) == 2
    assert not any(b"session" in head for head in sent)


def test_a_connection_closed_while_the_process_was_frozen_is_not_used() -> None:
    """As Lambda freezes it between requests: the loop, here held up, has heard nothing of the end."""
    listening = socket.create_server(("127.0.0.1", 0))
    answered, closed = threading.Event(), threading.Event()

    def serve() -> None:
        for _ in range(2):
            connection, _ = listening.accept()
            while not connection.recv(2**20).endswith(HEAD_END):
                pass
            connection.sendall(ANSWER)
            answered.wait(10)
            connection.close()
            closed.set()

    async def ask_twice() -> list[str]:
        address = f"http://127.0.0.1:{listening.getsockname()[1]}/"
        async with httpx.AsyncClient(trust_env=False) as http:
            connections.tuned(http)
            first = (await http.get(address)).text
            answered.set()
            closed.wait(10)
            return [first, (await http.get(address)).text]

    server = threading.Thread(target=serve, daemon=True)
    server.start()
    with listening:
        assert asyncio.run(ask_twice()) == ["ok", "ok"]
        server.join(10)


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
            connections.tuned(http)
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
            connections.tuned(http)
            with pytest.raises(httpx.TransportError):
                await http.post(f"http://127.0.0.1:{port}/", content=b"x")

    asyncio.run(ask())


def test_a_connection_that_the_server_has_closed_is_not_used_again() -> None:
    async def ask() -> int:
        connections_made = 0

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal connections_made
            connections_made += 1
            await reader.readuntil(HEAD_END)
            writer.write(ANSWER)
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server, httpx.AsyncClient(trust_env=False) as http:
            connections.tuned(http)
            for _ in range(3):
                assert (await http.get(f"http://127.0.0.1:{port}/")).text == "ok"
                await asyncio.sleep(0.05)
        return connections_made

    assert asyncio.run(ask()) == 3


def test_a_server_that_is_not_there_or_says_nothing_is_an_error_of_httpx() -> None:
    async def ask() -> None:
        silent = await asyncio.start_server(lambda reader, writer: asyncio.sleep(5), "127.0.0.1", 0)
        port = silent.sockets[0].getsockname()[1]
        async with httpx.AsyncClient(trust_env=False, timeout=0.2) as http:
            connections.tuned(http)
            with pytest.raises(httpx.ReadTimeout):
                await http.get(f"http://127.0.0.1:{port}/")
            silent.close()
            with pytest.raises(httpx.ConnectError):
                await http.get("http://127.0.0.1:9/")

    asyncio.run(ask())


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for localhost, signed by its own key, and the key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(1))
    made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    file = tmp_path_factory.mktemp("tls") / "server.pem"
    file.write_bytes(private + made.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))
    return file


@pytest.mark.parametrize("is_trusted", [True, False])
def test_the_servers_certificate_is_checked(certificate: Path, is_trusted: bool) -> None:
    async def ask() -> list[int]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        noted = Server()
        server = await asyncio.start_server(noted.serve, "localhost", 0, ssl=context)
        port = server.sockets[0].getsockname()[1]
        trust = ssl.create_default_context(cafile=str(certificate)) if is_trusted else ssl.create_default_context()
        async with server, httpx.AsyncClient(trust_env=False, verify=trust) as http:
            connections.tuned(http)
            for size in (10, 20_000):
                await http.post(f"https://localhost:{port}/", content=b"x" * size)
        return noted.whole

    if is_trusted:
        assert asyncio.run(ask()) == [10, 20_000]
    else:
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            asyncio.run(ask())
