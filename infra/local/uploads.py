"""A file on its way into a bucket: what came with it, its bytes in parts, and the row it ends in."""

import base64
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from psycopg.errors import ForeignKeyViolation, UniqueViolation
from psycopg.types.json import Jsonb
from starlette.requests import Request

from infra.local import buckets, object_rows, storage_errors
from infra.local.buckets import Bucket
from infra.local.forms import Pieces, open_form
from infra.local.object_store import PART_BYTES, ObjectStore
from infra.local.storage_callers import Claims, Storage

TRY_INSERT = """
    insert into storage.objects (bucket_id, name, owner_id, version, metadata, user_metadata)
    values (%s, %s, %s, '1', %s, %s)
"""
OR_UPDATE = "on conflict (bucket_id, name) do update set version = excluded.version, owner_id = excluded.owner_id"


@dataclass(frozen=True, slots=True)
class File:
    """A file as both clients send it: in a form or as the request's body."""

    mime_type: str
    cache_control: str
    user_metadata: dict[str, Any]
    pieces: Pieces

    @property
    def headers(self) -> dict[str, str]:
        return {"content-type": self.mime_type, "cache-control": self.cache_control}


@dataclass(slots=True)
class Parts:
    """A file that is being written: parts of 6 MiB in the store, and in memory what isn't a whole one yet."""

    store: ObjectStore
    bucket: Bucket
    name: str
    headers: Mapping[str, str]
    size: int = 0
    upload_id: str = ""
    tags: list[str] = field(default_factory=list)
    tail: bytearray = field(default_factory=bytearray)

    async def append(self, piece: bytes) -> None:
        """Raises `StorageError` once the bucket's limit is passed."""
        self.bucket.check_size(self.size + len(piece))
        self.tail += piece
        self.size += len(piece)
        while len(self.tail) >= PART_BYTES:
            part = bytes(self.tail[:PART_BYTES])
            await self._send(part)
            del self.tail[:PART_BYTES]

    async def finish(self) -> None:
        """Make it the object, in place of one that has the name."""
        await self.store.make(self.bucket.id)
        if not self.upload_id:
            await self.store.put(self.bucket.id, self.name, bytes(self.tail), self.headers)
            return
        if self.tail:
            await self._send(bytes(self.tail))
        await self.store.complete(self.bucket.id, self.name, self.upload_id, self.tags)

    async def abort(self) -> None:
        if self.upload_id:
            await self.store.abort(self.bucket.id, self.name, self.upload_id)

    async def _send(self, part: bytes) -> None:
        if not self.upload_id:
            await self.store.make(self.bucket.id)
            self.upload_id = await self.store.begin(self.bucket.id, self.name, self.headers)
        number = len(self.tags) + 1
        self.tags.append(await self.store.put_part(self.bucket.id, self.name, self.upload_id, number, part))


async def upload(
    request: Request, storage: Storage, claims: Claims, bucket_id: str, name: str, *, upsert: bool
) -> dict[str, Any]:
    """Write the request's file, in the caller's name; gives the row. Raises `StorageError`."""
    object_rows.check_name(name)
    async with storage.pool.connection() as database:
        bucket = await buckets.find(database, bucket_id, storage.most_bytes)
    file = await _open(request)
    bucket.check_mime_type(file.mime_type)
    if "multipart/form-data" not in request.headers.get("content-type", ""):
        bucket.check_size(int(request.headers.get("content-length", 0)))
    await check_allowed(storage, claims, bucket_id, name, file.user_metadata, file.mime_type, upsert=upsert)
    parts = Parts(storage.store, bucket, name, file.headers)
    try:
        async for piece in file.pieces:
            await parts.append(piece)
        await parts.finish()
    except BaseException:
        await parts.abort()
        raise
    return await recorded(storage, claims, bucket_id, name, file.user_metadata)


async def check_allowed(
    storage: Storage,
    claims: Claims,
    bucket_id: str,
    name: str,
    user_metadata: Mapping[str, Any],
    mime_type: str | None = None,
    *,
    upsert: bool,
) -> None:
    """Try to write the row in the caller's name, and take it back. Raises `StorageError` where that fails."""
    statement = f"{TRY_INSERT} {OR_UPDATE}" if upsert else TRY_INSERT
    described = [Jsonb({"mimetype": mime_type}), Jsonb(dict(user_metadata))]
    try:
        async with storage.acting(claims, undone=True) as database:
            await database.execute(statement, [bucket_id, name, claims.get("sub"), *described])
    except UniqueViolation as error:
        raise storage_errors.already_exists() from error
    except ForeignKeyViolation as error:
        raise storage_errors.no_such_bucket() from error


async def recorded(
    storage: Storage, claims: Claims, bucket_id: str, name: str, user_metadata: Mapping[str, Any]
) -> dict[str, Any]:
    """The row of an object the store has just got."""
    stored = await storage.store.head(bucket_id, name)
    if stored is None:
        raise storage_errors.no_such_object()
    async with storage.pool.connection() as database:
        return await object_rows.record(database, bucket_id, name, stored, user_metadata, claims.get("sub"))


def parsed_metadata(text: str) -> dict[str, Any]:
    """A caller's metadata from JSON; what isn't an object of JSON is no metadata, as in the real one."""
    with suppress(ValueError):
        parsed = json.loads(text)
        if isinstance(parsed, dict):
            return parsed
    return {}


async def _open(request: Request) -> File:
    content_type = request.headers.get("content-type", "application/octet-stream")
    if content_type.startswith("multipart/form-data"):
        form = await open_form(content_type, request.stream())
        seconds = form.fields.get("cacheControl")
        return File(
            mime_type=form.fields.get("contentType") or form.mime_type,
            cache_control=f"max-age={seconds}" if seconds else "no-cache",
            user_metadata=parsed_metadata(form.fields.get("metadata", "")),
            pieces=form.file,
        )
    return File(
        mime_type=content_type,
        cache_control=request.headers.get("cache-control", "no-cache"),
        user_metadata=parsed_metadata(_decoded(request.headers.get("x-metadata", ""))),
        pieces=request.stream(),
    )


def _decoded(text: str) -> str:
    try:
        return base64.b64decode(text).decode()
    except ValueError:
        return ""
