"""Objects of the storage API: write, read, list, move, copy and delete them, and sign addresses for them."""

from collections.abc import Awaitable, Callable
from typing import Any

from psycopg.errors import ForeignKeyViolation, UniqueViolation
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from infra.local import buckets, downloads, object_rows, signed_urls, storage_errors, uploads
from infra.local.object_listing import Listing, ListingV2, list_objects, list_objects_v2
from infra.local.storage_callers import SUPERUSER, Claims, Storage, sent
from infra.local.storage_errors import StorageError

NO_OBJECT = "Either the object does not exist or you do not have access to it"
Work = Callable[[Request, Storage], Awaitable[Response]]


class Removal(BaseModel):
    prefixes: list[str] = Field(min_length=1)


class Relocation(BaseModel):
    """Where an object goes, in its own bucket if no other is named."""

    bucketId: str
    sourceKey: str
    destinationKey: str
    destinationBucket: str | None = None

    @property
    def target(self) -> tuple[str, str]:
        return self.destinationBucket or self.bucketId, self.destinationKey


class Signing(BaseModel):
    expiresIn: int = Field(ge=1)
    transform: dict[str, Any] | None = None


class SigningMany(Signing):
    paths: list[str] = Field(min_length=1, max_length=1000)


def routes(storage: Storage) -> list[Route]:
    """Everything below `/object`, the longer paths first: a bucket may be named anything, even `sign`."""

    def route(methods: str, path: str, work: Work) -> Route:
        async def endpoint(request: Request) -> Response:
            return await work(request, storage)

        return Route(f"/object{path}", endpoint, methods=methods.split())

    return [
        route("POST", "/list/{bucket}", list_),
        route("POST", "/list-v2/{bucket}", list_v2),
        route("POST", "/move", move),
        route("POST", "/copy", copy),
        route("POST", "/upload/sign/{bucket}/{name:path}", sign_upload),
        route("PUT", "/upload/sign/{bucket}/{name:path}", upload_signed),
        route("POST", "/sign/{bucket}", sign_many),
        route("POST", "/sign/{bucket}/{name:path}", sign),
        route("GET HEAD", "/sign/{bucket}/{name:path}", read_signed),
        route("GET", "/info/public/{bucket}/{name:path}", info_public),
        route("GET", "/info/authenticated/{bucket}/{name:path}", info),
        route("GET", "/info/{bucket}/{name:path}", info),
        route("GET HEAD", "/public/{bucket}/{name:path}", read_public),
        route("GET HEAD", "/authenticated/{bucket}/{name:path}", read),
        route("GET HEAD", "/{bucket}/{name:path}", read),
        route("POST", "/{bucket}/{name:path}", create),
        route("PUT", "/{bucket}/{name:path}", replace),
        route("DELETE", "/{bucket}", remove),
        route("DELETE", "/{bucket}/{name:path}", remove_one),
    ]


async def create(request: Request, storage: Storage) -> Response:
    return await _write(request, storage, upsert=request.headers.get("x-upsert") == "true")


async def replace(request: Request, storage: Storage) -> Response:
    """An upload in any case: the real one, too, makes the object where there is none."""
    return await _write(request, storage, upsert=True)


async def read(request: Request, storage: Storage) -> Response:
    """The object with the caller's rights; a public bucket's, to anybody."""
    return await downloads.answer(request, storage.store, await _row(request, storage))


async def read_public(request: Request, storage: Storage) -> Response:
    return await downloads.answer(request, storage.store, await _public_row(request, storage))


async def read_signed(request: Request, storage: Storage) -> Response:
    bucket_id, name = _path(request)
    token = request.query_params.get("token", "")
    claims = signed_urls.verify(storage.keys, "download", f"{bucket_id}/{name}", token)
    async with storage.pool.connection() as database:
        row = await object_rows.find(database, bucket_id, name)
    return await downloads.answer(request, storage.store, row, expires_at=claims["exp"])


async def info(request: Request, storage: Storage) -> Response:
    return JSONResponse(object_rows.shown(await _row(request, storage)))


async def info_public(request: Request, storage: Storage) -> Response:
    return JSONResponse(object_rows.shown(await _public_row(request, storage)))


async def list_(request: Request, storage: Storage) -> Response:
    asked = await sent(request, Listing)
    async with storage.acting(storage.caller(request)) as database:
        return JSONResponse(await list_objects(database, request.path_params["bucket"], asked))


async def list_v2(request: Request, storage: Storage) -> Response:
    asked = await sent(request, ListingV2)
    async with storage.acting(storage.caller(request)) as database:
        return JSONResponse(await list_objects_v2(database, request.path_params["bucket"], asked))


async def move(request: Request, storage: Storage) -> Response:
    """The row keeps its id; should the store fail, nothing has moved."""
    claims, asked = storage.caller(request), await sent(request, Relocation)
    source, target = (asked.bucketId, asked.sourceKey), asked.target
    object_rows.check_name(target[1])
    try:
        async with storage.acting(claims) as database:
            row = await object_rows.find(database, *source)
            await object_rows.rename(database, row["id"], *target)
            if source != target:
                await storage.store.make(target[0])
                await storage.store.copy(source, *target)
    except UniqueViolation as error:
        raise storage_errors.already_exists() from error
    except ForeignKeyViolation as error:
        raise StorageError(404, "InvalidRequest", "The related resource does not exist") from error
    if source != target:
        await storage.store.delete(source[0], [source[1]])
    return JSONResponse({"message": "Successfully moved", "Id": row["id"], "Key": target[1]})


