"""Realtime as its clients meet it: row changes under row level security, broadcasts, and what is refused."""

import asyncio
import json
import secrets
import time
import uuid
from collections.abc import Iterator
from typing import Any

import jwt
import psycopg
import pytest
from psycopg import sql
from psycopg.types.json import Jsonb
from websockets.exceptions import ConnectionClosed, InvalidStatus

from infra.local import parts
from infra.local.stack import Stack
from tests.realtime_clients import WAIT_SECONDS, listening, post, socket, token

ADA, BOB = str(uuid.uuid4()), str(uuid.uuid4())
SCRIPT = parts.ROOT / "tests/infra/realtime_client.mjs"
NOTES = """
    create table public.realtime_notes (
        id int primary key,
        owner uuid,
        is_public boolean not null default false,
        body text,
        amount numeric,
        tags text[],
        details jsonb,
        "100%" text,
        made_at timestamptz,
        place text,
        secret text
    );
    alter table public.realtime_notes enable row level security;
    create policy "owners read" on public.realtime_notes for select to authenticated
        using (owner = (select auth.uid()));
    create policy "everybody reads public notes" on public.realtime_notes for select to anon, authenticated
        using (is_public);
    revoke all on public.realtime_notes from anon, authenticated;
    grant select (id, owner, is_public, body, amount, tags, details, "100%", made_at)
        on public.realtime_notes to anon, authenticated;
    alter publication supabase_realtime add table public.realtime_notes;
    notify pgrst, 'reload schema';
"""
LOOKS = """
    create sequence public.realtime_looks;
    create table public.realtime_looked_at (id int primary key);
    alter table public.realtime_looked_at enable row level security;
    create policy "counts" on public.realtime_looked_at for select to authenticated
        using (nextval('public.realtime_looks') > 0);
    alter publication supabase_realtime add table public.realtime_looked_at;
"""
# In one transaction: the log then speaks of a type that is gone.
DROPPED_TYPE = """
    create type public.realtime_mood as enum ('glad');
    alter table public.realtime_notes add mood public.realtime_mood;
    insert into public.realtime_notes (id, mood) values (1, 'glad');
    drop type public.realtime_mood cascade;
"""
FORGET = """
    drop table if exists public.realtime_notes, public.realtime_looked_at;
    drop sequence if exists public.realtime_looks;
"""

pytestmark = pytest.mark.anyio


class Notes:
    """The table that everybody listens to, written by the superuser."""

    def __init__(self, database: psycopg.Connection) -> None:
        self.database = database

    def add(self, id: int, **values: Any) -> None:
        self.database.execute(
            "insert into public.realtime_notes select * from jsonb_populate_record(null::public.realtime_notes, %s)",
            [Jsonb({"id": id, "is_public": False, **values})],
        )

    async def slot(self, other_than: str = "") -> str:
        """The change feed's replication slot, once it is ready."""
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                query = (
                    "select slot_name from pg_replication_slots where confirmed_flush_lsn > '0/0' and slot_name <> %s"
                )
                if row := self.database.execute(query, [other_than]).fetchone():
                    return str(row[0])
                await asyncio.sleep(0.05)


@pytest.fixture
def notes(stack: Stack) -> Iterator[Notes]:
    with psycopg.connect(stack.database_url, autocommit=True) as database:
        database.execute(FORGET)
        database.execute(NOTES)
        yield Notes(database)
        database.execute(FORGET)


def wanting(**fields: Any) -> dict[str, Any]:
    """A join's config for changes of the notes."""
    return {"postgres_changes": [{"event": "*", "schema": "public", "table": "realtime_notes", **fields}]}


async def test_python_client_hears_inserts_updates_and_deletes(stack: Stack, notes: Notes) -> None:
    async with listening(stack, token(stack, ADA)) as listener:
        notes.add(1, owner=ADA, body="first")
        inserted = await listener.change()
        notes.database.execute("update public.realtime_notes set body = 'second'")
        updated = await listener.change()
        notes.database.execute("delete from public.realtime_notes")
        deleted = await listener.change()

    assert (inserted["type"], inserted["record"]["body"]) == ("INSERT", "first")
    assert (updated["type"], updated["record"]["body"], updated["old_record"]) == ("UPDATE", "second", {"id": 1})
    assert (deleted["type"], deleted["old_record"]) == ("DELETE", {"id": 1})
    assert {"name": "amount", "type": "numeric"} in inserted["columns"]


