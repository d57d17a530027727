"""Subscriptions to row changes, without I/O: what clients ask for, what to ask PostgreSQL, and what they are sent."""

import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from psycopg import sql

from infra.local.pgoutput import Change, Relation

MAX_ROW_BYTES = 2**20
SHORT_BYTES = 64
MAX_FILTER_LENGTH = 5_000

PUBLISHED = """
    select from pg_publication_tables
    where pubname = 'supabase_realtime' and %s::text in ('*', schemaname) and %s::text in ('*', tablename)
"""
ACT_AS = """
    select
      set_config('request.jwt.claims', claims::text, true),
      set_config('request.jwt.claim.sub', coalesce(claims ->> 'sub', ''), true),
      set_config('request.jwt.claim.role', claims ->> 'role', true),
      set_config('role', claims ->> 'role', true)
    from (select %s::jsonb as claims) as subscriber
"""
# What the log does not say of a table: its primary key, and its columns' types as [schema, name].
DESCRIBE = """
    select
      array(
        select a.attname::text from pg_index i
        join pg_attribute a on a.attrelid = i.indrelid and a.attnum = any (i.indkey)
        where i.indrelid = %s and i.indisprimary
      ),
      (
        select jsonb_object_agg(c.name, jsonb_build_array(n.nspname, t.typname))
        from unnest(%s::text[], %s::bigint[]) as c (name, type_oid)
        join pg_type t on t.oid = c.type_oid
        join pg_namespace n on n.oid = t.typnamespace
      )
"""
# Values are texts until PostgreSQL has made rows of them: so one query does for however many changes.
TYPED = sql.SQL("""
    select to_jsonb(new), to_jsonb(old), array[{}]::boolean[]
    from jsonb_array_elements(%s::jsonb) with ordinality as changed (texts, place)
    cross join lateral (select {}) as new
    cross join lateral (select {}) as old
    order by changed.place
""")
SEEN = sql.SQL("""
    select
      array(
        select attname::text from pg_attribute
        where attrelid = c.oid and attnum > 0 and not attisdropped and has_column_privilege(attrelid, attnum, 'select')
      ),
      array(
        select place - 1 from jsonb_array_elements(%s::jsonb) with ordinality as changed (texts, place)
        where not c.relrowsecurity or {}
      )
    from pg_class c where c.oid = %s
""")
OPERATORS = {
    "eq": sql.SQL("{} = %s"),
    "neq": sql.SQL("{} <> %s"),
    "lt": sql.SQL("{} < %s"),
    "lte": sql.SQL("{} <= %s"),
    "gt": sql.SQL("{} > %s"),
    "gte": sql.SQL("{} >= %s"),
    "in": sql.SQL("{} = any (%s)"),
}
# A filter's condition and the comma behind it; a value with commas of its own stands in quotes or parentheses.
CONDITION = re.compile(
    r'([^=,]+)=(\w+)\.(\((?:"(?:\\.|[^"\\])*"|[^")])*\)\s*|"(?:\\.|[^"\\])*"\s*|[^,]*)(?:,(?=.)|$)', re.DOTALL
)

JsonRow = dict[str, Any]
Types = Mapping[str, tuple[str, str]]
Query = tuple[sql.SQL | sql.Composed, list[Any]]


@dataclass(frozen=True, slots=True)
class Condition:
    """`column=operator.value` of a filter; PostgreSQL reads the value as the column's type."""

    column: str
    operator: str
    value: str

    def expression(self, row: str) -> sql.Composed:
        """As SQL about `row`, with a placeholder for the value."""
        return OPERATORS[self.operator].format(_name(row, self.column))


@dataclass(frozen=True, slots=True)
class Binding:
    """One `postgres_changes` subscription; `*` stands for every event, schema or table."""

    id: int
    event: str
    schema: str
    table: str
    filter: str
    conditions: frozenset[Condition]

    def __str__(self) -> str:
        return f"[event: {self.event}, schema: {self.schema}, table: {self.table}, filters: {self.filter}]"

    def wants(self, change: Change) -> bool:
        pairs = (self.event, change.type), (self.schema, change.relation.schema), (self.table, change.relation.table)
        return all(wanted in ("*", actual) for wanted, actual in pairs)


def binding(wanted: Mapping[str, Any]) -> Binding:
    """What a client asks for when it joins; ValueError, in hosted Realtime's words, if it can't be had."""
    schema, table = wanted.get("schema") or "public", wanted.get("table") or "*"
    event, text = wanted.get("event") or "*", wanted.get("filter") or ""
    if not all(isinstance(value, str) for value in (schema, table, event, text)):
        raise ValueError("No subscription params provided. Please provide at least a `schema` or `table`")
    if text and "*" in (schema, table):
        raise ValueError("Error parsing `filter` params: a filter needs a schema and a table")
    return Binding(wanted["id"], event.upper(), schema, table, text, frozenset(_conditions(text)))


