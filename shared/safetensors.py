"""The header of a safetensors file: checked as its own library does, and read for what is in the file.

The format is in huggingface/safetensors: README.md ("Format") and `Metadata::validate` of safetensors/src/tensor.rs.
Eight bytes are the header's length (little-endian), then comes the header as JSON, then the tensors without a gap.
"""

import json
import math
import sys
from typing import Any, NamedTuple

from shared.contents import Content, values
from shared.errors import ArtifactRefused

HEADER_BYTES = 100_000_000  # the format's own limit
DIMENSIONS = 32
TENSORS = 200_000  # far more than any model's file has, and what fits into a small function's memory
VALUES = 15 * TENSORS  # of JSON; a tensor of six dimensions has twelve
BITS = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
FIELDS = {"dtype", "shape", "data_offsets"}
METADATA = "__metadata__"


class Tensor(NamedTuple):
    """Where a tensor lies in the data, how many elements it has, and of which type."""

    begin: int
    end: int
    elements: int
    dtype: str


def facts(content: Content) -> dict[str, Any]:
    """Counts of tensors and parameters, types, and the free metadata. Raises `ArtifactRefused`."""
    length = int.from_bytes(content.read(0, 8), "little")
    if content.size < 8 or length > HEADER_BYTES:
        raise ArtifactRefused("it is no safetensors file: save the model with safetensors.")
    if 8 + length > content.size:
        raise ArtifactRefused(f"it is cut off: its header has {length} bytes, it has {content.size}. Upload it again.")
    header = _parse(content.read(8, length))
    metadata = header.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ArtifactRefused(f"its {METADATA} is no object of strings: save it again with safetensors.")
    tensors = list(header.values())
    _check(header, content.size - 8 - length)
    return {
        "tensorCount": len(tensors),
        "parameterCount": sum(tensor.elements for tensor in tensors),
        "dtypes": {
            dtype: sum(tensor.dtype == dtype for tensor in tensors) for dtype in sorted({t.dtype for t in tensors})
        },
        "metadata": metadata,
    }


def _parse(raw: bytes) -> dict[str, Any]:
    if values(raw) > VALUES:
        raise ArtifactRefused(f"its header has more than {VALUES} values, which no model's has: split it.")
    try:
        header = json.loads(raw, object_pairs_hook=_compact) if raw[:1] == b"{" else None
    except (ValueError, RecursionError) as error:
        raise ArtifactRefused("its header is no JSON: save it again with safetensors.") from error
    if not isinstance(header, dict):
        raise ArtifactRefused("its header is no JSON object: save it again with safetensors.")
    return header


def _compact(pairs: list[tuple[str, Any]]) -> dict[str, Any] | Tensor:
    """An object of the header, tensors as tuples at once: a hundred thousand dictionaries are a lot of memory."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ArtifactRefused("its header has a name twice: save it again with safetensors.")
    if found.keys() != FIELDS:
        if len(found) > TENSORS:
            raise ArtifactRefused(f"it has more than {TENSORS} tensors: split it into several files.")
        return found
    dtype, shape, offsets = found["dtype"], found["shape"], found["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise ArtifactRefused(f"its type {str(dtype)[:20]!r} is none of safetensors: convert it.")
    if not (_are_sizes(shape) and _are_sizes(offsets) and len(offsets) == 2):
        raise ArtifactRefused("its header has a shape or an offset that is none: save it again with safetensors.")
    return Tensor(offsets[0], offsets[1], math.prod(shape), sys.intern(dtype))


def _are_sizes(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= DIMENSIONS
        and all(type(item) is int and 0 <= item < 2**63 for item in value)
    )


def _check(header: dict[str, Any], data_bytes: int) -> None:
    """Tensors follow one another without gap or overlap, are as long as shape and type say, and end with the file."""
    position = 0
    for name, tensor in sorted(header.items(), key=lambda item: item[1][:2] if isinstance(item[1], Tensor) else (0, 0)):
        if not isinstance(tensor, Tensor):
            raise ArtifactRefused(f"its entry {name[:60]!r} is no tensor: save it again with safetensors.")
        if tensor.begin != position or tensor.end < tensor.begin:
            raise ArtifactRefused(f"its tensor {name[:60]!r} overlaps another or leaves a gap: save it again.")
        if tensor.elements * BITS[tensor.dtype] != (tensor.end - tensor.begin) * 8:
            raise ArtifactRefused(f"its tensor {name[:60]!r} isn't as long as its shape says: save it again.")
        position = tensor.end
    if position > data_bytes:
        raise ArtifactRefused(f"it is cut off: {position - data_bytes} bytes are missing. Upload it again.")
    if position < data_bytes:
        raise ArtifactRefused(f"{data_bytes - position} bytes follow its last tensor: save it again with safetensors.")
