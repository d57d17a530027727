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
MOST_BYTES = 5 * 1024**3  # of a file, where its bucket sets no lower limit
ROWS = """
    select jsonb_build_object(
        'id', id, 'name', name, 'owner', coalesce(owner_id, ''), 'public', public, 'type', type,
        'file_size_limit', file_size_limit, 'allowed_mime_types', allowed_mime_types,
        'created_at', created_at, 'updated_at', updated_at
    ) from storage.buckets
"""
SORTABLE = {"id", "name", "created_at", "updated_at"}


@dataclass(frozen=True, slots=True)
class Bucket:
    """What an upload and a download must know of a bucket; None limits nothing."""

    id: str
    public: bool
    file_size_limit: int | None
    allowed_mime_types: list[str] | None

    @property
    def most_bytes(self) -> int:
        return MOST_BYTES if self.file_size_limit is None else min(self.file_size_limit, MOST_BYTES)

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


async def find(database: AsyncConnection, bucket_id: str) -> Bucket:
    """The bucket. Raises `StorageError` where there is none the caller may see."""
    found = await database.execute(
        "select id, public, file_size_limit, allowed_mime_types from storage.buckets where id = %s", [bucket_id]
    )
    row = await found.fetchone()
    if row is None:
        raise storage_errors.no_such_bucket()
    return Bucket(*row)


async def select(database: AsyncConnection) -> list[dict[str, Any]]:
    """Every row the caller may see, as the API shows it."""
    found = await database.execute(f"{ROWS} order by name")
    return [row for (row,) in await found.fetchall()]


async def insert(database: AsyncConnection, bucket_id: str, **columns: Any) -> None:
    """Raises `StorageError` for a name no bucket can have, and for one that is taken."""
    if not NAME.fullmatch(bucket_id):
        raise StorageError(400, "InvalidBucketName", "Bucket name invalid", "Invalid Input")
    try:
        await database.execute(
            """
            insert into storage.buckets (id, name, public, file_size_limit, allowed_mime_types, owner_id)
            values (%(id)s, %(id)s, %(public)s, %(file_size_limit)s, %(allowed_mime_types)s, %(owner_id)s)
            """,
            {"public": False, "file_size_limit": None, "allowed_mime_types": None, "owner_id": None}
            | columns
            | {"id": bucket_id},
        )
    except UniqueViolation as error:
        raise storage_errors.already_exists("BucketAlreadyExists") from error


async def delete(database: AsyncConnection, bucket_id: str, code: str = "ResourceNotEmpty") -> None:
    """Raises `StorageError` where there is none, and for one that still holds objects."""
    try:
        deleted = await database.execute("delete from storage.buckets where id = %s", [bucket_id])
    except ForeignKeyViolation as error:
        message = "The bucket you tried to delete is not empty"
        raise StorageError(409, code, message) from error
    if not deleted.rowcount:
        raise storage_errors.no_such_bucket()
