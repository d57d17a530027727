"""The benchmark of Realtime: how long after an INSERT its reader has the row, beside a bare NOTIFY and polling.

python -m tests.benchmarks.realtime               # two minutes
python -m tests.benchmarks.realtime --inserts 30  # a look
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import psycopg
from rich.console import Console
from rich.table import Table

from infra.local import postgres
from infra.local.migrations import MigrationError
from infra.local.parts import ROOT, StackError
from infra.local.stack import Stack, stop_on_signals
from tests.benchmarks.gateway.measures import PERCENTILES, percentiles
from tests.realtime_clients import Socket, crowd, token

OUTPUT = ROOT / ".local/bench"
WIDTH = 160  # of a log or a file
FIRST_USER = 1_000_000
# Subscribers, and whether each asks for the own rows with a filter or leaves that to row level security.
CROWDS = {
    "realtime_1": (1, True),
    "realtime_50": (50, True),
    "realtime_500": (500, True),
    "realtime_500_unfiltered": (500, False),
}
TOLD = {
    "notify": "LISTEN and NOTIFY, bare",
    "realtime_1": "Realtime, 1 subscriber",
    "realtime_50": "Realtime, 50 subscribers",
    "realtime_500": "Realtime, 500 subscribers",
    "realtime_500_unfiltered": "Realtime, 500 subscribers without a filter",
    "polling": "GET over REST each second (computed)",
}
PAUSES = 0.05, 0.15  # seconds between INSERTs, by chance: an even rhythm would keep step with what is measured
WAIT_SECONDS = 10
POLL_MS = 1000
INSERT = """
    insert into public.conversations (user_id, thread_id, message, response, status)
    values (%s, gen_random_uuid(), %s, %s, 'complete')
"""
ANSWER = "TON is the coin of The Open Network. " * 20

Database = psycopg.AsyncConnection[Any]


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.realtime", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--inserts", type=int, default=150, help="of each line, ten a second (150)")
    arguments = parser.parse_args()
    if arguments.inserts < 10:
        parser.error("--inserts: at least 10")

    stop_on_signals()
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    environment = {"MODEL_BASE_URL": "http://127.0.0.1:9/v1", "MODEL_NAME": "none", "EMBEDDING_MODEL": "none"}
    environment |= {"EMBEDDING_BASE_URL": "http://127.0.0.1:9/v1"}
    console.print("[dim]starting the embedded stack[/dim]")
    with tempfile.TemporaryDirectory(prefix="bench-", dir=OUTPUT) as folder:
        try:
            parts = {"postgres", "lite", "gateway"}
            with Stack(Path(folder), environment=environment, only=parts, preferred_ports={}) as stack:
                lines = asyncio.run(_measure(stack, arguments.inserts, console))
        except (StackError, MigrationError, TimeoutError) as error:
            print(f"error: {error!r}", file=sys.stderr)
            return 1
        finally:
            postgres.remove(Path(folder))
    console.print(_table(lines, arguments.inserts))
    figures = {f"{way}_p{percent}_ms": round(line[percent], 2) for way, line in lines.items() for percent in line}
    file = OUTPUT / "realtime.json"
    file.write_text(json.dumps({"inserts": arguments.inserts, **figures}, indent=2) + "\n")
    console.print(f"Also in {file.relative_to(ROOT)}.")
    return 0


async def _measure(stack: Stack, inserts: int, console: Console) -> Mapping[str, Mapping[int, float]]:
    """Each line's milliseconds, by percent."""
    users = range(FIRST_USER, FIRST_USER + max(count for count, _ in CROWDS.values()))
    async with await psycopg.AsyncConnection.connect(stack.database_url, autocommit=True) as database:
        await database.execute("insert into public.users (user_id) select unnest(%s::bigint[])", [list(users)])
        lines = {"notify": percentiles(await _notify(stack, database, inserts))}
        for way, (count, is_filtered) in CROWDS.items():
            console.print(f"[dim]{TOLD[way]}[/dim]")
            async with crowd(stack, users[:count], is_filtered=is_filtered) as sockets:
                lines[way] = percentiles(await _realtime(database, users[:count], sockets, inserts))
        polled = percentiles(await _poll(stack, users[0], inserts))
        # A row comes at any moment between two polls.
        lines["polling"] = {percent: polled[percent] + POLL_MS * percent / 100 for percent in PERCENTILES}
    return lines


