"""The S3 protocol of the storage API: boto3's requests, checked for their signature, go on to moto as they come.

What they write gets a row, so that the storage API sees it; the S3 keys stand above the policies.
"""

from urllib.parse import quote, unquote
from xml.sax.saxutils import escape

import httpx
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from infra.local import buckets, object_rows, s3_signature, storage_errors
from infra.local.buckets import Bucket
from infra.local.forwarding import end_to_end, forward, streamed, whole
from infra.local.object_store import AUTHORIZATION, ObjectStore, s3_name, values
from infra.local.storage_callers import Storage
from infra.local.storage_errors import StorageError, drained

PREFIX = "/storage/v1/s3"
METHODS = ["GET", "HEAD", "PUT", "POST", "DELETE"]
MOST_DELETION_BYTES = 2 * 1024 * 1024
NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"


def routes(storage: Storage) -> list[Route]:
    """Every S3 request below `/storage/v1/s3`."""

    async def answer(request: Request) -> Response:
        try:
            s3_signature.verify(request, storage.keys)
            return await _answer(request, storage)
        except StorageError as refusal:
            await drained(request)
            return refusal.xml()

    return [Route("/s3/{path:path}", answer, methods=METHODS), Route("/s3", answer, methods=METHODS)]


async def _answer(request: Request, storage: Storage) -> Response:
    path = request.scope["raw_path"].decode("latin-1").removeprefix(PREFIX).lstrip("/")
    bucket_id, _, name = map(unquote, path.partition("/"))
    if not bucket_id:
        return await _list_buckets(storage)
    if not name and request.method in ("PUT", "DELETE") and not request.query_params:
        return await _make_or_remove(request.method, bucket_id, storage)
    async with storage.pool.connection() as database:
        bucket = await buckets.find(database, bucket_id, storage.most_bytes)
    await storage.store.make(bucket_id)
    if name and request.method in ("PUT", "POST"):
        await _check(request, bucket, name, storage.store)
    deleted = await _deleted(request, name)
    answer = await _forward(request, bucket_id, name, storage.store)
    ours = (b"access-control-allow-origin", b"server", b"date", b"x-amz-content-sha256")
    if not deleted and not (name and _writes(request)):
        return streamed(answer, *ours)
    body = await answer.aread()  # short, and the rows must say the same before anybody hears of it
    if answer.is_success:
        await _record(storage, bucket_id, name, deleted)
    return whole(answer, body, *ours)


async def _forward(request: Request, bucket_id: str, name: str, store: ObjectStore) -> httpx.Response:
    target = (f"/{s3_name(bucket_id)}" + (f"/{quote(name)}" if name else "")).encode()
    query = s3_signature.unsigned(request.scope["query_string"])
    headers = end_to_end(request.headers.raw, b"host", b"authorization", b"x-amz-copy-source", b"expect")
    headers.append((b"authorization", AUTHORIZATION.encode()))
    if source := request.headers.get("x-amz-copy-source"):
        source_bucket, _, rest = source.removeprefix("/").partition("/")
        headers.append((b"x-amz-copy-source", f"/{s3_name(unquote(source_bucket))}/{rest}".encode()))
    return await forward(request, store.http, store.url, target + b"?" * bool(query) + query, headers)


def _writes(request: Request) -> bool:
    query = request.query_params
    return (request.method == "PUT" and "partNumber" not in query) or (request.method == "POST" and "uploadId" in query)


async def _deleted(request: Request, name: str) -> list[str]:
    """The objects that the request deletes."""
    if request.method == "POST" and not name and "delete" in request.query_params:
        if int(request.headers.get("content-length", 0)) > MOST_DELETION_BYTES:
            raise storage_errors.too_large()
        return values((await request.body()).decode(), "Key")
    is_deletion = request.method == "DELETE" and not {"uploadId", "tagging"} & request.query_params.keys()
    return [name] if name and is_deletion else []


async def _record(storage: Storage, bucket_id: str, name: str, deleted: list[str]) -> None:
    async with storage.pool.connection() as database:
        if deleted:
            await object_rows.forget(database, bucket_id, deleted)
        elif stored := await storage.store.head(bucket_id, name):
            await object_rows.record(database, bucket_id, name, stored, object_rows.user_metadata(stored))


async def _check(request: Request, bucket: Bucket, name: str, store: ObjectStore) -> None:
    object_rows.check_name(name)
    size = request.headers.get("x-amz-decoded-content-length") or request.headers.get("content-length") or "0"
    bucket.check_size(int(size))
    upload_id = request.query_params.get("uploadId")
    if upload_id is None and "x-amz-copy-source" not in request.headers:
        bucket.check_mime_type(request.headers.get("content-type", "application/octet-stream"))
    if upload_id is not None and request.method == "POST":
        bucket.check_size(await store.uploaded_bytes(bucket.id, name, upload_id))


async def _list_buckets(storage: Storage) -> Response:
    async with storage.pool.connection() as database:
        rows = await buckets.select(database)
    listed = "".join(
        f"<Bucket><Name>{escape(row['name'])}</Name><CreationDate>{row['created_at']}</CreationDate></Bucket>"
        for row in rows
    )
    body = f'<ListAllMyBucketsResult xmlns="{NAMESPACE}"><Buckets>{listed}</Buckets></ListAllMyBucketsResult>'
    return Response(body, media_type="application/xml")


async def _make_or_remove(method: str, bucket_id: str, storage: Storage) -> Response:
    async with storage.pool.connection() as database:
        if method == "PUT":
            await buckets.insert(database, bucket_id)
            return Response(headers={"location": f"/{quote(bucket_id)}"})
        await buckets.delete(database, bucket_id, code="BucketNotEmpty")
    await storage.store.remove(bucket_id)
    return Response(status_code=204)
