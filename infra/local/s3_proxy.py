"""The S3 protocol of the storage API: boto3's requests, checked for their signature, go on to moto as they come.

What they write gets a row, so that the storage API sees it; the S3 keys stand above the policies.
"""

from urllib.parse import quote, unquote
from xml.sax.saxutils import escape

import httpx
from psycopg_pool import AsyncConnectionPool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from infra.local import buckets, object_rows, s3_signature
from infra.local.buckets import Bucket
from infra.local.forwarding import end_to_end, forward, streamed, whole
from infra.local.keys import Keys
from infra.local.object_store import AUTHORIZATION, ObjectStore, s3_name, values
from infra.local.storage_errors import StorageError, drained

PREFIX = "/storage/v1/s3"
METHODS = ["GET", "HEAD", "PUT", "POST", "DELETE"]
NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"


def routes(keys: Keys, pool: AsyncConnectionPool, store: ObjectStore) -> list[Route]:
    """Every S3 request below `/storage/v1/s3`."""

    async def answer(request: Request) -> Response:
        try:
            s3_signature.verify(request, keys)
            return await _answer(request, pool, store)
        except StorageError as refusal:
            await drained(request)
            return refusal.xml()

    return [Route("/s3/{path:path}", answer, methods=METHODS), Route("/s3", answer, methods=METHODS)]


async def _answer(request: Request, pool: AsyncConnectionPool, store: ObjectStore) -> Response:
    path = request.scope["raw_path"].decode("latin-1").removeprefix(PREFIX).strip("/")
    bucket_id, _, name = map(unquote, path.partition("/"))
    if not bucket_id:
        return await _list_buckets(pool)
    if not name and request.method in ("PUT", "DELETE") and not request.query_params:
        return await _make_or_remove(request.method, bucket_id, pool, store)
    async with pool.connection() as database:
        bucket = await buckets.find(database, bucket_id)
    await store.make(bucket_id)
    if name and request.method in ("PUT", "POST"):
        await _check(request, bucket, name, store)
    answer = await _forward(request, bucket_id, name, store)
    written = await _written(request, bucket_id, name, answer, pool, store)
    ours = (b"access-control-allow-origin", b"server", b"date", b"x-amz-content-sha256")
    return streamed(answer, *ours) if written is None else whole(answer, written, *ours)


async def _forward(request: Request, bucket_id: str, name: str, store: ObjectStore) -> httpx.Response:
    target = f"/{s3_name(bucket_id)}/{quote(name)}".rstrip("/").encode()
    query = s3_signature.unsigned(request.scope["query_string"])
    headers = end_to_end(request.headers.raw, b"host", b"authorization", b"x-amz-copy-source", b"expect")
    headers.append((b"authorization", AUTHORIZATION.encode()))
    if source := request.headers.get("x-amz-copy-source"):
        source_bucket, _, rest = source.removeprefix("/").partition("/")
        headers.append((b"x-amz-copy-source", f"/{s3_name(unquote(source_bucket))}/{rest}".encode()))
    return await forward(request, store.http, store.url, target + b"?" * bool(query) + query, headers)


async def _written(
    request: Request, bucket_id: str, name: str, answer: httpx.Response, pool: AsyncConnectionPool, store: ObjectStore
) -> bytes | None:
    """The whole answer to a request that has changed what objects there are, once the rows say the same."""
    query = request.query_params
    deletes = (request.method == "DELETE" and "uploadId" not in query) or "delete" in query
    writes = (request.method == "PUT" and "partNumber" not in query) or (
        request.method == "POST" and "uploadId" in query
    )
    if not (deletes or writes):
        return None
    body = await answer.aread()
    if answer.is_error:
        return body
    async with pool.connection() as database:
        if deletes:
            await object_rows.forget(database, bucket_id, [name] if name else values(answer.text, "Key"))
        elif stored := await store.head(bucket_id, name):
            await object_rows.record(database, bucket_id, name, stored, object_rows.user_metadata(stored))
    return body


async def _check(request: Request, bucket: Bucket, name: str, store: ObjectStore) -> None:
    object_rows.check_name(name)
    size = request.headers.get("x-amz-decoded-content-length") or request.headers.get("content-length") or "0"
    bucket.check_size(int(size))
    upload_id = request.query_params.get("uploadId")
    if upload_id is None and "x-amz-copy-source" not in request.headers:
        bucket.check_mime_type(request.headers.get("content-type", "application/octet-stream"))
    if upload_id is not None and request.method == "POST" and bucket.file_size_limit is not None:
        bucket.check_size(await store.uploaded_bytes(bucket.id, name, upload_id))


async def _list_buckets(pool: AsyncConnectionPool) -> Response:
    async with pool.connection() as database:
        rows = await buckets.select(database)
    listed = "".join(
        f"<Bucket><Name>{escape(row['name'])}</Name><CreationDate>{row['created_at']}</CreationDate></Bucket>"
        for row in rows
    )
    body = f'<ListAllMyBucketsResult xmlns="{NAMESPACE}"><Buckets>{listed}</Buckets></ListAllMyBucketsResult>'
    return Response(body, media_type="application/xml")


async def _make_or_remove(method: str, bucket_id: str, pool: AsyncConnectionPool, store: ObjectStore) -> Response:
    async with pool.connection() as database:
        if method == "PUT":
            await buckets.insert(database, bucket_id)
            return Response(headers={"location": f"/{quote(bucket_id)}"})
        await buckets.delete(database, bucket_id, code="BucketNotEmpty")
    await store.remove(bucket_id)
    return Response(status_code=204)
