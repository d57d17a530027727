"""Bytes read by offset, wherever they lie: in memory, behind ranged requests, or in a stream that only goes forward."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from shared.errors import ArtifactRefused, StorageUnavailable

WINDOW_BYTES = 1024 * 1024  # what a header is read by
LOOK_AHEAD_BYTES = 100_000_000 + 8  # of a stream: the longest header that any format has


@dataclass(frozen=True, slots=True)
class Content:
    """`size` bytes; `read(offset, length)` gives those that are there, fewer than `length` only at their end.

    `reach` is how far from its beginning it can be read before it is transferred. `forget(offset)` says that nothing
    before the offset is read again; where it is None, any range can be read at any time and by any thread. Then
    `chunks(offset, length)` gives a long range with one request.
    """

    size: int
    read: Callable[[int, int], bytes]
    reach: int
    forget: Callable[[int], None] | None = None
    chunks: Callable[[int, int], Iterator[bytes]] | None = None

    def part(self, start: int, size: int) -> "Content":
        """The content of a range, such as a member of an archive."""

        def read(offset: int, length: int) -> bytes:
            wanted = max(0, min(length, size - offset))
            data = self.read(start + offset, wanted)
            if len(data) < wanted:
                raise ArtifactRefused("the archive is cut off. Upload it again.")
            return data

        forget, chunks = self.forget, self.chunks
        return Content(
            size,
            read,
            reach=size if forget is None else min(size, LOOK_AHEAD_BYTES),
            forget=None if forget is None else lambda offset: forget(start + offset),
            chunks=None if chunks is None else lambda offset, length: chunks(start + offset, length),
        )

    def pieces(self, step: int) -> Iterator[bytes]:
        """All of it, in its order and in pieces of one size; with one request where there are `chunks`."""
        stream = self if self.chunks is None else Stream(self.chunks(0, self.size)).content(self.size)
        for offset in range(0, self.size, step):
            yield stream.read(offset, step)
            if stream.forget:
                stream.forget(min(offset + step, self.size))


def in_memory(data: bytes) -> Content:
    return Content(len(data), lambda offset, length: data[offset : offset + length], len(data))


def remembering_its_head(content: Content) -> Content:
    """The same, with its first bytes read once only: one request where a header is short."""
    head: list[bytes] = []

    def read(offset: int, length: int) -> bytes:
        if offset + length > WINDOW_BYTES:
            return content.read(offset, length)
        if not head:
            head.append(content.read(0, WINDOW_BYTES))
        return head[0][offset : offset + length]

    return replace(content, read=read)


def values(document: bytes) -> int:
    """How many values JSON has at most, for each but the first follows one of these; parsed, one may need 150 bytes."""
    return sum(map(document.count, (b"[", b"{", b",")))


class Stream:
    """Chunks as content that is read forward. What has not been forgotten is kept, so that it can be read again."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._kept = bytearray()
        self._start = 0  # the offset of what is kept
        self._floor = 0  # nothing before it is wanted

    def content(self, size: int) -> Content:
        return Content(size, self.read, min(size, LOOK_AHEAD_BYTES), self.forget)

    def read(self, offset: int, length: int) -> bytes:
        while self._start + len(self._kept) < offset + length and self._fill():
            pass
        begin = offset - self._start
        if begin < 0:
            raise ValueError("that has been forgotten")
        return bytes(memoryview(self._kept)[begin : begin + length])

    def forget(self, offset: int) -> None:
        self._floor = max(self._floor, offset)
        self._drop()

    def _fill(self) -> bool:
        chunk = next(self._chunks, None)
        self._kept += chunk or b""
        self._drop()
        return chunk is not None

    def _drop(self) -> None:
        count = min(self._floor - self._start, len(self._kept))
        if count > 0:
            del self._kept[:count]
            self._start += count


class Cursor:
    """Reads a header from its beginning on; nothing beyond the content's end nor beyond `limit`.

    Raises `ArtifactRefused` there, for a header that says more than there is.
    """

    def __init__(self, content: Content, limit: int) -> None:
        self.position = 0
        self._content = content
        self._limit = limit
        self._window = b""
        self._start = 0

    def take(self, length: int) -> bytes:
        self._reserve(length)
        begin = self.position - self._start
        if begin < 0 or begin + length > len(self._window):
            self._window = self._content.read(self.position, max(length, WINDOW_BYTES))
            self._start, begin = self.position, 0
            if len(self._window) < length:
                raise StorageUnavailable("The source gave fewer bytes than it has.")
        self.position += length
        return self._window[begin : begin + length]

    def number(self, width: int) -> int:
        """An unsigned little-endian integer of so many bytes."""
        return int.from_bytes(self.take(width), "little")

    def skip(self, length: int) -> None:
        self._reserve(length)
        self.position += length

    def _reserve(self, length: int) -> None:
        if self.position + length > self._content.size:
            raise ArtifactRefused("it is cut off: its header says more than there is. Upload it again.")
        if self.position + length > self._limit:
            raise ArtifactRefused(f"its header is longer than {self._limit // 1_000_000} MB, which no model's is.")
