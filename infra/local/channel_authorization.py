"""Who may hear and say what on a private channel: the policies on `realtime.messages` decide, as on a hosted project.

A message is tried as the caller, with his role, his claims and the topic, in a transaction that is rolled back.
"""

import logging
from collections.abc import Collection
from uuid import uuid4

import psycopg
from psycopg_pool import AsyncConnectionPool

from infra.local import subscriptions

CONNECT_SECONDS = 5
EXTENSIONS = frozenset({"broadcast", "presence"})
SET_TOPIC = "select set_config('realtime.topic', %s, true)"
OFFER = """
    insert into realtime.messages (id, topic, extension)
    select message_id, %s, extension from unnest(%s::uuid[], %s::text[]) as offered (message_id, extension)
"""
SEEN = "select extension from realtime.messages where id = any (%s)"
SEND = "insert into realtime.messages (topic, extension) values (%s, %s)"

logger = logging.getLogger(__name__)


class Unauthorized(Exception):
    """A topic that somebody may not hear, in hosted Realtime's words."""


async def heard(pool: AsyncConnectionPool, topic: str, claims_json: str, extensions: Collection[str]) -> frozenset[str]:
    """Which of the `extensions` the caller may hear. Raises `Unauthorized` for none, and where a policy fails."""
    ids = [uuid4() for _ in extensions]
    seen: frozenset[str] = frozenset()
    try:
        async with pool.connection(CONNECT_SECONDS) as database, database.transaction(force_rollback=True):
            await database.execute(OFFER, [topic, ids, list(extensions)])
            await database.execute(SET_TOPIC, [topic])
            await database.execute(subscriptions.ACT_AS, [claims_json])
            cursor = await database.execute(SEEN, [ids])
            seen = frozenset(extension for (extension,) in await cursor.fetchall())
    except psycopg.OperationalError:
        raise
    except (psycopg.Error, UnicodeError) as failed:
        logger.warning("who may hear %r can't be told: %s", topic, failed)
    if not seen:
        raise Unauthorized(f"You do not have permissions to read from this Channel topic: {topic}")
    return seen


async def may_send(pool: AsyncConnectionPool, topic: str, claims_json: str, extension: str) -> bool:
    """Whether the caller may send; not where that can't be told."""
    try:
        async with pool.connection(CONNECT_SECONDS) as database, database.transaction(force_rollback=True):
            await database.execute(SET_TOPIC, [topic])
            await database.execute(subscriptions.ACT_AS, [claims_json])
            await database.execute(SEND, [topic, extension])
    except psycopg.errors.InsufficientPrivilege:
        return False
    except psycopg.Error as failed:
        logger.warning("who may send to %r can't be told: %s", topic, failed)
        return False
    return True
