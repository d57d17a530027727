"""What the gateway broadcasts to a user's own topic: whom it reaches, who else may listen or speak, what can fail."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from infra.local import parts
from infra.local.stack import Stack
from shared import realtime
from shared.errors import Unavailable
from shared.settings import Settings
from tests.realtime_clients import listening, post, socket, token
from tests.users import User

SCRIPT = Path(__file__).with_name("topic_listener.mjs")
PIECES = [{"text": "TON is "}, {"text": "a coin – «тон» 💎."}]
PRIVATE = {"private": True}

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def alice(stack: Stack) -> User:
    return User.sign_up(stack)


@pytest.fixture(scope="module")
def bob(stack: Stack) -> User:
    return User.sign_up(stack)


@pytest.fixture
def settings(stack: Stack) -> Settings:
    return Settings.model_validate(stack.environment)


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient() as client:
        yield client


def topic_of(user: User) -> str:
    return f"user:{user.user_id}"


@asynccontextmanager
async def in_javascript(stack: Stack, access_token: str, topic: str) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
    """What supabase-js says of a private topic: its state, then the messages."""
    node = await asyncio.create_subprocess_exec(
        *(parts.node(), "--experimental-websocket", str(SCRIPT)),  # Node 20 has it behind this flag
        *(stack.url, stack.keys.publishable, access_token, topic),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert node.stdin and node.stdout
    async with asyncio.timeout(30), aclosing(json.loads(line) async for line in node.stdout) as said:
        yield said
        node.stdin.close()
        await node.wait()


async def test_a_user_hears_in_javascript_what_the_gateway_says_to_him(
    stack: Stack, http: httpx.AsyncClient, settings: Settings, alice: User
) -> None:
    async with in_javascript(stack, alice.token, topic_of(alice)) as said:
        state = await anext(said)
        await realtime.broadcast(http, settings, topic_of(alice), "delta", PIECES)
        heard = [await anext(said) for _ in PIECES]

    assert state == {"status": "SUBSCRIBED"}
    assert heard == [{"event": "delta", "payload": piece} for piece in PIECES]


async def test_a_user_hears_in_python_what_the_gateway_says_to_him(
    stack: Stack, http: httpx.AsyncClient, settings: Settings, alice: User
) -> None:
    async with listening(stack, alice.token, table=None, topic=topic_of(alice), private=True) as listener:
        await realtime.broadcast(http, settings, topic_of(alice), "delta", PIECES)
        await realtime.broadcast(http, settings, topic_of(alice), "done", [{"conversationId": 1}])
        heard = [await listener.message() for _ in range(3)]

    assert heard == [*[("delta", piece) for piece in PIECES], ("done", {"conversationId": 1})]


@pytest.mark.parametrize("listener", ["another user", "a visitor"])
async def test_nobody_else_is_let_into_a_users_topic(stack: Stack, alice: User, bob: User, listener: str) -> None:
    access_token = bob.token if listener == "another user" else ""

    async with in_javascript(stack, access_token, topic_of(alice)) as said:
        state = await anext(said)

    reason = f"You do not have permissions to read from this Channel topic: {topic_of(alice)}"
    assert state["status"] == "CHANNEL_ERROR"
    assert f"Unauthorized: {reason}" in state["message"]


async def test_nobody_but_the_gateway_speaks_on_a_users_topic(
    stack: Stack, http: httpx.AsyncClient, settings: Settings, alice: User, bob: User
) -> None:
    forged = {"topic": topic_of(alice), "event": "forged", "payload": {}, "private": True}
    async with (
        listening(stack, alice.token, table=None, topic=topic_of(alice), private=True) as listener,
        listening(stack, alice.token, table=None, topic=topic_of(alice), private=True) as speaker,
    ):
        await speaker.channel.send_broadcast("forged", {})
        for headers in ({}, *({"authorization": f"Bearer {user.token}"} for user in (alice, bob))):
            await post(stack, headers={"apikey": stack.keys.publishable, **headers}, json={"messages": [forged]})
        await realtime.broadcast(http, settings, topic_of(alice), "said", [{}])

        assert await listener.message() == ("said", {})


async def test_a_public_channel_of_the_same_name_hears_nothing_and_reaches_nobody(
    stack: Stack, http: httpx.AsyncClient, settings: Settings, alice: User
) -> None:
    async with (
        listening(stack, alice.token, table=None, topic=topic_of(alice), private=True) as own,
        listening(stack, stack.keys.publishable, table=None, topic=topic_of(alice)) as public,
        listening(stack, stack.keys.publishable, table=None, topic=topic_of(alice)) as public_speaker,
    ):
        await realtime.broadcast(http, settings, topic_of(alice), "said", [{"n": 1}])
        await public_speaker.channel.send_broadcast("forged", {})
        in_public = await public.message()
        await realtime.broadcast(http, settings, topic_of(alice), "said", [{"n": 2}])
        heard = [await own.message(), await own.message()]

    assert in_public == ("forged", {})
    assert heard == [("said", {"n": 1}), ("said", {"n": 2})]


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("expires", "Token has expired"),
        ("becomes another user's", "You do not have permissions to read from this Channel topic"),
        ("becomes a forged one", "The token is not valid, or has expired"),
    ],
)
async def test_a_listeners_token_that_no_longer_holds_ends_his_channel(
    stack: Stack, http: httpx.AsyncClient, settings: Settings, alice: User, bob: User, how: str, words: str
) -> None:
    seconds = 3 if how == "expires" else 600
    later = {"becomes another user's": bob.token, "becomes a forged one": alice.token[:-8]}
    async with socket(stack) as raw:
        own = token(stack, alice.auth_user_id, seconds)
        joined = await raw.join(topic_of(alice), access_token=own, config=PRIVATE)
        if how in later:
            await raw.send(topic_of(alice), "access_token", {"access_token": later[how]})
        told = await raw.heard(event="system")
        await raw.heard(event="phx_close")
        await realtime.broadcast(http, settings, topic_of(alice), "said", PIECES)
        await raw.send("phoenix", "heartbeat", {}, ref="the last")
        await raw.heard(ref="the last")

    assert joined["status"] == "ok"
    assert told["payload"]["message"].startswith(words)
    assert "broadcast" not in [frame["event"] for frame in raw.frames]


async def test_a_users_fresh_token_keeps_his_channel(
    stack: Stack, http: httpx.AsyncClient, settings: Settings, alice: User
) -> None:
    async with listening(
        stack, token(stack, alice.auth_user_id, 5), table=None, topic=topic_of(alice), private=True
    ) as listener:
        await listener.channel.socket.set_auth(alice.token)
        await asyncio.sleep(6)
        await realtime.broadcast(http, settings, topic_of(alice), "said", [{}])

        assert await listener.message() == ("said", {})


@pytest.mark.parametrize(
    ("key", "authorization"), [("sb_secret_made_up", None), ("eyJmYWtl.eyJmYWtl.fake", "Bearer eyJmYWtl.eyJmYWtl.fake")]
)
async def test_all_payloads_go_in_one_request_with_the_secret_key(
    settings: Settings, key: str, authorization: str | None
) -> None:
    requests: list[httpx.Request] = []

    def accept(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        return httpx.Response(202)

    keyed = settings.model_copy(update={"supabase_secret_key": SecretStr(key)})
    async with httpx.AsyncClient(transport=httpx.MockTransport(accept)) as http:
        await realtime.broadcast(http, keyed, "user:5", "delta", PIECES)

    [request] = requests
    assert str(request.url) == f"{settings.supabase_url}/realtime/v1/api/broadcast"
    assert (request.headers["apikey"], request.headers.get("authorization")) == (key, authorization)
    assert json.loads(request.content) == {
        "messages": [{"topic": "user:5", "event": "delta", "payload": piece, "private": True} for piece in PIECES]
    }


def refuses(_request: httpx.Request) -> httpx.Response:
    return httpx.Response(429)


def is_gone(_request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("refused")


async def is_silent(_request: httpx.Request) -> httpx.Response:
    await asyncio.sleep(30)
    return httpx.Response(202)


@pytest.mark.parametrize("server", [refuses, is_gone, is_silent])
async def test_a_broadcast_that_is_not_taken_is_unavailable(settings: Settings, server: Callable[..., Any]) -> None:
    async with httpx.AsyncClient(transport=httpx.MockTransport(server)) as http, asyncio.timeout(5):
        with pytest.raises(Unavailable):
            await realtime.broadcast(http, settings, "user:5", "delta", PIECES)
