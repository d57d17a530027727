"""The outermost layer of an ONNX file: `ModelProto` of onnx/onnx.proto, walked as protobuf's wire format.

Checked is that the file is one message from its beginning to its end, with ir_version and graph, and that operator
sets are imported. Not checked is what lies within the graph: its nodes, their types, whether a runtime knows the
operators, and weights kept outside of the file (external data), which are none of the formats that are taken. Of a
stream that can't be looked at to its end, what follows the graph isn't checked either.
"""

from collections.abc import Iterator
from typing import Any

from shared.contents import Content, Cursor, in_memory
from shared.errors import ArtifactRefused

FIELDS = 1_000_000
TEXT_BYTES = 1024
IR_VERSION, PRODUCER_NAME, PRODUCER_VERSION, GRAPH, OPSET_IMPORT = 1, 2, 3, 7, 8
KNOWN = {IR_VERSION, PRODUCER_NAME, PRODUCER_VERSION, GRAPH}
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5


def facts(content: Content) -> dict[str, Any]:
    """The version, the producer and the operator sets. Raises `ArtifactRefused`."""
    found: dict[int, int | bytes] = {}
    opsets: dict[str, int] = {}
    for number, value in fields(content):
        if number == OPSET_IMPORT and isinstance(value, bytes):
            opsets |= _opset(value)
        if number in KNOWN:
            found[number] = value
    version, graph = found.get(IR_VERSION), found.get(GRAPH)
    if not isinstance(version, int) or not 1 <= version < 1000 or graph is None:
        raise ArtifactRefused("it is no ONNX model: it has no ir_version or no graph. Export it again.")
    if not opsets and content.reach == content.size:
        raise ArtifactRefused("it is no ONNX model: it imports no operator set. Export it again.")
    return {
        "irVersion": version,
        "producer": _text(found.get(PRODUCER_NAME)),
        "producerVersion": _text(found.get(PRODUCER_VERSION)),
        "opsets": opsets,
    }


def fields(content: Content) -> Iterator[tuple[int, int | bytes]]:
    """A message's fields: numbers as such, the first bytes of what has a length. Raises `ArtifactRefused`.

    The whole message is walked, as far as it can be looked ahead; every field lies within it.
    """
    cursor = Cursor(content, content.size)
    count = 0
    while cursor.position < min(content.size, content.reach):
        key = _varint(cursor)
        number, kind = key >> 3, key & 7
        if number == 0 or kind not in (VARINT, FIXED64, LENGTH, FIXED32) or count == FIELDS:
            raise ArtifactRefused("it is no protobuf message: export it again.")
        value: int | bytes
        if kind == VARINT:
            value = _varint(cursor)
        elif kind == LENGTH:
            length = _varint(cursor)
            head = min(length, TEXT_BYTES, content.reach - cursor.position)
            value = cursor.take(head) if length <= content.size - cursor.position else b""
            cursor.skip(length - len(value))
        else:
            value = cursor.number(8 if kind == FIXED64 else 4)
        count += 1
        yield number, value


def _opset(message: bytes) -> dict[str, int]:
    """`OperatorSetIdProto`: its domain, "" for ONNX's own, and its version."""
    inner = dict(fields(in_memory(message)))
    version = inner.get(2, 0)
    return {_text(inner.get(1)) or "": version if isinstance(version, int) else 0}


def _varint(cursor: Cursor) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = cursor.number(1)
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value
    raise ArtifactRefused("it is no protobuf message: export it again.")


def _text(value: int | bytes | None) -> str | None:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else None
