"""Tar archives, read forward header by header, and gzip unpacked as it comes; both bounded.

The formats: POSIX pax (ustar headers, extended headers x and g), GNU's long names and large sizes. Python's own
`tarfile` reads extended headers of any length into memory, and looks for archives where there are none.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from shared.contents import Content
from shared.errors import ArtifactRefused

BLOCK = 512
GZIP = b"\x1f\x8b"
MEMBERS = 10_000
EXTENDED_BYTES = 64 * 1024
PIECE_BYTES = 1024 * 1024
# Weights hardly compress; an archive may begin with a lot of zeros.
RATIO = 100
FREE_BYTES = 64 * 1024 * 1024
FILES = (b"0", b"\0")
DIRECTORY, EXTENDED, EXTENDED_FOR_ALL, LONG_NAME = b"5", b"x", b"g", b"L"
KINDS = {b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device", b"6": "a pipe"}


@dataclass(frozen=True, slots=True)
class Member:
    """A file in an archive, and where its bytes lie in it."""

    path: str
    offset: int
    size: int


def is_gzip(content: Content) -> bool:
    return content.read(0, len(GZIP)) == GZIP


def members(content: Content) -> Iterator[Member]:
    """The archive's files in their order. Raises `ArtifactRefused` for what is none, is cut off, or is no file.

    Paths have lost a leading "./" and are otherwise as they stand: `artifacts.check_path` judges them. A content that
    is read forward only has to be told to forget a member before the next is asked for.
    """
    position = count = 0
    path: str | None = None
    size: int | None = None
    while header := _header(content, position):
        count += 1
        if count > MEMBERS:
            raise ArtifactRefused(f"the archive has more than {MEMBERS} members: a model has fewer.")
        kind, length = header[156:157], _number(header[124:136])
        data, position = position + BLOCK, position + BLOCK
        if kind in (EXTENDED, LONG_NAME, EXTENDED_FOR_ALL):
            position += _padded(length)
            extended = _extended(content, data, length, kind)
            path, size = extended.get("path", path), int(extended.get("size", size or 0)) or size
            continue
        length = length if size is None else size
        if not 0 <= length < 2**63:
            raise ArtifactRefused("it is no tar archive, or it is damaged. Upload it again.")
        name, path, size = path or _name(header), None, None
        if kind == DIRECTORY or (kind in FILES and name.endswith("/")):
            continue
        if kind not in FILES:
            raise ArtifactRefused(f"{name[:100]!r} is {KINDS.get(kind, 'no plain file')}: put the file itself in.")
        position += _padded(length)
        if data + length > content.size:
            raise ArtifactRefused(f"the archive is cut off in {name[:100]!r}. Upload it again.")
        yield Member(name.removeprefix("./"), data, length)
    _check_rest(content, position + BLOCK)


def unpacked(chunks: Iterator[bytes], most_bytes: int) -> Iterator[bytes]:
    """The bytes in gzip, in pieces. Raises `ArtifactRefused` for a bomb, for what is cut off, or what is no gzip."""
    inflate = zlib.decompressobj(wbits=31)
    packed = given = 0
    for chunk in chunks:
        packed += len(chunk)
        while chunk:
            if inflate.eof:  # gzip files may follow one another
                inflate = zlib.decompressobj(wbits=31)
            try:
                piece = inflate.decompress(chunk, PIECE_BYTES)
            except zlib.error as error:
                raise ArtifactRefused("its gzip is damaged. Upload it again.") from error
            given += len(piece)
            if given > min(most_bytes, FREE_BYTES + RATIO * packed):
                raise ArtifactRefused("it unpacks to far more than a model's files: pack them without padding.")
            if piece:
                yield piece
            chunk = inflate.unused_data if inflate.eof else inflate.unconsumed_tail
    while not inflate.eof and (piece := inflate.decompress(b"", PIECE_BYTES)):
        yield piece
    if not inflate.eof:
        raise ArtifactRefused("its gzip is cut off. Upload it again.")


def _header(content: Content, position: int) -> bytes | None:
    """The block at the position, None at the archive's end, which two blocks of zeros make."""
    block = content.read(position, BLOCK)
    if len(block) < BLOCK:
        raise ArtifactRefused("it is no tar archive, or it is cut off. Upload it again.")
    if block == bytes(BLOCK):
        return None
    expected = sum(block) - sum(block[148:156]) + 8 * ord(" ")
    if _number(block[148:156]) != expected:
        raise ArtifactRefused("it is no tar archive, or it is damaged. Upload it again.")
    return block


def _check_rest(content: Content, position: int) -> None:
    """Only padding follows the end; reading it lets gzip compare its checksum."""
    while rest := content.read(position, PIECE_BYTES):
        if rest.strip(b"\0"):
            raise ArtifactRefused("something follows the archive's end: pack it anew.")
        position += len(rest)
        if content.forget:
            content.forget(position)


def _number(field: bytes) -> int:
    """Octal digits, or GNU's base 256 for what they can't say."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    try:
        return int(field.split(b"\0")[0].strip() or b"0", 8)
    except ValueError:
        return -1


def _name(header: bytes) -> str:
    name, prefix = _text(header[:100]), _text(header[345:500])
    return f"{prefix}/{name}" if prefix and header[257:263] == b"ustar\0" else name


def _extended(content: Content, offset: int, length: int, kind: bytes) -> dict[str, str]:
    """What a header says of the member after it: `path` and `size`."""
    if not 0 <= length <= EXTENDED_BYTES or offset + length > content.size:
        raise ArtifactRefused(f"the archive has a header of more than {EXTENDED_BYTES // 1024} KB: pack it anew.")
    data = content.read(offset, length)
    if kind == LONG_NAME:
        return {"path": _text(data)}
    found: dict[str, str] = {}
    while data:
        digits, _, _ = data.partition(b" ")
        count = int(digits) if digits.isdigit() and len(digits) < 8 else 0
        key, equals, value = data[len(digits) + 1 : count].partition(b"=")
        if not equals or not value.endswith(b"\n"):
            raise ArtifactRefused("the archive has a damaged header: pack it anew.")
        if key.startswith(b"GNU.sparse"):
            raise ArtifactRefused("the archive has sparse files: pack it without --sparse.")
        found[key.decode("utf-8", "replace")] = value[:-1].decode("utf-8", "replace")
        data = data[count:]
    if kind == EXTENDED_FOR_ALL:
        return {}
    if "size" in found and not (found["size"].isdigit() and len(found["size"]) < 19):
        raise ArtifactRefused("the archive has a damaged header: pack it anew.")
    return found


def _text(field: bytes) -> str:
    return field.split(b"\0")[0].decode("utf-8", "replace")


def _padded(length: int) -> int:
    return length + -length % BLOCK
