"""A model's files on their way into Storage: real S3 on loopback (moto), real HTTP, real kills."""

import asyncio
import datetime
import hashlib
import json
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from infra.local.stack import Stack
from shared import sources, transfers
from shared.artifacts import Rules, manifest
from shared.errors import (
    ArtifactRefused,
    Misconfigured,
    PickleRefused,
    SourceChanged,
    SourceRefused,
    StorageUnavailable,
)
from shared.sources import Remote, is_public
from shared.transfers import (
    MIB,
    PART_BYTES,
    Destination,
    Outcome,
    abandon,
    fingerprint,
    transfer_all,
    write_manifest,
)
from tests.shared import model_files as made
from tests.shared.model_files import CONFIG
from tests.stand_ins import serving

LONG = 600.0
BIG = made.weights(PART_BYTES + 2 * MIB)  # two parts
PACKED = made.tar_gz({"config.json": CONFIG, "model.safetensors": BIG})


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with Stack(tmp_path_factory.mktemp("aws"), only={"aws"}, preferred_ports={}) as running:
        yield running.environment["AWS_ENDPOINT_URL"]


@pytest.fixture(scope="module")
def s3(server: str) -> Any:
    s3 = client(server)
    for bucket in ("training", "models"):
        s3.create_bucket(Bucket=bucket)
    return s3


@pytest.fixture
def folder(request: pytest.FixtureRequest) -> str:
    """A prefix of this test alone, in both buckets."""
    return str(request.node.name).replace("[", "/").replace("]", "")


def client(server: str) -> Any:
    return transfers.client(server, "us-east-1", ("local", "local"))


def put(s3: Any, folder: str, files: Mapping[str, bytes]) -> str:
    for name, data in files.items():
        s3.put_object(Bucket="training", Key=f"{folder}/{name}", Body=data)
    return f"s3://training/{folder}/"


def stored(s3: Any, folder: str) -> dict[str, bytes]:
    listed = s3.list_objects_v2(Bucket="models", Prefix=f"{folder}/").get("Contents", [])
    keys = [item["Key"] for item in listed]
    return {key.removeprefix(f"{folder}/"): s3.get_object(Bucket="models", Key=key)["Body"].read() for key in keys}


def uploads(s3: Any, folder: str) -> list[dict[str, Any]]:
    return list(s3.list_multipart_uploads(Bucket="models", Prefix=folder).get("Uploads", []))


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def moved(s3: Any, found: list[Remote], folder: str, **given: Any) -> Outcome:
    arguments: dict[str, Any] = {"rules": Rules(), "expected": {}, "position": None, "keep": lambda _: None}
    arguments |= {"stop_at": time.monotonic() + LONG} | given
    return transfer_all(found, Destination(s3, "models", folder), **arguments)


def stopping(remote: Remote, after_bytes: int, stop_at: float) -> Remote:
    """The file whose reading takes until `stop_at` when so many bytes of it are read."""

    def chunks(offset: int, length: int) -> Iterator[bytes]:
        given = offset
        for chunk in remote.chunks(offset, length):
            while given >= after_bytes and time.monotonic() < stop_at:
                time.sleep(0.01)
            given += len(chunk)
            yield chunk

    return replace(remote, chunks=chunks)


def breaking(remote: Remote) -> Remote:
    """The file whose source fails when a part and a half MB of it are read."""

    def chunks(offset: int, length: int) -> Iterator[bytes]:
        given = offset
        for chunk in remote.chunks(offset, length):
            if given > PART_BYTES:
                raise StorageUnavailable("cut by the test")
            given += len(chunk)
            yield chunk

    return replace(remote, chunks=chunks)


def halfway(s3: Any, address: str, folder: str) -> dict[str, Any]:
    """The position of a transfer whose source failed in the middle of the first large file."""
    kept: list[dict[str, Any]] = []
    with pytest.raises(StorageUnavailable):
        moved(s3, [breaking(remote) for remote in sources.find(address, s3)], folder, keep=kept.append)
    return dict(json.loads(json.dumps(kept[-1])))


