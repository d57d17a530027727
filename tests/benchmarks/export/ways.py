"""One way to get the liked conversations out, in a process of its own, so that its memory is its own.

python -m tests.benchmarks.export.ways ours|guide|copy [EXPORT_ID]

Each way imports what it needs itself. It prints {"seconds", "peak_mb", "requests", "rows"} as JSON, and before
that which export was begun; with an export's id it helps with that one.
"""

import asyncio
import json
import math
import os
import resource
import sys
import time
from typing import Any

import httpx

from shared import exports, transfers
from shared.clients import Clients
from shared.exports import Busy, Export
from shared.models import Deadline
from shared.settings import load

BUCKET = "ai-models"
PAGE_ROWS = 1000  # PostgREST's usual most
requests = 0


async def _ours(export_id: int | None) -> dict[str, Any]:
    """As export-training-data does it, in the guide's format."""
    clients = Clients.open(load())
    clients.http.event_hooks = {"request": [_counted]}
    _s3(clients).meta.events.register("before-send", _count)
    async with clients.http:
        if export_id is None:
            begun = await exports.begin(clients, Export(formats=("alpaca",)), "bench", Deadline.after(0), False)
            export_id = begun.export_id
            print(json.dumps({"export": export_id}), flush=True)
        done = False
        while not done:
            try:
                done = await exports.run(clients, export_id, math.inf)
            except Busy:
                await asyncio.sleep(0.2)
        told = await exports.read(clients, export_id)
        return {"rows": told.rows + sum(told.skipped.values()), "export": export_id}


def _s3(clients: Clients) -> Any:
    settings = clients.settings
    assert settings.s3_protocol_access_key_id and settings.s3_protocol_access_key_secret
    keys = settings.s3_protocol_access_key_id, settings.s3_protocol_access_key_secret.get_secret_value()
    return transfers.client(settings.storage_s3_url, settings.s3_protocol_region, keys)


async def _counted(_: httpx.Request) -> None:
    _count()


def _count(**_: Any) -> None:
    global requests
    requests += 1


def ours(export_id: int | None) -> dict[str, Any]:
    return asyncio.run(_ours(export_id))


def as_the_guide(_: int | None) -> dict[str, Any]:
    """The guide's code made complete: an order, and one page after the other."""
    from supabase import create_client

    client = create_client(os.environ["SUPABASE_URL"], os.environ["SUPABASE_SECRET_KEY"])
    rows: list[Any] = []
    while True:
        liked = client.table("conversations").select("message, response").eq("feedback", 1)
        page: list[Any] = (
            liked.gte("created_at", "2024-01-01").order("id").range(len(rows), len(rows) + PAGE_ROWS - 1).execute().data
        )
        _count()
        rows += [
            {"instruction": row["message"], "input": "", "output": row["response"], "source": "conversation"}
            for row in page
        ]
        if len(page) < PAGE_ROWS:
            break
    client.storage.session.timeout = 600
    content = json.dumps(rows).encode()
    client.storage.from_(BUCKET).upload("datasets/conversations-v1.json", content, {"upsert": "true"})
    _count()
    return {"rows": len(rows)}


def copy(_: int | None) -> dict[str, Any]:
    """The same columns straight from PostgreSQL, which a function on a hosted project doesn't reach."""
    import psycopg

    query = "copy (select message, response from conversations where feedback = 1) to stdout"
    rows = 0
    with (
        psycopg.connect(os.environ["DATABASE_URL"]) as connection,
        connection.cursor() as cursor,
        cursor.copy(query) as copied,
    ):
        for data in copied:
            rows += bytes(data).count(b"\n")
    _count()
    return {"rows": rows}


WAYS = {"ours": ours, "guide": as_the_guide, "copy": copy}


def main() -> None:
    way, export_id = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else None
    started = time.perf_counter()
    told = WAYS[way](export_id)
    seconds = time.perf_counter() - started
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "peak_mb": peak_mb, "requests": requests, **told}))


if __name__ == "__main__":
    main()
