"""Buckets as rows of `storage.buckets`, where migrations write them too: create one, read, change, empty, delete it."""

import re
from dataclasses import dataclass
from typing import Any

from psycopg import AsyncConnection
from psycopg.errors import ForeignKeyViolation, UniqueViolation

from infra.local import storage_errors
from infra.local.storage_errors import StorageError

NAME = re.compile(r"[A-Za-z0-9_!.*'() &$=@;:+,?-]{1,100}")
SIZE = re.compile(r"(\d+(?:\.\d+)?)(gb|mb|kb|b)", re.IGNORECASE)
UNITS = {"gb": 10**9, "mb": 10**6, "kb": 1000, "b": 1}
ROWS = """
    select jsonb_build_object(
        'id', id, 'name', name, 'owner', coalesce(owner_id, ''), 'public', public, 'type', type,
        'file_size_limit', file_size_limit, 'allowed_mime_types', allowed_mime_types,
        'created_at', created_at, 'updated_at', updated_at
    ) from storage.buckets
"""
FIND = """
    select id, public, least(file_size_limit, %s), allowed_mime_types from storage.buckets where id = %s
"""
OPTIONAL = ("file_size_limit", "allowed_mime_types", "owner_id")
INSERT = """
    insert into storage.buckets (id, name, public, file_size_limit, allowed_mime_types, owner_id)
    values (%(id)s, %(name)s, %(public)s, %(file_size_limit)s, %(allowed_mime_types)s, %(owner_id)s)
"""
UPDATE = """
    update storage.buckets set
        public = %(public)s, file_size_limit = %(file_size_limit)s, allowed_mime_types = %(allowed_mime_types)s,
        updated_at = now()
    where id = %(id)s
"""
SORTABLE = {"id", "name", "created_at", "updated_at"}


@dataclass(frozen=True, slots=True)
class Bucket:
    """What an upload and a download must know of a bucket; without `allowed_mime_types` any will do."""

    id: str
    public: bool
    most_bytes: int
    allowed_mime_types: list[str] | None

    def check_size(self, byte_count: int) -> None:
        """Raises `StorageError` for a file that is too large."""
        if byte_count > self.most_bytes:
            raise storage_errors.too_large()

    def check_mime_type(self, mime_type: str) -> None:
        """Raises `StorageError` for a type that isn't among the allowed ones, of which `image/*` may be one.

        As in the real one, `text/plain;charset=UTF-8` isn't `text/plain`.
        """
        allowed = self.allowed_mime_types
        if allowed and not {mime_type, f"{mime_type.partition('/')[0]}/*"} & set(allowed):
            raise storage_errors.invalid_mime_type(mime_type)


async def find(database: AsyncConnection, bucket_id: str, most_bytes: int) -> Bucket:
    """The bucket, with the lower limit of the two. Raises `StorageError` where there is none the caller may see."""
    if "\0" in bucket_id:
        raise storage_errors.no_such_bucket()
    found = await database.execute(FIND, [most_bytes, bucket_id])
    row = await found.fetchone()
    if row is None:
        raise storage_errors.no_such_bucket()
    return Bucket(*row)


async def select(database: AsyncConnection, search: str = "") -> list[dict[str, Any]]:
    """The rows the caller may see, as the API shows them, with `search` in their names."""
    found = await database.execute(f"{ROWS} where strpos(name, %s) > 0 or %s = '' order by name", [search, search])
    return [row for (row,) in await found.fetchall()]


async def read(database: AsyncConnection, bucket_id: str) -> dict[str, Any]:
    """One row as the API shows it. Raises `StorageError` where there is none the caller may see."""
    row = await (await database.execute(f"{ROWS} where id = %s", [bucket_id])).fetchone()
    if row is None:
        raise storage_errors.no_such_bucket()
    bucket: dict[str, Any] = row[0]
    return bucket


async def insert(database: AsyncConnection, bucket_id: str, **columns: Any) -> None:
    """Raises `StorageError` for a name no bucket can have, and for one that is taken."""
    columns = {"name": bucket_id, "public": False, **columns, "id": bucket_id}
    if not all(NAME.fullmatch(columns[each]) for each in ("id", "name")):
        raise StorageError(400, "InvalidBucketName", "Bucket name invalid", "Invalid Input")
    try:
        await database.execute(INSERT, dict.fromkeys(OPTIONAL) | columns)
    except UniqueViolation as error:
        raise storage_errors.already_exists("BucketAlreadyExists") from error


async def update(database: AsyncConnection, bucket_id: str, changes: dict[str, Any]) -> None:
    """Change those columns alone. Raises `StorageError` where there is no such bucket for the caller."""
    row = await read(database, bucket_id)
    changed = await database.execute(UPDATE, row | changes)
    if not changed.rowcount:
        raise storage_errors.no_such_bucket()


async def delete(database: AsyncConnection, bucket_id: str, code: str = "ResourceNotEmpty") -> None:
    """Raises `StorageError` where there is none, and for one that still holds objects."""
    try:
        deleted = await database.execute("delete from storage.buckets where id = %s", [bucket_id])
    except ForeignKeyViolation as error:
        message = "The bucket you tried to delete is not empty"
        raise StorageError(409, code, message) from error
    if not deleted.rowcount:
        raise storage_errors.no_such_bucket()


def parsed_size(limit: int | str | None) -> int | None:
    """Bytes, from a number or from a text like `20MB`. Raises `StorageError` for any other text."""
    if limit is None or isinstance(limit, int):
        return limit
    if limit.isdecimal():
        return int(limit)
    size = SIZE.fullmatch(limit)
    if size is None:
        raise storage_errors.invalid("Invalid file size format, hint: use 20GB / 20MB / 30KB / 3B")
    return int(float(size[1]) * UNITS[size[2].lower()])
