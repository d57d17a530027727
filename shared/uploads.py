"""A version's files that were uploaded to their place: held against what was announced, before the version is one."""

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from shared import artifacts, sources
from shared.artifacts import Rules, StoredFile
from shared.contents import Content
from shared.errors import ArtifactRefused, SourceRefused
from shared.sources import Remote
from shared.transfers import KEEP_SECONDS, Destination, Keep, Outcome, OutOfTime, Position


@dataclass(frozen=True, slots=True)
class Announced:
    """What an uploaded file has to be."""

    path: str
    size: int
    sha256: str


def verify(
    destination: Destination,
    files: list[Announced],
    *,
    rules: Rules,
    position: Mapping[str, Any] | None,
    stop_at: float,
    keep: Keep,
) -> Outcome:
    """Read every file once, its header and its hash; at `stop_at` it ends and gives its position, which is of files.

    `keep` gets the position after each file, and once a second while one is read: a file that was begun is read again
    by the next run, for a hash's state can't be kept between processes.

    Raises `ArtifactRefused` for a file that isn't there or isn't what was announced. The latter is removed, so that the
    same signed address takes it again: they overwrite nothing.
    """
    found = there(destination)
    total = sum(file.size for file in files)
    at = Position.of(position) if position else Position("upload", total)
    if missing := [file.path for file in files if file.path not in found]:
        raise ArtifactRefused(f"{missing[0]}: it isn't uploaded yet: {len(missing)} of {len(files)} files are missing.")
    heard_at = time.monotonic()

    def heard() -> None:
        nonlocal heard_at
        now = time.monotonic()
        if now >= stop_at:
            raise OutOfTime
        if now - heard_at >= KEEP_SECONDS:
            keep(at.wire())
            heard_at = now

    for file in files:
        if any(done.path == file.path for done in at.files):
            continue
        try:
            stored = _verified(found[file.path], file, rules, heard)
        except OutOfTime:
            return Outcome(at.files, at.wire())
        except ArtifactRefused:
            destination.s3.delete_object(Bucket=destination.bucket, Key=destination.key(file.path))
            raise
        at = replace(at, files=(*at.files, stored), bytes_done=at.bytes_done + file.size)
        keep(at.wire())
    return Outcome(at.files, None)


def there(destination: Destination) -> dict[str, Remote]:
    """The files of the folder, by their paths."""
    try:
        found = sources.find(f"s3://{destination.bucket}/{destination.key('')}", destination.s3)
    except SourceRefused:  # an empty folder is none
        return {}
    return {remote.path: remote for remote in found}


def _verified(remote: Remote, file: Announced, rules: Rules, heard: Callable[[], None]) -> StoredFile:
    heard()
    if remote.size != file.size:
        raise ArtifactRefused(f"{file.path}: it has {remote.size} bytes, not {file.size}: upload it again.")
    assert remote.read is not None  # S3 has ranges
    facts = artifacts.check(file.path, Content(remote.size, remote.read, remote.size), rules)
    digest = hashlib.sha256()
    for chunk in remote.chunks(0, remote.size):
        digest.update(chunk)
        heard()
    if digest.hexdigest() != file.sha256:
        raise ArtifactRefused(
            f"{file.path}: its sha256 is {digest.hexdigest()}, {file.sha256} was announced: upload it again."
        )
    return StoredFile(facts.path, facts.size, file.sha256, facts.format, facts.metadata)
