"""A multipart form as a stream: its fields up to the file, then the file, of which no more than a piece is held."""

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from infra.local import storage_errors

MOST_FIELD_BYTES = 1024 * 1024
BOUNDARY = re.compile(r'boundary="?([^";]+)"?', re.IGNORECASE)
NAME = re.compile(r'\bname="([^"]*)"', re.IGNORECASE)
MIME_TYPE = re.compile(r"^content-type:\s*(.+?)\s*$", re.IGNORECASE | re.MULTILINE)
Pieces = AsyncIterator[bytes]


@dataclass(slots=True)
class Form:
    """The fields before the file, the file's type, and its bytes, to be read once."""

    fields: dict[str, str]
    mime_type: str
    file: Pieces


async def open_form(content_type: str, stream: Pieces) -> Form:
    """Read up to the file. Raises `StorageError` for a form without one."""
    found = BOUNDARY.search(content_type)
    if not found:
        raise storage_errors.invalid("Multipart: Boundary not found")
    mark = b"\r\n--" + found[1].encode()
    text = _Text(stream, bytearray(b"\r\n"))  # the first mark may stand at the very beginning
    await text.until(mark)
    fields: dict[str, str] = {}
    while await text.until(b"\n") == b"\r":
        headers = (await text.until(b"\r\n\r\n")).decode(errors="replace")
        name, mime_type = NAME.search(headers), MIME_TYPE.search(headers)
        if "filename" in headers.lower() or mime_type:
            return Form(fields, mime_type[1] if mime_type else "application/octet-stream", text.pieces(mark))
        fields[name[1] if name else ""] = (await text.until(mark)).decode(errors="replace")
    raise storage_errors.invalid("No content provided")


@dataclass(slots=True)
class _Text:
    """The form's bytes, of which those that have come but weren't asked for are `held`."""

    stream: Pieces
    held: bytearray = field(default_factory=bytearray)

    async def until(self, mark: bytes) -> bytes:
        """What stands before the next `mark`, which is left out."""
        while (end := self.held.find(mark)) < 0:
            if len(self.held) > MOST_FIELD_BYTES:
                raise storage_errors.too_large()
            await self._more()
        found = bytes(self.held[:end])
        del self.held[: end + len(mark)]
        return found

    async def pieces(self, mark: bytes) -> Pieces:
        """The same, piece by piece; what might be the beginning of the mark is held back."""
        while (end := self.held.find(mark)) < 0:
            if sure := self.held[: -len(mark)]:
                del self.held[: len(sure)]
                yield bytes(sure)
            await self._more()
        yield bytes(self.held[:end])
        async for _rest in self.stream:
            pass

    async def _more(self) -> None:
        piece = await anext(self.stream, None)
        if piece is None:
            raise storage_errors.invalid("Unexpected end of form")
        self.held += piece
