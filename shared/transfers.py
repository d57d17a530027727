"""A model's files from their source into Storage, through its S3 protocol: in parts, resumable, checked as they pass.

`transfer_all` is called again and again with the position it last gave, until it gives none. No file is there under
its name before it is whole and its hash is right, and nothing is stored before every header has been looked at that
can be looked at (an archive in gzip is unpacked once only, so its later members are looked at when they come).
"""

import hashlib
import itertools
import json
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from types import MappingProxyType
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from shared import archives, artifacts
from shared.artifacts import FileFacts, Names, Rules, StoredFile
from shared.contents import Content, Stream
from shared.errors import (
    ArtifactRefused,
    GatewayError,
    Misconfigured,
    SourceChanged,
    StorageUnavailable,
)
from shared.sources import S3, Remote
from shared.telemetry import logger

MIB = 1024 * 1024
PART_BYTES = 16 * MIB
PARTS = 10_000  # S3's most
THREADS = 4
KEEP_SECONDS = 1.0
ENDLESS = 2**63  # how long an archive's contents are isn't known before they are unpacked
TYPES = {"json": "application/json", "text": "text/plain; charset=utf-8"}
NO_SIZES: Mapping[str, int | None] = MappingProxyType({})
Keep = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Destination:
    """A bucket, and the folder of one version in it, which nothing else writes to."""

    s3: S3
    bucket: str
    prefix: str

    def key(self, path: str) -> str:
        return f"{self.prefix.rstrip('/')}/{path}"


@dataclass(frozen=True, slots=True)
class Upload:
    """A multipart upload that is under way.

    Which parts are there, its list says; with their hashes in here, a position would have half a megabyte.
    """

    path: str
    upload_id: str
    part_bytes: int


@dataclass(frozen=True, slots=True)
class Position:
    """How far a transfer has come, as JSON that its caller keeps.

    `source` is the fingerprint of the files that are to be stored; bytes are those of the source.
    """

    source: str
    bytes_total: int
    bytes_done: int = 0
    files: tuple[StoredFile, ...] = ()
    upload: Upload | None = None

    def wire(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, kept: Mapping[str, Any]) -> "Position":
        files = tuple(StoredFile(**file) for file in kept["files"])
        upload = Upload(**kept["upload"]) if kept["upload"] else None
        return cls(kept["source"], kept["bytes_total"], kept["bytes_done"], files, upload)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The files that are stored; with a position, there are more to come."""

    files: tuple[StoredFile, ...]
    position: dict[str, Any] | None


class OutOfTime(Exception):
    """A run ends; no failure."""


class UploadGone(StorageUnavailable):
    """Storage has no such file, upload or part: it was completed, ended or removed, or somebody else sends it."""


@cache
def client(
    endpoint_url: str | None = None, region: str | None = None, credentials: tuple[str, str] | None = None
) -> S3:
    """The process's client for S3, or for a server that speaks its protocol; without credentials it is its own role.

    For Supabase: `https://<ref>.storage.supabase.co/storage/v1/s3`, the project's region, an S3 access key. Such
    servers take a bucket's name in the path only, and don't know the checksums that boto3 has sent with every upload
    since 1.36, as headers or as a trailer in chunks of its own encoding: they are sent where S3 demands them.
    """
    import boto3  # a quarter of a second that only a transfer pays
    from botocore.config import Config

    key, secret = credentials or (None, None)
    return boto3.client(
        "s3",
        endpoint_url=endpoint_url,
        region_name=region,
        aws_access_key_id=key,
        aws_secret_access_key=secret,
        config=Config(
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"addressing_style": "path"} if endpoint_url else {},
            retries={"mode": "standard", "total_max_attempts": 4},
            connect_timeout=5,
            read_timeout=60,
            max_pool_connections=2 * THREADS,
        ),
    )


def transfer_all(
    sources: Sequence[Remote],
    destination: Destination,
    *,
    rules: Rules,
    expected: Mapping[str, str],
    position: Mapping[str, Any] | None,
    stop_at: float,
    keep: Keep,
    sizes: Mapping[str, int | None] = NO_SIZES,
) -> Outcome:
    """Store the source's files, archives as the files in them, and give what has been stored.

    `expected` are SHA-256 hashes by path, of stored files and of archives; `sizes` those files that have to be there,
    with their bytes where they are known. At `stop_at` (`time.monotonic`) it ends, also within a part that comes
    slowly, and gives its position; the parts that are under way are waited for. `keep` gets the position whenever a
    file or an upload begins or ends, and else once a second while bytes come.

    Raises what can't be mended (`ArtifactRefused`, `SourceRefused`, `SourceChanged`, `Misconfigured`) after it has
    removed all that it had stored. `StorageUnavailable` is to be tried again with the position last kept.
    """
    wanted = [remote for remote in sources if not rules.leaves_out(remote.path)]
    fresh = Position(fingerprint(wanted), sum(remote.size for remote in wanted))
    start = Position.of(position) if position else fresh
    if start.source == fingerprint(sources):  # as positions were kept once, with what is left out
        start = replace(start, source=fresh.source)
    if position and not all(remote.etag for remote in wanted):  # nobody knows whether they are the same
        abandon(destination, position)
        start = fresh
    hashes = {path: sha.lower() for path, sha in expected.items()}
    run = _Run(destination, rules, hashes, sizes, start, stop_at, keep)
    try:
        if start.source != fresh.source:
            raise SourceChanged("The source's files have changed since their transfer began: start again.")
        with ThreadPoolExecutor(THREADS) as run.pool:
            run.all(wanted)
    except OutOfTime:
        return Outcome(run.at.files, run.at.wire())
    except GatewayError as error:
        if not error.retryable:
            _clean_up(destination, run.at.wire())
        raise
    return Outcome(run.at.files, None)


def fingerprint(sources: Sequence[Remote]) -> str:
    """The state of all these files together: their paths, sizes and ETags."""
    states = [[remote.path, remote.size, remote.etag] for remote in sources]
    return hashlib.sha256(json.dumps(states).encode()).hexdigest()


def abandon(destination: Destination, position: Mapping[str, Any]) -> None:
    """Remove what has been stored up to the position, with the parts of the file that is under way."""
    at = Position.of(position)
    with storage_errors(destination):
        if at.upload:
            _abort(destination, destination.key(at.upload.path), at.upload.upload_id)
        for file in at.files:
            destination.s3.delete_object(Bucket=destination.bucket, Key=destination.key(file.path))


def end_uploads(destination: Destination) -> None:
    """Remove the parts of all files that are under way to the folder."""
    to = destination
    with storage_errors(to):
        for page in to.s3.get_paginator("list_multipart_uploads").paginate(Bucket=to.bucket, Prefix=to.key("")):
            for left in page.get("Uploads", []):
                _abort(to, left["Key"], left["UploadId"])


def begin_upload(destination: Destination, path: str, content_type: str) -> str:
    """Begin to send a file in parts; gives the upload's id."""
    to = destination
    with storage_errors(to):
        begun = to.s3.create_multipart_upload(Bucket=to.bucket, Key=to.key(path), ContentType=content_type)
    return str(begun["UploadId"])


