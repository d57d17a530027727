"""A server of many models, each with a script of its own, and the functions' settings that have it for providers."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from tests.stand_ins import Model


@dataclass(slots=True)
class Models(Model):
    """Each model gives its script's answers first; one that is held waits before it does, and has no others."""

    scripts: dict[str, list[Callable[[], Response]]] = field(default_factory=dict)
    held: set[str] = field(default_factory=set)
    keys: dict[str, str] = field(default_factory=dict)

    async def complete(self, request: Request) -> Response:
        body = await request.json()
        name = body["model"]
        self.keys[name] = request.headers["authorization"]
        if not self.scripts.get(name) and name not in self.held:
            return await Model.complete(self, request)
        self.asked.append(body)
        while name in self.held:  # noqa: ASYNC110  # the test's own thread lets it go
            await asyncio.sleep(0.01)
        return self.scripts[name].pop(0)() if self.scripts.get(name) else Response(status_code=503)

    def asked_of(self, name: str) -> list[dict[str, Any]]:
        """What a model was asked."""
        return [body for body in self.asked if body["model"] == name]

    def providers(self, *names: str) -> dict[str, str]:
        """Settings by which these providers are this server; each has a key."""
        rows = {name: {"base_url": f"{self.url}/v1"} for name in names}
        return {"MODEL_PROVIDERS": json.dumps(rows)} | {f"{name.upper()}_API_KEY": f"key-of-{name}" for name in names}