async def test_javascript_client_hears_changes_and_broadcasts(stack: Stack, notes: Notes) -> None:
    command = [parts.node(), "--experimental-websocket", str(SCRIPT)]  # Node 20 has it behind this flag
    node = await asyncio.create_subprocess_exec(
        *command,
        *(stack.url, stack.keys.publishable, token(stack, ADA), "realtime_notes"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert node.stdin and node.stdout
    said = (json.loads(line) async for line in node.stdout)

    async with asyncio.timeout(30), listening(stack, token(stack, BOB), topic="javascript") as listener:
        joined = [await anext(said), await anext(said)]
        notes.add(1, owner=ADA, amount=1.5, tags=["a", "b"])
        inserted = await anext(said)
        notes.database.execute("update public.realtime_notes set amount = 2")
        updated = await anext(said)
        notes.database.execute("delete from public.realtime_notes")
        deleted = await anext(said)
        await listener.channel.send_broadcast("ping", {"n": 1})
        answers = [await anext(said), await anext(said)]
        messages = [await listener.message(), await listener.message()]
        node.stdin.close()
        closed = [line async for line in said]
        await node.wait()

    assert {"status": "SUBSCRIBED"} in joined
    assert {"status": "ok", "message": "Subscribed to PostgreSQL"} in joined
    assert (inserted["eventType"], inserted["new"]["amount"], inserted["new"]["tags"]) == ("INSERT", 1.5, ["a", "b"])
    assert (updated["eventType"], updated["new"]["amount"], updated["old"]) == ("UPDATE", 2, {"id": 1})
    assert (deleted["eventType"], deleted["old"]) == ("DELETE", {"id": 1})
    assert answers == [{"sent": "ok"}, {"posted": {"success": True}}]
    assert messages == [("pong", {"n": 1}), ("pong over REST", {"n": 1})]
    assert closed == [{"status": "CLOSED"}]


async def test_values_read_as_postgres_prints_them_as_json(stack: Stack, notes: Notes) -> None:
    values = {"amount": 12.5, "tags": ["a,b", None], "details": {"k": [1, None]}, "made_at": "2026-01-02 03:04:05+02"}
    async with listening(stack, stack.keys.secret) as listener:
        notes.add(1, owner=ADA, body='"quoted", \\ and ünïcode', secret="hush", **values, **{"100%": "yes"})
        record = (await listener.change())["record"]

    row = notes.database.execute("select to_jsonb(n) from public.realtime_notes n").fetchone()
    assert (record,) == row
    assert (record["made_at"], record["details"]["k"]) == ("2026-01-02T01:04:05+00:00", [1, None])


@pytest.mark.parametrize(
    ("filter", "ids"),
    [
        ("id=eq.4", [4]),
        ("body=neq.held", [1, 4]),
        ("amount=gt.9", [2, 3, 4]),
        ("amount=gte.10,amount=lt.100", [2, 3]),
        ("amount=lte.10.0", [1, 2]),
        ("id=in.(2, 4)", [2, 4]),
        ('body=in.(held,"open, urgent")', [2, 4]),
        ('body=eq."open, urgent",amount=gt.9', [4]),
        ("100%=eq.yes", [3]),
    ],
)
async def test_filters_compare_by_type(stack: Stack, notes: Notes, filter: str, ids: list[int]) -> None:
    async with listening(stack, token(stack, ADA), filter=filter) as listener:
        notes.add(1, owner=ADA, amount=2, body="open")
        notes.add(2, owner=ADA, amount=10, body="held")
        notes.add(3, owner=ADA, amount=10.5, **{"100%": "yes"})
        notes.add(4, owner=ADA, amount=100, body="open, urgent")

        assert await listener.ids(len(ids)) == ids


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"filter": "body=near.me"}, "Error parsing `filter` params"),
        ({"filter": "amount=gt.much"}, 'invalid input syntax for type numeric: "much"'),
        ({"filter": "nothing=eq.1"}, "nothing does not exist"),
        ({"filter": "secret=eq.hush"}, "permission denied"),
        ({"filter": "body=eq.\ud800"}, "surrogates not allowed"),
        ({"filter": "body=eq.\0"}, "Unable to subscribe to changes"),
        ({"table": "unpublished"}, "Please check Realtime is enabled"),
    ],
)
async def test_names_what_cannot_be_subscribed_to(
    stack: Stack, notes: Notes, fields: dict[str, Any], reason: str
) -> None:
    async with socket(stack) as raw:
        await raw.join("notes", config=wanting(**fields))
        told = await raw.heard(event="system")

    assert (told["payload"]["status"], told["payload"]["extension"]) == ("error", "postgres_changes")
    assert reason in told["payload"]["message"]


