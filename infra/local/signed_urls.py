"""Addresses that open one object, or take one upload, without a key: tokens signed with the JWT secret."""

import time
from typing import Any, Literal

import jwt

from infra.local import storage_errors
from infra.local.keys import Keys

Scope = Literal["download", "upload"]
UPLOAD_SECONDS = 7200


def sign(keys: Keys, scope: Scope, path: str, seconds: int, **claims: Any) -> str:
    """A token for `path`, which is `<bucket>/<name>`. It has no role, so that it is no API key."""
    now = int(time.time())
    payload = {**claims, "url": path, "scope": scope, "iat": now, "exp": now + seconds}
    return jwt.encode(payload, keys.jwt_secret, "HS256")


def verify(keys: Keys, scope: Scope, path: str, token: str) -> dict[str, Any]:
    """The token's claims. Raises `StorageError` for one that is forged, expired, or made for something else."""
    try:
        claims: dict[str, Any] = jwt.decode(token, keys.jwt_secret, ["HS256"], options={"require": ["exp"]})
    except jwt.ExpiredSignatureError as error:
        raise storage_errors.invalid('"exp" claim timestamp check failed', "InvalidJWT") from error
    except jwt.PyJWTError as error:
        raise storage_errors.invalid("signature verification failed", "InvalidJWT") from error
    if claims.get("scope") != scope:
        raise storage_errors.invalid(f"Token is not scoped for {scope}", "InvalidSignature")
    if claims.get("url") != path:
        raise storage_errors.invalid("Invalid signature", "InvalidSignature")
    return claims
