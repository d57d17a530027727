"""Presence on Realtime's channels, as supabase-js shows it and as the wire carries it."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from infra.local.stack import Stack
from tests.realtime_clients import Socket, script, socket, token

ADA = str(uuid4())
SCRIPT = Path(__file__).with_name("presence_client.mjs")
# The tokens of these tests say themselves what they allow: {"hears": ["presence"], "sends": ["presence"]}.
POLICIES = """
    create policy "some hear who is in the lounge" on realtime.messages for select to authenticated
        using (realtime.topic() = 'lounge' and auth.jwt() -> 'hears' ? extension);
    create policy "some are in the lounge" on realtime.messages for insert to authenticated
        with check (realtime.topic() = 'lounge' and auth.jwt() -> 'sends' ? extension);
"""
FORGET = """
    drop policy if exists "some hear who is in the lounge" on realtime.messages;
    drop policy if exists "some are in the lounge" on realtime.messages;
"""
BOTH = ["broadcast", "presence"]

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module", autouse=True)
def policies(stack: Stack) -> Iterator[None]:
    with psycopg.connect(stack.database_url, autocommit=True) as connection:
        connection.execute(FORGET)
        connection.execute(POLICIES)
        yield
        connection.execute(FORGET)


@asynccontextmanager
async def joined(
    stack: Stack,
    key: str | None = None,
    *,
    topic: str = "lounge",
    enabled: bool = True,
    private: bool = False,
    **claims: Any,
) -> AsyncIterator[Socket]:
    config = {"presence": {"key": key, "enabled": enabled}, "private": private}
    async with socket(stack) as raw:
        reply = await raw.join(topic, access_token=token(stack, ADA, **claims), config=config)
        assert reply["status"] == "ok"
        yield raw


async def say(raw: Socket, event: str, payload: Any = None) -> str:
    """Track or untrack; gives the answer's status."""
    await raw.send("lounge", "presence", {"type": "presence", "event": event, "payload": payload}, ref=event)
    return str((await raw.heard(ref=event))["payload"]["status"])


async def state(stack: Stack, **joining: Any) -> dict[str, list[Any]]:
    """Who is there, as somebody is told who joins now: by key, what they say."""
    async with joined(stack, **joining) as raw:
        told = (await raw.heard(event="presence_state"))["payload"]
    return {key: [without_references(meta) for meta in entry["metas"]] for key, entry in told.items()}


def without_references(meta: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in meta.items() if not name.startswith("phx_ref")}


async def after(raw: Socket) -> list[str]:
    """The events heard until all that was sent has been dealt with."""
    await raw.send("phoenix", "heartbeat", {}, ref="dealt with")
    await raw.heard(ref="dealt with")
    return [frame["event"] for frame in raw.frames]


async def test_javascript_clients_see_each_other_come_and_go(stack: Stack) -> None:
    common = stack.url, stack.keys.publishable, token(stack, ADA), "people"
    async with script(SCRIPT, *common, "ada") as ada:
        await ada.heard(sync={})
        async with script(SCRIPT, *common, "bob") as bob:
            await bob.heard(sync={})
            bob.tell(track={"mood": "glad"})
            came = await ada.heard(join="bob")
            await ada.heard(sync={"bob": [{"mood": "glad"}]})
            await bob.heard(sync={"bob": [{"mood": "glad"}]})
            bob.tell(untrack=True)
            left = await ada.heard(leave="bob")
            await ada.heard(sync={})
            await bob.heard(untrack="ok")
            bob.tell(track={"mood": "back"})
            await ada.heard(sync={"bob": [{"mood": "back"}]})
        gone = await ada.heard(leave="bob")
        await ada.heard(sync={})

    assert came == {"join": "bob", "says": [{"mood": "glad"}]}
    assert left == {"leave": "bob", "says": [{"mood": "glad"}]}
    assert gone == {"leave": "bob", "says": [{"mood": "back"}]}


# What such a client keeps of it is another matter: https://github.com/supabase/supabase-js/issues/2565
async def test_javascript_client_is_told_of_a_change_as_coming_and_going(stack: Stack) -> None:
    async with script(SCRIPT, stack.url, stack.keys.publishable, token(stack, ADA), "people", "ada") as ada:
        await ada.heard(sync={})
        ada.tell(track={"mood": "glad"})
        await ada.heard(track="ok")
        ada.tell(track={"mood": "calm"})
        came = await ada.heard(join="ada")
        left = await ada.heard(leave="ada")

    assert (came["says"], left["says"]) == ([{"mood": "calm"}], [{"mood": "glad"}])


