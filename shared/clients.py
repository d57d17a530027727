"""What a process keeps between requests: its settings, one HTTP client, and the clients that borrow it."""

import gc
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

import httpx

from shared import connections, settings
from shared.auth import Verifier
from shared.embeddings import Embedder
from shared.errors import Misconfigured
from shared.parameters import Parameters
from shared.quotas import Refusals
from shared.routing import Router
from shared.settings import Settings
from shared.telemetry import logger

LIMITS = httpx.Limits(max_connections=200, max_keepalive_connections=50, keepalive_expiry=60)
TIMEOUT = httpx.Timeout(60, connect=3)  # deadlines are the callers' own


@dataclass(frozen=True, slots=True)
class Clients:
    """Open as long as its settings are good; of callers it knows who was refused, and nothing that is theirs."""

    settings: Settings
    http: httpx.AsyncClient
    verifier: Verifier
    router: Router
    embedder: Embedder
    refusals: Refusals = field(default_factory=Refusals)

    @classmethod
    def open(cls, settings: Settings, http: httpx.AsyncClient | None = None) -> "Clients":
        http = http or _http()
        return cls(
            settings=settings,
            http=http,
            verifier=Verifier(settings, http),
            router=Router.open(settings, http),
            embedder=Embedder.open(settings, http),
        )


@dataclass(slots=True)
class Keeper:
    """The process's clients, the secrets they were opened with, and those that were seen last."""

    http: httpx.AsyncClient
    parameters: Parameters | None
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    seen: Mapping[str, str] = field(default_factory=dict, repr=False)
    clients: Clients | None = None

    async def kept(self) -> Clients:
        secrets = await self.parameters.read() if self.parameters else self.secrets
        if self.clients is None or secrets != self.seen:
            self.seen = secrets
            settings.keep(secrets)
            try:
                self.clients = Clients.open(settings.load(), self.http)
            except Misconfigured as error:
                if self.clients is None:
                    raise
                settings.keep(self.secrets)
                logger.error("secrets that can't be used", extra={"reason": error.message})
                return self.clients
            self.secrets = secrets
            gc.freeze()
            gc.enable()
        return self.clients


async def kept() -> Clients:
    """This process's own, and others once its secrets have changed; with secrets that can't be used the old ones stay.

    Raises `Misconfigured` until it no longer has to.

    What is in memory by then, the modules above all, stays: the garbage collector needn't look through it again, for
    which it would stop a request every now and then.
    """
    return await keeper().kept()


@cache
def keeper() -> Keeper:
    names = settings.parameter_names()
    account = settings.aws_account() if names else None
    http = _http()
    return Keeper(http, Parameters(names, account, http) if names and account else None)


def _http() -> httpx.AsyncClient:
    return connections.tuned(httpx.AsyncClient(limits=LIMITS, timeout=TIMEOUT))