async def test_hides_another_users_rows(stack: Stack, notes: Notes) -> None:
    async with listening(stack, token(stack, ADA)) as ada, listening(stack, token(stack, BOB)) as bob:
        notes.add(1, owner=ADA)
        notes.add(2, owner=BOB)
        first = await ada.ids(1) + await bob.ids(1)
        notes.database.execute("update public.realtime_notes set owner = %s where id = 1", [BOB])
        notes.add(3, owner=ADA)
        then = await ada.ids(1) + await bob.ids(1)

    assert (first, then) == ([1, 2], [3, 1])


async def test_shows_visitors_public_rows_only(stack: Stack, notes: Notes) -> None:
    async with listening(stack, stack.keys.publishable) as visitor:
        notes.add(1, owner=ADA)
        notes.add(2, owner=ADA, is_public=True)

        assert await visitor.ids(1) == [2]


async def test_shows_the_service_every_row(stack: Stack, notes: Notes) -> None:
    notes.database.execute("alter table public.realtime_notes replica identity full")
    async with listening(stack, stack.keys.secret) as service, listening(stack, token(stack, BOB)) as bob:
        notes.add(1, owner=ADA, secret="hush")
        inserted = await service.change()
        notes.database.execute("delete from public.realtime_notes")
        deleted, deleted_for_bob = await service.change(), await bob.change()

    assert inserted["record"]["secret"] == deleted["old_record"]["secret"] == "hush"
    assert deleted_for_bob["old_record"] == {"id": 1}


async def test_leaves_out_columns_the_role_may_not_read(stack: Stack, notes: Notes) -> None:
    async with listening(stack, token(stack, ADA)) as ada:
        notes.add(1, owner=ADA, body="open", secret="hush")
        change = await ada.change()

    assert change["record"]["body"] == "open"
    assert "secret" not in change["record"]
    assert "secret" not in [column["name"] for column in change["columns"]]


@pytest.mark.parametrize(("identity", "body"), [(sql.SQL("default"), None), (sql.SQL("full"), "x" * 20_000)])
async def test_large_values_an_update_left_alone_come_from_a_full_identity(
    stack: Stack, notes: Notes, identity: sql.SQL, body: str | None
) -> None:
    notes.database.execute("alter table public.realtime_notes alter column body set storage external")
    notes.database.execute(sql.SQL("alter table public.realtime_notes replica identity {}").format(identity))
    async with listening(stack, token(stack, ADA)) as ada:
        notes.add(1, owner=ADA, body="x" * 20_000)
        await ada.change()
        notes.database.execute("update public.realtime_notes set amount = 5")
        record = (await ada.change())["record"]

    assert (record["amount"], record.get("body")) == (5, body)


async def test_rows_beyond_a_mebibyte_keep_their_short_values(stack: Stack, notes: Notes) -> None:
    async with listening(stack, token(stack, ADA)) as ada:
        notes.add(1, owner=ADA, body="x" * 2**20, amount=5)
        change = await ada.change()

    assert change["errors"] == ["Error 413: Payload Too Large"]
    assert (change["record"]["amount"], "body" in change["record"]) == (5, False)


async def test_looks_at_a_row_once_for_each_reader_and_never_for_others(stack: Stack, notes: Notes) -> None:
    notes.database.execute(LOOKS)
    access_token = token(stack, ADA)
    table = "realtime_looked_at"
    async with (
        listening(stack, access_token, table) as one,
        listening(stack, access_token, table) as two,
        listening(stack, token(stack, BOB), table, filter="id=gt.1"),
    ):
        notes.database.execute("insert into public.realtime_looked_at values (1)")
        heard = await one.ids(1) + await two.ids(1)

    looks = notes.database.execute("select last_value from public.realtime_looks").fetchone()
    assert (heard, looks) == ([1, 1], (1,))


async def test_truncation_is_passed_over(stack: Stack, notes: Notes) -> None:
    async with listening(stack, token(stack, ADA)) as ada:
        notes.database.execute("truncate public.realtime_notes")
        notes.add(1, owner=ADA)

        assert await ada.ids(1) == [1]


async def test_a_row_that_can_no_longer_be_read_stops_nothing(stack: Stack, notes: Notes) -> None:
    slot = await notes.slot()
    async with listening(stack, stack.keys.secret) as service:
        notes.database.execute(DROPPED_TYPE)
        notes.add(2)
        heard = await service.ids(1)

    assert (heard, await notes.slot()) == ([2], slot)


