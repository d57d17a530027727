"""Presence on Realtime's channels, without I/O: what a client says of itself, and how the others are told of it.

The shapes are Phoenix's: under each key those who are there, each with a reference of its own.
"""

import json
import secrets
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

State = dict[str, dict[str, list[dict[str, Any]]]]


@dataclass(frozen=True, slots=True)
class Present:
    """Somebody who is there, and what they say; `former` is the reference under which they said something else."""

    key: str
    says: dict[str, Any]
    reference: str
    former: str | None

    @property
    def meta(self) -> dict[str, Any]:
        former = {"phx_ref_prev": self.former} if self.former else {}
        return {**self.says, **former, "phx_ref": self.reference}


def key(wanted: Any) -> str:
    """The key that a client joins with; one that is nobody else's where it names none."""
    if isinstance(wanted, str):
        return wanted or str(uuid4())
    return json.dumps(wanted) if isinstance(wanted, int | float) else str(uuid4())


def present(key: str, says: dict[str, Any], before: Present | None) -> Present:
    """Somebody who says this from now on."""
    return Present(key, says, secrets.token_urlsafe(12), before.reference if before else None)


def state(there: Iterable[Present | None]) -> State:
    """What `presence_state` tells, and each side of a `presence_diff`."""
    grouped: State = defaultdict(lambda: {"metas": []})
    for each in there:
        if each:
            grouped[each.key]["metas"].append(each.meta)
    return grouped
