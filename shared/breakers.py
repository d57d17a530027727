"""Which providers are resting after failures: counted in the database, for all instances see the same provider."""

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx

from shared import database
from shared.errors import GatewayError
from shared.settings import Settings

PROBE_SECONDS = 10  # what a try after the rest may take before another one is let on
NOTE_SECONDS = 2


@dataclass(slots=True)
class Breakers:
    """What this instance knows of the providers; nothing here waits for the database.

    `rests` has the end of a provider's rest on the monotonic clock, `suspects` those that have failed and not
    answered since.
    """

    settings: Settings
    http: httpx.AsyncClient
    rests: dict[str, float] = field(default_factory=dict)
    suspects: set[str] = field(default_factory=set)
    notes: set[asyncio.Task[None]] = field(default_factory=set)

    def wait_seconds(self, provider: str) -> float:
        """How long the provider rests yet; 0 where it may be asked.

        After a rest one caller may, and the others wait for what that one finds.
        """
        until = self.rests.get(provider)
        if until is None:
            return 0
        left = until - time.monotonic()
        if left <= 0:
            self.rests[provider] = time.monotonic() + PROBE_SECONDS
        return max(0.0, left)

    def note(self, provider: str, has_failed: bool) -> None:
        """Keep in mind how a try ended, and tell the other instances where that is news."""
        if not has_failed and provider not in self.suspects:
            return
        if has_failed:
            self.suspects.add(provider)
        else:
            self.suspects.discard(provider)
            self.rests.pop(provider, None)
        note = asyncio.create_task(self._tell(provider, has_failed))
        self.notes.add(note)
        note.add_done_callback(self.notes.discard)

    def learn(self, shared: Mapping[str, Any]) -> None:
        """Take over what all instances have noted."""
        now = time.monotonic()
        told = {name: now + row["rests_seconds"] for name, row in shared.items() if row["is_resting"]}
        self.rests = {name: max(until, self.rests.get(name, 0)) for name, until in told.items()}
        self.suspects = set(shared)

    async def _tell(self, provider: str, has_failed: bool) -> None:
        arguments = {
            "provider": provider,
            "has_failed": has_failed,
            "failures_allowed": self.settings.breaker_failures,
            "rest_seconds": self.settings.breaker_seconds,
        }
        with suppress(GatewayError):  # the next failure is noted again
            db = database.as_gateway(self.http, self.settings)
            rest_seconds = await database.call(db, "note_provider", arguments, NOTE_SECONDS)
            if rest_seconds is not None:
                self.rests[provider] = time.monotonic() + rest_seconds


class Apart(Breakers):
    """For a model that is tried out: no rest keeps it from being asked, its failures are no word on its provider."""

    def wait_seconds(self, provider: str) -> float:
        return 0

    def note(self, provider: str, has_failed: bool) -> None:
        pass
