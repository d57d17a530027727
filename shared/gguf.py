"""The header of a GGUF file: checked, and read for what is in the file.

The format is in ggml-org/ggml: docs/gguf.md; block sizes of newer types are from gguf-py/gguf/constants.py, and that
tensors follow one another, each at its alignment, is what gguf_init of ggml/src/gguf.cpp asks.
"""

import math
import struct
from collections import Counter
from typing import Any

from shared.contents import Content, Cursor
from shared.errors import ArtifactRefused

HEADER_BYTES = 64_000_000  # a vocabulary of a quarter of a million words and its merges have ten
ENTRIES = 10_000
TENSORS = 100_000
STRING_BYTES = 16 * 1024 * 1024
ITEMS = 4_000_000  # of an array
DEPTH = 4
DIMENSIONS = 8
NAME_BYTES = 256
# How many elements a block of a type has, and how many bytes.
BLOCKS = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 40), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18), 42: ("Q2_0", 64, 18),
}  # fmt: skip
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9


def facts(content: Content) -> dict[str, Any]:
    """The architecture, name, type, context length, and counts of tensors and parameters. Raises `ArtifactRefused`."""
    cursor = Cursor(content, HEADER_BYTES)
    if cursor.take(4) != b"GGUF":
        raise ArtifactRefused("it is no GGUF file: convert the model with llama.cpp.")
    version = cursor.number(4)
    if version not in (2, 3):
        raise ArtifactRefused("only GGUF of version 2 and 3, little-endian, is taken: convert it again with llama.cpp.")
    tensor_count = _bounded(cursor.number(8), TENSORS, "tensors")
    values = _values(cursor, _bounded(cursor.number(8), ENTRIES, "entries"))
    alignment = values.get("general.alignment", 32)
    if type(alignment) is not int or not 8 <= alignment <= 2**16 or alignment % 8:
        raise ArtifactRefused("its general.alignment is no multiple of 8: convert it again with llama.cpp.")
    types, parameters = _tensors(cursor, tensor_count, alignment, content.size)
    architecture = values.get("general.architecture")
    if not isinstance(architecture, str) or not architecture:
        raise ArtifactRefused("it has no general.architecture: convert it again with llama.cpp.")
    return {
        "version": version,
        "architecture": architecture,
        "name": values.get("general.name"),
        "fileType": values.get("general.file_type"),
        "contextLength": values.get(f"{architecture}.context_length"),
        "tensorCount": tensor_count,
        "parameterCount": parameters,
        "dtypes": dict(sorted(types.items())),
    }


def _values(cursor: Cursor, count: int) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for _ in range(count):
        key = _string(cursor, 2**16 - 1)
        if key in values:
            raise ArtifactRefused(f"it has {key[:60]!r} twice: convert it again with llama.cpp.")
        values[key] = _value(cursor, cursor.number(4), 0)
    return values


def _value(cursor: Cursor, kind: int, depth: int) -> Any:
    """A value; None for an array, whose items are passed over."""
    if form := NUMBERS.get(kind):
        return struct.unpack(f"<{form}", cursor.take(struct.calcsize(form)))[0]
    if kind == STRING:
        return _string(cursor, STRING_BYTES)
    if kind != ARRAY or depth == DEPTH:
        raise ArtifactRefused("it has a value of a type that is none of GGUF: convert it again with llama.cpp.")
    inner, count = cursor.number(4), _bounded(cursor.number(8), ITEMS, "items of an array")
    if form := NUMBERS.get(inner):
        cursor.skip(count * struct.calcsize(form))
    elif inner == STRING:
        for _ in range(count):
            cursor.skip(_bounded(cursor.number(8), STRING_BYTES, "bytes of a string"))
    else:
        for _ in range(count):
            _value(cursor, inner, depth + 1)
    return None


def _tensors(cursor: Cursor, count: int, alignment: int, size: int) -> tuple[Counter[str], int]:
    """How many tensors of each type, and their parameters."""
    types: Counter[str] = Counter()
    names: set[str] = set()
    parameters = end = 0
    for _ in range(count):
        name = _string(cursor, NAME_BYTES)
        dimensions = _bounded(cursor.number(4), DIMENSIONS, "dimensions of a tensor")
        shape = struct.unpack(f"<{dimensions}Q", cursor.take(8 * dimensions))
        kind, offset = cursor.number(4), cursor.number(8)
        if name in names:
            raise ArtifactRefused(f"it has the tensor {name[:60]!r} twice: convert it again with llama.cpp.")
        names.add(name)
        if kind not in BLOCKS:
            raise ArtifactRefused(f"its tensor {name[:60]!r} has the type {kind}, which isn't known: convert it.")
        dtype, block, block_bytes = BLOCKS[kind]
        elements = math.prod(shape)
        if elements >= 2**63 or (shape and shape[0] % block):
            raise ArtifactRefused(f"its tensor {name[:60]!r} has a shape that can't be: convert it again.")
        if offset != _aligned(end, alignment):
            raise ArtifactRefused(f"its tensor {name[:60]!r} overlaps another or leaves a gap: convert it again.")
        end = offset + elements // block * block_bytes
        types[dtype] += 1
        parameters += elements
    if count:
        _check_end(_aligned(cursor.position, alignment) + end, size, alignment)
    return types, parameters


def _check_end(end: int, size: int, alignment: int) -> None:
    if size < end:
        raise ArtifactRefused(f"it is cut off: {end - size} bytes are missing. Upload it again.")
    if size > _aligned(end, alignment):
        raise ArtifactRefused(f"{size - end} bytes follow its last tensor: convert it again with llama.cpp.")


def _aligned(offset: int, alignment: int) -> int:
    return offset + -offset % alignment


def _string(cursor: Cursor, most: int) -> str:
    return cursor.take(_bounded(cursor.number(8), most, "bytes of a string")).decode("utf-8", "replace")


def _bounded(number: int, most: int, what: str) -> int:
    if number > most:
        raise ArtifactRefused(f"its header claims {number} {what}, {most} are the most: convert it again.")
    return number
