"""A supabase-js client outlives its server: it comes back by itself, and its channels with it."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, AsyncExitStack
from functools import partial
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest

from infra.local import parts, ports
from infra.local.stack import Stack
from tests.infra import running
from tests.realtime_clients import script, token

ADA = str(uuid4())
TABLE = """
    create table public.reconnecting_notes (id int primary key);
    grant select on public.reconnecting_notes to authenticated;
    alter publication supabase_realtime add table public.reconnecting_notes;
"""
FORGET = "drop table if exists public.reconnecting_notes"

Start = Callable[[], AbstractContextManager[None]]

pytestmark = pytest.mark.anyio


@pytest.fixture
def database(stack: Stack) -> Iterator[psycopg.Connection]:
    with psycopg.connect(stack.database_url, autocommit=True) as connection:
        connection.execute(FORGET)
        connection.execute(TABLE)
        yield connection
        connection.execute(FORGET)


@pytest.fixture
def gateway(stack: Stack) -> Iterator[tuple[str, Start]]:
    """The stack's gateway once more, which can be started and stopped: its origin, and what starts it."""
    at = stack.ports
    with ports.reserve(None) as held:
        port = ports.number(held)
        part = parts.gateway(port, at["lite"], at["functions"], at["aws"], stack.database_url, stack.keys)
        url, environment = ports.url(port), {**os.environ, **part.environment}
        yield url, partial(running, part.command, f"{url}/health", env=environment, cwd=parts.ROOT)


async def test_a_channel_comes_back_after_the_server_and_hears_what_happens_from_then_on(
    stack: Stack, database: psycopg.Connection, gateway: tuple[str, Start]
) -> None:
    url, start = gateway
    file = Path(__file__).with_name("realtime_client.mjs")

    def add(id: int) -> None:
        database.execute("insert into public.reconnecting_notes values (%s)", [id])

    async with AsyncExitStack() as held:
        with start():
            client = script(file, url, stack.keys.publishable, token(stack, ADA), "reconnecting_notes")
            listener = await held.enter_async_context(client)
            await listener.heard(status="SUBSCRIBED")
            add(1)
            before = await listener.heard(eventType="INSERT")
        lost = await listener.heard(status="CHANNEL_ERROR")
        add(2)
        with start():
            await listener.heard(status="SUBSCRIBED")
            add(3)
            after = await listener.heard(eventType="INSERT")

    assert lost
    assert (before["new"], after["new"]) == ({"id": 1}, {"id": 3})