# --- from S3 ---------------------------------------------------------------------------------------------------------


def test_a_prefix_becomes_a_version(s3: Any, folder: str) -> None:
    files = {"model.safetensors": BIG, "config.json": CONFIG, "tokenizer/vocab.txt": b"a\nb\n"}
    kept: list[dict[str, Any]] = []

    outcome = moved(s3, sources.find(put(s3, folder, files), s3), folder, keep=kept.append)

    assert outcome.position is None
    assert stored(s3, folder) == files
    assert {(file.path, file.size, file.sha256) for file in outcome.files} == {
        (name, len(data), sha256(data)) for name, data in files.items()
    }
    assert {file.path: file.format for file in outcome.files} == {
        "model.safetensors": "safetensors", "config.json": "json", "tokenizer/vocab.txt": "text",
    }  # fmt: skip
    assert [each["bytes_done"] for each in kept] == sorted(each["bytes_done"] for each in kept)
    assert kept[-1]["bytes_done"] == kept[-1]["bytes_total"] == sum(map(len, files.values()))
    assert s3.head_object(Bucket="models", Key=f"{folder}/config.json")["ContentType"] == "application/json"
    assert uploads(s3, folder) == []


def test_a_single_file_keeps_its_name(s3: Any, folder: str) -> None:
    put(s3, folder, {"deep/config.json": CONFIG})

    moved(s3, sources.find(f"s3://training/{folder}/deep/config.json", s3), folder)

    assert stored(s3, folder) == {"config.json": CONFIG}


@pytest.mark.parametrize(("packed", "hashed"), [("output/m.tar", False), ("output/m.tar", True), ("m.tgz", True)])
def test_an_archive_becomes_the_files_in_it(s3: Any, folder: str, packed: str, hashed: bool) -> None:
    files = {"./config.json": CONFIG, "./model.safetensors": BIG, "./training_args.bin": b"\x80\x04."}
    archive = made.tar(files) if packed.endswith(".tar") else made.tar_gz(files)
    address = put(s3, folder, {packed: archive})
    expected = {packed: sha256(archive)} if hashed else {}

    rules = Rules(leave_out=("training_args.bin",))
    outcome = moved(s3, sources.find(address, s3), folder, rules=rules, expected=expected)

    place = packed.rpartition("m.")[0]
    assert stored(s3, folder) == {f"{place}config.json": CONFIG, f"{place}model.safetensors": BIG}
    assert {file.path: file.sha256 for file in outcome.files}[f"{place}model.safetensors"] == sha256(BIG)


