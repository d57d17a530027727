"""What a subscription to row changes asks for."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest

from infra.local import subscriptions
from infra.local.pgoutput import Change, Relation
from infra.local.subscriptions import Condition


@pytest.mark.parametrize(
    ("text", "conditions"),
    [
        ("id=eq.1", [("id", "eq", "1")]),
        (" amount=gte.1.5 , amount=lt.10 ", [("amount", "gte", "1.5"), ("amount", "lt", "10")]),
        ("body=neq.", [("body", "neq", "")]),
        ("body=eq.a.b=c (d", [("body", "eq", "a.b=c (d")]),
        (r'body=eq."a,\"b\"",id=gt.1', [("body", "eq", 'a,"b"'), ("id", "gt", "1")]),
        ('body=in.(a,"b)",c),id=lte.1', [("body", "in", '{a,"b)",c}'), ("id", "lte", "1")]),
        ("", []),
    ],
)
def test_reads_filters(text: str, conditions: list[tuple[str, str, str]]) -> None:
    binding = subscriptions.binding({"id": 1, "table": "notes", "filter": text})

    assert binding.conditions == {Condition(*condition) for condition in conditions}


@pytest.mark.parametrize(
    "wanted",
    [
        {"table": "notes", "filter": "undefined"},
        {"table": "notes", "filter": "id=near.1"},
        {"table": "notes", "filter": "id=eq.1,,id=eq.2"},
        {"table": "notes", "filter": "id=eq.1,"},
        {"table": "notes", "filter": "id=in.1,2"},
        {"table": "notes", "filter": 5},
        {"table": "notes", "filter": "id=eq." + "1" * 5_000},
        {"filter": "id=eq.1"},
        {"table": ["notes"]},
        {"table": "notes", "schema": [1]},
        {"table": "notes", "event": 5},
    ],
)
def test_refuses_what_is_no_subscription(wanted: Mapping[str, Any]) -> None:
    with pytest.raises(ValueError, match="params"):
        subscriptions.binding({"id": 1, **wanted})


@pytest.mark.parametrize(
    ("wanted", "is_wanted"),
    [
        ({}, True),
        ({"event": "*", "schema": "*"}, True),
        ({"event": "insert", "schema": "public", "table": "notes"}, True),
        ({"event": "DELETE"}, False),
        ({"schema": "private"}, False),
        ({"table": "note"}, False),
    ],
)
def test_wants_its_events_of_its_tables(wanted: Mapping[str, Any], is_wanted: bool) -> None:
    table = Relation(7, "public", "notes", columns=())
    change = Change("INSERT", table, datetime(2026, 1, 1, tzinfo=UTC), new={"id": "1"}, old={})

    assert subscriptions.binding({"id": 1, **wanted}).wants(change) == is_wanted
