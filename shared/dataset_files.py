"""An export's files in Storage: written while their rows are read, in parts, and gone on with where a killed run was.

Rows come in numbered batches, the same ones whenever they are asked for. A file knows how many batches are whole in
what Storage has of it, and a run that begins again passes over these. S3 takes no parts below `FLUSH_BYTES`, the last
one aside: what a run has less of when its time is up is parked as a file of its own, for the next one to go on with.

One part is on its way at a time, and the next rows are written meanwhile: so what waits in memory is one part more.

Where rows were erased meanwhile all files are begun anew, with other names: whoever wrote before may have one of his on
its way yet.
"""

import hashlib
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from shared import transfers
from shared.prompting import BYTES_PER_TOKEN
from shared.training_formats import FORMATS, Name, Row, Split, encode, note
from shared.transfers import Destination, UploadGone

FLUSH_BYTES = 5 * 1024 * 1024
SPLITS: tuple[Split, ...] = ("train", "validation")
NOTES = "application/jsonl"


@dataclass(slots=True)
class Part:
    """What Storage has of a file: its upload in parts, what is parked, and the rows, bytes and batches in both."""

    upload_id: str | None = None
    etags: list[str] = field(default_factory=list)
    batches: int = 0
    rows: int = 0
    size_bytes: int = 0
    tokens: int = 0
    is_parked: bool = False


@dataclass(slots=True)
class File:
    """One file that grows: `stored` of it is in Storage, `buffer` not yet."""

    destination: Destination
    path: str
    content_type: str
    stored: Part
    rows: int = 0
    size_bytes: int = 0
    tokens: int = 0
    buffer: bytearray = field(default_factory=bytearray)
    digest: Any = None

    @classmethod
    def begun(cls, destination: Destination, path: str, content_type: str, kept: Mapping[str, Any] | None) -> "File":
        stored = Part(**kept) if kept else Part()
        digest = None if stored.etags else hashlib.sha256()  # None for what another run began: it is read in the end
        waiting = bytearray(transfers.get(destination, _parked(path)) if stored.is_parked else b"")
        rows, size, tokens = stored.rows, stored.size_bytes, stored.tokens
        return cls(destination, path, content_type, stored, rows, size, tokens, waiting, digest)

    def add(self, data: bytes) -> None:
        self.buffer += data
        self.size_bytes += len(data)

    def take(self, batches: int) -> tuple[bytearray, Part]:
        """What waits, up to the batch before `batches`, and what will be stored when it is sent."""
        data, self.buffer = self.buffer, bytearray()
        return data, Part(None, [], batches, self.rows, self.size_bytes, self.tokens)

    def send(self, data: bytearray, then: Part) -> None:
        """Send what was taken, one after the other. Raises `UploadGone`."""
        upload_id, etags = self.stored.upload_id, self.stored.etags
        if upload_id is None:
            upload_id = transfers.begin_upload(self.destination, self.path, self.content_type)
        etag = transfers.put_part(self.destination, self.path, upload_id, len(etags) + 1, data)
        self.hash(data)
        self.stored = replace(then, upload_id=upload_id, etags=[*etags, etag])

    def park(self, batches: int) -> None:
        """Keep what waits for the next run."""
        if self.buffer:
            transfers.put(self.destination, _parked(self.path), self.buffer, "application/octet-stream")
        self.stored = replace(
            self.stored,
            batches=batches,
            rows=self.rows,
            size_bytes=self.size_bytes,
            tokens=self.tokens,
            is_parked=bool(self.buffer),
        )

    def finish(self) -> str:
        """Store the file whole; gives its hash, for which a file of several runs is read once more."""
        if self.stored.upload_id is None:
            self.hash(self.buffer)
            transfers.put(self.destination, self.path, self.buffer, self.content_type)
            return str(self.digest.hexdigest())
        try:
            if self.buffer:
                self.send(*self.take(self.stored.batches))
            transfers.complete(self.destination, self.path, self.stored.upload_id, self.stored.etags, self.size_bytes)
        except UploadGone:  # completed by a run that couldn't say so any more
            if transfers.size_of(self.destination, self.path) != self.size_bytes:
                raise
            self.digest = None
        return str(self.digest.hexdigest()) if self.digest else transfers.hash_of(self.destination, self.path)

    def hash(self, data: bytes | bytearray) -> None:
        if self.digest:
            self.digest.update(data)


