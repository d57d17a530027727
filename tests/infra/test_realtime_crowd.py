"""Realtime with five hundred subscribers at once: each hears their own rows, all of them, and nothing else."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from infra.local.stack import Stack
from tests.realtime_clients import Socket, crowd

USERS = range(7_000_001, 7_000_501)
MESSAGES = "first", "last"
SECONDS, MEGABYTES = 25, 150
MAKE = "insert into public.users (user_id) select unnest(%s::bigint[])"
FORGET = "delete from public.users where user_id = any(%s)"
INSERT = """
    insert into public.conversations (user_id, thread_id, message, response, status)
    select user_id, gen_random_uuid(), %s, 'an answer', 'complete' from unnest(%s::bigint[]) as user_id
"""

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def database(stack: Stack) -> Iterator[psycopg.Connection]:
    with psycopg.connect(stack.database_url, autocommit=True) as connection:
        connection.execute(MAKE, [list(USERS)])
        yield connection
        connection.execute(FORGET, [list(USERS)])


@pytest.mark.parametrize("is_filtered", [True, False])
async def test_each_of_five_hundred_hears_their_own_rows_and_no_others(
    stack: Stack, database: psycopg.Connection, is_filtered: bool
) -> None:
    before = megabytes(stack.pids["gateway"])
    async with asyncio.timeout(SECONDS), crowd(stack, USERS, is_filtered=is_filtered) as sockets:
        for message in MESSAGES:
            database.execute(INSERT, [message, list(USERS)])
        heard = await asyncio.gather(*(rows(raw) for raw in sockets))
        grown = megabytes(stack.pids["gateway"]) - before

    assert heard == [[(user_id, message) for message in MESSAGES] for user_id in USERS]
    assert grown < MEGABYTES


async def rows(raw: Socket) -> list[tuple[int, str]]:
    """The rows heard up to one's last one: whose they are, and their message."""
    heard: list[tuple[int, str]] = []
    while not heard or heard[-1][1] != MESSAGES[-1]:
        record = (await raw.heard(event="postgres_changes"))["payload"]["data"]["record"]
        heard.append((record["user_id"], record["message"]))
    return heard


def megabytes(pid: int) -> int:
    """A process's memory."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(lines["VmRSS"].split()[0]) // 1024
