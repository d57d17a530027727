"""What the gateway's instances share: the versions they serve, by weight, and the providers that rest."""

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from supabase import Client

from tests.sql import put_versions, retire, rows


@pytest.fixture
def provider() -> str:
    return uuid4().hex


@pytest.fixture
def put_models(database: psycopg.Connection) -> Iterator[Callable[..., list[str]]]:
    """Adds versions of a model of their own; gives their names, as the gateway knows them."""
    model_names = []

    def put(*rows: dict[str, Any]) -> list[str]:
        model_name = uuid4().hex
        model_names.append(model_name)
        standard = {"provider": "together", "provider_model": "ton"}
        put_versions(database, model_name, {str(number): standard | row for number, row in enumerate(rows)})
        return [f"{model_name}@{number}" for number in range(len(rows))]

    yield put
    for model_name in model_names:
        retire(database, model_name)


def served(service: Client) -> dict[str, tuple[str, str, float]]:
    """Provider, model and weight of each version."""
    models = rows(service.rpc("gateway_state"))["models"]
    return {model["name"]: (model["provider"], model["model"], model["weight"]) for model in models}


def note(service: Client, provider: str, has_failed: bool = True, allowed: int = 3, rest: float = 30) -> Any:
    """The seconds the provider rests then, None for none."""
    end = {"has_failed": has_failed, "failures_allowed": allowed, "rest_seconds": rest}
    return rows(service.rpc("note_provider", {"provider": provider, **end}))


def breaker(service: Client, provider: str) -> dict[str, Any] | None:
    found: dict[str, Any] | None = rows(service.rpc("gateway_state"))["breakers"].get(provider)
    return found


def wake(database: psycopg.Connection, provider: str) -> None:
    """As if the provider had rested enough, and nobody had tried it yet."""
    database.execute(
        "update private.breakers set rests_until = now(), failed_at = now() - interval '1 hour' where provider = %s",
        [provider],
    )


def test_a_version_is_served_by_its_weight_or_because_it_is_active(
    service: Client, put_models: Callable[..., list[str]]
) -> None:
    [alone] = put_models({"is_active": True, "provider_model": "ton-1"})
    [active, canary, waiting] = put_models(
        {"is_active": True, "traffic_weight": 0.75, "provider_model": "ton-2"},
        {"traffic_weight": 0.25, "provider_model": "ton-3"},
        {},
    )
    not_served = [
        waiting,
        *put_models({"traffic_weight": 0}),
        *put_models({"is_active": True, "provider": None}),
        *put_models({"is_active": True, "provider_model": None}),
    ]

    found = served(service)

    assert found[alone] == ("together", "ton-1", 1)
    assert found[active] == ("together", "ton-2", 0.75)
    assert found[canary] == ("together", "ton-3", 0.25)
    assert not found.keys() & set(not_served)


@pytest.mark.parametrize("weight", [-0.1, 1.1, math.nan, math.inf])
def test_a_weight_is_a_share(database: psycopg.Connection, weight: float) -> None:
    row = [uuid4().hex, weight]

    with pytest.raises(psycopg.errors.CheckViolation):
        database.execute(
            "insert into public.model_metadata (model_name, version, traffic_weight) values (%s, '1', %s)", row
        )


def test_a_provider_that_is_well_has_no_breaker(service: Client, provider: str) -> None:
    noted = note(service, provider, has_failed=False)

    assert (noted, breaker(service, provider)) == (None, None)


def test_a_provider_rests_after_failures_in_a_row(service: Client, provider: str) -> None:
    noted = [note(service, provider) for _ in range(2)]
    before = breaker(service, provider)
    noted += [note(service, provider)]

    after = breaker(service, provider)
    assert noted == [None, None, 30]
    assert before == {"is_resting": False, "rests_seconds": 0}
    assert after and after["is_resting"]
    assert 25 < after["rests_seconds"] <= 30


def test_an_answer_ends_the_row(service: Client, provider: str) -> None:
    noted = [note(service, provider, has_failed=failed) for failed in (True, True, False, True, True)]

    assert noted == [None] * 5
    assert breaker(service, provider) == {"is_resting": False, "rests_seconds": 0}


def test_failures_a_minute_apart_are_no_row(service: Client, database: psycopg.Connection, provider: str) -> None:
    for _ in range(4):
        assert note(service, provider) is None
        database.execute(
            "update private.breakers set failed_at = failed_at - interval '61 s' where provider = %s", [provider]
        )

    assert breaker(service, provider) == {"is_resting": False, "rests_seconds": 0}


def test_what_fails_while_its_provider_rests_makes_the_rest_no_longer(service: Client, provider: str) -> None:
    first = note(service, provider, allowed=1)

    later = [note(service, provider, allowed=1) for _ in range(5)]

    assert first == 30
    assert all(20 < seconds <= 30 for seconds in later)


def test_after_a_rest_one_failure_makes_it_twice_as_long(
    service: Client, database: psycopg.Connection, provider: str
) -> None:
    noted = [note(service, provider, allowed=2) for _ in range(2)]
    wake(database, provider)
    half_open = breaker(service, provider)
    for _ in range(6):
        noted += [note(service, provider, allowed=2)]
        wake(database, provider)

    assert half_open == {"is_resting": True, "rests_seconds": 0}
    assert noted == [None, 30, 60, 120, 240, 480, 480, 480]


def test_an_answer_after_a_rest_makes_a_provider_as_good_as_new(
    service: Client, database: psycopg.Connection, provider: str
) -> None:
    for _ in range(2):
        note(service, provider, allowed=1)
        wake(database, provider)

    note(service, provider, has_failed=False)

    assert breaker(service, provider) is None
    assert [note(service, provider, allowed=2) for _ in range(2)] == [None, 30]


def test_failures_at_once_are_counted_each_and_open_one_rest(
    service: Client, database: psycopg.Connection, provider: str
) -> None:
    with ThreadPoolExecutor(12) as threads:
        noted = list(threads.map(lambda _: note(service, provider, allowed=10), range(24)))

    assert noted.count(None) == 9
    assert noted.count(30) == 1
    assert database.execute("select rests from private.breakers where provider = %s", [provider]).fetchone() == (1,)


def test_providers_rest_on_their_own(service: Client, provider: str) -> None:
    other = uuid4().hex

    note(service, provider, allowed=1)

    assert note(service, other, allowed=2) is None
    assert breaker(service, other) == {"is_resting": False, "rests_seconds": 0}