@pytest.mark.parametrize(
    ("files", "error", "message"),
    [
        ({"a.json": CONFIG, "b.safetensors": BIG[:-1]}, ArtifactRefused, "b.safetensors: it is cut off"),
        ({"a.json": CONFIG, "b.bin": b"\x80\x04."}, PickleRefused, "b.bin: a pickle"),
        ({"a.json": CONFIG, "b.json": b""}, ArtifactRefused, "b.json: it is empty"),
        ({"a.json": CONFIG, "A.json": CONFIG}, ArtifactRefused, "taken"),
        ({"a.json": CONFIG, "m.tar": made.tar({"a.json": CONFIG})}, ArtifactRefused, "taken"),
        ({"a.json": CONFIG, "m.tar": made.tar({"../a.json": CONFIG})}, ArtifactRefused, "leaves its folder"),
        ({"a.json": CONFIG, "m.tar": made.tar({"x.tgz": b"a"})}, ArtifactRefused, "archive in an archive"),
        ({"a.json": CONFIG, "m.tar": made.tar({"w.bin": b"\x80\x04."})}, PickleRefused, "w.bin: a pickle"),
        ({"a.json": CONFIG, "m.tar": bytes(1024)}, ArtifactRefused, "no file in it"),
        ({"a.json": CONFIG, "m.tar.gz": made.tar_gz({"b.json": CONFIG, "w.pt": b"a"})}, PickleRefused, "w.pt: a pick"),
        ({"a.json": CONFIG, "m.tar.gz": made.tar_gz({"b.json": CONFIG})[:-9]}, ArtifactRefused, "cut off"),
        ({"a.json": CONFIG, "m.tar.gz": PACKED[:-MIB]},
         ArtifactRefused, "cut off"),
    ],
)  # fmt: skip
def test_nothing_is_left_of_a_version_that_is_refused(
    s3: Any, folder: str, files: dict[str, bytes], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        moved(s3, sources.find(put(s3, folder, files), s3), folder)

    assert stored(s3, folder) == {}
    assert uploads(s3, folder) == []


@pytest.mark.parametrize(
    ("name", "data"),
    [("config.json", CONFIG), ("model.safetensors", BIG), ("model.tar.gz", made.tar_gz({"config.json": CONFIG}))],
)
def test_a_file_with_another_hash_never_gets_its_name(s3: Any, folder: str, name: str, data: bytes) -> None:
    address = put(s3, folder, {name: data})

    with pytest.raises(ArtifactRefused, match=f"{name}: its sha256 is {sha256(data)}"):
        moved(s3, sources.find(address, s3), folder, expected={name: "0" * 64})

    assert stored(s3, folder) == {}
    assert uploads(s3, folder) == []


def test_a_hash_of_a_file_that_is_not_there_is_no_hash(s3: Any, folder: str) -> None:
    address = put(s3, folder, {"config.json": CONFIG})

    with pytest.raises(ArtifactRefused, match=r"model\.gguf"):
        moved(s3, sources.find(address, s3), folder, expected={"model.gguf": "0" * 64})

    assert stored(s3, folder) == {}


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("s3://training/nothing/", "nothing under"),
        ("s3://training/nothing", "There is no s3://training/nothing"),
        ("s3://no-such-bucket/a/", "There is no"),
        ("ftp://training/a", "has to be"),
        ("/etc/passwd", "has to be"),
    ],
)
def test_a_source_that_is_none_is_refused(s3: Any, address: str, message: str) -> None:
    with pytest.raises(SourceRefused, match=message):
        sources.find(address, s3)


def test_a_bucket_that_is_not_there_is_a_setting(s3: Any, folder: str) -> None:
    found = sources.find(put(s3, folder, {"config.json": CONFIG}), s3)

    with pytest.raises(Misconfigured, match="no-such-bucket"):
        transfer_all(
            found, Destination(s3, "no-such-bucket", folder), rules=Rules(), expected={}, position=None,
            stop_at=time.monotonic() + LONG, keep=lambda _: None,
        )  # fmt: skip