@dataclass(slots=True)
class Pair:
    """A format's rows of one split, and the sidecar whose line n tells of row n."""

    name: Name
    split: Split
    data: File
    notes: File

    def add(self, row: Row, batch: int) -> None:
        line = encode(self.name, row)
        if line is None:
            return
        form = FORMATS[self.name]
        if self.data.stored.batches <= batch:
            self.data.add((form.separator if self.data.rows else form.opening) + line)
            self.data.rows += 1
            self.data.tokens += int(len(line) / BYTES_PER_TOKEN) + 1
        if self.notes.stored.batches <= batch:
            self.notes.rows += 1
            self.notes.add(note(self.notes.rows, row, line))


class Torn(Exception):
    """What runs before have stored doesn't fit what there is now: all files are to be written anew."""


class Dataset:
    """All files of an export; what blocks in here belongs into a thread. Raises `Torn`."""

    def __init__(self, destination: Destination, names: Iterable[Name], kept: Mapping[str, Any] | None) -> None:
        files = (kept or {}).get("files", {})
        self.rewritten = (kept or {}).get("rewritten", 0)  # how often it was begun anew

        def begun(path: str, content_type: str) -> File:
            return File.begun(destination, path, content_type, files.get(path))

        self.sender = ThreadPoolExecutor(1)
        self.sending: Future[None] | None = None
        try:
            self.pairs = {split: [_pair(name, split, begun, self.rewritten) for name in names] for split in SPLITS}
        except UploadGone as error:
            raise Torn from error

    @property
    def batches(self) -> int:
        """How many batches are whole in Storage, in each file."""
        return min(file.stored.batches for file in self._files())

    def add(self, rows: Iterable[Row], batch: int) -> None:
        """The rows of a batch, each to the files of its split."""
        for row in rows:
            for pair in self.pairs[row.split or "train"]:
                pair.add(row, batch)

    def flush(self, batches: int) -> bool:
        """Have what is long enough sent; whether anything has been since it was last asked for. Raises `Torn`."""
        has_sent = self.sending is not None and self.sending.done() and self._sent()
        for file in self._files():
            if len(file.buffer) >= FLUSH_BYTES:
                has_sent |= self._sent()
                self.sending = self.sender.submit(file.send, *file.take(batches))
        return has_sent

    def park(self, batches: int) -> None:
        """Keep all that waits, which ends with the batch before `batches`, for a run that goes on from there.

        Raises `Torn`.
        """
        self._sent()
        for file in self._files():
            if file.stored.batches < batches:
                file.park(batches)

    def progress(self) -> dict[str, Any]:
        """How far the files are, as JSON that the caller keeps."""
        files = {file.path: asdict(file.stored) for file in self._files() if file.stored.batches}
        return {"files": files, "rewritten": self.rewritten}

    def finish(self) -> list[dict[str, Any]]:
        """Store all files that have rows; gives what the manifest says of each.

        Raises `Torn` where rows were deleted between two runs, so that a file and its sidecar differ, and where
        Storage has lost what it had.
        """
        self._sent()
        pairs = [pair for split in SPLITS for pair in self.pairs[split] if pair.data.rows]
        if any(pair.data.rows != pair.notes.rows for pair in pairs):
            raise Torn
        try:
            return [_finished(pair) for pair in pairs]
        except UploadGone as error:
            raise Torn from error

    def remove_parked(self) -> None:
        """Remove what no run needs any more, once it is noted that all files are stored."""
        for file in self._files():
            transfers.remove(file.destination, [_parked(file.path)])

    def close(self) -> None:
        """Wait for what is on its way, whatever becomes of it."""
        self.sender.shutdown()

    def _sent(self) -> bool:
        """Wait for what is on its way; whether anything was."""
        sending, self.sending = self.sending, None
        try:
            if sending:
                sending.result()
        except UploadGone as error:
            raise Torn from error
        return sending is not None

    def _files(self) -> list[File]:
        return [file for pairs in self.pairs.values() for pair in pairs for file in (pair.data, pair.notes)]


def _parked(path: str) -> str:
    return f"{path}.parked"


def _pair(name: Name, split: Split, begun: Any, rewritten: int) -> Pair:
    form = FORMATS[name]
    path = f"{name}.{split}" + (f".{rewritten}" if rewritten else "")
    return Pair(name, split, begun(f"{path}.{form.suffix}", form.content_type), begun(f"{path}.rows.jsonl", NOTES))


def _finished(pair: Pair) -> dict[str, Any]:
    pair.data.add(FORMATS[pair.name].end)
    return {
        "path": pair.data.path,
        "format": pair.name,
        "split": pair.split,
        "rows": pair.data.rows,
        "sizeBytes": pair.data.size_bytes,
        "tokens": pair.data.tokens,
        "sha256": pair.data.finish(),
        "sidecar": pair.notes.path,
        "sidecarSha256": pair.notes.finish(),
    }
