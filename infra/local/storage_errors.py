"""What the storage API refuses, in the real one's words and shapes: JSON, XML for the S3 protocol, text for TUS."""

from contextlib import suppress
from xml.sax.saxutils import escape

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response


class StorageError(Exception):
    """A refusal. `status` stands in the body as `statusCode`; `error` is what older clients know the code by.

    The answer's own status is 400 where the S3 protocol and resumable uploads send `status` itself: the real
    storage API has kept that oddity for its first clients.
    """

    def __init__(self, status: int, code: str, message: str, error: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.error = error or code

    def response(self) -> Response:
        body = {"statusCode": str(self.status), "error": self.error, "message": self.message, "code": self.code}
        return JSONResponse(body, 500 if self.status == 500 else 400, {"access-control-allow-origin": "*"})

    def xml(self) -> Response:
        body = f"<Error><Code>{escape(self.code)}</Code><Message>{escape(self.message)}</Message></Error>"
        return Response(body, self.status, media_type="application/xml")

    def text(self) -> Response:
        return Response(self.message, self.status, media_type="text/plain")


async def drained(request: Request) -> None:
    """Read what the client still sends: it would see a broken connection in place of the refusal."""
    with suppress(ClientDisconnect, RuntimeError):  # gone, or read to its end
        async for _piece in request.stream():
            pass


def no_such_bucket() -> StorageError:
    return StorageError(404, "NoSuchBucket", "Bucket not found", "Bucket not found")


def no_such_object() -> StorageError:
    return StorageError(404, "NoSuchKey", "Object not found", "not_found")


def already_exists(code: str = "KeyAlreadyExists") -> StorageError:
    return StorageError(409, code, "The resource already exists", "Duplicate")


def denied(message: str) -> StorageError:
    return StorageError(403, "AccessDenied", message, "Unauthorized")


def too_large() -> StorageError:
    return StorageError(413, "EntityTooLarge", "The object exceeded the maximum allowed size", "Payload too large")


def invalid_mime_type(mime_type: str) -> StorageError:
    return StorageError(415, "InvalidMimeType", f"mime type {mime_type} is not supported", "invalid_mime_type")


def invalid_key(name: str) -> StorageError:
    return StorageError(400, "InvalidKey", f"Invalid key: {name}")


def invalid(message: str, code: str = "InvalidRequest", error: str | None = None) -> StorageError:
    return StorageError(400, code, message, error)


def no_transformation() -> StorageError:
    return StorageError(400, "FeatureNotEnabled", "Images are not transformed by the embedded stack")
