"""Uploads that survive a broken connection: TUS 1.0 with creation, creation-with-upload, expiration and termination.

What is known of an upload is in this process's memory, as the parts are in moto's: neither outlives the stack. Chunks
of any size are taken; no more than 6 MiB of an upload are held.
"""

import asyncio
import base64
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any
from uuid import uuid4

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from infra.local import buckets, object_rows, signed_urls, uploads
from infra.local.storage_callers import SUPERUSER, Claims, Storage
from infra.local.storage_errors import StorageError, drained
from infra.local.uploads import Parts

VERSION = {"tus-resumable": "1.0.0"}
EXTENSIONS = "creation,creation-with-upload,expiration,termination"
CHUNK_TYPE = "application/offset+octet-stream"


@dataclass(slots=True)
class Upload:
    """A file that is on its way, and who may send it; `is_complete` once it is an object."""

    parts: Parts
    length: int
    metadata: dict[str, str]
    upsert: bool
    expires_at: float  # seconds since 1970
    is_complete: bool = False
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def user_metadata(self) -> dict[str, Any]:
        return uploads.parsed_metadata(self.metadata.get("metadata", ""))

    @property
    def headers(self) -> dict[str, str]:
        return {"upload-offset": str(self.parts.size), "upload-expires": formatdate(self.expires_at, usegmt=True)}


