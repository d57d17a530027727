"""Lists of a bucket's objects, in which what their names have before a slash is a folder."""

import base64
from typing import Any, Literal, LiteralString

from psycopg import AsyncConnection
from pydantic import BaseModel, Field

from infra.local import storage_errors

Column = Literal["name", "updated_at", "created_at", "last_accessed_at"]
COLUMNS: dict[str, LiteralString] = {
    "name": "name",
    "updated_at": "updated_at",
    "created_at": "created_at",
    "last_accessed_at": "last_accessed_at",
}
# One row for each folder and each object right below the prefix; a folder has a name and nothing else.
LEVEL = """
    with below as (
        select *, substr(name, length(%(prefix)s) + 1) as rest from storage.objects
        where bucket_id = %(bucket)s and starts_with(lower(name), lower(%(prefix)s || %(search)s))
    ), entries as (
        select rest as name, id, updated_at, created_at, last_accessed_at, metadata from below
        where strpos(rest, '/') = 0
        union all
        select distinct split_part(rest, '/', 1), null::uuid, null::timestamptz, null::timestamptz,
            null::timestamptz, null::jsonb from below
        where strpos(rest, '/') > 0
    )
    select to_jsonb(entries) from entries
"""
# The second version's: whole names, a folder's with its slash; without a delimiter there are no folders.
TREE = """
    with below as (
        select *, strpos(substr(name, length(%(prefix)s) + 1), '/') as slash from storage.objects
        where bucket_id = %(bucket)s and starts_with(name, %(prefix)s)
    ), entries as (
        select id, name, updated_at, created_at, last_accessed_at, metadata from below
        where slash = 0 or not %(has_folders)s
        union all
        select distinct null::uuid, left(name, length(%(prefix)s) + slash), null::timestamptz, null::timestamptz,
            null::timestamptz, null::jsonb from below
        where slash > 0 and %(has_folders)s
    )
    select to_jsonb(entries) || jsonb_build_object('key', name) from entries
"""


class Order(BaseModel):
    column: Column = "name"
    order: Literal["asc", "desc"] = "asc"


class Listing(BaseModel):
    """What `list` asks for: a folder, and within it names that begin with `search`."""

    prefix: str
    limit: int = Field(100, ge=1)
    offset: int = Field(0, ge=0)
    sortBy: Order = Order()
    search: str = ""


class ListingV2(BaseModel):
    """What `list_v2` asks for: any prefix of the names; `cursor` is the page before's `nextCursor`."""

    prefix: str = ""
    limit: int = Field(1000, ge=1)
    cursor: str | None = None
    with_delimiter: bool = False
    sortBy: Order = Order()


async def list_objects(database: AsyncConnection, bucket_id: str, asked: Listing) -> list[dict[str, Any]]:
    """A page of a folder."""
    prefix = f"{asked.prefix.rstrip('/')}/" if asked.prefix.strip("/") else ""
    values = {"bucket": bucket_id, "prefix": prefix, "search": asked.search}
    return await _page(database, LEVEL, asked.sortBy, values, asked.limit, asked.offset)


async def list_objects_v2(database: AsyncConnection, bucket_id: str, asked: ListingV2) -> dict[str, Any]:
    """A page of a prefix: folders and objects apart, and where the next page begins."""
    limit, offset = min(asked.limit, 1000), _offset(asked.cursor)
    values = {"bucket": bucket_id, "prefix": asked.prefix, "has_folders": asked.with_delimiter}
    entries = await _page(database, TREE, asked.sortBy, values, limit + 1, offset)
    page = entries[:limit]
    has_next = len(entries) > limit
    return {
        "hasNext": has_next,
        "folders": [{"name": entry["name"], "key": entry["key"]} for entry in page if entry["id"] is None],
        "objects": [entry for entry in page if entry["id"] is not None],
        **({"nextCursor": base64.b64encode(f"{offset + limit}".encode()).decode()} if has_next else {}),
    }


async def _page(
    database: AsyncConnection,
    entries: LiteralString,
    order: Order,
    values: dict[str, Any],
    limit: int,
    offset: int,
) -> list[dict[str, Any]]:
    """Folders come first, as they always have in the real one."""
    direction: LiteralString = "desc" if order.order == "desc" else "asc"
    query = f"{entries} order by id is not null, {COLUMNS[order.column]} {direction}, name"
    found = await database.execute(
        f"{query} limit %(limit)s offset %(offset)s", {**values, "limit": limit, "offset": offset}
    )
    return [entry for (entry,) in await found.fetchall()]


def _offset(cursor: str | None) -> int:
    if cursor is None:
        return 0
    try:
        return max(0, int(base64.b64decode(cursor)))
    except ValueError as error:
        raise storage_errors.invalid("Invalid Parameter continuation token", "InvalidParameter") from error
