"""What the gateway's benchmark counts as whose, and how its load and its upstream behave."""

import asyncio
from pathlib import Path

import pytest

from tests.benchmarks.gateway import load, setting
from tests.benchmarks.gateway.load import Refused
from tests.benchmarks.gateway.measures import Answered, Line, database_ms


def test_opening_a_turn_counts_only_where_the_embedding_is_back_before_it() -> None:
    steps = {"auth": 1.0, "embed": 20.0, "match": 5.0, "model": 200.0, "close": 3.0}

    assert database_ms({**steps, "open": 12.0}) == 8.0
    assert database_ms({**steps, "open": 26.0}) == 14.0


def test_the_path_is_what_neither_the_upstream_nor_the_database_took() -> None:
    steps = {"open": 12.0, "embed": 20.0, "match": 5.0, "close": 3.0}
    line = Line([Answered(231.0, steps)], upstream_ms=220.0, per_second=4.0)

    assert line.added() == [11.0]
    assert line.path() == [3.0]


def test_the_upstream_lets_eight_wait_side_by_side(tmp_path: Path) -> None:
    with setting.upstream(tmp_path, chat_ms=50, embedding_ms=5) as origin:
        timed = asyncio.run(load.run(origin, setting.completions(80), connection_count=8))

    assert len(timed) == 80
    assert min(each.whole_ms for each in timed) >= 49
    assert timed[-1].ended - timed[0].ended < 80 * 0.05 / 2


def test_a_refused_request_ends_the_run(tmp_path: Path) -> None:
    unknown = load.Call("/v1/nothing", {}, {})

    with setting.upstream(tmp_path, chat_ms=1, embedding_ms=1) as origin, pytest.raises(Refused):
        asyncio.run(load.run(origin, [unknown], connection_count=1))
