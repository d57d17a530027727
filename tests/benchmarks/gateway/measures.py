"""What was measured, and what of it is whose: the upstream's, the database's, or the path between them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

PERCENTILES = (50, 95, 99)


@dataclass(frozen=True, slots=True)
class Answered:
    """One request's milliseconds as its caller saw them, and those of our own steps where the answer tells them."""

    whole_ms: float
    steps: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Line:
    """One gateway at one concurrency; `upstream_ms` is the upstream's own median time for what was asked of it."""

    answered: Sequence[Answered]
    upstream_ms: float
    per_second: float

    def whole(self) -> list[float]:
        return [each.whole_ms for each in self.answered]

    def added(self) -> list[float]:
        """All that is not the upstream's own time."""
        return [each.whole_ms - self.upstream_ms for each in self.answered]

    def path(self) -> list[float]:
        """What is neither the upstream's nor the database's: routing, auth, prompts, clients, JSON."""
        return [each.whole_ms - self.upstream_ms - database_ms(each.steps) for each in self.answered]

    def hidden_ms(self) -> float:
        """How long two steps ran side by side at the median, which one after the other would add."""
        return median(min(each.steps["open"], each.steps["embed"]) for each in self.answered)


def database_ms(steps: Mapping[str, float]) -> float:
    """What a request waits for the database: opening a turn only counts where the embedding is back before it."""
    return steps["match"] + steps["close"] + max(0.0, steps["open"] - steps["embed"])


def percentiles(values: Sequence[float]) -> dict[int, float]:
    """By percent, interpolated."""
    return {percent: float(np.percentile(values, percent)) for percent in PERCENTILES}
