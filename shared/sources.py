"""Where a model's files come from: `s3://bucket/key`, `s3://bucket/prefix/`, or `https://` at an allowed host.

`https://huggingface.co/owner/name/tree/revision` is all files of a repository; every other https address is one file.
"""

import ipaddress
import json
import re
import socket
import ssl
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from types import MappingProxyType
from typing import Any
from urllib.parse import quote, unquote

import httpx
from botocore.exceptions import BotoCoreError, ClientError
from pydantic import SecretStr

from shared.artifacts import FILES
from shared.errors import SourceChanged, SourceRefused, StorageUnavailable

S3 = Any  # boto3 makes a client's methods while it runs
TRIES = 5
FIRST_WAIT_SECONDS = 0.2
CHUNK_BYTES = 1024 * 1024
REDIRECTS = 5
TIMEOUT = httpx.Timeout(30, connect=5)
BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{2,254}")
REPOSITORY = re.compile(r"/(\w[\w.-]*/\w[\w.-]*)/tree/(\w[\w.-]*)/?", re.ASCII)
NO_KEYS: Mapping[str, SecretStr] = MappingProxyType({})
NAT64 = ipaddress.ip_network("64:ff9b::/96")  # an IPv4 address is in its last 32 bits


@dataclass(frozen=True, slots=True)
class Remote:
    """A file at its source. `path` is relative to what was asked for.

    `etag` names its state; "" where the server gives none, which lets nothing of it be taken up again. `read` gives a
    range, in any thread; None where the server has no ranges. `chunks(offset, length)` gives a long range with one
    request; without ranges it is the whole.
    """

    path: str
    size: int
    etag: str
    read: Callable[[int, int], bytes] | None
    chunks: Callable[[int, int], Iterator[bytes]]


def find(
    address: str,
    s3: S3 | None,
    hosts: Collection[str] = (),
    allow_private: bool = False,
    keys: Mapping[str, SecretStr] = NO_KEYS,
) -> list[Remote]:
    """The files at the address, by path. `s3` is a client for `s3://`, as `transfers.client` makes it.

    `hosts` are the names `https://` may go to, with all redirects: "huggingface.co", "*.hf.co", "mirror.corp:8443".
    An address within private networks is refused, by what its name resolves to. `allow_private` lets loopback in, and
    `http://` there: for tests. `keys` are hosts' own, and go to no other. Raises `SourceRefused`.
    """
    check(address, hosts, allow_private)
    if not address.startswith("s3://"):
        door = _Door(hosts, allow_private, keys)
        url = _url(address)
        page = REPOSITORY.fullmatch(url.path)
        return _repository(url, page[1], page[2], door) if page else [_download(url, door)]
    bucket, _, key = address.removeprefix("s3://").partition("/")
    return _prefix(s3, bucket, key) if key.endswith("/") or not key else [_object(s3, bucket, key)]


def check(address: str, hosts: Collection[str] = (), allow_private: bool = False) -> None:
    """Raises `SourceRefused` for what is no address of files, or is at a host that isn't allowed; asks nobody."""
    if address.startswith("s3://"):
        bucket = address.removeprefix("s3://").partition("/")[0]
        if not BUCKET.fullmatch(bucket):
            raise SourceRefused(f"{bucket[:100]!r} is no bucket's name: the source is s3://bucket/key or a prefix/.")
    elif address.startswith("https://") or (allow_private and address.startswith("http://")):
        _check_host(_url(address), hosts, allow_private)
    else:
        raise SourceRefused("The source has to be s3://bucket/key, s3://bucket/prefix/ or https://…: change it.")


def _prefix(s3: S3, bucket: str, prefix: str) -> list[Remote]:
    found: list[Remote] = []
    with _s3_errors(f"s3://{bucket}/{prefix}"):
        for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            for item in page.get("Contents", []):
                if not item["Key"].endswith("/"):  # consoles make such objects as folders
                    path = item["Key"].removeprefix(prefix)
                    found.append(_in_s3(s3, bucket, item["Key"], path, item["Size"], item["ETag"]))
            if len(found) > FILES * 10:
                raise SourceRefused(f"There are more than {FILES * 10} files under s3://{bucket}/{prefix}.")
    if not found:
        raise SourceRefused(f"There is nothing under s3://{bucket}/{prefix}: correct the address.")
    return sorted(found, key=lambda remote: remote.path)


def _object(s3: S3, bucket: str, key: str) -> Remote:
    address = f"s3://{bucket}/{key}"
    with _s3_errors(address):
        head = s3.head_object(Bucket=bucket, Key=key)
    return _in_s3(s3, bucket, key, key.rpartition("/")[2], head["ContentLength"], head["ETag"])


def _in_s3(s3: S3, bucket: str, key: str, path: str, size: int, etag: str) -> Remote:
    address = f"s3://{bucket}/{key}"

    def get(offset: int, length: int) -> Iterator[bytes]:
        with _s3_errors(address):
            span = f"bytes={offset}-{offset + length - 1}"
            answer = s3.get_object(Bucket=bucket, Key=key, Range=span, IfMatch=etag)
            if answer["ETag"] != etag:  # not every server knows If-Match
                raise SourceChanged(f"{address} has changed since its transfer began: start again.")
            with closing(answer["Body"]) as body:
                yield from body.iter_chunks(CHUNK_BYTES)

    return _ranged(path, size, etag, get)


