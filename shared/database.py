"""Supabase's tables and functions over PostgREST, as the caller or, where it must be, as the gateway."""

import asyncio
from collections.abc import Awaitable, Mapping
from typing import Any, TypeVar

import httpx
import orjson
from postgrest import APIError, AsyncPostgrestClient

from shared.auth import Caller
from shared.errors import DatabaseUnavailable, GatewayError, InvalidRequest, Unauthenticated
from shared.settings import Settings

CALL_SECONDS = 8  # PostgREST's own statement timeout for authenticated callers
Rows = TypeVar("Rows")

# SQLSTATE and PostgREST codes that are the request's fault; anything else is the database's.
REFUSALS: dict[str, tuple[type[GatewayError], str]] = {
    "PGRST301": (Unauthenticated, "The access token can't be trusted: sign in again."),
    "PGRST303": (Unauthenticated, "The access token has expired: refresh the session and ask again."),
    "23503": (InvalidRequest, "It refers to something that isn't there: an export, a user or a document."),
    "22P02": (InvalidRequest, "A value has the wrong form for its column."),
    "22003": (InvalidRequest, "A number is out of range."),
    "22P05": (InvalidRequest, "A text holds a character the database can't store."),
}


def as_caller(http: httpx.AsyncClient, settings: Settings, caller: Caller) -> AsyncPostgrestClient:
    """A client in the caller's name: row level security decides what it sees."""
    return _client(http, settings, settings.supabase_publishable_key, caller.token)


def as_visitor(http: httpx.AsyncClient, settings: Settings) -> AsyncPostgrestClient:
    """A client in nobody's name: it sees what everybody may."""
    return _client(http, settings, settings.supabase_publishable_key)


def as_gateway(http: httpx.AsyncClient, settings: Settings) -> AsyncPostgrestClient:
    """A client with the secret key, past row level security.

    For writing answers, which a user must not forge, for counting calls, which he must not do for others, and for
    whoever holds the key himself.
    """
    key = settings.supabase_secret_key.get_secret_value()
    if key.startswith("eyJ"):  # a legacy key is a token, and PostgREST takes the role from the token
        return _client(http, settings, settings.supabase_publishable_key, key)
    return _client(http, settings, key)


async def call(
    db: AsyncPostgrestClient, function: str, arguments: Mapping[str, Any], timeout_seconds: float = CALL_SECONDS
) -> Any:
    """What a SQL function returns; errors become ours."""
    return await run(db.rpc(function, dict(arguments)).execute(), timeout_seconds)


async def run(query: Awaitable[Any], timeout_seconds: float = CALL_SECONDS) -> Any:
    """The data of an executed PostgREST query; errors become ours, and so does a page that is no JSON."""
    try:
        async with asyncio.timeout(timeout_seconds):
            data = (await query).data
    except APIError as error:
        raise _refusal(error.code) from error
    except (httpx.HTTPError, TimeoutError) as error:
        raise DatabaseUnavailable("The database can't be reached: try again.") from error
    if isinstance(data, str) and data:
        raise DatabaseUnavailable("The database's answer can't be read: try again.")
    return data


async def bulk(
    http: httpx.AsyncClient, settings: Settings, function: str, arguments: Mapping[str, Any], timeout_seconds: float
) -> Any:
    """`call` as the gateway, for megabytes: a page of rows, for which the client's own JSON would take the longest."""
    db = as_gateway(http, settings)
    headers = {**db.headers, "content-type": "application/json"}
    url = f"{settings.supabase_url}/rest/v1/rpc/{function}"
    try:
        body = orjson.dumps(arguments)
        response = await http.post(url, content=body, headers=headers, timeout=timeout_seconds)
        data = orjson.loads(response.content)
    except (httpx.HTTPError, TimeoutError) as error:
        raise DatabaseUnavailable("The database can't be reached: try again.") from error
    except orjson.JSONDecodeError as error:
        raise DatabaseUnavailable("The database's answer can't be read: try again.") from error
    if not response.is_success:
        raise _refusal(data.get("code") if isinstance(data, dict) else None)
    return data


def _refusal(code: str | None) -> GatewayError:
    kind, message = REFUSALS.get(code or "", (DatabaseUnavailable, f"The database refused ({code})."))
    return kind(message)


def _client(http: httpx.AsyncClient, settings: Settings, key: str, token: str | None = None) -> AsyncPostgrestClient:
    headers = {"apikey": key} | ({"Authorization": f"Bearer {token}"} if token else {})
    return AsyncPostgrestClient(
        f"{settings.supabase_url}/rest/v1", headers=headers, http_client=http, retry_enabled=False
    )
