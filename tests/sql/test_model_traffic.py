"""Which versions of a model have users: activations, canaries and rollbacks, one at a time."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import psycopg
import pytest

from infra.local.stack import Stack
from tests.sql import put_versions, refusal, rows, waits_for
from tests.sql.models import PROVIDER, Family

INVALID = "22023"


@pytest.fixture
def canary(family: Family) -> Family:
    """v2 was active after v1, and v3 is the canary beside it."""
    family.active("v1", "v2")
    family.ready("v3")
    family.activate("v3", 0.25)
    return family


def outcomes(answers: list[dict[str, Any]]) -> list[str]:
    return sorted(answer["outcome"] for answer in answers)


def at_once(calls: list[Callable[[], dict[str, Any]]]) -> list[dict[str, Any]]:
    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(lambda call: call(), calls))


def test_the_first_version_that_is_activated_gets_all_users(family: Family) -> None:
    family.ready("v1")

    activated = family.activate("v1", actor="ada", reason="the first", numbers={"accuracy": 0.9})

    assert activated == {"outcome": "activated", "active": "v1", "canary": None, "weight": 1, "previous": None}
    assert family.served() == {"v1": 1}
    assert family.history("weight", "previous_version", "actor", "reason", "numbers")[1:] == [
        ("activated", "v1", 1, None, "ada", "the first", {"accuracy": 0.9})
    ]


@pytest.mark.parametrize("weight", [None, 1])
def test_another_version_takes_all_users_over(family: Family, weight: float | None) -> None:
    family.active("v1")
    family.ready("v2")

    activated = family.activate("v2", weight)

    assert activated == {"outcome": "activated", "active": "v2", "canary": None, "weight": 1, "previous": "v1"}
    assert family.served() == {"v2": 1}
    assert (family.row("v1")["is_active"], family.row("v1")["traffic_weight"]) == (False, 0)


def test_a_canary_gets_a_part_of_the_users(family: Family) -> None:
    family.active("v1")
    family.ready("v2")

    activated = family.activate("v2", 0.1)

    assert activated == {"outcome": "canary", "active": "v1", "canary": "v2", "weight": 0.1, "previous": "v1"}
    assert family.served() == {"v1": 0.9, "v2": 0.1}
    assert family.row("v2")["canary_since"]
    assert family.history("weight", "previous_version")[-1:] == [("canary", "v2", 0.1, "v1")]


def test_a_canary_that_gets_more_users_is_a_canary_from_then_on(canary: Family) -> None:
    since = canary.row("v3")["canary_since"]

    answers = [canary.activate("v3", 0.5), canary.activate("v3", 0.5)]

    assert outcomes(answers) == ["already", "canary"]
    assert canary.served() == {"v2": 0.5, "v3": 0.5}
    assert canary.row("v3")["canary_since"] > since
    assert [step[:3] for step in canary.history("weight")][-2:] == [("canary", "v3", 0.25), ("canary", "v3", 0.5)]


def test_a_canary_is_as_old_as_its_weight_whatever_else_is_changed(canary: Family) -> None:
    since = canary.row("v3")["canary_since"]

    for change in ({"performance_metrics": {"loss": 0.1}}, {"traffic_weight": 0.25}):
        canary.table().update(change).eq("model_name", canary.name).eq("version", "v3").execute()

    assert canary.row("v3")["canary_since"] == since


def test_another_canary_takes_the_place_of_the_first(canary: Family) -> None:
    canary.ready("v4")

    activated = canary.activate("v4", 0.5)

    assert activated == {"outcome": "canary", "active": "v2", "canary": "v4", "weight": 0.5, "previous": "v2"}
    assert canary.served() == {"v2": 0.5, "v4": 0.5}
    assert canary.row("v3")["canary_since"] is None


def test_a_canary_that_gets_all_users_is_promoted(canary: Family) -> None:
    activated = canary.activate("v3", check_compared=True, compared_with="v2", compared_canary="v3")

    assert activated == {"outcome": "activated", "active": "v3", "canary": None, "weight": 1, "previous": "v2"}
    assert canary.served() == {"v3": 1}
    assert canary.row("v3")["canary_since"] is None
    assert canary.history("weight", "previous_version")[-1:] == [("promoted", "v3", 1, "v2")]


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_version_that_gets_all_users_takes_them_from_a_canary_too(canary: Family, version: str) -> None:
    activated = canary.activate(version)

    assert (activated["outcome"], activated["active"], activated["previous"]) == ("activated", version, "v2")
    assert canary.served() == {version: 1}
    assert canary.row("v3")["canary_since"] is None


def test_what_is_so_already_is_not_done_again(family: Family) -> None:
    family.active("v1")
    before = family.history("id")

    answers = [family.activate("v1"), family.activate("v1", compared_with="another", check_compared=True)]

    assert answers == [{"outcome": "already", "active": "v1", "canary": None, "weight": 1}] * 2
    assert family.history("id") == before


def test_a_version_that_cannot_have_users_is_told_so(family: Family) -> None:
    family.active("v1")
    family.register("uploading", **PROVIDER)
    family.register("homeless", status="ready")
    family.register("nameless", status="ready", provider="together")
    failed = family.register("failed", **PROVIDER)
    family.of_id("fail_model", failed["id"], failure="any")
    before = family.history("id")

    answers = {
        version: family.activate(version, 0.5)
        for version in ("uploading", "failed", "homeless", "nameless", "never-there")
    }

    assert answers == {
        "uploading": {"outcome": "not_ready", "status": "uploading"},
        "failed": {"outcome": "not_ready", "status": "failed"},
        "homeless": {"outcome": "not_served"},
        "nameless": {"outcome": "not_served"},
        "never-there": {"outcome": "unknown"},
    }
    assert family.served() == {"v1": 1}
    assert family.history("id") == before


def test_there_is_no_canary_without_another_version_that_answers(family: Family, database: psycopg.Connection) -> None:
    family.ready("v1", "v2")
    nobody = family.activate("v1", 0.5)
    put_versions(database, family.name, {"by-hand": {"is_active": True}})
    one_that_is_not_asked = family.activate("v1", 0.5)
    family.activate("v1")
    itself = family.activate("v1", 0.5)

    assert nobody == {"outcome": "no_active", "active": None, "canary": None}
    assert one_that_is_not_asked == {"outcome": "no_active", "active": "by-hand", "canary": None}
    assert itself == {"outcome": "no_active", "active": "v1", "canary": None}
    assert family.served() == {"v1": 1}


@pytest.mark.parametrize("weight", [0, -0.5, 1.5])
def test_a_weight_that_is_no_share_is_refused(family: Family, weight: float) -> None:
    family.ready("v1")
    asked = {"model_name": family.name, "version": "v1", "weight": weight}

    assert refusal(family.service.rpc("activate_model", asked)) == INVALID


@pytest.mark.parametrize("compared_with", [None, "v1", "never-there"])
def test_who_has_seen_another_version_active_is_told_of_the_conflict(canary: Family, compared_with: str | None) -> None:
    canary.ready("v4")

    answers = [
        canary.activate("v4", weight, check_compared=True, compared_with=compared_with) for weight in (None, 0.5)
    ]

    assert answers == [{"outcome": "conflict", "active": "v2", "canary": "v3"}] * 2
    assert canary.served() == {"v2": 0.75, "v3": 0.25}
    seen: dict[str, Any] = {"check_compared": True, "compared_with": "v2", "compared_canary": "v3"}
    assert canary.activate("v4", **seen)["outcome"] == "activated"


def test_who_has_not_seen_the_canary_is_told_of_the_conflict(canary: Family) -> None:
    canary.ready("v4")

    answers = [canary.activate("v4", weight, check_compared=True, compared_with="v2") for weight in (None, 0.5)]

    assert answers == [{"outcome": "conflict", "active": "v2", "canary": "v3"}] * 2
    assert canary.served() == {"v2": 0.75, "v3": 0.25}


def test_of_canaries_at_once_one_is_done(family: Family) -> None:
    family.active("v1")
    family.ready("v2", "v3")

    answers = at_once([partial(family.activate, v, 0.1, check_compared=True, compared_with="v1") for v in ("v2", "v3")])

    assert outcomes(answers) == ["canary", "conflict"]
    assert len(family.served()) == 2


SEEN: dict[str, Any] = {**PROVIDER, "hosting": None}
SERVED = {"repository": "ton/a", "revision": None, "status": "ready", "since": "2026-11-01T00:00:00+00:00"}


def activate_evaluated(family: Family, evaluated: dict[str, Any], **arguments: Any) -> dict[str, Any]:
    return family.call("activate_evaluated_model", version="v1", evaluated=evaluated, **arguments)


def test_a_version_that_is_another_since_it_was_evaluated_gets_no_users(family: Family) -> None:
    family.ready("v1")

    others = [{**SEEN, "provider": "groq"}, {**SEEN, "provider_model": "ton-other"}, {**SEEN, "hosting": SERVED}]
    answers = [activate_evaluated(family, other) for other in others]

    assert answers == [{"outcome": "changed"}] * 3
    assert family.served() == {}
    assert activate_evaluated(family, SEEN, compared_with="v9")["outcome"] == "conflict"
    assert activate_evaluated(family, SEEN)["outcome"] == "activated"


def test_what_an_endpoint_serves_is_written_down_by_who_knows_how_it_stands(family: Family) -> None:
    family.ready("v1", "v2")
    other = {**SERVED, "repository": "ton/b", "since": "2026-11-02T00:00:00+00:00"}

    first = family.call("note_hosting", version="v1", hosting=SERVED, provider_model="ton-hosted")
    late = family.call("note_hosting", version="v1", hosting=other)
    second = family.call("note_hosting", version="v1", hosting=other, compared_since=SERVED["since"])

    assert (first, late, second) == ({"outcome": "noted"}, {"outcome": "conflict"}, {"outcome": "noted"})
    assert (family.row("v1")["hosting"], family.row("v1")["provider_model"]) == (other, "ton-hosted")
    gone = family.call("note_hosting", version="v1", hosting=None, compared_since=other["since"])
    assert (gone, family.row("v1")["hosting"]) == ({"outcome": "noted"}, None)
    assert family.call("note_hosting", version="v9", hosting=SERVED) == {"outcome": "unknown"}


def test_weights_that_have_users_or_may_get_them_back_stay(family: Family) -> None:
    family.ready("v1", "v2")
    family.call("note_hosting", version="v1", hosting=SERVED)
    for version in ("v1", "v2"):
        family.activate(version)
    other = {**SERVED, "repository": "ton/b"}

    answers = [
        family.call("note_hosting", version="v2", hosting=SERVED),
        family.call("note_hosting", version="v1", hosting=other, compared_since=SERVED["since"]),
        family.call("note_hosting", version="v1", hosting=SERVED, compared_since=SERVED["since"]),
    ]

    assert [answer["outcome"] for answer in answers] == ["served", "was_served", "noted"]
    assert family.row("v1")["hosting"] == SERVED


def test_a_canary_that_was_taken_back_meanwhile_is_not_promoted(canary: Family) -> None:
    canary.roll_back(actor="ada")

    promoted = canary.activate("v3", check_compared=True, compared_with="v2", compared_canary="v3")

    assert promoted == {"outcome": "conflict", "active": "v2", "canary": None}
    assert canary.served() == {"v2": 1}


def test_of_activations_at_once_that_have_seen_the_same_one_is_done(family: Family) -> None:
    family.active("v1")
    others = [f"v{number}" for number in range(2, 10)]
    family.ready(*others)

    answers = at_once(
        [partial(family.activate, version, check_compared=True, compared_with="v1") for version in others]
    )

    [winner] = [answer["active"] for answer in answers if answer["outcome"] == "activated"]
    assert outcomes(answers) == ["activated"] + ["conflict"] * 7
    assert {answer["active"] for answer in answers} == {winner}
    assert family.served() == {winner: 1}
    assert [step for step in family.history("previous_version") if step[0] == "activated"] == [
        ("activated", "v1", None),
        ("activated", winner, "v1"),
    ]


def test_of_first_activations_at_once_one_is_done(family: Family) -> None:
    family.ready("v1", "v2")

    answers = at_once([partial(family.activate, version, check_compared=True) for version in ("v1", "v2")])

    assert outcomes(answers) == ["activated", "conflict"]
    assert len(family.served()) == 1


def test_activations_at_once_that_have_seen_nothing_are_done_one_after_the_other(family: Family) -> None:
    family.active("v1")
    family.ready("v2", "v3")
    weights = {"v2": None, "v3": 0.5, "v1": None}

    answers = at_once([partial(family.activate, version, weights[version]) for version in [*weights] * 4])

    done = [step for step in family.history("weight", "previous_version") if step[0] != "registered"]
    assert {answer["outcome"] for answer in answers} <= {"activated", "canary", "already", "no_active"}
    assert len(done) == 1 + sum(answer["outcome"] in ("activated", "canary") for answer in answers)
    assert sum(family.served().values()) == 1
    active = "v1"
    for action, version, _, previous in done[1:]:
        assert previous == active
        active = active if action == "canary" else version
    assert family.row(active)["is_active"]


def test_an_activation_waits_for_the_one_before(stack: Stack, database: psycopg.Connection, family: Family) -> None:
    family.active("v1")
    family.ready("v2", "v3")

    with ThreadPoolExecutor(1) as threads, psycopg.connect(stack.database_url) as transaction:
        transaction.execute("select public.activate_model(%s, 'v2')", [family.name])
        other = threads.submit(family.activate, "v3", check_compared=True, compared_with="v1")
        while not waits_for(database, transaction.info.backend_pid):
            assert not other.done()
        transaction.commit()

    assert other.result() == {"outcome": "conflict", "active": "v2", "canary": None}


def test_nobody_waits_for_another_models_activation(stack: Stack, family: Family) -> None:
    family.active("v1")
    other = f"{family.name}-2"

    with psycopg.connect(stack.database_url) as transaction:
        transaction.execute("select public.register_model(%s)", [other])
        family.ready("v2")
        activated = family.activate("v2")
        transaction.rollback()

    assert activated["outcome"] == "activated"


def test_rows_that_are_changed_by_hand_at_once_make_one_canary(
    stack: Stack, database: psycopg.Connection, family: Family
) -> None:
    family.active("v1")
    family.ready("v2", "v3")
    by_hand = (
        "update public.model_metadata set traffic_weight = case version when 'v1' then 0.8 else 0.2 end"
        " where model_name = %s and version in ('v1', %s)"
    )

    with ThreadPoolExecutor(1) as threads, psycopg.connect(stack.database_url) as transaction:
        transaction.execute(by_hand, [family.name, "v2"])
        other = threads.submit(
            psycopg.connect(stack.database_url, autocommit=True).execute, by_hand, [family.name, "v3"]
        )
        while not waits_for(database, transaction.info.backend_pid):
            assert not other.done()
        transaction.commit()
        with pytest.raises(psycopg.errors.UniqueViolation):
            other.result()

    assert family.served() == {"v1": 0.8, "v2": 0.2}


def test_a_canary_is_taken_back_first(canary: Family) -> None:
    rolled_back = canary.roll_back(actor="ada", reason="slow", numbers={"p95": 9})

    assert rolled_back == {"outcome": "rolled_back", "active": "v2", "previous": "v3", "was_canary": True}
    assert canary.served() == {"v2": 1}
    assert (canary.row("v3")["traffic_weight"], canary.row("v3")["canary_since"]) == (0, None)
    assert canary.history("weight", "previous_version", "actor", "reason", "numbers")[-1:] == [
        ("rolled_back", "v3", 0, "v2", "ada", "slow", {"p95": 9})
    ]


def test_a_rollback_goes_to_the_version_that_was_active_before(family: Family) -> None:
    family.active("v1", "v2")

    rolled_back = family.roll_back(actor="ada", reason="wrong")

    assert rolled_back == {"outcome": "rolled_back", "active": "v1", "previous": "v2", "was_canary": False}
    assert family.served() == {"v1": 1}
    assert family.history("weight", "previous_version", "actor", "reason")[-1:] == [
        ("rolled_back", "v2", 0, "v1", "ada", "wrong")
    ]


def test_rollbacks_go_further_back_and_not_to_and_fro(canary: Family) -> None:
    canary.activate("v3")

    answers = [canary.roll_back() for _ in range(4)]

    assert [answer["active"] for answer in answers] == ["v2", "v1", "v1", "v1"]
    assert outcomes(answers) == ["nothing", "nothing", "rolled_back", "rolled_back"]
    assert canary.served() == {"v1": 1}


def test_a_version_that_was_active_twice_is_gone_back_to_twice(family: Family) -> None:
    family.active("v1", "v2")
    family.activate("v1")
    family.ready("v3")
    family.activate("v3")

    answers = [family.roll_back()["active"] for _ in range(4)]

    assert answers == ["v1", "v2", "v1", "v1"]


def test_what_is_activated_after_a_rollback_stands_on_what_was_gone_back_to(family: Family) -> None:
    family.active("v1", "v2", "v3")
    family.roll_back()
    family.roll_back()
    family.ready("v4")
    family.activate("v4")

    answers = [family.roll_back() for _ in range(2)]

    assert [answer["active"] for answer in answers] == ["v1", "v1"]
    assert outcomes(answers) == ["nothing", "rolled_back"]


def test_canaries_that_come_and_go_leave_nothing_to_go_back_to(family: Family) -> None:
    family.active("v1", "v2")
    family.ready("v3")
    for weight in (0.1, 0.2):
        family.activate("v3", weight)
    family.roll_back()
    family.activate("v3", 0.1)
    family.activate("v2")

    answers = [family.roll_back()["active"] for _ in range(2)]

    assert answers == ["v1", "v1"]


def test_a_rollback_skips_versions_that_were_deleted(family: Family) -> None:
    family.active("v1", "v2", "v3", "v4")
    family.call("delete_model", version="v2")
    family.call("delete_model", version="v3")

    answers = [family.roll_back() for _ in range(2)]

    assert [answer["active"] for answer in answers] == ["v1", "v1"]
    assert family.history("previous_version")[-1:] == [("rolled_back", "v4", "v1")]


def test_where_all_before_were_deleted_nothing_is_gone_back_to(family: Family) -> None:
    family.active("v1", "v2")
    family.call("delete_model", version="v1")

    assert family.roll_back() == {"outcome": "nothing", "active": "v2"}
    assert family.served() == {"v2": 1}


def test_a_version_that_was_made_active_by_hand_can_be_gone_back_to(
    family: Family, database: psycopg.Connection
) -> None:
    put_versions(database, family.name, {"by-hand": {"is_active": True, **PROVIDER}})
    family.ready("v1")
    family.activate("v1")

    answers = [family.roll_back() for _ in range(2)]

    assert [answer["active"] for answer in answers] == ["by-hand", "by-hand"]
    assert family.served() == {"by-hand": 1}


def test_from_a_version_that_was_made_active_by_hand_the_last_activation_is_gone_back_to(
    family: Family, database: psycopg.Connection
) -> None:
    family.active("v1", "v2")
    family.table().update({"is_active": False, "traffic_weight": 0}).eq("id", family.row("v2")["id"]).execute()
    put_versions(database, family.name, {"by-hand": {"is_active": True, **PROVIDER}})

    answers = [family.roll_back()["active"] for _ in range(3)]

    assert answers == ["v2", "v1", "v1"]


def test_a_canary_beside_a_version_that_was_made_active_by_hand_goes_back_to_it(
    family: Family, database: psycopg.Connection
) -> None:
    family.active("v1")
    family.table().update({"is_active": False, "traffic_weight": 0}).eq("id", family.row("v1")["id"]).execute()
    put_versions(database, family.name, {"by-hand": {"is_active": True, **PROVIDER}})
    family.ready("v2")
    family.activate("v2", 0.5)

    answers = [family.roll_back()["active"] for _ in range(3)]

    assert answers == ["by-hand", "v1", "v1"]


def test_a_rollback_to_a_version_of_no_activation_leaves_those_before_it(family: Family) -> None:
    family.active("v1", "v2", "v3")
    step = {"model_name": family.name, "version": "v3", "action": "rolled_back", "previous_version": "by-hand"}
    family.service.table("model_history").insert(step).execute()

    answers = [family.roll_back()["active"] for _ in range(3)]

    assert answers == ["v2", "v1", "v1"]


def test_nothing_to_go_back_to_is_said(family: Family) -> None:
    never = family.roll_back()
    family.active("v1")
    first = family.roll_back()

    assert never == {"outcome": "nothing", "active": None}
    assert first == {"outcome": "nothing", "active": "v1"}


def test_who_means_the_canary_only_leaves_the_active_version_alone(canary: Family) -> None:
    answers = [canary.roll_back(canary_only=True) for _ in range(2)]

    assert [answer["outcome"] for answer in answers] == ["rolled_back", "nothing"]
    assert canary.served() == {"v2": 1}


def test_of_rollbacks_at_once_of_the_same_version_one_is_done(family: Family) -> None:
    family.active("v1", "v2", "v3")

    answers = at_once([partial(family.roll_back, compared_with="v3")] * 6)

    assert outcomes(answers) == ["conflict"] * 5 + ["rolled_back"]
    assert [answer["active"] for answer in answers] == ["v2"] * 6
    assert family.served() == {"v2": 1}


def test_the_whole_life_of_a_model_is_written_down(family: Family) -> None:
    family.ready("v1", "v2")
    family.activate("v1", actor="ada")
    family.activate("v2", 0.1, actor="ada")
    family.call("record_decision", version="v2", action="kept", actor="schedule")
    family.activate("v2", actor="schedule")
    family.roll_back(actor="ada")
    family.call("delete_model", version="v2", actor="ada")

    steps = family.history("weight", "previous_version", "actor")
    times = [at for *_, at in family.history("created_at")]
    assert steps == [
        ("registered", "v1", None, None, None),
        ("registered", "v2", None, None, None),
        ("activated", "v1", 1, None, "ada"),
        ("canary", "v2", 0.1, "v1", "ada"),
        ("kept", "v2", None, None, "schedule"),
        ("promoted", "v2", 1, "v1", "schedule"),
        ("rolled_back", "v2", 0, "v1", "ada"),
        ("deleted", "v2", None, None, "ada"),
    ]
    assert times == sorted(times)


def test_one_models_history_is_no_others(family: Family) -> None:
    family.active("v1", "v2")
    other = Family(family.service, f"{family.name}-2")
    other.ready("v2")

    assert other.roll_back() == {"outcome": "nothing", "active": None}
    assert family.served() == {"v2": 1}
    assert rows(other.table().delete().eq("model_name", other.name))