async def test_whoever_joins_later_is_shown_who_is_there(stack: Stack) -> None:
    async with joined(stack, "ada") as first, joined(stack, "ada") as second, joined(stack) as nameless:
        for raw, device in ((first, "phone"), (second, "desk"), (nameless, "unknown")):
            await say(raw, "track", {"device": device})
        there = await state(stack)

    assert there.pop("ada") == [{"device": "phone"}, {"device": "desk"}]
    assert list(there.values()) == [[{"device": "unknown"}]]


async def test_saying_the_same_again_is_told_to_nobody(stack: Stack) -> None:
    async with joined(stack, "ada") as raw, joined(stack) as listener:
        for mood in ("glad", "glad", "calm"):
            await say(raw, "track", {"mood": mood})
        heard = await after(listener)
        diffs = [frame["payload"] for frame in listener.frames if frame["event"] == "presence_diff"]

    [first], [second], [former] = (
        diff[side]["ada"]["metas"] for diff, side in ((diffs[0], "joins"), (diffs[1], "joins"), (diffs[1], "leaves"))
    )
    assert heard.count("presence_diff") == 2
    assert former == first
    assert second["phx_ref_prev"] == first["phx_ref"] != second["phx_ref"]


@pytest.mark.parametrize(("event", "payload"), [("track", "glad"), ("track", [1]), ("wave", {})])
async def test_what_is_no_presence_is_refused(stack: Stack, event: str, payload: Any) -> None:
    async with joined(stack, "ada") as raw:
        status = await say(raw, event, payload)
        there = await state(stack)

    assert (status, there) == ("error", {})


async def test_whoever_tracks_without_having_asked_for_presence_hears_of_it_from_then_on(stack: Stack) -> None:
    async with joined(stack, "ada", enabled=False) as ada, joined(stack, "bob") as bob:
        await say(bob, "track", {"n": 1})
        before = await after(ada)
        await say(ada, "track", {"n": 2})
        heard = await after(ada)

    assert "presence_diff" not in before
    assert {"presence_state", "presence_diff"} <= set(heard)


@pytest.mark.parametrize("how", ["leaves", "joins again", "loses the token"])
async def test_a_channel_that_ends_is_present_no_longer(stack: Stack, how: str) -> None:
    async with joined(stack, "ada") as ada, joined(stack, "bob") as bob:
        await say(ada, "track", {"n": 1})
        if how == "leaves":
            await ada.send("lounge", "phx_leave", {})
        elif how == "joins again":
            await ada.join("lounge", access_token=token(stack, ADA))
        else:
            await ada.send("lounge", "access_token", {"access_token": "bad"})
        async with asyncio.timeout(10):
            while not (await bob.heard(event="presence_diff"))["payload"]["leaves"]:
                pass

        assert await state(stack) == {}


async def test_on_a_private_channel_policies_say_who_is_seen_and_who_sees(stack: Stack) -> None:
    async with (
        joined(stack, "seen", private=True, hears=BOTH, sends=["presence"]) as seen,
        joined(stack, "unseen", private=True, hears=BOTH, sends=["broadcast"]) as unseen,
        joined(stack, "blind", private=True, hears=["broadcast"], sends=["presence"]) as blind,
        joined(stack, "public") as public,
    ):
        statuses = [await say(raw, "track", {}) for raw in (seen, unseen, blind, public)]
        there = await state(stack, private=True, hears=["presence"])
        heard_by_blind, heard_by_unseen = await after(blind), await after(unseen)

    assert statuses == ["ok", "error", "ok", "ok"]
    assert there == {"seen": [{}], "blind": [{}]}
    assert not {"presence_state", "presence_diff"} & set(heard_by_blind)
    assert heard_by_unseen.count("presence_diff") == 2


@pytest.mark.parametrize(("hears", "is_told"), [(BOTH, True), (["broadcast"], False)])
async def test_on_a_private_channel_tracking_shows_the_others_to_whoever_may_see_them(
    stack: Stack, hears: list[str], is_told: bool
) -> None:
    async with joined(stack, "ada", enabled=False, private=True, hears=hears, sends=["presence"]) as raw:
        status = await say(raw, "track", {})
        heard = await after(raw)

    assert status == "ok"
    assert ("presence_state" in heard) == is_told