async def copy(request: Request, storage: Storage) -> Response:
    claims, asked = storage.caller(request), await sent(request, Relocation)
    object_rows.check_name(asked.destinationKey)
    async with storage.acting(claims) as database:
        row = await object_rows.find(database, asked.bucketId, asked.sourceKey)
    metadata, upsert = row["user_metadata"], request.headers.get("x-upsert") == "true"
    await uploads.check_allowed(storage, claims, *asked.target, metadata, upsert=upsert)
    await storage.store.make(asked.target[0])
    await storage.store.copy((asked.bucketId, asked.sourceKey), *asked.target)
    copied = await uploads.recorded(storage, claims, *asked.target, metadata)
    return JSONResponse({"Id": copied["id"], "Key": "/".join(asked.target), **copied})


async def remove(request: Request, storage: Storage) -> Response:
    """Delete what the caller may delete; the rows that are gone are the answer."""
    claims, asked = storage.caller(request), await sent(request, Removal)
    return JSONResponse(await _delete(storage, claims, request.path_params["bucket"], asked.prefixes))


async def remove_one(request: Request, storage: Storage) -> Response:
    bucket_id, name = _path(request)
    if not await _delete(storage, storage.caller(request), bucket_id, [name]):
        raise storage_errors.no_such_object()
    return JSONResponse({"message": "Successfully deleted"})


async def sign(request: Request, storage: Storage) -> Response:
    claims, asked = storage.caller(request), await sent(request, Signing)
    if asked.transform:
        raise storage_errors.no_transformation()
    bucket_id, name = _path(request)
    async with storage.acting(claims) as database:
        await object_rows.find(database, bucket_id, name)
    return JSONResponse({"signedURL": _signed(storage, bucket_id, name, asked.expiresIn)})


async def sign_many(request: Request, storage: Storage) -> Response:
    """An address for each object the caller may read, and for the others the reason why there is none."""
    claims, asked = storage.caller(request), await sent(request, SigningMany)
    bucket_id = request.path_params["bucket"]
    async with storage.acting(claims) as database:
        rows = await object_rows.select(database, "bucket_id = %s and name = any (%s)", [bucket_id, asked.paths])
    there = {row["name"] for row in rows}
    return JSONResponse(
        [
            {
                "path": name,
                "error": None if name in there else NO_OBJECT,
                "signedURL": _signed(storage, bucket_id, name, asked.expiresIn) if name in there else None,
            }
            for name in asked.paths
        ]
    )


async def sign_upload(request: Request, storage: Storage) -> Response:
    claims, (bucket_id, name) = storage.caller(request), _path(request)
    object_rows.check_name(name)
    upsert = request.headers.get("x-upsert") == "true"
    await uploads.check_allowed(storage, claims, bucket_id, name, {}, upsert=upsert)
    path, owner = f"{bucket_id}/{name}", claims.get("sub")
    token = signed_urls.sign(storage.keys, "upload", path, signed_urls.UPLOAD_SECONDS, upsert=upsert, owner=owner)
    return JSONResponse({"url": f"/object/upload/sign/{path}?token={token}", "token": token})


async def upload_signed(request: Request, storage: Storage) -> Response:
    bucket_id, name = _path(request)
    path, token = f"{bucket_id}/{name}", request.query_params.get("token", "")
    claims = signed_urls.verify(storage.keys, "upload", path, token)
    caller = SUPERUSER | {"sub": claims["owner"]}
    await uploads.upload(request, storage, caller, bucket_id, name, upsert=claims["upsert"])
    return JSONResponse({"Key": path})


async def _write(request: Request, storage: Storage, *, upsert: bool) -> Response:
    bucket_id, name = _path(request)
    row = await uploads.upload(request, storage, storage.caller(request), bucket_id, name, upsert=upsert)
    return JSONResponse({"Id": row["id"], "Key": f"{bucket_id}/{name}"})


async def _row(request: Request, storage: Storage) -> dict[str, Any]:
    """Without a valid key a private bucket isn't there at all."""
    bucket_id, name = _path(request)
    async with storage.pool.connection() as database:
        if (await buckets.find(database, bucket_id, storage.most_bytes)).public:
            return await object_rows.find(database, bucket_id, name)
    try:
        claims = storage.caller(request)
    except StorageError as error:
        raise storage_errors.no_such_bucket() from error
    async with storage.acting(claims) as database:
        return await object_rows.find(database, bucket_id, name)


async def _public_row(request: Request, storage: Storage) -> dict[str, Any]:
    bucket_id, name = _path(request)
    async with storage.pool.connection() as database:
        if not (await buckets.find(database, bucket_id, storage.most_bytes)).public:
            raise storage_errors.no_such_bucket()
        return await object_rows.find(database, bucket_id, name)


async def _delete(storage: Storage, claims: Claims, bucket_id: str, names: list[str]) -> list[dict[str, Any]]:
    async with storage.acting(claims) as database:
        rows = await object_rows.forget(database, bucket_id, names)
    await storage.store.delete(bucket_id, [row["name"] for row in rows])
    return rows


def _signed(storage: Storage, bucket_id: str, name: str, seconds: int) -> str:
    path = f"{bucket_id}/{name}"
    return f"/object/sign/{path}?token={signed_urls.sign(storage.keys, 'download', path, seconds)}"


def _path(request: Request) -> tuple[str, str]:
    return request.path_params["bucket"], request.path_params["name"]
