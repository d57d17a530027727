"""AWS Signature Version 4 from the server's side: whether a request was signed with the stack's S3 keys.

A body's digest is signed but not computed again: what arrives goes to the store in one pass.
"""

import hashlib
import hmac
from datetime import UTC, datetime, timedelta
from urllib.parse import quote, unquote

from starlette.requests import Request

from infra.local.keys import Keys
from infra.local.storage_errors import StorageError

ALGORITHM = "AWS4-HMAC-SHA256"
TIME = "%Y%m%dT%H%M%SZ"
TOLERANCE = timedelta(minutes=15)
LONGEST_PRESIGNED = timedelta(days=7)
Pairs = list[tuple[str, str]]


def verify(request: Request, keys: Keys) -> None:
    """Raises `StorageError` unless the request, signed in its headers or its address, is the key holder's."""
    query = _pairs(request.scope["query_string"].decode("latin-1"))
    presigned = {name: value for name, value in query if name.startswith("X-Amz-")}
    if "X-Amz-Signature" in presigned:
        given = {
            "credential": presigned.get("X-Amz-Credential", ""),
            "headers": presigned.get("X-Amz-SignedHeaders", ""),
            "signature": presigned["X-Amz-Signature"],
            "time": presigned.get("X-Amz-Date", ""),
        }
        query = [(name, value) for name, value in query if name != "X-Amz-Signature"]
        digest = "UNSIGNED-PAYLOAD"
    else:
        given = _header(request)
        digest = request.headers.get("x-amz-content-sha256", "UNSIGNED-PAYLOAD")
    access_key_id, _, scope = given["credential"].partition("/")
    if not hmac.compare_digest(access_key_id.encode(), keys.s3_access_key_id.encode()):
        message = "The Access Key Id you provided does not exist in our records."
        raise StorageError(403, "InvalidAccessKeyId", message)
    _check_time(given["time"], presigned.get("X-Amz-Expires"))
    canonical = _canonical(request, query, given["headers"].split(";"), digest)
    expected = _signature(keys.s3_secret_access_key, scope, given["time"], canonical)
    if not hmac.compare_digest(expected.encode(), given["signature"].encode()):
        message = "The request signature we calculated does not match the signature you provided."
        raise StorageError(403, "SignatureDoesNotMatch", message)


def unsigned(query: bytes) -> bytes:
    """The query without what a presigned address adds to it."""
    return b"&".join(pair for pair in query.split(b"&") if not pair.startswith(b"X-Amz-"))


def _header(request: Request) -> dict[str, str]:
    scheme, _, rest = request.headers.get("authorization", "").partition(" ")
    if scheme != ALGORITHM:
        raise StorageError(403, "AccessDenied", "The request is not signed with AWS Signature Version 4")
    fields = dict(field.strip().partition("=")[::2] for field in rest.split(","))
    return {
        "credential": fields.get("Credential", ""),
        "headers": fields.get("SignedHeaders", ""),
        "signature": fields.get("Signature", ""),
        "time": request.headers.get("x-amz-date", ""),
    }


def _check_time(signed: str, expires_seconds: str | None) -> None:
    try:
        age = datetime.now(UTC) - datetime.strptime(signed, TIME).replace(tzinfo=UTC)
        lifetime = TOLERANCE if expires_seconds is None else timedelta(seconds=int(expires_seconds))
    except (ValueError, OverflowError) as error:
        raise StorageError(403, "AccessDenied", "The request's date can't be read") from error
    if age < -TOLERANCE or (expires_seconds is None and age > lifetime):
        message = "The difference between the request time and the current time is too large."
        raise StorageError(403, "RequestTimeTooSkewed", message)
    if age > lifetime or lifetime > LONGEST_PRESIGNED:
        raise StorageError(403, "AccessDenied", "Request has expired")


def _canonical(request: Request, query: Pairs, signed_headers: list[str], digest: str) -> str:
    if "host" not in signed_headers:
        raise StorageError(403, "AccessDenied", "The header host is not signed")
    headers = [f"{name}:{','.join(map(_trimmed, request.headers.getlist(name)))}" for name in signed_headers]
    encoded = sorted((quote(name, safe="-_.~"), quote(value, safe="-_.~")) for name, value in query)
    lines = [
        request.method,
        request.scope["raw_path"].decode("latin-1"),
        "&".join(f"{name}={value}" for name, value in encoded),
        *headers,
        "",
        ";".join(signed_headers),
        digest,
    ]
    return "\n".join(lines)


def _signature(secret: str, scope: str, time: str, canonical: str) -> str:
    key = f"AWS4{secret}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    text = "\n".join([ALGORITHM, time, scope, hashlib.sha256(canonical.encode()).hexdigest()])
    return hmac.digest(key, text.encode(), "sha256").hex()


def _pairs(query: str) -> Pairs:
    named = (pair.partition("=") for pair in query.split("&") if pair)
    return [(unquote(name), unquote(value)) for name, _, value in named]


def _trimmed(value: str) -> str:
    return " ".join(value.split())
