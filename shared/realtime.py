"""Broadcasts over Supabase Realtime, for answers as they are said."""

from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from shared.settings import Settings


async def broadcast(
    http: httpx.AsyncClient, settings: Settings, topic: str, event: str, payloads: Sequence[Mapping[str, Any]]
) -> None:
    """Placeholder until merged."""
