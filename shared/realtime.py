"""Broadcasts over Supabase Realtime, for answers as they are said."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from shared.errors import Unavailable
from shared.settings import Settings

BROADCAST_SECONDS = 2


async def broadcast(
    http: httpx.AsyncClient, settings: Settings, topic: str, event: str, payloads: Sequence[Mapping[str, Any]]
) -> None:
    """Send the payloads, in order, to whoever hears the private topic now; Realtime keeps nothing for later.

    With the secret key, for a user who could send there could put words into the gateway's mouth. Raises `Unavailable`.
    """
    messages = [{"topic": topic, "event": event, "payload": payload, "private": True} for payload in payloads]
    try:
        async with asyncio.timeout(BROADCAST_SECONDS):
            response = await http.post(
                f"{settings.supabase_url}/realtime/v1/api/broadcast",
                json={"messages": messages},
                headers=_headers(settings.supabase_secret_key.get_secret_value()),
            )
        response.raise_for_status()
    except (httpx.HTTPError, TimeoutError) as error:
        raise Unavailable("Realtime can't be reached.") from error


def _headers(key: str) -> dict[str, str]:
    """A legacy key is a token, and Realtime takes the role from the token."""
    return {"apikey": key} | ({"Authorization": f"Bearer {key}"} if key.startswith("eyJ") else {})
