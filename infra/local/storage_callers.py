"""Who asks the storage API, and the database in their name: the policies of `storage` decide, as on a hosted project.

Without a policy a visitor and a user may do nothing but read public buckets; the secret key stands above them.
"""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from psycopg import AsyncConnection, DataError
from psycopg.errors import InsufficientPrivilege, InvalidParameterValue
from psycopg_pool import AsyncConnectionPool
from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from infra.local import storage_errors, subscriptions
from infra.local.keys import Keys
from infra.local.object_store import ObjectStore

Claims = dict[str, Any]
SUPERUSER: Claims = {"role": "service_role"}  # what a signed address allows is no longer asked of the policies
MOST_BYTES = 5 * 1024**3
UPLOAD_SECONDS = 24 * 60 * 60
Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Storage:
    """What every request needs: the keys it is checked with, the rows, the objects behind them, and the limits.

    No file is larger than `most_bytes`, whatever its bucket allows; a resumable upload ends after `upload_seconds`.
    """

    keys: Keys
    pool: AsyncConnectionPool
    store: ObjectStore
    most_bytes: int
    upload_seconds: int

    def caller(self, request: Request) -> Claims:
        """The caller's claims; a bearer token speaks before the API key. Raises `StorageError` without a valid one."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        credential = token if scheme.lower() == "bearer" else request.headers.get("apikey")
        if not credential:
            raise storage_errors.invalid("headers must have required property 'authorization'", error="Error")
        claims = self.keys.claims(credential)
        if claims is None:
            raise storage_errors.denied("Invalid Compact JWS")
        return claims

    @asynccontextmanager
    async def acting(self, claims: Claims, *, undone: bool = False) -> AsyncIterator[AsyncConnection]:
        """A transaction with the caller's rights, of which nothing stays when it is `undone`."""
        try:
            async with self.pool.connection() as database, database.transaction(force_rollback=undone):
                await database.execute(subscriptions.ACT_AS, [json.dumps(claims)])
                yield database
        except (InsufficientPrivilege, InvalidParameterValue) as error:
            raise storage_errors.denied("new row violates row-level security policy") from error
        except DataError as error:
            raise storage_errors.invalid(str(error)) from error


async def sent(request: Request, model: type[Model]) -> Model:
    """The request's JSON. Raises `StorageError` for anything else than the model takes."""
    try:
        return model.model_validate_json(await request.body() or b"{}")
    except ValidationError as error:
        first = error.errors()[0]
        reason = ": ".join([*map(str, first["loc"]), first["msg"]])
        raise storage_errors.invalid(f"body/{reason}", error="Error") from error