def put_part(destination: Destination, path: str, upload_id: str, number: int, data: bytes | bytearray) -> str:
    """Send one part; gives its tag. Raises `UploadGone`."""
    to = destination
    with storage_errors(to):
        answer = to.s3.upload_part(Bucket=to.bucket, Key=to.key(path), UploadId=upload_id, PartNumber=number, Body=data)
    return str(answer["ETag"])


def complete(destination: Destination, path: str, upload_id: str, etags: Sequence[str], size: int) -> None:
    """Make the parts a file. Raises `UploadGone`."""
    to, key = destination, destination.key(path)
    parts = [{"PartNumber": number, "ETag": etag} for number, etag in enumerate(etags, 1)]
    with storage_errors(to):
        try:
            to.s3.complete_multipart_upload(
                Bucket=to.bucket, Key=key, UploadId=upload_id, MultipartUpload={"Parts": parts}
            )
        except ClientError as error:
            # The answer to a first try was lost: the second finds the upload completed.
            if _code(error) != "NoSuchUpload" or size_of(to, path) != size:
                raise


def put(destination: Destination, path: str, data: bytes | bytearray, content_type: str) -> None:
    """Store a small file."""
    to = destination
    with storage_errors(to):
        to.s3.put_object(Bucket=to.bucket, Key=to.key(path), Body=data, ContentType=content_type)


def get(destination: Destination, path: str) -> bytes:
    """A small file."""
    to = destination
    with storage_errors(to):
        return bytes(to.s3.get_object(Bucket=to.bucket, Key=to.key(path))["Body"].read())


def remove(destination: Destination, paths: Sequence[str]) -> None:
    """Files that aren't there are no error."""
    to = destination
    with storage_errors(to):
        for path in paths:
            to.s3.delete_object(Bucket=to.bucket, Key=to.key(path))


