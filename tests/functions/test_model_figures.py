"""deploy-model's figures, for admins: what models cost over time, and how a canary stands, which stays as it is."""

from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from infra.local.stack import Stack
from tests.functions import anybody
from tests.functions.deployments import Registry
from tests.functions.test_activation import simulate
from tests.functions.test_refusals import assert_refused
from tests.users import User

NOTHING = {"requests": 0, "errors": 0, "inputTokens": 0, "outputTokens": 0, "costUsd": 0}
NOTHING |= {"p50Ms": None, "p95Ms": None, "likes": 0, "dislikes": 0}  # type: ignore[dict-item]


def test_an_answer_is_in_the_figures_of_its_model(registry: Registry, alice: User) -> None:
    since = datetime.now(UTC) - timedelta(minutes=1)
    answer = alice.ask(registry.origin, "What is TON?").json()
    alice.call(registry.origin, "POST", "/feedback", {"conversationId": answer["conversationId"], "feedback": 1})

    told = registry.call("GET", f"/usage?from={since.strftime('%Y-%m-%dT%H:%M:%SZ')}&bucket=hour").json()

    assert told.keys() == {"since", "until", "bucket", "total", "models", "buckets"}
    [of_model] = [each for each in told["models"] if each["model"] == answer["model"]]
    [*_, latest] = [each for each in told["buckets"] if each["model"] == answer["model"]]
    assert of_model.keys() == {"model", *NOTHING}
    assert latest.keys() == {"start", "model", *NOTHING}
    assert told["total"]["requests"] >= of_model["requests"] >= latest["requests"] >= 1
    assert of_model["likes"] >= 1
    assert of_model["costUsd"] >= answer["usage"]["costUsd"] > 0


def test_without_a_span_it_is_thirty_days(registry: Registry) -> None:
    told = registry.call("GET", "/usage").json()

    span = datetime.fromisoformat(told["until"]) - datetime.fromisoformat(told["since"])
    assert (span, told["bucket"]) == (timedelta(days=30), "day")


def test_a_span_without_a_call_has_figures_of_nothing(registry: Registry) -> None:
    told = registry.call("GET", "/usage?from=1980-01-01T00:00:00Z&until=1980-01-02T00:00:00Z").json()

    assert (told["total"], told["models"], told["buckets"]) == (NOTHING, [], [])


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("from=2026-01-02T00:00:00Z&until=2026-01-01T00:00:00Z", "from: must be before until"),
        ("from=2026-01-01T00:00:00Z&until=2026-01-01T00:00:00Z", "from: must be before until"),
        ("from=2026-01-01T00:00:00Z&until=2026-02-01T00:00:00Z&bucket=hour", "by 400 hours at most"),
        ("from=1000-01-01T00:00:00Z", "by 400 days at most"),
        ("from=2026-01-01T00:00:00", "from: "),
        ("from=yesterday", "from: "),
        ("bucket=minute", "bucket: "),
    ],
)
def test_a_span_that_cannot_be_told_is_refused(registry: Registry, query: str, words: str) -> None:
    answer = registry.call("GET", f"/usage?{query}")

    assert_refused(answer, 422, "invalid_request")
    assert words in answer.json()["error"]


@pytest.mark.parametrize("path", ["/usage", "/canaries"])
def test_figures_are_for_admins(registry: Registry, stack: Stack, alice: User, path: str) -> None:
    as_user, as_visitor = (
        registry.call("GET", path, apikey=stack.keys.publishable, **headers)
        for headers in (anybody.signed_in(alice), {})
    )
    as_admin = registry.call("GET", path, apikey=stack.keys.publishable, **anybody.admin(stack))

    assert_refused(as_user, 403, "forbidden")
    assert_refused(as_visitor, 401, "unauthenticated")
    assert as_admin.status_code == 200


def test_a_canary_is_weighed_and_stays_as_it_is(registry: Registry, stack: Stack) -> None:
    registry.ready("v1", "v2")
    registry.activate("v1", force=True)
    registry.activate("v2", weight=0.5, force=True)
    before: dict[str, Any] = registry.row("v2")
    with psycopg.connect(stack.database_url, autocommit=True) as database:
        simulate(registry, database, "v1", 100, 95, 0)
        simulate(registry, database, "v2", 100, 10, 0)

    answer = registry.call("GET", "/canaries")

    [decision] = [each for each in answer.json()["decisions"] if each["modelName"] == registry.name]
    assert (decision["action"], decision["version"], decision["active"]) == ("rolled_back", "v2", "v1")
    assert "fewer users like its answers" in decision["reason"]
    [feedback, *_] = decision["numbers"]["comparisons"]
    assert (feedback["canary"], feedback["active"]) == (0.1, 0.95)
    assert registry.row("v2") == before
    assert registry.served() == {"v1": 0.5, "v2": 0.5}