def payload(change: Change, types: Types, shown: Collection[str], new: JsonRow, old: JsonRow) -> dict[str, Any]:
    """A client's `data`: the `typed` rows `new` and `old`, of which only the columns `shown`.

    A very large row keeps its short values only, as hosted; clients would not take the message otherwise.
    """
    columns = [column for column in change.relation.columns if column.name in shown]
    is_large = sum(len(value or "") for row in (change.new, change.old) for value in row.values()) > MAX_ROW_BYTES

    def part(row: JsonRow) -> JsonRow:
        kept = {column.name: row[column.name] for column in columns if column.name in row}
        return {name: value for name, value in kept.items() if not is_large or len(json.dumps(value)) <= SHORT_BYTES}

    return {
        "schema": change.relation.schema,
        "table": change.relation.table,
        "type": change.type,
        "commit_timestamp": change.committed_at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "columns": [{"name": column.name, "type": types[column.name][1]} for column in columns],
        "errors": ["Error 413: Payload Too Large"] if is_large else None,
        **({"record": part(new)} if change.new else {}),
        **({"old_record": part(old)} if change.old else {}),
    }


def describe(relation: Relation) -> Query:
    """Asks for the primary key's columns, and for the type of each column as (schema, name)."""
    columns = relation.columns
    names, oids = [column.name for column in columns], [column.type_oid for column in columns]
    return sql.SQL(DESCRIBE), [relation.oid, names, oids]


def alike(changes: Sequence[Change]) -> list[list[int]]:
    """The places of the changes that can be asked for together: of one kind and one table, with the same columns."""
    places: dict[object, list[int]] = defaultdict(list)
    for place, change in enumerate(changes):
        places[change.type, change.relation, tuple(change.new), tuple(change.old)].append(place)
    return list(places.values())


def typed(changes: Sequence[Change], types: Types, conditions: Sequence[Condition]) -> Query:
    """Asks for a row for each of changes that are alike: `new` and `old` as PostgREST prints them, and an array that
    says which conditions are met."""
    first = changes[0]
    met = [condition.expression("new" if first.new else "old") for condition in conditions]
    new = [_typed(place, types[column], column) for place, column in enumerate(first.new)]
    old = [_typed(place, types[column], column) for place, column in enumerate(first.old, start=len(new))]
    query = TYPED.format(*(sql.SQL(", ").join(part) for part in (met, new, old)))
    texts = [[*change.new.values(), *change.old.values()] for change in changes]
    return query, [*(condition.value for condition in conditions), json.dumps(texts)]


def seen(changes: Sequence[Change], types: Types, key: Sequence[str]) -> Query:
    """Asks, as a subscriber, for the columns of a table that are theirs to see, and for the places of the rows.

    Of changes that are alike; everybody sees a DELETE.
    """
    first, is_present = changes[0], sql.SQL("true").format()
    if first.new:
        is_row = [
            sql.SQL("{} = {}").format(_name("present", column), _value_of(place, types[column]))
            for place, column in enumerate(key)
        ]
        is_present = sql.SQL("exists (select from {} as present where {})").format(
            _name(first.relation.schema, first.relation.table), sql.SQL(" and ").join(is_row)
        )
    texts = [[change.row.get(column) for column in key] for change in changes]
    return SEEN.format(is_present), [json.dumps(texts), first.relation.oid]


def possible(binding: Binding) -> Query:
    """Asks for no row, and fails as a filter would: unknown or forbidden columns, values of another type."""
    conditions = list(binding.conditions)
    met = sql.SQL(" and ").join(condition.expression("changed") for condition in conditions)
    query = sql.SQL("select from {} as changed where {} limit 0").format(_name(binding.schema, binding.table), met)
    return query, [condition.value for condition in conditions]


def _typed(place: int, type_name: tuple[str, str], column: str) -> sql.Composed:
    return sql.SQL("{} as {}").format(_value_of(place, type_name), _name(column))


def _value_of(place: int, type_name: tuple[str, str]) -> sql.Composed:
    return sql.SQL("(changed.texts ->> {})::{}").format(place, _name(*type_name))


def _name(*names: str) -> sql.Identifier:
    """Quoted, for a query with placeholders: there a per cent sign in a name would be taken for one."""
    return sql.Identifier(*(name.replace("%", "%%") for name in names))


def _conditions(text: str) -> Iterator[Condition]:
    end = 0
    while end < len(text):
        found = CONDITION.match(text, end)
        if not found or found[2] not in OPERATORS or len(text) > MAX_FILTER_LENGTH:
            raise ValueError(f"Error parsing `filter` params: {text[:100]}")
        yield Condition(found[1].strip(), found[2], _value(found[2], found[3].strip()))
        end = found.end()


def _value(operator: str, text: str) -> str:
    if operator == "in":
        if not text.startswith("("):
            raise ValueError("Error parsing `filter` params: `in` filter value must be wrapped by parentheses")
        return "{" + text[1:-1] + "}"
    return re.sub(r"\\(.)", r"\1", text[1:-1]) if text.startswith('"') else text