async def _notify(stack: Stack, database: Database, count: int) -> list[float]:
    async with await psycopg.AsyncConnection.connect(stack.database_url, autocommit=True) as listener:
        await listener.execute("listen bench")
        heard: asyncio.Queue[str] = asyncio.Queue()

        async def listen() -> None:
            async for notify in listener.notifies():
                heard.put_nowait(notify.payload)

        listening = asyncio.create_task(listen())
        try:
            return await _timed(count, lambda n: database.execute("select pg_notify('bench', %s)", [n]), heard)
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)


async def _realtime(database: Database, users: Sequence[int], sockets: Sequence[Socket], count: int) -> list[float]:
    """Each row is for one of the users in turn, and its message is its number."""
    heard: asyncio.Queue[str] = asyncio.Queue()

    async def listen(raw: Socket) -> None:
        async for frame in raw.connection:
            message = json.loads(frame)
            if message["event"] == "postgres_changes":
                heard.put_nowait(message["payload"]["data"]["record"]["message"])

    async def insert(number: str) -> None:
        await database.execute(INSERT, [users[int(number) * 7 % len(users)], number, ANSWER])

    listening = [asyncio.create_task(listen(raw)) for raw in sockets]
    try:
        return await _timed(count, insert, heard)
    finally:
        for each in listening:
            each.cancel()
        await asyncio.gather(*listening, return_exceptions=True)


async def _timed(count: int, tell: Callable[[str], Awaitable[Any]], heard: asyncio.Queue[str]) -> list[float]:
    """Milliseconds from before each is told until it is heard; the next one waits for neither."""
    chance = random.Random(1)  # noqa: S311
    began: dict[str, float] = {}
    took: list[float] = []

    async def hear() -> None:
        while len(took) < count:
            number = await heard.get()
            took.append((time.perf_counter() - began[number]) * 1000)

    hearing = asyncio.create_task(hear())
    for number in map(str, range(count)):
        began[number] = time.perf_counter()
        await tell(number)
        await asyncio.sleep(chance.uniform(*PAUSES))
    await asyncio.wait_for(hearing, WAIT_SECONDS)
    return took


async def _poll(stack: Stack, user_id: int, count: int) -> list[float]:
    """Milliseconds of asking for a user's newest conversation."""
    access_token = token(stack, str(UUID(int=user_id)), user_id=user_id)
    headers = {"apikey": stack.keys.publishable, "authorization": f"Bearer {access_token}"}
    query = {"user_id": f"eq.{user_id}", "order": "id.desc", "limit": "1"}
    took = []
    async with httpx.AsyncClient(headers=headers, trust_env=False) as http:
        for _ in range(count):
            start = time.perf_counter()
            answer = await http.get(f"{stack.url}/rest/v1/conversations", params=query)
            took.append((time.perf_counter() - start) * 1000)
            assert answer.raise_for_status().json()
    return took


def _table(lines: Mapping[str, Mapping[int, float]], inserts: int) -> Table:
    table = Table(title=f"From INSERT to its reader, {inserts} rows, about ten a second", title_justify="left")
    table.add_column("milliseconds")
    for percent in PERCENTILES:
        table.add_column(f"p{percent}", justify="right")
    for way, line in lines.items():
        table.add_row(TOLD[way], *(f"{line[percent]:,.1f}" for percent in PERCENTILES))
    return table


if __name__ == "__main__":
    sys.exit(main())
