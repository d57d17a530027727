"""Whether a canary is better than the active version, worse, or not yet known to be either.

The test is the mixture sequential probability ratio test with a normal mixture, of Johari, Koomen, Pekelis and Walsh,
"Always Valid Inference: Continuous Monitoring of A/B Tests" (Operations Research 70, 2022, section 4). For a difference
of means d with variance V, and differences expected to lie around 0 with the deviation t, the likelihood ratio is

    L = sqrt(V / (V + t^2)) * exp(t^2 * d^2 / (2 * V * (V + t^2)))

and 1 / L is a p-value that stays valid however often one looks, so that a check every few minutes finds a difference in
noise no more often than one at the end. What it assumes:

- Users came to either version by chance (routing hashes their ids), and don't influence each other. A user has one vote
  in the feedback, however many thumbs he gave. Failures and latencies are counted by call, whose number a single user
  could raise: rate limits bound it, and the least number of users is asked for besides.
- The weight is constant, but for the seconds until all functions know it: figures begin anew with another one. Where
  users' minds change over time, two splits put together show a difference that there is in neither.
- The means are about normal, which is why nothing is said before there are `LEAST` of each. Proportions take their
  variance from both versions together, with one success and one failure added to each; latencies are compared as
  logarithms, for they are skewed.
- Three measures are looked at, so each has a third of `ALPHA`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, variance
from typing import Any, Literal

Action = Literal["promoted", "kept", "rolled_back"]

ALPHA = 0.05  # of all decisions about a canary that is no different, the share that says it is
LEAST = 30  # of users, votes, calls, latencies; of each version
EXPECTED = {"feedback": 0.1, "failures": 0.05, "latency": 0.2}  # t: shares, shares, and logarithms
SLOWER = math.log(1.25)  # what a better model may take longer without being worse


@dataclass(frozen=True, slots=True)
class Comparison:
    """One measure of both versions: shares of thumbs up and of failed calls, or geometric means of milliseconds.

    `difference` is the canary's less the active one's (of latencies, as logarithms); `p_value` is that of no difference
    (of latencies, of none above `SLOWER`), and None where there is too little to say anything.
    """

    measure: str
    canary: float | None
    active: float | None
    canary_count: int
    active_count: int
    difference: float | None = None
    p_value: float | None = None

    @property
    def is_certain(self) -> bool:
        return self.p_value is not None and self.p_value < ALPHA / len(EXPECTED)


@dataclass(frozen=True, slots=True)
class Decision:
    """What is to be done with a canary, why in words for people, and all that it was decided on."""

    action: Action
    reason: str
    numbers: dict[str, Any]


def decide(figures: Mapping[str, Any]) -> Decision:
    """Weigh a canary by the figures of `canary_figures`.

    It is rolled back when it surely has fewer thumbs up, more failures, or takes surely longer and by more than a
    quarter; promoted when it surely has more thumbs up and none of that; else kept.
    """
    canary, active = figures["canary"], figures["active"]
    feedback = _shares("feedback", *_voices(canary["votes"]), *_voices(active["votes"]))
    failures = _shares("failures", canary["failed"], _calls(canary), active["failed"], _calls(active))
    latency = _latencies(canary["latencies_ms"], active["latencies_ms"])
    users = min(canary["users"], active["users"])
    numbers = {
        "test": "mSPRT",
        "alpha": ALPHA,
        "since": figures["since"],
        "weight": figures["weight"],
        "users": {"canary": canary["users"], "active": active["users"]},
        "comparisons": [asdict(each) for each in (feedback, failures, latency)],
    }
    action, reason = _judged(feedback, failures, latency, users)
    return Decision(action, reason, numbers)


def _judged(feedback: Comparison, failures: Comparison, latency: Comparison, users: int) -> tuple[Action, str]:
    if users < LEAST:
        return "kept", f"Too few users yet: {users} of {LEAST}."
    worse = []
    if failures.is_certain and _is_above(failures):
        worse.append(f"more calls fail ({failures.canary:.1%}, not {failures.active:.1%})")
    if feedback.is_certain and not _is_above(feedback):
        worse.append(f"fewer users like its answers ({feedback.canary:.0%}, not {feedback.active:.0%})")
    if latency.is_certain:
        worse.append(f"it takes longer ({latency.canary:.0f} ms, not {latency.active:.0f})")
    if worse:
        return "rolled_back", f"The canary is worse: {', '.join(worse)}."
    if feedback.is_certain:
        return (
            "promoted",
            f"The canary is better: more users like its answers ({feedback.canary:.0%}, not {feedback.active:.0%}).",
        )
    return "kept", "No difference is certain yet."


def _is_above(comparison: Comparison) -> bool:
    return comparison.difference is not None and comparison.difference > 0


def _calls(version: Mapping[str, Any]) -> int:
    return int(version["answers"] + version["failed"])


def _voices(votes: Sequence[Sequence[int]]) -> tuple[int, int]:
    """How many users like the answers, of those who are of one mind about them."""
    likes = sum(up > down for up, down in votes)
    return likes, likes + sum(up < down for up, down in votes)


def _shares(measure: str, hits: int, count: int, active_hits: int, active_count: int) -> Comparison:
    canary, active = hits / count if count else None, active_hits / active_count if active_count else None
    if canary is None or active is None or min(count, active_count) < LEAST:
        return Comparison(measure, canary, active, count, active_count)
    pooled = (hits + active_hits + 2) / (count + active_count + 4)
    spread = pooled * (1 - pooled) * (1 / count + 1 / active_count)
    p_value = _p_value(canary - active, spread, EXPECTED[measure])
    return Comparison(measure, canary, active, count, active_count, canary - active, p_value)


def _latencies(canary: Sequence[float], active: Sequence[float]) -> Comparison:
    logs, active_logs = ([math.log(max(each, 1)) for each in values] for values in (canary, active))
    mean, active_mean = (math.exp(fmean(each)) if each else None for each in (logs, active_logs))
    if min(len(logs), len(active_logs)) < LEAST:
        return Comparison("latency", mean, active_mean, len(logs), len(active_logs))
    difference = fmean(logs) - fmean(active_logs)
    spread = variance(logs) / len(logs) + variance(active_logs) / len(active_logs)
    p_value = _p_value(max(0.0, difference - SLOWER), spread, EXPECTED["latency"])
    return Comparison("latency", mean, active_mean, len(logs), len(active_logs), difference, p_value)


def _p_value(difference: float, spread: float, expected: float) -> float:
    """1 / L, at most 1; in logarithms, for L may be beyond any float."""
    if not spread:
        return 0.0 if difference else 1.0
    square = expected**2
    log_ratio = 0.5 * math.log(spread / (spread + square))
    log_ratio += square * difference**2 / (2 * spread * (spread + square))
    return math.exp(-max(0.0, log_ratio))