async def test_changes_of_one_transaction_come_in_their_order(stack: Stack, notes: Notes) -> None:
    async with listening(stack, token(stack, ADA)) as ada:
        with notes.database.transaction():
            notes.add(1, owner=ADA)
            notes.database.execute("update public.realtime_notes set body = 'second'")
            notes.add(2, owner=ADA)
        heard = [await ada.change() for _ in range(3)]

    assert [(change["type"], change["record"]["id"]) for change in heard] == [
        ("INSERT", 1),
        ("UPDATE", 1),
        ("INSERT", 2),
    ]


async def test_a_row_too_deep_to_be_told_takes_no_other_with_it(stack: Stack, notes: Notes) -> None:
    async with listening(stack, token(stack, ADA)) as ada:
        with notes.database.transaction():
            notes.add(1, owner=ADA)
            notes.database.execute(
                "insert into public.realtime_notes (id, owner, details)"
                " values (2, %s, (repeat('[', 2000) || repeat(']', 2000))::jsonb)",
                [ADA],
            )
            notes.add(3, owner=ADA)

        assert await ada.ids(2) == [1, 3]


async def test_a_reader_without_the_right_to_read_disturbs_nobody(stack: Stack, notes: Notes) -> None:
    notes.database.execute("revoke select on public.realtime_notes from anon")
    slot = await notes.slot()
    async with listening(stack, stack.keys.publishable) as visitor, listening(stack, stack.keys.secret) as service:
        notes.add(1, is_public=True)
        notes.add(2, is_public=True)
        heard = await service.ids(2)

    assert (heard, await notes.slot()) == ([1, 2], slot)
    assert visitor.changes.empty()


async def test_feed_comes_back_when_its_connection_is_killed(stack: Stack, notes: Notes) -> None:
    async with listening(stack, token(stack, ADA)) as ada:
        slot = await notes.slot()
        notes.database.execute("select pg_terminate_backend(active_pid) from pg_replication_slots")
        await notes.slot(other_than=slot)
        notes.add(1, owner=ADA)

        assert await ada.ids(1) == [1]


@pytest.mark.parametrize(("hears_itself", "heard"), [(False, ["to you"]), (True, ["to all", "to you"])])
async def test_broadcasts_reach_the_other_listeners(
    stack: Stack, notes: Notes, hears_itself: bool, heard: list[str]
) -> None:
    async with (
        listening(stack, token(stack, ADA), hears_itself=hears_itself) as ada,
        listening(stack, token(stack, BOB)) as bob,
        listening(stack, token(stack, BOB), topic="elsewhere") as elsewhere,
    ):
        await ada.channel.send_broadcast("to all", {"n": 1})
        message = await bob.message()
        await bob.channel.send_broadcast("to you", {"n": 2})
        ours = [(await ada.message())[0] for _ in heard]

    assert (message, ours) == (("to all", {"n": 1}), heard)
    assert elsewhere.messages.empty()


async def test_broadcasts_over_rest_reach_listeners(stack: Stack, notes: Notes) -> None:
    message = {"topic": "notes", "event": "batch", "payload": {"n": 1}}
    async with listening(stack, token(stack, ADA)) as ada:
        batch = await post(stack, json={"messages": [message]})
        single = await post(stack, "/notes/events/single", json={"n": 2})
        await ada.channel.http_send("sent", {"n": 3})
        messages = [await ada.message() for _ in range(3)]

    assert (batch.status_code, single.status_code) == (202, 202)
    assert messages == [("batch", {"n": 1}), ("single", {"n": 2}), ("sent", {"n": 3})]


@pytest.mark.parametrize(
    ("path", "content", "status"),
    [
        ("", "{", 400),
        ("", "[" * 100_000, 400),
        ("", '{"messages": [{"topic": "t", "event": "e", "payload": {"n": NaN}}]}', 400),
        ("", "{}", 422),
        ("", "[]", 422),
        ("", '{"messages": [{"topic": "notes"}]}', 422),
        ("/notes/events/single", "5", 422),
        ("/notes/events/single", b"\xff", 400),
        ("/notes/events/single", '"' + "x" * 5_000_000 + '"', 413),
    ],
)
async def test_malformed_broadcasts_are_refused(stack: Stack, path: str, content: str | bytes, status: int) -> None:
    response = await post(stack, path, content=content)

    assert (response.status_code, response.headers["content-type"]) == (status, "application/json")


