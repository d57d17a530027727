"""Models' files as the tests make them: small, whole, and then damaged on purpose."""

import gzip
import io
import json
import random
import struct
import tarfile
from collections.abc import Mapping
from functools import cache
from typing import Any

CONFIG = json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab": {"a": 1}}).encode()


def safetensors(header: Mapping[str, Any] | bytes, data: bytes = b"") -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def tensor(dtype: Any, shape: list[Any], begin: Any, end: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@cache
def weights(size: int, seed: int = 7) -> bytes:
    """A safetensors file with so many bytes of one tensor, no two parts of which are the same."""
    return safetensors({"w": tensor("U8", [size], 0, size)}, random.Random(seed).randbytes(size))  # noqa: S311


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def entry(key: str, kind: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + value


ARCHITECTURE = entry("general.architecture", 8, string("llama"))
CONTEXT = entry("llama.context_length", 4, struct.pack("<I", 2048))
WORDS = entry("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, 2) + string("a") + string("b"))
SCORES = entry("tokenizer.ggml.scores", 9, struct.pack("<IQff", 6, 2, 0.5, 1.5))


def gguf_tensor(name: str, shape: list[int], kind: int, offset: int) -> bytes:
    return string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def gguf(entries: list[bytes], tensors: list[bytes], data: bytes, version: int = 3, magic: bytes = b"GGUF") -> bytes:
    head = magic + struct.pack("<IQQ", version, len(tensors), len(entries)) + b"".join(entries) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + data


def field(number: int, value: int | bytes) -> bytes:
    """A field of a protobuf message; numbers below 128 and lengths below 16384."""
    if isinstance(value, int):
        return bytes([number << 3, value])
    return bytes([number << 3 | 2, len(value) & 0x7F | 0x80, len(value) >> 7]) + value


def tar(files: Mapping[str, bytes], **attributes: Any) -> bytes:
    """An archive; the attributes are the last member's."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=attributes.pop("format", tarfile.PAX_FORMAT)) as archive:
        for number, (name, data) in enumerate(files.items(), 1):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for key, value in attributes.items() if number == len(files) else ():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(data))
    return target.getvalue()


def tar_gz(files: Mapping[str, bytes], **attributes: Any) -> bytes:
    return gzip.compress(tar(files, **attributes), 0, mtime=0)