def size_of(destination: Destination, path: str) -> int | None:
    """The file's bytes; None where it isn't there."""
    to = destination
    with storage_errors(to):
        try:
            return int(to.s3.head_object(Bucket=to.bucket, Key=to.key(path))["ContentLength"])
        except ClientError as error:
            if _code(error) not in ("404", "NoSuchKey", "NotFound"):
                raise
            return None


def hash_of(destination: Destination, path: str) -> str:
    """The file's SHA-256, for which it is read."""
    to, digest = destination, hashlib.sha256()
    with storage_errors(to):
        for chunk in to.s3.get_object(Bucket=to.bucket, Key=to.key(path))["Body"].iter_chunks(MIB):
            digest.update(chunk)
    return digest.hexdigest()


def remove_all(destination: Destination, first: str) -> None:
    """Remove a folder's files, that one before the others, and what is under way to it."""
    end_uploads(destination)
    remove(destination, sorted(_paths(destination), key=lambda path: path != first))


def remove_others(destination: Destination, kept: Collection[str]) -> None:
    """Remove what is in a folder beside these files."""
    remove(destination, [path for path in _paths(destination) if path not in kept])


def _paths(destination: Destination) -> list[str]:
    to = destination
    with storage_errors(to):
        pages = to.s3.get_paginator("list_objects_v2").paginate(Bucket=to.bucket, Prefix=to.key(""))
        return [item["Key"].removeprefix(to.key("")) for page in pages for item in page.get("Contents", [])]


def write_manifest(destination: Destination, manifest: artifacts.Manifest) -> None:
    """The last file of a version: where it is, all others are."""
    put(destination, artifacts.MANIFEST, manifest.body, TYPES["json"])


def _clean_up(destination: Destination, position: Mapping[str, Any]) -> None:
    try:
        abandon(destination, position)
    except GatewayError as error:  # the reason why it is abandoned matters more
        logger.warning("stored files remain", extra={"prefix": destination.prefix, "reason": error.message})


