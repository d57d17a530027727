"""The storage API below `/storage/v1`: buckets, objects, signed addresses, resumable uploads and the S3 protocol."""

from collections.abc import Awaitable, Callable
from typing import Annotated

from pydantic import AfterValidator, BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from infra.local import buckets, object_rows, s3_proxy, storage_errors, storage_objects
from infra.local.resumable_uploads import Resumable
from infra.local.storage_callers import Claims, Storage, sent

Work = Callable[[Request, Storage, Claims], Awaitable[Response]]


class BucketSettings(BaseModel):
    """What a bucket is made with, and what of it can be changed; what is missing stays as it is."""

    public: bool = False
    file_size_limit: Annotated[int | str | None, AfterValidator(buckets.parsed_size)] = None
    allowed_mime_types: list[str] | None = None


class NewBucket(BucketSettings):
    name: str
    id: str | None = None


def routes(storage: Storage) -> list[Route]:
    """Every route; a caller who says who he is acts with his own rights."""

    def route(method: str, path: str, work: Work) -> Route:
        async def endpoint(request: Request) -> Response:
            return await work(request, storage, storage.caller(request))

        return Route(path, endpoint, methods=[method])

    return [
        *s3_proxy.routes(storage),
        route("GET", "/bucket", list_buckets),
        route("POST", "/bucket", create_bucket),
        route("GET", "/bucket/{bucket}", read_bucket),
        route("PUT", "/bucket/{bucket}", update_bucket),
        route("DELETE", "/bucket/{bucket}", delete_bucket),
        route("POST", "/bucket/{bucket}/empty", empty_bucket),
        *Resumable(storage).routes(),
        *storage_objects.routes(storage),
        Route("/render/{path:path}", refuse_transformation),
    ]


async def list_buckets(request: Request, storage: Storage, claims: Claims) -> Response:
    """A page of buckets: `limit`, `offset`, `search` within the name, `sortColumn`, `sortOrder`."""
    query = request.query_params
    async with storage.acting(claims) as database:
        rows = await buckets.select(database, query.get("search", ""))
    column = query.get("sortColumn", "name")
    if column not in buckets.SORTABLE:
        raise storage_errors.invalid(f"querystring/sortColumn can't be {column}", error="Error")
    rows.sort(key=lambda row: row[column], reverse=query.get("sortOrder") == "desc")
    start = _number(query.get("offset"), 0)
    return JSONResponse(rows[start : start + _number(query.get("limit"), len(rows))])


async def create_bucket(request: Request, storage: Storage, claims: Claims) -> Response:
    asked = await sent(request, NewBucket)
    columns = asked.model_dump(exclude={"id", "name"}) | {"name": asked.name, "owner_id": claims.get("sub")}
    async with storage.acting(claims) as database:
        await buckets.insert(database, asked.id or asked.name, **columns)
    return JSONResponse({"name": asked.name})


async def read_bucket(request: Request, storage: Storage, claims: Claims) -> Response:
    async with storage.acting(claims) as database:
        return JSONResponse(await buckets.read(database, request.path_params["bucket"]))


async def update_bucket(request: Request, storage: Storage, claims: Claims) -> Response:
    changes = (await sent(request, BucketSettings)).model_dump(exclude_unset=True)
    async with storage.acting(claims) as database:
        await buckets.update(database, request.path_params["bucket"], changes)
    return JSONResponse({"message": "Successfully updated"})


async def delete_bucket(request: Request, storage: Storage, claims: Claims) -> Response:
    bucket_id = request.path_params["bucket"]
    async with storage.acting(claims) as database:
        await buckets.delete(database, bucket_id)
    await storage.store.remove(bucket_id)
    return JSONResponse({"message": "Successfully deleted"})


async def empty_bucket(request: Request, storage: Storage, claims: Claims) -> Response:
    """Delete all objects the caller may delete; a hosted project does it later, here it is done."""
    bucket_id = request.path_params["bucket"]
    async with storage.acting(claims) as database:
        await buckets.read(database, bucket_id)
        names = [row["name"] for row in await object_rows.select(database, "bucket_id = %s", [bucket_id])]
        deleted = await object_rows.forget(database, bucket_id, names)
    await storage.store.delete(bucket_id, [row["name"] for row in deleted])
    return JSONResponse({"message": "Successfully emptied"})


async def refuse_transformation(_request: Request) -> Response:
    raise storage_errors.no_transformation()


def _number(text: str | None, default: int) -> int:
    if text is None:
        return default
    if not text.isdecimal():
        raise storage_errors.invalid(f"{text} is not a number", error="Error")
    return int(text)
