"""An object on its way to a reader: its bytes, or a range of them, under the headers the storage API gives them."""

from email.utils import formatdate
from typing import Any
from urllib.parse import quote

from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from infra.local.object_store import ObjectStore
from infra.local.storage_errors import StorageError

KEPT = ("content-length", "content-range", "last-modified")


async def answer(
    request: Request, store: ObjectStore, row: dict[str, Any], *, expires_at: float | None = None
) -> Response:
    """The object's content for GET, its headers alone for HEAD. Raises `StorageError` for a range outside of it."""
    headers = _headers(request, row["metadata"], expires_at)
    if request.headers.get("if-none-match") == headers["etag"]:
        return Response(status_code=304, headers=headers)
    if request.method == "HEAD":
        return Response(headers={**headers, "content-length": str(row["metadata"]["size"])})
    asked = {"range": request.headers["range"]} if "range" in request.headers else {}
    content = await store.open(row["bucket_id"], row["name"], asked)
    if content.is_error:
        await content.aclose()
        if content.status_code == 416:
            raise StorageError(416, "InvalidRange", "The requested range is not satisfiable")
        raise StorageError(404, "NoSuchKey", "The resource was not found", "Not found")
    headers |= {name: content.headers[name] for name in KEPT if name in content.headers}
    return StreamingResponse(
        content.aiter_raw(), content.status_code, headers, background=BackgroundTask(content.aclose)
    )


def _headers(request: Request, metadata: dict[str, Any], expires_at: float | None) -> dict[str, str]:
    headers = {
        "accept-ranges": "bytes",
        # A page of somebody else's would run under the project's own address.
        "content-type": "text/plain" if "text/html" in metadata["mimetype"] else metadata["mimetype"],
        "etag": metadata["eTag"],
        "x-robots-tag": "none",
    }
    if expires_at is None:
        headers["cache-control"] = metadata["cacheControl"]
    else:
        headers["expires"] = formatdate(expires_at, usegmt=True)
    download = request.query_params.get("download")
    if download is not None:
        name = quote(download, safe="")
        headers["content-disposition"] = (
            f"attachment; filename={name}; filename*=UTF-8''{name}" if name else "attachment;"
        )
    return headers
