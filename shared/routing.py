"""Which models a request is sent to: the served version that is the user's, and the chain behind it."""

import asyncio
import hashlib
import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from operator import itemgetter
from typing import Any

import httpx

from shared import database, model_table
from shared.breakers import Apart, Breakers
from shared.errors import GatewayError, InvalidRequest, Misconfigured, UnknownModel
from shared.models import Model, Route
from shared.providers import openai_compatible, replicate, runpod
from shared.providers.chat import Failure
from shared.settings import ModelFacts, Provider, Settings, provider_key
from shared.telemetry import logger

FRESH_SECONDS = 5
STATE_SECONDS = 2  # of a request's time for the first look
WIRES = {"openai": openai_compatible.connect, "replicate": replicate.connect, "runpod": runpod.connect}
# MODEL_PROVIDERS adds to them; each has its key in <NAME>_API_KEY.
PROVIDERS = {
    "openai": Provider(base_url="https://api.openai.com/v1", tuning_url="https://api.openai.com/v1"),
    "together": Provider(base_url="https://api.together.ai/v1", tuning_url="https://api.together.ai/v1"),
    "groq": Provider(base_url="https://api.groq.com/openai/v1"),
    "huggingface": Provider(
        base_url="https://router.huggingface.co/v1",
        dedicated="https://*.endpoints.huggingface.cloud",
        hosting_url="https://api.endpoints.huggingface.cloud/v2",
        tuning_url="https://huggingface.co",
    ),
    "replicate": Provider(base_url="https://api.replicate.com/v1", wire="replicate"),
    "runpod": Provider(base_url="https://api.runpod.ai/v2", wire="runpod", hosting_url="https://api.runpod.io/v2"),
}
OWN = "own"  # the server at MODEL_BASE_URL
ORIGIN = re.compile(r"https?://[a-z0-9.-]+(?::\d{1,5})?", re.ASCII)
NAMELESS = "tgi"  # what a dedicated endpoint's model is called where its address doesn't say; TGI takes any name


@dataclass(frozen=True, slots=True)
class Version:
    """A version of `model_metadata` that is served: its model, and its share of the users relative to the others'."""

    model: Model
    weight: float


@dataclass(slots=True)
class Router:
    """Open once a process. What the database says of versions and breakers is a few seconds old at most.

    It is looked up beside the requests, which wait for the very first look alone.
    """

    settings: Settings
    http: httpx.AsyncClient
    chain: Sequence[Model]
    allowed: Mapping[str, Model]
    detours: Mapping[Failure, Sequence[Model]]
    breakers: Breakers
    versions: Sequence[Version] = ()
    looked_at: float | None = None
    looking: asyncio.Task[None] | None = field(default=None, repr=False)

    @classmethod
    def open(cls, settings: Settings, http: httpx.AsyncClient) -> "Router":
        """The models the settings name. Raises `Misconfigured`, naming all that is missing or wrong."""
        problems: list[str] = []
        named = partial(_named, settings, http, problems)
        chain = named("MODEL_CHAIN", settings.model_chain)
        if not chain and not problems:
            if not settings.model_name:
                raise Misconfigured("Missing settings: MODEL_BASE_URL and MODEL_NAME, or MODEL_CHAIN.")
            chain = named("MODEL_NAME", f"{OWN}:{settings.model_name}")
        others = named("ALLOWED_MODELS", settings.allowed_models)
        detours = {
            Failure.TOO_LONG: named("CONTEXT_FALLBACKS", settings.context_fallbacks),
            Failure.UNACCEPTABLE: named("CONTENT_FALLBACKS", settings.content_fallbacks),
        }
        if problems:
            raise Misconfigured(" ".join(dict.fromkeys(problems)))
        return cls(
            settings=settings,
            http=http,
            chain=chain,
            allowed={model.name: model for model in [*chain, *others]},
            detours=detours,
            breakers=Breakers(settings, http),
        )

    async def route(self, user_key: str, wanted: str | None = None) -> Route:
        """The models for one request in the order they are asked; the same user has the same version.

        Raises `UnknownModel` for a wanted one that isn't allowed.
        """
        await self._look()
        first = self._allowed(wanted) if wanted else chosen(self.versions, user_key)
        chain = [first, *(model for model in self.chain if model.asked != first.asked)] if first else self.chain
        version = first.name if first and not wanted else None
        return self._route(chain, self.detours, self.breakers, version)

    def model(self, provider: str, provider_model: str, name: str) -> Model:
        """A version's model, served or not; `name` is its `model@version`.

        Raises `InvalidRequest` for a provider that isn't known or a model that can't be one of its, and `Misconfigured`
        where the provider's key is missing.
        """
        rows = known_providers(self.settings)
        if provider != OWN and provider not in rows:
            raise InvalidRequest(f"provider: not one of {', '.join([OWN, *rows])}.")
        if not provider_model.strip():
            raise InvalidRequest("providerModel: missing.")
        if "://" in provider_model and not (provider in rows and _is_dedicated(rows[provider], provider_model)):
            raise InvalidRequest(f"providerModel: {provider} has no endpoint at this address.")
        return _open(self.settings, self.http, f"{provider}:{provider_model}", "providerModel", name)

    def only(self, model: Model) -> Route:
        """The route to a model that is tried out: nothing stands in for it, and its failures touch no other route."""
        return self._route([model], {}, Apart(self.settings, self.http))

    async def known(self) -> dict[str, Model]:
        """The models a request may ask for, by the names it may use."""
        await self._look()
        return self._known()

    def named(self, name: str) -> Model | None:
        """An allowed or served model by the name that answers have."""
        return self._known().get(name)

    def wire(self, provider: str) -> str | None:
        """What a provider of the table speaks."""
        row = known_providers(self.settings).get(provider)
        return row.wire if row else None

    def _route(
        self,
        chain: Sequence[Model],
        detours: Mapping[Failure, Sequence[Model]],
        breakers: Breakers,
        version: str | None = None,
    ) -> Route:
        settings = self.settings
        return Route(
            chain=chain,
            detours=detours,
            breakers=breakers,
            answer_tokens=settings.answer_tokens,
            answer_characters=settings.answer_characters,
            stall_seconds=settings.stall_seconds,
            version=version,
        )

    def _known(self) -> dict[str, Model]:
        """The allowed models first, which no version of the same name replaces."""
        served = {version.model.name: version.model for version in self.versions}
        return {**self.allowed, **served, **self.allowed}

    def _allowed(self, wanted: str) -> Model:
        model = self.named(wanted)
        if model is None:
            raise UnknownModel(f"model: not one of {', '.join(self._known())}.")
        return model

    async def _look(self) -> None:
        """Look again where what is known is old; only who comes first waits for it."""
        if self.looking is None and (self.looked_at is None or time.monotonic() - self.looked_at > FRESH_SECONDS):
            self.looking = asyncio.create_task(self._look_up())
        if self.looked_at is None and self.looking:
            await asyncio.shield(self.looking)

    async def _look_up(self) -> None:
        """What is known stays where the database doesn't say: it is asked again in a few seconds."""
        try:
            db = database.as_gateway(self.http, self.settings)
            state = await database.call(db, "gateway_state", {}, STATE_SECONDS)
            self.breakers.learn(state["breakers"])
            self.versions = [version for row in state["models"] if (version := self._version(row))]
        except Exception as error:  # nobody waits for it who could be told
            kind = error.code if isinstance(error, GatewayError) else type(error).__name__
            logger.error("the routes can't be looked up", extra={"kind": kind})
        finally:
            self.looked_at, self.looking = time.monotonic(), None

    def _version(self, row: Mapping[str, Any]) -> Version | None:
        known = next((version for version in self.versions if version.model.name == row["name"]), None)
        asked = f"{row['provider']}:{row['model']}"
        if known and known.model.asked == asked:
            return Version(known.model, row["weight"])
        try:
            return Version(_open(self.settings, self.http, asked, "model_metadata", row["name"]), row["weight"])
        except Misconfigured as error:  # the chain answers without it
            logger.error("a served version can't be asked", extra={"version": row["name"], "reason": error.message})
            return None


