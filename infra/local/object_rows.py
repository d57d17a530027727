"""What is known of each object, as rows of `storage.objects`; the objects themselves are in the object store."""

import re
from collections.abc import Iterable, Mapping
from email.utils import parsedate_to_datetime
from typing import Any, LiteralString

from psycopg import AsyncConnection
from psycopg.types.json import Jsonb

from infra.local import storage_errors

# The real one's set: what S3 takes without ado. Unicode isn't among it.
NAME = re.compile(r"[A-Za-z0-9_/!.*'() &$=@;:+,?-]+")
ROWS = "select to_jsonb(o) - 'path_tokens' from storage.objects as o"
RECORD = """
    insert into storage.objects as o (bucket_id, name, owner_id, version, metadata, user_metadata)
    values (%s, %s, %s, gen_random_uuid()::text, %s, %s)
    on conflict (bucket_id, name) do update set
        owner_id = excluded.owner_id, version = excluded.version, metadata = excluded.metadata,
        user_metadata = excluded.user_metadata, updated_at = now()
    returning to_jsonb(o) - 'path_tokens'
"""
FORGET = """
    delete from storage.objects as o where bucket_id = %s and name = any (%s)
    returning to_jsonb(o) - 'path_tokens'
"""
METADATA = "x-amz-meta-"


def check_name(name: str) -> None:
    """Raises `StorageError` for a name no object can have. `.` and `..` mean another one to most HTTP clients."""
    if not NAME.fullmatch(name) or {".", ".."} & set(name.split("/")):
        raise storage_errors.invalid_key(name)


async def find(database: AsyncConnection, bucket_id: str, name: str) -> dict[str, Any]:
    """The object's row. Raises `StorageError` where there is none the caller may see."""
    check_name(name)
    rows = await select(database, "bucket_id = %s and name = %s", [bucket_id, name])
    if not rows:
        raise storage_errors.no_such_object()
    return rows[0]


async def select(database: AsyncConnection, condition: LiteralString, values: list[Any]) -> list[dict[str, Any]]:
    """The rows `o` under a condition of the code's own."""
    found = await database.execute(f"{ROWS} where {condition}", values)
    return [row for (row,) in await found.fetchall()]


async def record(
    database: AsyncConnection,
    bucket_id: str,
    name: str,
    stored: Mapping[str, str],
    user_metadata: Mapping[str, Any] | None = None,
    owner_id: str | None = None,
) -> dict[str, Any]:
    """Note an object the store has just got, described by its answer's headers; gives the row."""
    described = [Jsonb(_description(stored)), Jsonb(dict(user_metadata or {}))]
    written = await database.execute(RECORD, [bucket_id, name, owner_id, *described])
    row: dict[str, Any] = (await written.fetchall())[0][0]
    return row


async def forget(database: AsyncConnection, bucket_id: str, names: Iterable[str]) -> list[dict[str, Any]]:
    """Delete rows the caller may delete; gives them."""
    deleted = await database.execute(FORGET, [bucket_id, list(names)])
    return [row for (row,) in await deleted.fetchall()]


async def rename(database: AsyncConnection, row_id: str, bucket_id: str, name: str) -> None:
    """Raises `StorageError` where the caller may not."""
    renamed = await database.execute(
        "update storage.objects set bucket_id = %s, name = %s, updated_at = now() where id = %s",
        [bucket_id, name, row_id],
    )
    if not renamed.rowcount:
        raise storage_errors.no_such_object()


def shown(row: Mapping[str, Any]) -> dict[str, Any]:
    """What the API tells of one object."""
    metadata = row["metadata"]
    return {
        **{column: row[column] for column in ("id", "name", "version", "bucket_id", "created_at")},
        "size": metadata["size"],
        "content_type": metadata["mimetype"],
        "cache_control": metadata["cacheControl"],
        "etag": metadata["eTag"],
        "metadata": row["user_metadata"],
        "last_modified": row["updated_at"],
    }


def user_metadata(stored: Mapping[str, str]) -> dict[str, str]:
    """The metadata that came over the S3 protocol."""
    return {key[len(METADATA) :]: value for key, value in stored.items() if key.startswith(METADATA)}


def _description(stored: Mapping[str, str]) -> dict[str, Any]:
    size = int(stored["content-length"])
    return {
        "eTag": stored["etag"],
        "size": size,
        "mimetype": stored.get("content-type", "application/octet-stream"),
        "cacheControl": stored.get("cache-control", "no-cache"),
        "lastModified": parsedate_to_datetime(stored["last-modified"]).strftime("%Y-%m-%dT%H:%M:%S.000Z"),
        "contentLength": size,
        "httpStatusCode": 200,
    }
