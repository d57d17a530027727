"""What is decided of a canary: on simulated users, looked at every day, and by single rules."""

import random
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from shared import canary
from shared.canary import Decision

DAYS, USERS_A_DAY, RUNS = 30, 50, 30


@dataclass
class Version:
    """A version as its users find it, and what they have told so far."""

    liked: float = 0.7
    failing: float = 0.01
    slowness: float = 1.0
    figures: dict[str, Any] = field(
        default_factory=lambda: {"users": 0, "answers": 0, "failed": 0, "votes": [], "latencies_ms": []}
    )

    def serve(self, users: int, chance: random.Random) -> None:
        for _ in range(users):
            self.figures["users"] += 1
            if chance.random() < self.failing:
                self.figures["failed"] += 1
                continue
            self.figures["answers"] += 1
            self.figures["latencies_ms"].append(chance.lognormvariate(7, 0.5) * self.slowness)
            if chance.random() < 0.3:
                self.figures["votes"].append([1, 0] if chance.random() < self.liked else [0, 1])


def weigh(new: Version, active: Version) -> Decision:
    return canary.decide(
        {"since": "2026-11-01T00:00:00Z", "weight": 0.5, "canary": new.figures, "active": active.figures}
    )


def outcome(new: Version, active: Version, seed: int) -> str:
    """What is decided in the end, with a look every day."""
    chance = random.Random(seed)  # noqa: S311
    new, active = replace(new, figures=Version().figures), replace(active, figures=Version().figures)
    for _ in range(DAYS):
        new.serve(USERS_A_DAY, chance)
        active.serve(USERS_A_DAY, chance)
        decision = weigh(new, active)
        if decision.action != "kept":
            return decision.action
    return "kept"


def outcomes(new: Version, active: Version) -> Counter[str]:
    return Counter(outcome(new, active, seed) for seed in range(RUNS))


@pytest.mark.parametrize(
    "new",
    [Version(liked=0.5), Version(failing=0.06), Version(slowness=1.6), Version(liked=0.9, failing=0.1)],
    ids=["less liked", "fails more", "slower", "liked, but fails more"],
)
def test_a_worse_canary_is_rolled_back(new: Version) -> None:
    decided = outcomes(new, Version())

    assert decided["rolled_back"] >= 0.9 * RUNS
    assert decided["promoted"] <= 0.1 * RUNS


def test_a_better_canary_is_promoted() -> None:
    assert outcomes(Version(liked=0.88), Version())["promoted"] >= 0.9 * RUNS


@pytest.mark.parametrize("new", [Version(), Version(slowness=1.1)], ids=["the same", "a little slower"])
def test_noise_decides_nothing_however_often_one_looks(new: Version) -> None:
    assert outcomes(new, Version())["kept"] >= 0.95 * RUNS


def test_too_few_users_decide_nothing() -> None:
    new, active = Version(failing=1), Version(failing=0)
    new.serve(canary.LEAST - 1, random.Random(1))  # noqa: S311
    active.serve(1000, random.Random(2))  # noqa: S311

    decision = weigh(new, active)

    assert decision.action == "kept"
    assert decision.reason == f"Too few users yet: {canary.LEAST - 1} of {canary.LEAST}."


def test_a_user_has_one_voice_however_many_thumbs_he_gives() -> None:
    new, active = Version(), Version()
    for version in (new, active):
        version.serve(100, random.Random(1))  # noqa: S311
        version.figures["votes"] = [[1, 0]] * 40
    new.figures["votes"] = [[1, 0]] * 39 + [[0, 10_000]]

    [feedback, *_] = weigh(new, active).numbers["comparisons"]

    assert (feedback["canary"], feedback["canary_count"]) == (39 / 40, 40)


def test_a_user_of_two_minds_has_none() -> None:
    new, active = Version(), Version()
    new.figures["votes"] = [[2, 2], [1, 0]]

    [feedback, *_] = weigh(new, active).numbers["comparisons"]

    assert (feedback["canary"], feedback["canary_count"], feedback["active"]) == (1.0, 1, None)


def test_a_decision_says_what_it_was_made_on() -> None:
    new, active = Version(liked=0.2), Version()
    for version in (new, active):
        version.serve(2000, random.Random(3))  # noqa: S311

    decision = weigh(new, active)

    assert decision.action == "rolled_back"
    assert "fewer users like its answers" in decision.reason
    assert decision.numbers["users"] == {"canary": 2000, "active": 2000}
    feedback = decision.numbers["comparisons"][0]
    assert feedback["measure"] == "feedback"
    assert feedback["p_value"] < canary.ALPHA / 3
    assert feedback["difference"] < 0


def test_the_same_latency_everywhere_is_no_difference() -> None:
    new, active = Version(), Version()
    for version in (new, active):
        version.serve(50, random.Random(1))  # noqa: S311
        version.figures["latencies_ms"] = [100] * 50

    latency = weigh(new, active).numbers["comparisons"][2]

    assert (latency["difference"], latency["p_value"]) == (0.0, 1.0)