def known_providers(settings: Settings) -> dict[str, Provider]:
    """The table of providers, with those of the settings."""
    return PROVIDERS | (settings.model_providers or {})


def chosen(versions: Sequence[Version], user_key: str) -> Model | None:
    """The user's version: weighted rendezvous hashing, so that users move only to what grows or from what shrinks."""
    lots = [(-math.log(_place(version, user_key)) / version.weight, version.model) for version in versions]
    return min(lots, key=itemgetter(0))[1] if lots else None


def _place(version: Version, user_key: str) -> float:
    """Where a user stands with a version, evenly spread above 0 and up to 1."""
    digest = hashlib.sha256(f"{version.model.name} {user_key}".encode()).digest()
    return (int.from_bytes(digest[:6]) + 1) / 2**48


def _named(
    settings: Settings, http: httpx.AsyncClient, problems: list[str], place: str, names: str | None
) -> list[Model]:
    """The models that can be opened; of the others it is noted why they can't."""
    models = []
    for name in filter(None, map(str.strip, (names or "").split(","))):
        try:
            models.append(_open(settings, http, name, place))
        except Misconfigured as error:
            problems.append(error.message)
    return models


def _open(settings: Settings, http: httpx.AsyncClient, asked: str, place: str, name: str | None = None) -> Model:
    """The model with its address and key. Raises `Misconfigured`, naming the place that names the model."""
    provider, _, model = asked.partition(":")
    providers = known_providers(settings)
    known = model_table.facts(settings, asked)
    own_url = known.base_url or settings.model_base_url
    if provider == OWN and model and own_url:
        chat = openai_compatible.connect(http, own_url, _own_key(settings, known))
        return Model(name or model, asked, provider, model, chat, known, own_url)
    if not model or provider not in providers:
        names = [OWN, *providers] if settings.model_base_url else list(providers)
        raise Misconfigured(f"{place}: {asked} is no provider:model of {', '.join(names)}.")
    row = providers[provider]
    base_url = known.base_url or row.base_url
    if "://" in model:
        if not _is_dedicated(row, model):
            raise Misconfigured(f"{place}: {provider} has no endpoint at the address of {name or asked}.")
        base_url, _, model = model.partition("#")
        model = model or NAMELESS
    chat = WIRES[row.wire](http, base_url, provider_key(provider, known.key_name))
    return Model(name or asked, asked, provider, model, chat, known, base_url)


def _is_dedicated(row: Provider, address: str) -> bool:
    """Whether a provider's key may go to an address that stands for a model's name, as `https://…/v1#name`."""
    scheme, _, rest = address.partition("://")
    origin = f"{scheme}://{re.split('[/?#]', rest, maxsplit=1)[0]}"
    return bool(row.dedicated and ORIGIN.fullmatch(origin) and fnmatchcase(origin, row.dedicated))


def _own_key(settings: Settings, known: ModelFacts) -> Any:
    return provider_key(OWN, known.key_name) if known.key_name else settings.model_api_key
