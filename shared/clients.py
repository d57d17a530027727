"""What a process keeps between requests: its settings, one HTTP client, and the clients that borrow it."""

import gc
from dataclasses import dataclass
from functools import cache

import httpx

from shared import connections
from shared.auth import Verifier
from shared.embeddings import Embedder
from shared.routing import Router
from shared.settings import Settings, load

LIMITS = httpx.Limits(max_connections=200, max_keepalive_connections=50, keepalive_expiry=60)
TIMEOUT = httpx.Timeout(60, connect=3)  # deadlines are the callers' own


@dataclass(frozen=True, slots=True)
class Clients:
    """Open once a process; nothing in it belongs to a caller."""

    settings: Settings
    http: httpx.AsyncClient
    verifier: Verifier
    router: Router
    embedder: Embedder

    @classmethod
    def open(cls, settings: Settings) -> "Clients":
        http = connections.tuned(httpx.AsyncClient(limits=LIMITS, timeout=TIMEOUT))
        return cls(
            settings=settings,
            http=http,
            verifier=Verifier(settings, http),
            router=Router.open(settings, http),
            embedder=Embedder.open(settings, http),
        )


@cache
def kept() -> Clients:
    """This process's own. Raises `Misconfigured`, again with every call until it no longer has to.

    What is in memory by now, the modules above all, stays: the garbage collector needn't look through it again, for
    which it would stop a request every now and then.
    """
    clients = Clients.open(load())
    gc.freeze()
    return clients
