"""Realtime's clients in the tests: supabase-py, the bare wire protocol, and REST."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import jwt
from realtime import AsyncRealtimeChannel, RealtimePostgresChangesListenEvent
from realtime.types import RealtimeChannelConfig
from supabase import acreate_client
from websockets.asyncio.client import ClientConnection, connect

from infra.local import parts
from infra.local.stack import Stack

WAIT_SECONDS = 15


class Listener:
    """A supabase-py channel and what it hears."""

    def __init__(self, channel: AsyncRealtimeChannel) -> None:
        self.channel = channel
        self.changes: asyncio.Queue[Any] = asyncio.Queue()
        self.messages: asyncio.Queue[Any] = asyncio.Queue()

    async def change(self) -> Any:
        payload = await asyncio.wait_for(self.changes.get(), WAIT_SECONDS)
        return payload["data"]

    async def ids(self, count: int) -> list[int]:
        return [(await self.change())["record"]["id"] for _ in range(count)]

    async def message(self) -> tuple[str, Any]:
        payload = await asyncio.wait_for(self.messages.get(), WAIT_SECONDS)
        return payload["event"], payload["payload"]


class Socket:
    """The wire protocol without a client's conveniences; every frame heard is kept."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self.frames: list[dict[str, Any]] = []

    async def send(self, topic: str, event: str, payload: Any, ref: str | None = None) -> None:
        frame = {"topic": f"realtime:{topic}", "event": event, "payload": payload, "ref": ref}
        await self.connection.send(json.dumps(frame))

    async def join(self, topic: str, **payload: Any) -> Any:
        await self.send(topic, "phx_join", payload, ref=topic)
        return (await self.heard(ref=topic))["payload"]

    async def heard(self, **wanted: Any) -> dict[str, Any]:
        while True:
            frame = json.loads(await asyncio.wait_for(self.connection.recv(), WAIT_SECONDS))
            self.frames.append(frame)
            if frame.items() >= wanted.items():
                return dict(frame)


class Script:
    """A supabase-js client in Node, told in lines of JSON what to do; what it hears comes as such lines."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    def tell(self, **command: Any) -> None:
        assert self.process.stdin
        self.process.stdin.write(json.dumps(command).encode() + b"\n")

    async def heard(self, **wanted: Any) -> dict[str, Any]:
        """The next line that says at least this."""
        assert self.process.stdout
        while line := await asyncio.wait_for(self.process.stdout.readline(), WAIT_SECONDS):
            said = json.loads(line)
            if said.items() >= wanted.items():
                return dict(said)
        raise EOFError(f"the script ended before {wanted}")


def token(stack: Stack, sub: str, seconds: float = 600, **claims: Any) -> str:
    usual = {"sub": sub, "role": "authenticated", "aud": "authenticated", "exp": int(time.time() + seconds)}
    return jwt.encode({**usual, **claims}, stack.keys.jwt_secret, "HS256")


@asynccontextmanager
async def listening(
    stack: Stack,
    access_token: str,
    table: str | None = "realtime_notes",
    filter: str | None = None,
    topic: str = "notes",
    hears_itself: bool = False,
    private: bool = False,
) -> AsyncIterator[Listener]:
    client = await acreate_client(stack.url, stack.keys.publishable)
    await client.realtime.set_auth(access_token)
    config: RealtimeChannelConfig = {"broadcast": {"self": hears_itself}, "presence": None, "private": private}
    listener = Listener(client.channel(topic, {"config": config}))
    listener.channel.on_broadcast("*", listener.messages.put_nowait)
    if table:
        listener.channel.on_postgres_changes(
            RealtimePostgresChangesListenEvent.All, listener.changes.put_nowait, table=table, filter=filter
        )
    try:
        await listener.channel.subscribe()
        yield listener
    finally:
        await client.remove_all_channels()


@asynccontextmanager
async def script(file: Path, *arguments: str) -> AsyncIterator[Script]:
    command = [parts.node(), "--experimental-websocket", str(file), *arguments]  # Node 20 has it behind this flag
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
    try:
        yield Script(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@asynccontextmanager
async def socket(stack: Stack, apikey: str | None = None) -> AsyncIterator[Socket]:
    origin = stack.url.replace("http", "ws", 1)
    key = stack.keys.publishable if apikey is None else apikey
    address = f"{origin}/realtime/v1/websocket?apikey={key}&vsn=1.0.0"
    options: dict[str, Any] = {"max_size": None, "max_queue": 1, "close_timeout": 1}  # unread frames hold up a close
    async with connect(address, compression=None, proxy=None, **options) as connection:
        yield Socket(connection)


async def post(stack: Stack, path: str = "", **options: Any) -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False) as http:
        options.setdefault("headers", {"apikey": stack.keys.publishable})
        return await http.post(f"{stack.url}/realtime/v1/api/broadcast{path}", **options)


@asynccontextmanager
async def crowd(stack: Stack, user_ids: Sequence[int], *, is_filtered: bool) -> AsyncIterator[list[Socket]]:
    """A socket for each of the users, subscribed to the conversations: with the filter, or with row level security."""
    async with AsyncExitStack() as held:
        yield await asyncio.gather(*(_subscribed(held, stack, user_id, is_filtered) for user_id in user_ids))


async def _subscribed(held: AsyncExitStack, stack: Stack, user_id: int, is_filtered: bool) -> Socket:
    raw = await held.enter_async_context(socket(stack))
    filters = {"filter": f"user_id=eq.{user_id}"} if is_filtered else {}
    wanted = {"event": "INSERT", "schema": "public", "table": "conversations", **filters}
    access_token = token(stack, str(UUID(int=user_id)), user_id=user_id)
    await raw.join("ai-responses", access_token=access_token, config={"postgres_changes": [wanted]})
    told = await raw.heard(event="system")
    assert told["payload"]["status"] == "ok", told
    return raw
