"""Row changes out of PostgreSQL's log, without I/O.

The messages are those of the plugin pgoutput, protocol version 1, with values as text:
https://www.postgresql.org/docs/16/protocol-logicalrep-message-formats.html
"""

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
TYPES: dict[bytes, Literal["INSERT", "UPDATE", "DELETE"]] = {b"I": "INSERT", b"U": "UPDATE", b"D": "DELETE"}

# PostgreSQL would log every look into the slot.
CREATE_SLOT = """
    set log_min_messages = fatal;
    select pg_create_logical_replication_slot('realtime_' || pg_backend_pid(), 'pgoutput', true);
"""
READ_SLOT = """
    select data from pg_logical_slot_get_binary_changes(
      'realtime_' || pg_backend_pid(), null, %s, 'proto_version', '1', 'publication_names', 'supabase_realtime'
    )
"""
SKIP_SLOT = "select pg_replication_slot_advance('realtime_' || pg_backend_pid(), pg_current_wal_flush_lsn())"
END_OF_LOG = "select pg_current_wal_flush_lsn()::text"

# Each reading decodes anew what was logged since PostgreSQL last noted which transactions run, which it does by itself
# every 15 seconds only. Of many changes they would be read again and again.
ADVANCE_SLOT = """
    select pg_log_standby_snapshot()
    from pg_replication_slots
    where slot_name = 'realtime_' || pg_backend_pid() and pg_current_wal_lsn() - restart_lsn > 1024 * 1024
"""

Row = dict[str, str | None]


@dataclass(frozen=True, slots=True)
class Column:
    """`is_key`: the replica identity holds it, so an old row has its value."""

    name: str
    type_oid: int
    is_key: bool


@dataclass(frozen=True, slots=True)
class Relation:
    """A published table as it was when the row changed."""

    oid: int
    schema: str
    table: str
    columns: tuple[Column, ...]


@dataclass(frozen=True, slots=True)
class Change:
    """One row's change, its values as PostgreSQL prints them.

    `new` is empty for a DELETE, `old` for an INSERT. `old` is the key; with the replica identity `full`, the row.
    A large value that an UPDATE left alone is not in the log: `new` has it from a full `old`, and lacks it otherwise.
    """

    type: Literal["INSERT", "UPDATE", "DELETE"]
    relation: Relation
    committed_at: datetime
    new: Row
    old: Row

    @property
    def row(self) -> Row:
        """What filters look at."""
        return self.new or self.old


def changes(messages: Iterable[bytes]) -> Iterator[Change]:
    """The changes of whole transactions; a batch of messages describes every table it speaks of."""
    relations: dict[int, Relation] = {}
    committed_at = EPOCH
    for message in messages:
        body = _Body(message)
        kind = body.take(1)
        if kind == b"B":
            _, microseconds, _ = body.numbers(">QqI")
            committed_at = EPOCH + timedelta(microseconds=microseconds)
        elif kind == b"R":
            relation = _relation(body)
            relations[relation.oid] = relation
        elif kind in TYPES:
            (oid,) = body.numbers(">I")
            yield _change(kind, relations[oid], committed_at, body)


def _relation(body: "_Body") -> Relation:
    (oid,) = body.numbers(">I")
    schema, table = body.text(), body.text()
    _, count = body.numbers(">BH")
    return Relation(oid, schema, table, tuple(_column(body) for _ in range(count)))


def _column(body: "_Body") -> Column:
    (flags,) = body.numbers(">B")
    name = body.text()
    type_oid, _ = body.numbers(">Ii")
    return Column(name, type_oid, is_key=bool(flags & 1))


def _change(kind: bytes, relation: Relation, committed_at: datetime, body: "_Body") -> Change:
    rows: dict[bytes, Row] = {}
    while marker := body.take(1):
        rows[marker] = _row(body, relation)
    new = rows.get(b"N", {})
    old = rows.get(b"O") or _key(rows.get(b"K") or (new if kind == b"U" else {}), relation)
    return Change(TYPES[kind], relation, committed_at, new and old | new, old)


def _key(row: Row, relation: Relation) -> Row:
    return {column.name: row[column.name] for column in relation.columns if column.is_key and column.name in row}


def _row(body: "_Body", relation: Relation) -> Row:
    row: Row = {}
    (count,) = body.numbers(">H")
    for column in relation.columns[:count]:
        kind = body.take(1)
        if kind == b"t":
            (length,) = body.numbers(">I")
            row[column.name] = body.take(length).decode()
        elif kind == b"n":
            row[column.name] = None
    return row


class _Body:
    """A message and how far it has been read."""

    def __init__(self, message: bytes) -> None:
        self._message = message
        self._position = 0

    def take(self, length: int) -> bytes:
        taken = self._message[self._position : self._position + length]
        self._position += length
        return taken

    def numbers(self, form: str) -> tuple[int, ...]:
        return struct.unpack(form, self.take(struct.calcsize(form)))

    def text(self) -> str:
        end = self._message.index(b"\0", self._position)
        return self.take(end - self._position + 1)[:-1].decode()