async def test_bad_keys_are_refused(stack: Stack) -> None:
    claims = {"role": "service_role", "exp": int(time.time() + 60)}
    bad_token = jwt.encode(claims, "another secret of 32 characters or so", "HS256")
    with pytest.raises(InvalidStatus) as handshake:
        async with socket(stack, apikey="bad"):
            pass
    async with socket(stack) as raw:
        replies = [await raw.join(str(n), access_token=bad) for n, bad in enumerate([bad_token, "bad", "\ud800", 5])]
    key, bad_bearer = stack.keys.publishable, f"Bearer {bad_token}"
    wrong: list[dict[str, str]] = [{}, {"apikey": "bad"}, {"apikey": key, "authorization": bad_bearer}]
    posts = [await post(stack, headers=headers, json={"messages": []}) for headers in wrong]

    assert handshake.value.response.status_code == 403
    assert all(reply["status"] == "error" and "InvalidJWTToken" in reply["response"]["reason"] for reply in replies)
    assert [response.status_code for response in posts] == [401, 401, 401]
    assert all(response.json() == {"message": "Unauthorized"} for response in posts)


@pytest.mark.parametrize("how", ["expires", "is replaced by a bad one", "is replaced by another user's"])
async def test_a_token_that_no_longer_holds_ends_its_rows(stack: Stack, notes: Notes, how: str) -> None:
    async with socket(stack) as raw:
        seconds = 3 if how == "expires" else 600
        await raw.join("ada", access_token=token(stack, ADA, seconds), config=wanting())
        await raw.join("service", access_token=stack.keys.secret, config=wanting())
        if how == "is replaced by another user's":
            await raw.send("ada", "access_token", {"access_token": token(stack, BOB)})
        else:
            if how == "is replaced by a bad one":
                await raw.send("ada", "access_token", {"access_token": "bad"})
            await raw.heard(topic="realtime:ada", event="phx_close")
        notes.add(1, owner=ADA)
        notes.add(2)
        for _ in range(2):
            await raw.heard(topic="realtime:service", event="postgres_changes")

    assert ("realtime:ada", "postgres_changes") not in [(frame["topic"], frame["event"]) for frame in raw.frames]


async def test_a_fresh_token_keeps_rows_coming(stack: Stack, notes: Notes) -> None:
    async with listening(stack, token(stack, BOB)) as listener:
        await listener.channel.socket.set_auth(token(stack, ADA))
        await listener.channel.send_broadcast("after it", {})
        notes.add(1, owner=BOB)
        notes.add(2, owner=ADA)

        assert await listener.ids(1) == [2]


@pytest.mark.parametrize(
    "frame",
    [
        "",
        "{",
        "5",
        "[]",
        "{}",
        '{"topic": "realtime:notes", "event": 5}',
        '{"topic": "realtime:notes", "event": "nonsense", "payload": []}',
        '{"topic": "realtime:notes", "event": "broadcast", "payload": {"n": Infinity}}',
        '{"topic": "realtime:other", "event": "phx_join", "payload": {"config": 5}}',
        '{"topic": "realtime:other", "event": "phx_join", "payload": {"config": {"postgres_changes": [5, null]}}}',
        '{"topic": "realtime:unknown", "event": "broadcast", "payload": {}}',
        '[null, null, "realtime:notes", "access_token", null]',
        "[" * 100_000,
        b"",
        b"\x03",
        b"\x03\xff\xff\xff\xff\xff\x01",
        b"\x03\x00\x00\x01\x01\x00\x01\xff\xff{}",
    ],
)
async def test_malformed_frames_are_harmless(stack: Stack, frame: str | bytes) -> None:
    async with socket(stack) as raw:
        await raw.join("notes")
        await raw.connection.send(frame)
        await raw.send("notes", "heartbeat", {}, ref="still here")

        assert (await raw.heard(ref="still here"))["payload"]["status"] == "ok"


async def test_a_frame_that_is_too_large_ends_its_connection_only(stack: Stack) -> None:
    async with socket(stack) as large, socket(stack) as other:
        await large.connection.send("x" * 5_000_001)
        with pytest.raises(ConnectionClosed):
            await large.heard(ref="never")

        assert (await other.join("notes"))["status"] == "ok"


async def test_a_slow_listener_is_cut_off_and_delays_nobody(stack: Stack) -> None:
    payload = {"noise": secrets.token_hex(500_000)}
    async with socket(stack) as slow, socket(stack) as brisk:
        await slow.join("crowd")
        await brisk.join("crowd")
        for _ in range(40):
            await post(stack, "/crowd/events/noise", json=payload)
            await brisk.heard(event="broadcast")
        with pytest.raises(ConnectionClosed):
            await slow.heard(ref="never")

    assert 0 < len(slow.frames) < 40