@dataclass(frozen=True, slots=True)
class Resumable:
    """The uploads under way, by the last part of their addresses."""

    storage: Storage
    uploads: dict[str, Upload] = field(default_factory=dict)

    def routes(self) -> list[Route]:
        """The protocol at `/upload/resumable`, and at `/upload/resumable/sign` with a token in place of a key."""
        made: list[Route] = []
        for path in ("/upload/resumable/sign", "/upload/resumable"):
            made += [
                Route(path, self._answering(self.describe), methods=["OPTIONS"]),
                Route(path, self._answering(self.create), methods=["POST"]),
                Route(f"{path}/{{id}}", self._answering(self.describe), methods=["OPTIONS"]),
                Route(f"{path}/{{id}}", self._answering(self.tell), methods=["HEAD"]),
                Route(f"{path}/{{id}}", self._answering(self.append), methods=["PATCH"]),
                Route(f"{path}/{{id}}", self._answering(self.terminate), methods=["DELETE"]),
            ]
        return made

    async def describe(self, _request: Request) -> Response:
        limit = str(self.storage.most_bytes)
        return Response(
            status_code=204, headers={"tus-version": "1.0.0", "tus-extension": EXTENSIONS, "tus-max-size": limit}
        )

    async def create(self, request: Request) -> Response:
        """A new upload, with its first bytes if the request has a body."""
        await self._sweep()
        claims, upload = await self._planned(request)
        await self._check(claims, upload)
        path = f"{upload.parts.bucket.id}/{upload.parts.name}/{uuid4()}"
        upload_id = base64.urlsafe_b64encode(path.encode()).decode().rstrip("=")
        self.uploads[upload_id] = upload
        async with upload.lock:
            await self._receive(request, claims, upload)
        location = f"{str(request.url).partition('?')[0].rstrip('/')}/{upload_id}"
        return Response(status_code=201, headers={"location": location, **upload.headers})

    async def tell(self, request: Request) -> Response:
        """How far the upload is."""
        upload, _claims = await self._find(request)
        return Response(headers={"upload-length": str(upload.length), "cache-control": "no-store", **upload.headers})

    async def append(self, request: Request) -> Response:
        """A chunk that begins where the last one ended; whatever arrives of it stays."""
        if request.headers.get("content-type") != CHUNK_TYPE:
            raise StorageError(415, "TusError", f"Content-Type must be {CHUNK_TYPE}")
        offset = _number(request, "upload-offset")
        upload, claims = await self._find(request)
        if upload.lock.locked():
            raise StorageError(423, "ResourceLocked", "The resource is locked")
        async with upload.lock:
            if offset != upload.parts.size:
                raise StorageError(409, "TusError", "Upload-Offset conflict")
            if not upload.is_complete:
                await self._check(claims, upload)
                await self._receive(request, claims, upload)
        return Response(status_code=204, headers=upload.headers)

    async def terminate(self, request: Request) -> Response:
        upload, claims = await self._find(request)
        if upload.lock.locked():
            raise StorageError(423, "ResourceLocked", "The resource is locked")
        if upload.is_complete:
            raise StorageError(400, "TusError", "Cannot terminate an already completed upload")
        await self._check(claims, upload)
        del self.uploads[request.path_params["id"]]
        await upload.parts.abort()
        return Response(status_code=204)

    async def _planned(self, request: Request) -> tuple[Claims, Upload]:
        """Who begins an upload, and what its headers say of it. Raises `StorageError` where the bucket forbids it."""
        metadata = _metadata(request.headers.get("upload-metadata", ""))
        bucket_id, name = metadata.get("bucketName", ""), metadata.get("objectName", "")
        object_rows.check_name(name)
        claims, upsert = self._caller(request, bucket_id, name)
        async with self.storage.pool.connection() as database:
            bucket = await buckets.find(database, bucket_id, self.storage.most_bytes)
        length, mime_type = _number(request, "upload-length"), metadata.get("contentType", "application/octet-stream")
        bucket.check_size(length)
        bucket.check_mime_type(mime_type)
        seconds = metadata.get("cacheControl", "")
        cache_control = f"max-age={seconds}" if seconds.isdecimal() else "no-cache"
        parts = Parts(self.storage.store, bucket, name, {"content-type": mime_type, "cache-control": cache_control})
        return claims, Upload(parts, length, metadata, upsert, time.time() + self.storage.upload_seconds)

    def _answering(self, work: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            try:
                if request.method != "OPTIONS" and request.headers.get("tus-resumable") != "1.0.0":
                    raise StorageError(412, "TusError", "Tus-Resumable Required")
                response = await work(request)
            except StorageError as refusal:
                await drained(request)
                response = refusal.text()
            response.headers.update(VERSION)
            return response

        return endpoint

    async def _find(self, request: Request) -> tuple[Upload, Claims]:
        upload = self.uploads.get(request.path_params["id"])
        if upload is None:
            raise StorageError(404, "TusError", "The file for this url was not found")
        claims, _upsert = self._caller(request, upload.parts.bucket.id, upload.parts.name)
        if upload.expires_at < time.time():
            raise StorageError(410, "TusError", "The file for this url no longer exists")
        return upload, claims

    def _caller(self, request: Request, bucket_id: str, name: str) -> tuple[Claims, bool]:
        """Who asks, and whether an object may be replaced: the signed address's token says both, or the headers."""
        if "/upload/resumable/sign" not in request.url.path:
            return self.storage.caller(request), request.headers.get("x-upsert") == "true"
        token = request.headers.get("x-signature")
        if not token:
            raise StorageError(400, "InvalidSignature", "Missing x-signature header")
        claims = signed_urls.verify(self.storage.keys, "upload", f"{bucket_id}/{name}", token)
        return SUPERUSER | {"sub": claims["owner"]}, claims["upsert"]

    async def _check(self, claims: Claims, upload: Upload) -> None:
        bucket_id, name, mime_type = upload.parts.bucket.id, upload.parts.name, upload.metadata.get("contentType")
        await uploads.check_allowed(
            self.storage, claims, bucket_id, name, upload.user_metadata, mime_type, upsert=upload.upsert
        )

    async def _receive(self, request: Request, claims: Claims, upload: Upload) -> None:
        """The body, up to its end or the connection's; with the last byte the upload becomes an object."""
        try:
            async for piece in request.stream():
                if upload.parts.size + len(piece) > upload.length:
                    raise StorageError(413, "TusError", "Upload-Length exceeded")
                await upload.parts.append(piece)
        except ClientDisconnect:
            return
        if upload.parts.size == upload.length:
            await upload.parts.finish()
            upload.is_complete = True
            await uploads.recorded(
                self.storage, claims, upload.parts.bucket.id, upload.parts.name, upload.user_metadata
            )

    async def _sweep(self) -> None:
        """Forget the uploads whose time is over."""
        for upload_id, upload in list(self.uploads.items()):
            if upload.expires_at < time.time() and not upload.lock.locked():
                del self.uploads[upload_id]
                if not upload.is_complete:
                    await upload.parts.abort()


def _metadata(header: str) -> dict[str, str]:
    """`Upload-Metadata`: pairs of a name and a value in base64, between commas."""
    pairs = (pair.strip().partition(" ") for pair in header.split(",") if pair.strip())
    try:
        return {name: base64.b64decode(value, validate=True).decode() for name, _, value in pairs}
    except ValueError as error:
        raise StorageError(400, "InvalidParameter", "Invalid Upload-Metadata header") from error


def _number(request: Request, header: str) -> int:
    text = request.headers.get(header, "")
    if not text.isdecimal():
        raise StorageError(400, "TusError", f"{header.title()} header required")
    return int(text)
