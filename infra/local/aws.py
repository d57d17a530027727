"""moto's server, which reads no more of an object than the range that is asked for.

moto reads the whole object for each range, and boto3 downloads a large one in ranges of 8 MB: a gigabyte would be
read 128 times. Everything else is moto's own.
"""

import re
import threading
from dataclasses import dataclass
from typing import IO, Any

import flask
from moto import server
from moto.s3.models import FakeKey

RANGE = re.compile(r"bytes=(\d+)-(\d*)")  # all that moto makes a slice of in one way


@dataclass(frozen=True, slots=True)
class Slices:
    """An object's bytes as far as moto needs them for a range: their count, and a slice."""

    file: IO[bytes]
    lock: threading.Lock
    size: int

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, part: slice) -> bytes:
        with self.lock:
            self.file.seek(part.start)
            return self.file.read(part.stop - part.start)


def main() -> None:
    """Serve as `moto.server` does, with its command line."""
    read: Any = FakeKey.value

    def value(key: Any) -> Any:
        is_slice = flask.has_request_context() and _is_slice(flask.request, key.contentsize)
        return Slices(key._value_buffer, key.lock, key.contentsize) if is_slice else read.fget(key)

    FakeKey.value = property(value, read.fset)  # type: ignore[assignment, method-assign]
    server.main()


def _is_slice(request: flask.Request, size: int) -> bool:
    asked = RANGE.fullmatch(request.headers.get("range", "")) if request.method == "GET" else None
    return asked is not None and int(asked[1]) < size and (not asked[2] or int(asked[1]) <= int(asked[2]))


if __name__ == "__main__":
    main()
