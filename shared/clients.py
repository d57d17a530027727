"""What a process keeps between requests: its settings, one HTTP client, and the clients that borrow it."""

from dataclasses import dataclass

import httpx

from shared.auth import Verifier
from shared.embeddings import Embedder
from shared.models import Route
from shared.settings import Settings

LIMITS = httpx.Limits(max_connections=200, max_keepalive_connections=50, keepalive_expiry=60)
TIMEOUT = httpx.Timeout(60, connect=3)  # deadlines are the callers' own


@dataclass(frozen=True, slots=True)
class Clients:
    """Open once a process; nothing in it belongs to a caller."""

    settings: Settings
    http: httpx.AsyncClient
    verifier: Verifier
    route: Route
    embedder: Embedder

    @classmethod
    def open(cls, settings: Settings) -> "Clients":
        http = httpx.AsyncClient(limits=LIMITS, timeout=TIMEOUT)
        return cls(
            settings=settings,
            http=http,
            verifier=Verifier(settings, http),
            route=Route.open(settings, http),
            embedder=Embedder.open(settings, http),
        )