@contextmanager
def _s3_errors(address: str) -> Iterator[None]:
    try:
        yield
    except ClientError as error:
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if status == 412:
            raise SourceChanged(f"{address} has changed since its transfer began: start again.") from error
        if status == 404:
            raise SourceRefused(f"There is no {address}: correct the address; a prefix ends with /.") from error
        if status in (301, 400, 401, 403):
            raise SourceRefused(f"{address} may not be read: give the function's role s3:GetObject.") from error
        raise StorageUnavailable(f"{address} can't be read for now.") from error
    except (BotoCoreError, OSError) as error:
        raise StorageUnavailable(f"{address} can't be read for now.") from error


def _ranged(path: str, size: int, etag: str, get: Callable[[int, int], Iterator[bytes]]) -> Remote:
    """The file whose ranges `get` asks for; a range that breaks off is asked for again from there."""

    def chunks(offset: int, length: int) -> Iterator[bytes]:
        end, failures = min(offset + length, size), 0
        while offset < end:
            before = offset
            try:
                for chunk in get(offset, end - offset):
                    offset += len(chunk)
                    yield chunk
                if offset != end:
                    raise StorageUnavailable(f"The source gave another number of bytes of {path} than was asked for.")
            except StorageUnavailable:
                failures = failures + 1 if offset == before else 1
                if failures == TRIES or offset > end:
                    raise
                time.sleep(FIRST_WAIT_SECONDS * 2**failures)

    def read(offset: int, length: int) -> bytes:
        return b"".join(chunks(offset, length))

    return Remote(path, size, etag, read, chunks)


# --- https -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Door:
    """Where `https://` may go, and with which keys."""

    hosts: Collection[str]
    allow_private: bool
    keys: Mapping[str, SecretStr]

    def open(self, url: httpx.URL) -> "_Pinned":
        """Raises `SourceRefused` for a host that isn't allowed or isn't public."""
        _check_host(url, self.hosts, self.allow_private)
        port = url.port or (443 if url.scheme == "https" else 80)
        address = _resolved(url.raw_host.decode(), port, self.allow_private)
        # No proxy: it would resolve the name again.
        http = httpx.Client(timeout=TIMEOUT, trust_env=False, verify=_trusted())
        return _Pinned(url, url.copy_with(host=address), http, self.keys.get(url.netloc.decode()))


@cache
def _trusted() -> ssl.SSLContext:
    """The authorities of certificates, read once and not for each file."""
    return httpx.create_ssl_context(trust_env=False)


def _repository(url: httpx.URL, name: str, revision: str, door: _Door) -> list[Remote]:
    """All files of a repository of the Hugging Face Hub, by its API."""
    listing = url.copy_with(path=f"/api/models/{name}/tree/{revision}", query=b"recursive=true")
    with door.open(listing).get() as answer:
        if answer.status_code >= 500 or answer.status_code == 429:
            raise StorageUnavailable(f"{url.host} can't be read for now.")
        if answer.status_code != 200:
            raise SourceRefused(f"{url.host} answered {answer.status_code} for {name}: correct the address.")
        try:
            entries = json.loads(answer.read())
            paths = sorted(str(entry["path"]) for entry in entries if entry["type"] == "file")
        except (ValueError, LookupError, TypeError, RecursionError, httpx.HTTPError) as error:
            raise StorageUnavailable(f"{url.host} can't be understood for now.") from error
        if len(paths) > FILES or "next" in answer.links:
            raise SourceRefused(f"There are more than {FILES} files in {name}: leave them in its history.")
    if not paths:
        raise SourceRefused(f"There is nothing in {name} at {revision}: correct the address.")
    found = [url.copy_with(raw_path=f"/{name}/resolve/{revision}/{quote(path)}".encode()) for path in paths]
    return [replace(_download(each, door), path=path) for each, path in zip(found, paths, strict=True)]


def _download(url: httpx.URL, door: _Door) -> Remote:
    """The file behind the address: what one request with a range says of it, after all redirects."""
    name = unquote(url.path).rpartition("/")[2] or "model"
    for _ in range(REDIRECTS):
        pinned = door.open(url)
        with pinned.get(range(0, 1)) as answer:
            if answer.has_redirect_location:
                url = _url(answer.headers["location"], url)
                continue
            return _described(pinned, name, answer)
    raise SourceRefused(f"{name}: more than {REDIRECTS} redirects: give the last address.")


