"""Private channels of Realtime: the policies on realtime.messages say who is let in, hears and sends."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from infra.local.stack import Stack
from tests.realtime_clients import Socket, post, socket, token

ADA = str(uuid4())
# The tokens of these tests say themselves what they allow: {"hears": ["broadcast"], "sends": ["presence"]}.
POLICIES = """
    create policy "some hear the room" on realtime.messages for select to authenticated
        using (realtime.topic() = 'room' and auth.jwt() -> 'hears' ? extension);
    create policy "some send to the room" on realtime.messages for insert to authenticated
        with check (realtime.topic() = 'room' and auth.jwt() -> 'sends' ? extension);
    create policy "this one fails" on realtime.messages for select to authenticated
        using (case when realtime.topic() = 'broken' then topic::int > 0 end);
"""
FORGET = """
    drop policy if exists "some hear the room" on realtime.messages;
    drop policy if exists "some send to the room" on realtime.messages;
    drop policy if exists "this one fails" on realtime.messages;
"""
REFUSED = "You do not have permissions to read from this Channel topic: "
PRIVATE = {"private": True}
EVERYTHING = ["broadcast", "presence"]

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module", autouse=True)
def database(stack: Stack) -> Iterator[psycopg.Connection]:
    with psycopg.connect(stack.database_url, autocommit=True) as connection:
        connection.execute(FORGET)
        connection.execute(POLICIES)
        yield connection
        connection.execute(FORGET)


@asynccontextmanager
async def joined(stack: Stack, topic: str = "room", is_private: bool = True, **claims: Any) -> AsyncIterator[Socket]:
    async with socket(stack) as raw:
        config = {"private": is_private, "broadcast": {"ack": True}}
        reply = await raw.join(topic, access_token=token(stack, ADA, **claims), config=config)
        assert reply["status"] == "ok"
        yield raw


async def say(raw: Socket, event: str) -> None:
    """Broadcast an event; a heartbeat's answer tells that it has been dealt with."""
    await raw.send("room", "broadcast", {"type": "broadcast", "event": event, "payload": {}}, ref=event)
    await raw.send("phoenix", "heartbeat", {}, ref="dealt with")
    await raw.heard(ref="dealt with")


async def events(raw: Socket, last: str) -> list[str]:
    """The events heard so far, up to the last one."""
    while (await raw.heard(event="broadcast"))["payload"]["event"] != last:
        pass
    return [frame["payload"]["event"] for frame in raw.frames if frame["event"] == "broadcast"]


async def post_events(stack: Stack, headers: dict[str, str], *events: tuple[str, bool]) -> int:
    """Broadcast events to the room over REST, each with whether it is private; gives the status."""
    messages = [{"topic": "room", "event": event, "payload": {}, "private": private} for event, private in events]
    return (await post(stack, headers=headers, json={"messages": messages})).status_code


@pytest.mark.parametrize(
    ("hears", "has_presence"), [(["broadcast"], False), (["presence"], True), (EVERYTHING, True), (["broadcast"], True)]
)
async def test_whoever_hears_anything_of_a_channel_is_let_in(
    stack: Stack, hears: list[str], has_presence: bool
) -> None:
    config = {**PRIVATE, "presence": {"enabled": has_presence}}
    async with socket(stack) as raw:
        reply = await raw.join("room", access_token=token(stack, ADA, hears=hears), config=config)
        if has_presence and "presence" in hears:
            await raw.heard(event="presence_state")

    assert reply["status"] == "ok"


@pytest.mark.parametrize(
    ("topic", "hears"),
    [
        ("room", []),
        ("room", ["presence"]),  # of which a client without presence would hear nothing
        ("elsewhere", EVERYTHING),
        ("broken", EVERYTHING),
        ("\0", EVERYTHING),
        ("\ud800", EVERYTHING),
    ],
)
async def test_whoever_hears_nothing_of_a_channel_is_refused(stack: Stack, topic: str, hears: list[str]) -> None:
    async with socket(stack) as raw:
        reply = await raw.join(topic, access_token=token(stack, ADA, hears=hears), config=PRIVATE)

    assert (reply["status"], reply["response"]["reason"]) == ("error", f"Unauthorized: {REFUSED}{topic}")


async def test_a_role_that_does_not_exist_is_refused(stack: Stack) -> None:
    async with socket(stack) as raw:
        reply = await raw.join("room", access_token=token(stack, ADA, role="nobody"), config=PRIVATE)

    assert reply["response"]["reason"] == f"Unauthorized: {REFUSED}room"


async def test_asking_leaves_no_message(stack: Stack, database: psycopg.Connection) -> None:
    async with joined(stack, hears=["broadcast"], sends=["broadcast"]) as raw:
        await say(raw, "hello")
        await post_events(stack, {"apikey": stack.keys.secret}, ("hello", True))

    assert database.execute("select count(*) from realtime.messages").fetchone() == (0,)