def part_bytes(size: int) -> int:
    """All parts but the last have this size, which some servers ask for; a large file has larger ones."""
    return max(PART_BYTES, -(-size // PARTS // MIB) * MIB)


@dataclass(slots=True)
class _Run:
    """One call of `transfer_all`: what it was given, and how far it is (`at`)."""

    destination: Destination
    rules: Rules
    expected: Mapping[str, str]
    sizes: Mapping[str, int | None]
    at: Position
    stop_at: float
    keep: Keep
    pool: ThreadPoolExecutor = field(init=False)
    passed_bytes: int = 0  # of the source, by this call
    kept_at: float = 0

    def all(self, sources: Sequence[Remote]) -> None:
        names = Names(self.rules)
        plain, packed = self._sorted([self._minded(remote) for remote in sources], names)
        looked_at = list(self.pool.map(lambda found: self._facts(*found), plain))
        for (_, content), facts in zip(plain, looked_at, strict=True):
            self._store(content, facts)
            self.passed_bytes += content.size
        for remote in packed:
            self._unpack(remote, names)
            self.passed_bytes += remote.size
        known = {file.path for file in self.at.files} | {remote.path for remote in packed}
        if missing := (self.expected.keys() | self.sizes.keys()) - known:
            raise ArtifactRefused(f"{min(missing)}: it was announced, and isn't at the source: correct it.")

    def _minded(self, remote: Remote) -> Remote:
        """The file, whose long ranges end with the time, and are heard of while they come, however slowly."""

        def chunks(offset: int, length: int) -> Iterator[bytes]:
            for chunk in remote.chunks(offset, length):
                self._mind_the_time()
                self._keep(0)
                yield chunk

        return replace(remote, chunks=chunks)

    def _sorted(self, sources: Sequence[Remote], names: Names) -> tuple[list[tuple[str, Content]], list[Remote]]:
        """What can be read by ranges (files, and members of plain archives), and the archives that can't."""
        plain: list[tuple[str, Content]] = []
        packed: list[Remote] = []
        for remote in sources:
            content = _content(remote)
            if not artifacts.is_archive(remote.path):
                names.admit(remote.path, remote.size)
                plain.append((remote.path, content))
            elif remote.read is None or self._is_announced(remote.path) or archives.is_gzip(content):
                artifacts.check_path(remote.path)
                self._check_size(remote.path, remote.size)
                packed.append(remote)
            else:
                plain.extend(self._members(remote.path, content, names))
        if not plain and not packed:
            raise ArtifactRefused("No file is left to be stored: leave out fewer, or correct the address.")
        return plain, packed

    def _facts(self, path: str, content: Content) -> FileFacts:
        if done := self._stored(path):
            return FileFacts(done.path, done.size, done.format, done.metadata)
        self._check_size(path, content.size)
        return artifacts.check(path, content, self.rules)

    def _members(self, archive: str, content: Content, names: Names) -> Iterator[tuple[str, Content]]:
        """An archive's files, in the archive's own folder. Raises `ArtifactRefused`, naming the archive."""
        folder = archive[: archive.rfind("/") + 1]
        found = 0
        try:
            for member in archives.members(content):
                path = folder + member.path
                if not self.rules.leaves_out(path):
                    artifacts.check_path(path)
                    if artifacts.is_archive(path):
                        raise ArtifactRefused(f"{path} is an archive in an archive: unpack it.")
                    names.admit(path, member.size)
                    yield path, content.part(member.offset, member.size)
                    found += 1
                if content.forget:
                    content.forget(member.offset + member.size)
        except ArtifactRefused as error:
            raise type(error)(f"{archive}: {error.message}") from error
        if not found:
            raise ArtifactRefused(f"{archive}: there is no file in it: pack it anew, or leave it out.")

    def _unpack(self, remote: Remote, names: Names) -> None:
        """Store an archive's files as they come.

        A second run reads the archive from its beginning again, and passes over the files and parts that are there.
        """
        digest = hashlib.sha256()
        start = self.passed_bytes

        def chunks() -> Iterator[bytes]:
            for chunk in remote.chunks(0, remote.size):
                digest.update(chunk)
                yield chunk
                self.passed_bytes += len(chunk)

        packed = chunks()
        first = next(packed, b"")
        stream: Iterator[bytes] = itertools.chain([first], packed)
        if first.startswith(archives.GZIP):
            stream = archives.unpacked(stream, self.rules.version_bytes)
        for path, member in self._members(remote.path, Stream(stream).content(ENDLESS), names):
            self._store(member, self._facts(path, member))
        self.passed_bytes = start
        self._check_hash(remote.path, digest.hexdigest())

    def _store(self, content: Content, facts: FileFacts) -> None:
        """Store a file unless it is there, and keep that it is."""
        if self._stored(facts.path):
            return
        if self.at.upload and self.at.upload.path != facts.path:
            raise SourceChanged("The files to be stored are others than before: start again.")
        self._mind_the_time()
        sha256 = self._put(content, facts) if facts.size <= PART_BYTES else self._put_parts(content, facts)
        stored = StoredFile(facts.path, facts.size, sha256, facts.format, facts.metadata)
        self.at = replace(self.at, files=(*self.at.files, stored), upload=None)
        self._keep(0 if content.forget else facts.size, now=True)

    def _put(self, content: Content, facts: FileFacts) -> str:
        data = content.read(0, facts.size)
        sha256 = hashlib.sha256(data).hexdigest()
        self._check_hash(facts.path, sha256)
        put(self.destination, facts.path, data, _type(facts))
        return sha256

    def _put_parts(self, content: Content, facts: FileFacts) -> str:
        """Store a file in parts, hashed in their order while others are sent.

        One connection reads them: it is faster than a function's network, and parts read side by side would wait in
        memory for their turn to be hashed.

        What earlier runs have sent is read once more, for a hash's state can't be kept between processes.
        """
        upload, there = self._begun(facts)
        step = upload.part_bytes
        digest = hashlib.sha256()
        etags: list[str] = []
        flight: deque[Future[str]] = deque()

        def settle() -> None:
            etags.append(flight.popleft().result())
            self._keep(0 if content.forget else len(etags) * step)

        try:
            for number, data in enumerate(content.pieces(step), 1):
                self._mind_the_time()
                flight.append(self.pool.submit(self._put_part, upload, number, data, there.get(number)))
                digest.update(data)
                if len(flight) == THREADS:
                    settle()
            while flight:
                settle()
        except OutOfTime:  # what is under way will be there
            while flight:
                settle()
            raise
        finally:  # no part arrives after the upload has been given up
            wait([future for future in flight if not future.cancel()])
        self._check_hash(facts.path, digest.hexdigest())
        complete(self.destination, facts.path, upload.upload_id, etags, facts.size)
        return digest.hexdigest()

    def _put_part(self, upload: Upload, number: int, data: bytes, there: str | None) -> str:
        if there:
            return there
        return put_part(self.destination, upload.path, upload.upload_id, number, data)

    def _begun(self, facts: FileFacts) -> tuple[Upload, dict[int, str]]:
        """The file's upload, and which parts of it are there: taken up again, unless the server has lost it."""
        if (upload := self.at.upload) and (there := self._listed(upload, facts.size)) is not None:
            return upload, there
        to, key = self.destination, self.destination.key(facts.path)
        with storage_errors(to):
            # One may be left from a process that ended before it could keep its position.
            for left in to.s3.list_multipart_uploads(Bucket=to.bucket, Prefix=key).get("Uploads", []):
                if left["Key"] == key:
                    _abort(to, key, left["UploadId"])
        upload = Upload(facts.path, begin_upload(to, facts.path, _type(facts)), part_bytes(facts.size))
        self.at = replace(self.at, upload=upload)
        self._keep(0, now=True)
        return upload, {}

    def _listed(self, upload: Upload, size: int) -> dict[int, str] | None:
        """The tags of the parts that are there, by number; None if there is no such upload.

        Supabase's list has no sizes; a part that is listed is whole, for it was sent as one request.
        """
        to, found = self.destination, {}
        pages = to.s3.get_paginator("list_parts").paginate(
            Bucket=to.bucket, Key=to.key(upload.path), UploadId=upload.upload_id
        )
        with storage_errors(to):
            try:
                for page in pages:
                    for part in page.get("Parts", []):
                        whole = min(upload.part_bytes, size - (part["PartNumber"] - 1) * upload.part_bytes)
                        if part.get("Size", whole) == whole:
                            found[part["PartNumber"]] = part["ETag"]
            except ClientError as error:
                if _code(error) != "NoSuchUpload":
                    raise
                return None
        return found

    def _stored(self, path: str) -> StoredFile | None:
        return next((file for file in self.at.files if file.path == path), None)

    def _is_announced(self, path: str) -> bool:
        return path in self.expected or path in self.sizes

    def _check_size(self, path: str, size: int) -> None:
        if (self.sizes.get(path) or size) != size:
            raise ArtifactRefused(f"{path}: it has {size} bytes, {self.sizes[path]} were announced: upload it again.")

    def _check_hash(self, path: str, sha256: str) -> None:
        if self.expected.get(path, sha256) != sha256:
            raise ArtifactRefused(
                f"{path}: its sha256 is {sha256}, {self.expected[path]} was expected: upload it again, or correct that."
            )

    def _keep(self, file_bytes: int, now: bool = False) -> None:
        """Hand the position to its keeper, with so many bytes of the file under way."""
        done = min(self.at.bytes_total, self.passed_bytes + file_bytes)
        self.at = replace(self.at, bytes_done=max(self.at.bytes_done, done))
        if now or time.monotonic() - self.kept_at >= KEEP_SECONDS:
            self.keep(self.at.wire())
            self.kept_at = time.monotonic()

    def _mind_the_time(self) -> None:
        if time.monotonic() >= self.stop_at:
            raise OutOfTime


def _content(remote: Remote) -> Content:
    if remote.read is None:
        return Stream(remote.chunks(0, remote.size)).content(remote.size)
    return Content(remote.size, remote.read, remote.size, chunks=remote.chunks)


def _type(facts: FileFacts) -> str:
    return TYPES.get(facts.format, "application/octet-stream")


def _abort(destination: Destination, key: str, upload_id: str) -> None:
    try:
        destination.s3.abort_multipart_upload(Bucket=destination.bucket, Key=key, UploadId=upload_id)
    except ClientError as error:
        if _code(error) != "NoSuchUpload":
            raise


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


@contextmanager
def storage_errors(destination: Destination) -> Iterator[None]:
    """Storage's errors as ours, in one place."""
    try:
        yield
    except ClientError as error:
        code = _code(error)
        if code in ("NoSuchUpload", "InvalidPart", "NoSuchKey"):
            raise UploadGone("Storage has lost a file or an upload in parts: try again.") from error
        if code in ("EntityTooLarge", "413"):
            raise ArtifactRefused(
                f"The bucket {destination.bucket} takes no file so large: raise its limit."
            ) from error
        if code in ("NoSuchBucket", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "403"):
            raise Misconfigured(f"Storage refuses the bucket {destination.bucket} ({code}): check its keys.") from error
        raise StorageUnavailable(f"Storage doesn't take files for now ({code}).") from error
    except (BotoCoreError, OSError) as error:
        raise StorageUnavailable("Storage can't be reached for now.") from error