def _described(pinned: "_Pinned", name: str, answer: httpx.Response) -> Remote:
    if answer.status_code == 416:
        raise SourceRefused(f"{name} is empty: upload it again.")
    if answer.status_code not in (200, 206):
        if answer.status_code >= 500 or answer.status_code == 429:
            raise StorageUnavailable(f"{pinned.url.host} can't be read for now.")
        raise SourceRefused(f"{pinned.url.host} answered {answer.status_code} for {name}: correct the address.")
    ranged = answer.status_code == 206
    length = (
        answer.headers.get("content-range", "").rpartition("/")[2] if ranged else answer.headers.get("content-length")
    )
    if not (length or "").isdigit() or answer.headers.get("content-encoding", "identity") != "identity":
        raise SourceRefused(f"{pinned.url.host} doesn't say how long {name} is: use another server.")
    size, etag = int(length), _state(answer)

    def get(offset: int, length: int) -> Iterator[bytes]:
        with pinned.get(range(offset, offset + length), etag) as part:
            _check_same(part, etag, name)
            if part.status_code != 206:
                # A signed address that has run out, too: found anew it is a fresh one.
                raise StorageUnavailable(f"{pinned.url.host} answered {part.status_code} for {name}.")
            yield from part.iter_raw()  # as they come, for who minds the time

    def whole(_offset: int, _length: int) -> Iterator[bytes]:
        given = 0
        with pinned.get() as answer:
            _check_same(answer, etag, name)
            for chunk in answer.iter_raw():
                given += len(chunk)
                yield chunk
        if given != size:
            raise StorageUnavailable(f"{pinned.url.host} gave {given} of {size} bytes of {name}.")

    # Without a name for its state, ranges could be of two states.
    return _ranged(name, size, etag, get) if ranged and etag else Remote(name, size, etag, None, whole)


def _state(answer: httpx.Response) -> str:
    return str(answer.headers.get("etag") or answer.headers.get("last-modified") or "")


def _check_same(answer: httpx.Response, etag: str, name: str) -> None:
    if answer.status_code == 412 or (answer.status_code in (200, 206) and _state(answer) != etag):
        raise SourceChanged(f"{name} has changed at its source: start again.")


@dataclass(frozen=True, slots=True)
class _Pinned:
    """A URL together with the address its host had when that was checked.

    Connections go to this address, whatever the name resolves to later; the certificate is the name's. The client is
    this host's alone, so that no connection made for one name serves another.
    """

    url: httpx.URL
    address: httpx.URL
    http: httpx.Client
    key: SecretStr | None = field(repr=False)

    @contextmanager
    def get(self, span: range | None = None, etag: str = "") -> Iterator[httpx.Response]:
        """The answer, its body unread. Raises `StorageUnavailable`."""
        headers = {"host": self.url.netloc.decode(), "accept-encoding": "identity"}
        if self.key:
            headers["authorization"] = f"Bearer {self.key.get_secret_value()}"
        if span is not None:
            headers["range"] = f"bytes={span.start}-{span.stop - 1}"
        if etag.startswith('"'):  # neither a weak tag nor a date may stand here
            headers["if-match"] = etag
        extensions = {"sni_hostname": self.url.raw_host.decode()}
        try:
            with self.http.stream("GET", self.address, headers=headers, extensions=extensions) as answer:
                yield answer
        except httpx.TransportError as error:
            raise StorageUnavailable(f"{self.url.host} can't be read for now.") from error


def _url(address: str, base: httpx.URL | None = None) -> httpx.URL:
    try:
        return base.join(address) if base else httpx.URL(address)
    except (httpx.InvalidURL, ValueError) as error:  # idna's errors are ValueErrors
        raise SourceRefused("The source's address can't be read: correct it.") from error


def _check_host(url: httpx.URL, hosts: Collection[str], allow_private: bool) -> None:
    if url.scheme != "https" and not (allow_private and url.scheme == "http"):
        raise SourceRefused(f"{url.host} is not read by https: give an https:// address.")
    if url.userinfo:
        raise SourceRefused("The source's address holds a password: give one without, or a signed one.")
    host = url.raw_host.decode()
    named = host if url.port is None else f"{host}:{url.port}"
    if not any(_fits(named.lower(), allowed.lower()) for allowed in hosts):
        raise SourceRefused(f"{named} is none of the hosts that files may come from: allow it, or use s3://.")


def _fits(named: str, host: str) -> bool:
    return named.endswith(host[1:]) if host.startswith("*.") else named == host


def _resolved(host: str, port: int, allow_private: bool) -> str:
    """The first address of the host. Raises `SourceRefused` if any of them is private, loopback or otherwise inner."""
    try:
        answers: Sequence[Any] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        if isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN:
            raise StorageUnavailable(f"{host[:100]} can't be found for now.") from error
        raise SourceRefused(f"There is no host {host[:100]}: correct the address.") from error
    addresses = [str(answer[4][0]) for answer in answers]
    for address in addresses:
        if not (is_public(address) or (allow_private and ipaddress.ip_address(address).is_loopback)):
            raise SourceRefused(f"{host} is in a private network, where no files come from: use s3://.")
    return addresses[0]


def is_public(address: str) -> bool:
    """Whether it is an address of the open internet, and so is an IPv4 address that is embedded in it."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address):
        inner = parsed.ipv4_mapped or parsed.sixtofour or (parsed.teredo[1] if parsed.teredo else None)
        if parsed in NAT64:
            inner = ipaddress.IPv4Address(int(parsed) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return parsed.is_global and not parsed.is_multicast and not parsed.is_reserved
