"""Row changes out of replication messages."""

import struct
from datetime import UTC, datetime

import pytest

from infra.local import pgoutput

TABLE = struct.pack(">I", 7)
BEGIN = b"B" + struct.pack(">QqI", 0, 86_400_000_000, 0)  # a day after the epoch, in microseconds
RELATION = (
    b"R"
    + TABLE
    + b"public\0notes\0d\0\3"
    + b"".join(
        [
            b"\1id\0\0\0\0\x17\xff\xff\xff\xff",
            b"\0body\0\0\0\0\x19\xff\xff\xff\xff",
            b"\0ok\0\0\0\0\x10\xff\xff\xff\xff",
        ]
    )
)
NULL, UNCHANGED = b"n", b"u"


def text(value: str) -> bytes:
    return b"t" + struct.pack(">I", len(value.encode())) + value.encode()


def row(*values: bytes) -> bytes:
    return struct.pack(">H", len(values)) + b"".join(values)


@pytest.mark.parametrize(
    ("message", "kind", "new", "old"),
    [
        (
            b"I" + TABLE + b"N" + row(text("1"), text("ünï"), NULL),
            "INSERT",
            {"id": "1", "body": "ünï", "ok": None},
            {},
        ),
        (
            b"U" + TABLE + b"N" + row(text("1"), UNCHANGED, text("t")),
            "UPDATE",
            {"id": "1", "ok": "t"},
            {"id": "1"},
        ),
        (
            b"U" + TABLE + b"K" + row(text("1"), NULL, NULL) + b"N" + row(text("2"), text("b"), NULL),
            "UPDATE",
            {"id": "2", "body": "b", "ok": None},
            {"id": "1"},
        ),
        (
            b"U" + TABLE + b"O" + row(text("1"), text("a"), NULL) + b"N" + row(text("1"), UNCHANGED, text("t")),
            "UPDATE",
            {"id": "1", "body": "a", "ok": "t"},
            {"id": "1", "body": "a", "ok": None},
        ),
        (
            b"D" + TABLE + b"K" + row(text("1"), NULL, NULL),
            "DELETE",
            {},
            {"id": "1"},
        ),
    ],
)
def test_decodes_a_row_change(message: bytes, kind: str, new: pgoutput.Row, old: pgoutput.Row) -> None:
    [change] = pgoutput.changes([BEGIN, RELATION, message, b"C"])

    assert (change.type, change.new, change.old) == (kind, new, old)
    assert (change.relation.schema, change.relation.table) == ("public", "notes")
    assert change.committed_at == datetime(2000, 1, 2, tzinfo=UTC)


def test_passes_over_what_is_no_row_change() -> None:
    truncate, origin, type_ = b"T" + b"\0" * 9 + TABLE, b"O" + b"\0" * 8 + b"x\0", b"Y" + TABLE + b"public\0mood\0"

    assert list(pgoutput.changes([BEGIN, RELATION, type_, origin, truncate, b"C"])) == []
