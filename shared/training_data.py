"""The corpus: what users who consent have rated, in `training_data`, redacted, scored and without duplicates.

It is brought up to date before each export. Pages of conversations that are new or were changed are read, assessed and
put back, each with where the next one begins in the same transaction: a run that is killed loses one page, and nothing
is there twice. While one page is assessed the next is read and the one before is written.
"""

import asyncio
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from shared import database
from shared.clients import Clients

if TYPE_CHECKING:
    from shared.redaction import Kind

PAGE_ROWS = 2500
CALL_SECONDS = 30  # of a page, for the database
TEXTS = 1000  # of the knowledge, a request
Known = frozenset[tuple["Kind", str]]


class Lost(Exception):
    """Another worker has the work in hand, or it was ended."""


async def collect(
    clients: Clients, told: Mapping[str, Any], worker: str, known: Known, stop_at: float, lease_seconds: int
) -> bool:
    """Bring in one shard, from where it was left; False where the time is up before its end.

    Raises `Lost`, and `DatabaseUnavailable`: what was put is there.
    """
    from shared.training_quality import assess_page

    shard = {"id": told["id"], "shard": told["shard"]}
    reading = asyncio.create_task(_read(clients, shard, told["cursor"]))
    writing: asyncio.Task[None] | None = None
    try:
        while True:
            page = await reading
            cursor = page["next"]
            if cursor:
                reading = asyncio.create_task(_read(clients, shard, cursor))
            rows = await asyncio.to_thread(assess_page, page["rows"], known)
            if writing:
                await writing
            noted = {"worker": worker, "cursor": cursor, "done": cursor is None, "lease_seconds": lease_seconds}
            writing = asyncio.create_task(_put(clients, shard | noted | {"rows": rows, "seen": len(rows)}))
            if cursor is None or time.monotonic() >= stop_at:
                await writing
                return cursor is None
    finally:
        for task in (reading, writing):
            if task:
                task.cancel()


async def published(clients: Clients) -> Known:
    """Addresses and accounts that the public knowledge itself names, which are nobody's secret."""
    from shared import redaction

    db, after, texts = database.as_visitor(clients.http, clients.settings), 0, []
    while True:
        query = db.from_("finance_knowledge").select("id, content").gt("id", after).order("id").limit(TEXTS)
        rows = await database.run(query.execute(), CALL_SECONDS)
        texts += [row["content"] for row in rows]
        if len(rows) < TEXTS:
            return await asyncio.to_thread(redaction.published, texts)
        after = rows[-1]["id"]


async def _read(clients: Clients, shard: Mapping[str, Any], cursor: Any) -> Any:
    page = {"after": cursor, "page_rows": PAGE_ROWS}
    function, arguments = "read_export_conversations", {**shard, **page}
    if shard["shard"] == 0:  # the rows without a conversation
        function, arguments = "read_export_written", {"id": shard["id"], **page}
    return await database.bulk(clients.http, clients.settings, function, arguments, CALL_SECONDS)


async def _put(clients: Clients, page: Mapping[str, Any]) -> None:
    told = await database.bulk(clients.http, clients.settings, "put_export_page", page, CALL_SECONDS)
    if told["outcome"] != "noted":
        raise Lost