async def test_what_somebody_may_not_send_is_dropped_unanswered(stack: Stack) -> None:
    async with (
        joined(stack, hears=["broadcast"]) as silent,
        joined(stack, hears=["broadcast"], sends=["broadcast"]) as speaker,
        joined(stack, hears=["broadcast"]) as listener,
    ):
        await say(silent, "not allowed")
        await say(speaker, "allowed")
        heard = await events(listener, "allowed")

    assert heard == ["allowed"]
    assert "not allowed" not in [frame["ref"] for frame in silent.frames]
    assert "allowed" in [frame["ref"] for frame in speaker.frames]


async def test_whoever_hears_presence_only_hears_no_broadcast(stack: Stack) -> None:
    config = {**PRIVATE, "presence": {"enabled": True}}
    async with socket(stack) as raw, joined(stack, hears=["broadcast"]) as listener:
        await raw.join("room", access_token=token(stack, ADA, hears=["presence"]), config=config)
        await post_events(stack, {"apikey": stack.keys.secret}, ("hello", True))
        await events(listener, "hello")
        await raw.send("phoenix", "heartbeat", {}, ref="still here")
        await raw.heard(ref="still here")

    assert "broadcast" not in [frame["event"] for frame in raw.frames]
    assert "presence_state" in [frame["event"] for frame in raw.frames]


@pytest.mark.parametrize(("sends", "status"), [(["presence"], "ok"), (["broadcast"], "error")])
async def test_presence_is_tracked_for_whoever_may_send_it(stack: Stack, sends: list[str], status: str) -> None:
    async with joined(stack, hears=EVERYTHING, sends=sends) as raw:
        await raw.send("room", "presence", {"type": "presence", "event": "track", "payload": {}}, ref="9")
        tracked = await raw.heard(ref="9")

    assert tracked["payload"]["status"] == status


async def test_a_private_channel_and_a_public_one_of_the_same_name_are_apart(stack: Stack) -> None:
    async with (
        joined(stack, hears=["broadcast"], sends=["broadcast"]) as private,
        joined(stack, hears=["broadcast"]) as other_private,
        joined(stack, is_private=False) as public,
        joined(stack, is_private=False) as other_public,
    ):
        await say(private, "private")
        await say(public, "public")
        await post_events(
            stack, {"apikey": stack.keys.secret}, ("private over REST", True), ("public over REST", False)
        )
        heard_in_private = await events(other_private, "private over REST")
        heard_in_public = await events(other_public, "public over REST")

    assert heard_in_private == ["private", "private over REST"]
    assert heard_in_public == ["public", "public over REST"]


@pytest.mark.parametrize(
    ("apikey", "bearer_sends", "is_heard"),
    [
        ("secret", None, True),
        ("publishable", ["broadcast"], True),
        ("publishable", ["presence"], False),
        ("publishable", None, False),
        ("secret", [], False),
    ],
)
async def test_over_rest_a_private_message_goes_as_far_as_its_senders_rights(
    stack: Stack, apikey: str, bearer_sends: list[str] | None, is_heard: bool
) -> None:
    headers = {"apikey": str(getattr(stack.keys, apikey))}
    if bearer_sends is not None:
        headers["authorization"] = f"Bearer {token(stack, ADA, sends=bearer_sends)}"
    async with joined(stack, hears=["broadcast"]) as listener:
        status = await post_events(stack, headers, ("tried", True))
        single = await post(stack, "/room/events/tried%20alone?private=true", headers=headers, json={})
        await post_events(stack, {"apikey": stack.keys.secret}, ("the last", True))
        heard = await events(listener, "the last")

    assert (status, single.status_code) == (202, 202)
    assert heard == [*["tried", "tried alone"] * is_heard, "the last"]


@pytest.mark.parametrize(
    ("hears", "words"),
    [
        (["presence"], "You no longer have permission to read from this Channel topic: room"),
        ([], f"{REFUSED}room"),
    ],
)
async def test_a_new_token_that_hears_less_ends_the_channel(stack: Stack, hears: list[str], words: str) -> None:
    config = {**PRIVATE, "presence": {"enabled": True}}
    async with socket(stack) as raw:
        await raw.join("room", access_token=token(stack, ADA, hears=EVERYTHING), config=config)
        await raw.send("room", "access_token", {"access_token": token(stack, ADA, hears=hears)})
        told = await raw.heard(event="system")
        await raw.heard(event="phx_close")

    assert told["payload"] == {"channel": "room", "extension": "system", "message": words, "status": "error"}


async def test_a_new_token_changes_what_may_be_sent(stack: Stack) -> None:
    async with joined(stack, hears=["broadcast"]) as speaker, joined(stack, hears=["broadcast"]) as listener:
        await say(speaker, "before")
        fresh = token(stack, ADA, hears=["broadcast"], sends=["broadcast"])
        await speaker.send("room", "access_token", {"access_token": fresh})
        await say(speaker, "after")
        heard = await events(listener, "after")

    assert heard == ["after"]


async def test_an_api_key_in_the_place_of_a_new_token_changes_nothing(stack: Stack) -> None:
    async with joined(stack, hears=["broadcast"]) as raw:
        await raw.send("room", "access_token", {"access_token": stack.keys.publishable})
        await post_events(stack, {"apikey": stack.keys.secret}, ("hello", True))

        assert await events(raw, "hello") == ["hello"]