# --- in several runs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.safetensors", "model.tar.gz"])
def test_a_transfer_is_taken_up_where_its_time_ended(s3: Any, server: str, folder: str, name: str) -> None:
    address = put(s3, folder, {name: BIG if name == "model.safetensors" else PACKED})
    stop_at = time.monotonic() + 0.7
    found = [stopping(remote, PART_BYTES + MIB // 2, stop_at) for remote in sources.find(address, s3)]

    first = moved(s3, found, folder, stop_at=stop_at)
    sent = part_numbers(s3, folder)
    with serving((proxy := Proxy(server)).app()) as through:
        position = json.loads(json.dumps(first.position))
        second = moved(client(through), found, folder, position=position, expected={"model.safetensors": sha256(BIG)})

    assert sent == [1]
    assert proxy.parts == ["2"]
    assert second.position is None
    assert stored(s3, folder)["model.safetensors"] == BIG
    assert uploads(s3, folder) == []


def test_a_run_without_time_begins_nothing(s3: Any, folder: str) -> None:
    address = put(s3, folder, {"model.safetensors": BIG})

    outcome = moved(s3, sources.find(address, s3), folder, stop_at=time.monotonic())

    assert outcome.files == ()
    assert outcome.position is not None
    assert (outcome.position["bytes_done"], outcome.position["bytes_total"]) == (0, len(BIG))
    assert uploads(s3, folder) == []


def test_an_upload_that_storage_has_lost_begins_anew(s3: Any, folder: str) -> None:
    address = put(s3, folder, {"model.safetensors": BIG})
    position = halfway(s3, address, folder)
    (upload,) = uploads(s3, folder)
    s3.abort_multipart_upload(Bucket="models", Key=upload["Key"], UploadId=upload["UploadId"])

    moved(s3, sources.find(address, s3), folder, position=position)

    assert stored(s3, folder) == {"model.safetensors": BIG}
    assert uploads(s3, folder) == []


def test_a_source_that_has_changed_is_refused_and_nothing_is_left(s3: Any, folder: str) -> None:
    address = put(s3, folder, {"a.json": CONFIG, "model.safetensors": BIG})
    position = halfway(s3, address, folder)
    assert stored(s3, folder) == {"a.json": CONFIG}
    put(s3, folder, {"model.safetensors": made.weights(len(BIG), seed=8)})

    with pytest.raises(SourceChanged) as refusal:
        moved(s3, sources.find(address, s3), folder, position=position)

    assert (refusal.value.status, refusal.value.retryable) == (409, False)
    assert stored(s3, folder) == {}
    assert uploads(s3, folder) == []


@pytest.mark.parametrize("begun_before", [False, True], ids=["begun now", "begun before"])
def test_what_is_left_out_may_change_on_the_way(s3: Any, folder: str, begun_before: bool) -> None:
    rules = Rules(leave_out=("train.log",))
    address = put(s3, folder, {"model.safetensors": BIG, "train.log": b"step 1"})
    found = sources.find(address, s3)
    kept: list[dict[str, Any]] = []
    with pytest.raises(StorageUnavailable):
        moved(s3, [breaking(remote) for remote in found], folder, rules=rules, keep=kept.append)

    position = kept[-1]
    if begun_before:  # when positions named the state of all files
        position["source"] = fingerprint(found)
    else:
        put(s3, folder, {"train.log": b"step 1, step 2"})
    outcome = moved(s3, sources.find(address, s3), folder, rules=rules, position=position)

    assert outcome.position is None
    assert stored(s3, folder) == {"model.safetensors": BIG}
    assert uploads(s3, folder) == []


def test_a_source_that_changes_after_it_was_found_is_refused(s3: Any, folder: str) -> None:
    found = sources.find(put(s3, folder, {"model.safetensors": BIG}), s3)
    put(s3, folder, {"model.safetensors": made.weights(len(BIG) - 1000, seed=8)})

    with pytest.raises(SourceChanged, match="has changed"):
        moved(s3, found, folder)

    assert stored(s3, folder) == {}


def test_what_is_abandoned_is_gone(s3: Any, folder: str) -> None:
    position = halfway(s3, put(s3, folder, {"a.json": CONFIG, "model.safetensors": BIG}), folder)

    abandon(Destination(s3, "models", folder), position)
    abandon(Destination(s3, "models", folder), position)

    assert stored(s3, folder) == {}
    assert uploads(s3, folder) == []


@pytest.mark.parametrize(("name", "keeps_position"), [("model.safetensors", False), ("model.tar.gz", True)])
def test_a_killed_transfer_leaves_one_right_object_after_the_next(
    s3: Any, server: str, folder: str, tmp_path: Path, name: str, keeps_position: bool
) -> None:
    data = made.tar_gz({"model.safetensors": BIG}) if name.endswith("gz") else BIG
    address = put(s3, folder, {name: data})
    position = tmp_path / "position.json"
    command = [sys.executable, "-m", "tests.shared.transfer_once", server, address, folder, str(position)]

    process = subprocess.Popen([*command, str(PART_BYTES + MIB // 2)])
    while part_numbers(s3, folder) != [1]:
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert len(uploads(s3, folder)) == 1
    if not keeps_position:
        position.unlink()
    subprocess.run([*command, str(10**12)], check=True)

    assert stored(s3, folder) == {"model.safetensors": BIG}
    assert uploads(s3, folder) == []
    assert json.loads(position.read_text())["files"][0]["sha256"] == sha256(BIG)


def part_numbers(s3: Any, folder: str) -> list[int]:
    return [
        part["PartNumber"]
        for upload in uploads(s3, folder)
        for part in s3.list_parts(Bucket="models", Key=upload["Key"], UploadId=upload["UploadId"]).get("Parts", [])
    ]


def test_memory_does_not_grow_with_the_file(s3: Any, server: str, folder: str, tmp_path: Path) -> None:
    megabytes = 144
    block = bytes(range(256)) * (64 * 1024)
    header = json.dumps({"w": made.tensor("U8", [megabytes * MIB], 0, megabytes * MIB)}).encode()
    key = f"{folder}/model.safetensors"
    upload = s3.create_multipart_upload(Bucket="training", Key=key)["UploadId"]
    bodies = [len(header).to_bytes(8, "little") + header + block, *[block] * (megabytes // 16 - 1)]
    parts = [
        {"PartNumber": number, "ETag": s3.upload_part(
            Bucket="training", Key=key, UploadId=upload, PartNumber=number, Body=body)["ETag"]}
        for number, body in enumerate(bodies, 1)
    ]  # fmt: skip
    s3.complete_multipart_upload(Bucket="training", Key=key, UploadId=upload, MultipartUpload={"Parts": parts})

    command = [sys.executable, "-m", "tests.shared.transfer_once", server, f"s3://training/{folder}/", folder]
    grown = subprocess.run(
        [*command, str(tmp_path / "p.json"), str(10**12)], check=True, capture_output=True, text=True
    ).stdout

    assert int(grown) < 130
    assert s3.head_object(Bucket="models", Key=key)["ContentLength"] == sum(map(len, bodies))
    for bucket in ("training", "models"):
        s3.delete_object(Bucket=bucket, Key=key)


def test_the_manifest_is_written_last(s3: Any, folder: str) -> None:
    outcome = moved(s3, sources.find(put(s3, folder, {"config.json": CONFIG}), s3), folder)

    made_manifest = manifest("swap-advisor", 3, outcome.files)
    write_manifest(Destination(s3, "models", folder), made_manifest)

    written = stored(s3, folder)["manifest.json"]
    assert sha256(written) == made_manifest.sha256
    assert json.loads(written)["files"][0]["sha256"] == sha256(CONFIG)


# --- Storage that fails ----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Proxy:
    """Everything goes on to `target`; the first `busy` parts are answered with SlowDown, all with what is `refuses`."""

    target: str
    busy: int = 0
    refuses: str = ""
    parts: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    def app(self) -> Starlette:
        return Starlette(routes=[Route("/{path:path}", self.forward, methods=["GET", "PUT", "POST", "DELETE", "HEAD"])])

    async def forward(self, request: Request) -> Response:
        content = await request.body()
        if request.method == "PUT":
            self.headers.append(dict(request.headers))
        if "partNumber" in request.query_params:
            if self.refuses:
                return Response(f"<Error><Code>{self.refuses}</Code></Error>", 409, media_type="application/xml")
            if self.busy:
                self.busy -= 1
                return Response("<Error><Code>SlowDown</Code></Error>", 503, media_type="application/xml")
            self.parts.append(request.query_params["partNumber"])
        headers = {key: value for key, value in request.headers.items() if key != "content-length"}
        async with httpx.AsyncClient() as http:
            address = f"{self.target}{request.url.path}?{request.url.query}"
            answer = await http.request(request.method, address, headers=headers, content=content, timeout=30)
        kept = {key: value for key, value in answer.headers.items() if key in ("etag", "content-type")}
        return Response(answer.content, answer.status_code, kept)


def test_a_busy_storage_is_asked_again(s3: Any, server: str, folder: str) -> None:
    found = sources.find(put(s3, folder, {"model.safetensors": BIG}), s3)

    with serving((proxy := Proxy(server, busy=1)).app()) as through:
        moved(client(through), found, folder)

    assert sorted(proxy.parts) == ["1", "2"]
    assert stored(s3, folder) == {"model.safetensors": BIG}


def test_only_what_every_server_of_the_protocol_knows_is_sent(s3: Any, server: str, folder: str) -> None:
    found = sources.find(put(s3, folder, {"a.json": CONFIG, "model.safetensors": BIG}), s3)

    with serving((proxy := Proxy(server)).app()) as through:
        moved(client(through), found, folder)

    sent = {name for headers in proxy.headers for name in headers}
    assert len(proxy.headers) == 3
    assert not [name for name in sent if "checksum" in name or "trailer" in name]
    assert "aws-chunked" not in {headers.get("content-encoding") for headers in proxy.headers}


def test_a_file_beyond_the_buckets_limit_is_refused(s3: Any, server: str, folder: str) -> None:
    found = sources.find(put(s3, folder, {"model.safetensors": BIG}), s3)

    with (
        serving(Proxy(server, refuses="EntityTooLarge").app()) as through,
        pytest.raises(ArtifactRefused, match="raise its limit"),
    ):
        moved(client(through), found, folder)

    assert uploads(s3, folder) == []


def test_a_storage_that_is_gone_is_to_be_asked_later(s3: Any, server: str, folder: str) -> None:
    address = put(s3, folder, {"a.json": CONFIG, "model.safetensors": BIG})
    kept: list[dict[str, Any]] = []

    with (
        serving(Proxy(server, refuses="OperationAborted").app()) as through,
        pytest.raises(StorageUnavailable) as failure,
    ):
        moved(client(through), sources.find(address, s3), folder, keep=kept.append)
    moved(s3, sources.find(address, s3), folder, position=kept[-1])

    assert failure.value.retryable
    assert stored(s3, folder) == {"a.json": CONFIG, "model.safetensors": BIG}
    assert uploads(s3, folder) == []


# --- from the web ----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Mirror:
    """A web server of files. `breaks` answers end in mid-body; `elsewhere` is where /redirect leads."""

    files: dict[str, bytes]
    ranges: bool = True
    etag: str = '"one"'
    breaks: int = 0
    elsewhere: str = ""
    asked: list[dict[str, str]] = field(default_factory=list)

    def app(self) -> Starlette:
        return Starlette(routes=[Route("/redirect", self.redirect), Route("/{name:path}", self.file)])

    async def redirect(self, _: Request) -> Response:
        return RedirectResponse(self.elsewhere)

    async def file(self, request: Request) -> Response:
        self.asked.append(dict(request.headers))
        data = self.files.get(request.path_params["name"])
        if data is None:
            return Response("no", 404)
        if request.headers.get("if-match", self.etag) != self.etag:
            return Response("changed", 412)
        headers, status, body = {"etag": self.etag} if self.etag else {}, 200, data
        if self.ranges and "range" in request.headers:
            first, last = (int(at) for at in request.headers["range"].removeprefix("bytes=").split("-"))
            body, status = data[first : last + 1], 206
            headers["content-range"] = f"bytes {first}-{last}/{len(data)}"
        headers["content-length"] = str(len(body))
        return StreamingResponse(self.pieces(body), status, headers)

    async def pieces(self, body: bytes) -> AsyncIterator[bytes]:
        for at in range(0, len(body), 4 * MIB):
            if self.breaks and at >= 8 * MIB:
                self.breaks -= 1
                raise ConnectionError("cut by the test")
            yield body[at : at + 4 * MIB]
            await asyncio.sleep(0)


def found_at(origin: str, path: str, *hosts: str) -> list[Remote]:
    host = origin.removeprefix("http://")
    return sources.find(f"{origin}/{path}", None, hosts or (host,), allow_private=True)


@pytest.mark.parametrize(
    ("mirror", "requests"),
    [
        (Mirror({"m/model.safetensors": BIG}), 3),  # what it is, its header, and the file
        (Mirror({"m/model.safetensors": BIG}, breaks=2), 5),
        (Mirror({"m/model.safetensors": BIG}, ranges=False), 2),
        (Mirror({"m/model.safetensors": BIG}, etag=""), 2),
        (Mirror({"m/model.safetensors": BIG}, etag='W/"weak"'), 3),
    ],
    ids=["ranges", "breaks", "no ranges", "no etag", "weak etag"],
)
def test_a_file_comes_from_the_web(s3: Any, folder: str, mirror: Mirror, requests: int) -> None:
    with serving(mirror.app()) as origin:
        outcome = moved(s3, found_at(origin, "m/model.safetensors?signature=secret"), folder)

    assert stored(s3, folder) == {"model.safetensors": BIG}
    assert outcome.files[0].sha256 == sha256(BIG)
    assert len(mirror.asked) == requests
    assert {headers["accept-encoding"] for headers in mirror.asked} == {"identity"}


def test_a_packed_archive_comes_from_the_web(s3: Any, folder: str) -> None:
    mirror = Mirror({"model.tar.gz": made.tar_gz({"./model.safetensors": BIG, "./config.json": CONFIG})}, ranges=False)

    with serving(mirror.app()) as origin:
        moved(s3, found_at(origin, "model.tar.gz"), folder)

    assert stored(s3, folder) == {"model.safetensors": BIG, "config.json": CONFIG}


def test_a_file_that_changes_on_the_web_is_refused(s3: Any, folder: str) -> None:
    mirror = Mirror({"model.safetensors": BIG})

    with serving(mirror.app()) as origin:
        found = found_at(origin, "model.safetensors")
        mirror.etag = '"two"'
        with pytest.raises(SourceChanged):
            moved(s3, found, folder)

    assert stored(s3, folder) == {}


def test_a_file_without_a_name_for_its_state_begins_anew(s3: Any, folder: str) -> None:
    mirror = Mirror({"model.safetensors": BIG}, etag="")

    with serving(mirror.app()) as origin:
        kept: list[dict[str, Any]] = []
        with pytest.raises(StorageUnavailable):
            moved(s3, [breaking(*found_at(origin, "model.safetensors"))], folder, keep=kept.append)
        mirror.files["model.safetensors"] = other = made.weights(len(BIG) - len(BIG) % MIB, seed=9)
        moved(s3, found_at(origin, "model.safetensors"), folder, position=kept[-1])

    assert stored(s3, folder) == {"model.safetensors": other}
    assert uploads(s3, folder) == []


def test_redirects_lead_to_allowed_hosts_only(s3: Any) -> None:
    mirror = Mirror({"config.json": CONFIG})

    with serving(mirror.app()) as origin, serving(mirror.app()) as other:
        here, there = origin.removeprefix("http://"), other.removeprefix("http://")
        mirror.elsewhere = f"{other}/config.json"
        (remote,) = found_at(origin, "redirect", here, there)
        with pytest.raises(SourceRefused, match=f"{there} is none of the hosts"):
            found_at(origin, "redirect", here)
        mirror.elsewhere = "/redirect"
        with pytest.raises(SourceRefused, match="redirects"):
            found_at(origin, "redirect", here)

    assert remote.size == len(CONFIG)


@pytest.mark.parametrize(
    ("address", "hosts", "message"),
    [
        ("https://example.com/model.gguf", [], "none of the hosts"),
        ("https://evil-hf.co/model.gguf", ["*.hf.co", "hf.co"], "none of the hosts"),
        ("https://huggingface.co:8443/a", ["huggingface.co"], "none of the hosts"),
        ("https://huggingface.co@evil.com/a", ["huggingface.co"], "password"),
        ("https://user:pass@huggingface.co/a", ["huggingface.co"], "password"),
        ("http://huggingface.co/a", ["huggingface.co"], "has to be"),
        ("https://127.0.0.1/a", ["127.0.0.1"], "private network"),
        ("https://[::1]/a", ["::1"], "private network"),
        ("https://[::ffff:169.254.169.254]/a", ["::ffff:169.254.169.254"], "private network"),
        ("https://169.254.169.254/latest/meta-data", ["169.254.169.254"], "private network"),
        ("https://0x7f000001/a", ["0x7f000001"], "private network"),
        ("https://localhost/a", ["localhost"], "private network"),
        ("https://a..b/a", ["a..b"], "no host"),
    ],
)
def test_addresses_within_and_hosts_that_are_not_allowed_are_refused(
    address: str, hosts: list[str], message: str
) -> None:
    with pytest.raises(SourceRefused, match=message) as refusal:
        sources.find(address, None, hosts)

    assert "pass@" not in refusal.value.message


def test_loopback_alone_is_let_in_for_tests() -> None:
    with pytest.raises(SourceRefused, match="private network"):
        sources.find("http://10.0.0.1/a", None, ["10.0.0.1"], allow_private=True)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True), ("2606:2800:220:1:248:1893:25c8:1946", True), ("64:ff9b::5db8:d822", True),
        ("10.1.2.3", False), ("172.16.0.1", False), ("192.168.1.1", False), ("127.0.0.1", False), ("0.0.0.1", False),
        ("169.254.169.254", False), ("100.64.0.1", False), ("224.0.0.1", False), ("255.255.255.255", False),
        ("::1", False), ("::", False), ("fe80::1%eth0", False), ("fd00:ec2::254", False), ("ff02::1", False),
        ("::ffff:10.0.0.1", False), ("64:ff9b::a9fe:a9fe", False), ("2002:a00:1::", False),
    ],
)  # fmt: skip
def test_an_address_is_public_or_not(address: str, public: bool) -> None:
    assert is_public(address) is public


def test_a_name_is_looked_up_once_and_that_address_is_connected_to(
    s3: Any, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_up: list[str] = []
    real = socket.getaddrinfo

    def resolve(host: str, *arguments: Any, **more: Any) -> Any:
        if host != "rebinding.test":
            return real(host, *arguments, **more)
        looked_up.append(host)
        return real("127.0.0.1" if len(looked_up) == 1 else "127.0.0.2", *arguments, **more)

    mirror = Mirror({"config.json": CONFIG})
    with serving(mirror.app()) as origin:
        port = origin.rpartition(":")[2]
        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        named = f"rebinding.test:{port}"
        moved(s3, sources.find(f"http://{named}/config.json", None, [named], allow_private=True), folder)

    assert looked_up == ["rebinding.test"]
    assert {headers["host"] for headers in mirror.asked} == {named}
    assert stored(s3, folder) == {"config.json": CONFIG}


def test_https_asks_for_the_certificate_of_the_name(tmp_path: Path) -> None:
    with tls_server(tmp_path / "server.pem") as (port, names), pytest.raises(StorageUnavailable):
        sources.find(f"https://localhost:{port}/a", None, [f"localhost:{port}"], allow_private=True)

    assert names == ["localhost"]


@contextmanager
def tls_server(pem: Path) -> Iterator[tuple[int, list[str | None]]]:
    """A server for one connection, whose certificate nobody has signed; gives its port, and the names asked for."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    start = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
        .not_valid_before(start).not_valid_after(start.replace(year=2120)).sign(key, hashes.SHA256())
    )  # fmt: skip
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    pem.write_bytes(key.private_bytes(*form) + certificate.public_bytes(serialization.Encoding.PEM))
    names: list[str | None] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)

    def note(_socket: object, name: str | None, _context: object) -> None:
        names.append(name)

    context.sni_callback = note
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with suppress(OSError):
            context.wrap_socket(listener.accept()[0], server_side=True).close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1], names
    finally:
        thread.join(5)
        listener.close()
