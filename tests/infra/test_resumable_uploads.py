"""Resumable uploads of the embedded storage, in plain HTTP."""

import base64
import os
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import httpx
import pytest
from storage3._sync.file_api import SyncBucketProxy
from supabase import Client, create_client

from infra.local import parts, ports
from infra.local.stack import Stack
from tests.infra import running

MEGABYTE = 1024 * 1024
CHUNK = 6 * MEGABYTE
CONTENT = bytes(range(256)) * (2 * CHUNK // 256) + b"the end"
CHUNK_HEADERS = {"content-type": "application/offset+octet-stream"}


@pytest.fixture(scope="module")
def service(stack: Stack) -> Client:
    return create_client(stack.url, stack.keys.secret)


@pytest.fixture(scope="module")
def bucket(service: Client) -> str:
    return make_bucket(service)


@pytest.fixture(scope="module")
def files(service: Client, bucket: str) -> SyncBucketProxy:
    return service.storage.from_(bucket)


@pytest.fixture(scope="module")
def tus(stack: Stack) -> Iterator[httpx.Client]:
    """A client that speaks TUS with the secret key."""
    headers = {"tus-resumable": "1.0.0", "authorization": f"Bearer {stack.keys.secret}"}
    with httpx.Client(base_url=f"{stack.url}/storage/v1/upload", headers=headers, timeout=20) as client:
        yield client


@pytest.fixture(scope="module")
def strict(stack: Stack) -> Iterator[str]:
    """A second gateway, where files have at most a megabyte and uploads end at once."""
    with ports.reserve(None) as held:
        url = ports.url(ports.number(held))
        environment = {
            **os.environ,
            **stack.environment,
            "GATEWAY_PORT": str(ports.number(held)),
            "LITE_URL": ports.url(stack.ports["lite"]),
            "FUNCTIONS_URL": ports.url(stack.ports["functions"]),
            "DATABASE_URL": stack.database_url,
            "FILE_SIZE_LIMIT": str(MEGABYTE),
            "TUS_URL_EXPIRY_MS": "0",
        }
        with running([sys.executable, "-m", "infra.local.gateway"], f"{url}/health", cwd=parts.ROOT, env=environment):
            yield url


def make_bucket(service: Client, **options: Any) -> str:
    name = f"bucket-{uuid4().hex}"
    service.storage.create_bucket(name, options=options)  # type: ignore[arg-type]
    return name


def describing(bucket: str, name: str, length: int, **more: str) -> dict[str, str]:
    """The headers that begin an upload."""
    metadata = {"bucketName": bucket, "objectName": name, "contentType": "text/plain", **more}
    pairs = [f"{each} {base64.b64encode(value.encode()).decode()}" for each, value in metadata.items()]
    return {"upload-length": str(length), "upload-metadata": ",".join(pairs)}


def begin(tus: httpx.Client, bucket: str, name: str, length: int, **more: str) -> str:
    """A new upload's address."""
    answer = tus.post("/resumable", headers=describing(bucket, name, length, **more))
    assert answer.status_code == 201, answer.text
    return answer.headers["location"]


def send(tus: httpx.Client, address: str, offset: int, chunk: bytes) -> httpx.Response:
    return tus.patch(address, content=chunk, headers={**CHUNK_HEADERS, "upload-offset": str(offset)})


def test_a_file_goes_in_chunks_and_is_seen_when_it_is_whole(
    tus: httpx.Client, bucket: str, files: SyncBucketProxy
) -> None:
    address = begin(tus, bucket, "large.txt", len(CONTENT), cacheControl="60", metadata='{"origin": "tus"}')

    for start in range(0, len(CONTENT), CHUNK):
        assert tus.head(address).headers["upload-offset"] == str(start)
        assert not files.exists("large.txt")
        answer = send(tus, address, start, CONTENT[start : start + CHUNK])
        assert (answer.status_code, answer.headers["tus-resumable"]) == (204, "1.0.0")

    info = files.info("large.txt")
    assert files.download("large.txt") == CONTENT
    assert (info["content_type"], info["cache_control"]) == ("text/plain", "max-age=60")
    assert info["metadata"] == {"origin": "tus"}
    told = tus.head(address).headers
    assert told["upload-offset"] == told["upload-length"] == str(len(CONTENT))
    assert told["cache-control"] == "no-store"


def test_what_the_server_can_do_is_told(tus: httpx.Client) -> None:
    answer = httpx.options(f"{tus.base_url}resumable")

    assert answer.status_code == 204
    assert answer.headers["tus-version"] == "1.0.0"
    assert {"creation", "creation-with-upload", "termination"} <= {*answer.headers["tus-extension"].split(",")}
    assert int(answer.headers["tus-max-size"]) > 10**9


def test_a_page_of_another_origin_may_upload(tus: httpx.Client, bucket: str) -> None:
    origin = {"origin": "http://localhost:3000"}
    asked = {"access-control-request-method": "PATCH", "access-control-request-headers": "tus-resumable,upload-offset"}

    preflight = httpx.options(f"{tus.base_url}resumable/any", headers={**origin, **asked})
    answer = tus.post("/resumable", headers={**origin, **describing(bucket, f"{uuid4().hex}", 1)})

    assert preflight.is_success
    assert preflight.headers["access-control-allow-origin"] == "*"
    assert {"location", "upload-offset"} <= {*answer.headers["access-control-expose-headers"].split(", ")}


@pytest.mark.parametrize("content", [b"whole", b""])
def test_a_small_file_may_come_with_its_creation(
    tus: httpx.Client, bucket: str, files: SyncBucketProxy, content: bytes
) -> None:
    name = f"{uuid4().hex}.txt"
    headers = {**CHUNK_HEADERS, **describing(bucket, name, len(content))}

    answer = tus.post("/resumable", content=content, headers=headers)

    assert (answer.status_code, answer.headers["upload-offset"]) == (201, str(len(content)))
    assert files.download(name) == content


def test_an_upload_goes_on_where_the_connection_broke(tus: httpx.Client, bucket: str, files: SyncBucketProxy) -> None:
    address = httpx.URL(begin(tus, bucket, "broken.txt", len(CONTENT)))
    head = [
        f"PATCH {address.raw_path.decode()} HTTP/1.1", f"host: {address.host}", "tus-resumable: 1.0.0",
        f"authorization: {tus.headers['authorization']}", "upload-offset: 0",
        "content-type: application/offset+octet-stream", f"content-length: {len(CONTENT)}",
    ]  # fmt: skip
    with socket.create_connection((address.host, address.port or 80)) as connection:
        connection.sendall("\r\n".join([*head, "", ""]).encode() + CONTENT[: 7 * MEGABYTE])

    offset = 0
    deadline = time.monotonic() + 10
    while (answer := send(tus, str(address), offset, CONTENT[offset:])).status_code in (409, 423):
        assert time.monotonic() < deadline
        offset = int(tus.head(str(address)).headers["upload-offset"])

    assert answer.status_code == 204
    assert 0 < offset <= 7 * MEGABYTE
    assert files.download("broken.txt") == CONTENT


def test_a_second_writer_is_refused(tus: httpx.Client, bucket: str, files: SyncBucketProxy) -> None:
    address = begin(tus, bucket, "contended.txt", 2)
    refused: list[httpx.Response] = []

    def slowly() -> Iterator[bytes]:
        yield b"1"
        while tus.head(address).headers["upload-offset"] == "0":
            time.sleep(0.01)
        refused.append(send(tus, address, 1, b"x"))
        refused.append(tus.delete(address))
        yield b"2"

    with httpx.Client(headers=tus.headers) as other:
        answer = other.patch(address, content=slowly(), headers={**CHUNK_HEADERS, "upload-offset": "0"})

    assert [each.status_code for each in refused] == [423, 423]
    assert answer.status_code == 204
    assert files.download("contended.txt") == b"12"


def test_a_chunk_that_does_not_follow_is_refused(tus: httpx.Client, bucket: str) -> None:
    address = begin(tus, bucket, "gap.txt", 10)

    assert send(tus, address, 5, b"later").status_code == 409
    assert send(tus, address, 0, b"x" * 11).status_code == 413
    assert tus.head(address).headers["upload-offset"] == "0"


def test_a_terminated_upload_is_gone(tus: httpx.Client, bucket: str, files: SyncBucketProxy) -> None:
    address = begin(tus, bucket, "terminated.txt", len(CONTENT))
    send(tus, address, 0, CONTENT[:CHUNK])

    answer = tus.delete(address)

    assert answer.status_code == 204
    assert [tus.head(address).status_code, send(tus, address, CHUNK, b"x").status_code] == [404, 404]
    assert not files.exists("terminated.txt")


def test_a_finished_upload_cannot_be_terminated(tus: httpx.Client, bucket: str, files: SyncBucketProxy) -> None:
    address = begin(tus, bucket, "finished.txt", 1)
    send(tus, address, 0, b"1")

    assert tus.delete(address).status_code == 400
    assert files.download("finished.txt") == b"1"


def test_an_expired_upload_is_gone(tus: httpx.Client, strict: str, bucket: str) -> None:
    created = tus.post(f"{strict}/storage/v1/upload/resumable", headers=describing(bucket, "expired.txt", 1))

    assert tus.head(created.headers["location"]).status_code == 410
    assert send(tus, created.headers["location"], 0, b"1").status_code == 410


def test_a_file_over_the_limit_is_refused(stack: Stack, tus: httpx.Client, strict: str, service: Client) -> None:
    small = make_bucket(service, file_size_limit=4)
    everywhere = f"{strict}/storage/v1/upload/resumable"
    plain = httpx.post(
        f"{strict}/storage/v1/object/{small}/a", content=b"x" * (MEGABYTE + 1), headers={"apikey": stack.keys.secret}
    )

    assert tus.post("/resumable", headers=describing(small, "a", 5)).status_code == 413
    assert tus.post(everywhere, headers=describing(small, "a", MEGABYTE + 1)).status_code == 413
    assert plain.json()["statusCode"] == "413"


def test_an_existing_object_is_replaced_only_on_demand(tus: httpx.Client, bucket: str, files: SyncBucketProxy) -> None:
    files.upload("kept.txt", b"first")
    headers = {**CHUNK_HEADERS, **describing(bucket, "kept.txt", 6)}

    refused = tus.post("/resumable", content=b"second", headers=headers)
    kept = files.download("kept.txt")
    replaced = tus.post("/resumable", content=b"second", headers={**headers, "x-upsert": "true"})

    assert (refused.status_code, refused.text) == (409, "The resource already exists")
    assert (kept, replaced.status_code, files.download("kept.txt")) == (b"first", 201, b"second")


def test_a_signature_stands_for_a_key(stack: Stack, bucket: str, files: SyncBucketProxy) -> None:
    token = files.create_signed_upload_url("signed.txt")["token"]
    signed = {"tus-resumable": "1.0.0", "x-signature": token}
    with httpx.Client(base_url=f"{stack.url}/storage/v1/upload", headers=signed) as tus:
        created = tus.post("/resumable/sign", headers=describing(bucket, "signed.txt", 2))
        address = created.headers["location"]

        sent = [send(tus, address, 0, b"1"), send(tus, address, 1, b"2")]

        other = tus.post("/resumable/sign", headers=describing(bucket, "other.txt", 2))
        nothing = tus.post("/resumable/sign", headers={**describing(bucket, "signed.txt", 2), "x-signature": ""})

    assert "/resumable/sign/" in address
    assert [answer.status_code for answer in sent] == [204, 204]
    assert files.download("signed.txt") == b"12"
    assert [answer.status_code for answer in (other, nothing)] == [400, 400]


def test_others_than_the_service_are_refused(stack: Stack, tus: httpx.Client, bucket: str) -> None:
    address = begin(tus, bucket, "service.txt", 1)
    theirs = {"tus-resumable": "1.0.0", "authorization": f"Bearer {stack.keys.publishable}"}
    with httpx.Client(base_url=tus.base_url, headers=theirs) as visitor:
        answers = [
            visitor.post("/resumable", headers=describing(bucket, "visitor.txt", 1)),
            send(visitor, address, 0, b"1"),
            visitor.delete(address),
        ]
    keyless = httpx.post(
        f"{tus.base_url}resumable", headers={"tus-resumable": "1.0.0", **describing(bucket, "keyless.txt", 1)}
    )

    assert [answer.status_code for answer in answers] == [403, 403, 403]
    assert keyless.status_code == 400
    assert tus.head(address).headers["upload-offset"] == "0"


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({"tus-resumable": "0.2.2"}, 412),
        ({"upload-length": "many"}, 400),
        ({"upload-metadata": "bucketName !!!"}, 400),
        ({"upload-metadata": ""}, 400),
        (describing("nowhere", "a.txt", 1), 404),
    ],
)
def test_what_cannot_begin_is_refused(tus: httpx.Client, bucket: str, changed: dict[str, str], status: int) -> None:
    answer = tus.post("/resumable", headers={**describing(bucket, "refused.txt", 1), **changed})

    assert answer.status_code == status


def test_a_type_the_bucket_does_not_take_is_refused(tus: httpx.Client, service: Client) -> None:
    images = make_bucket(service, allowed_mime_types=["image/*"])

    assert tus.post("/resumable", headers=describing(images, "a.txt", 1)).status_code == 415


def test_a_chunk_of_another_type_is_refused(tus: httpx.Client, bucket: str) -> None:
    address = begin(tus, bucket, "typed.txt", 1)

    answer = tus.patch(address, content=b"1", headers={"content-type": "text/plain", "upload-offset": "0"})

    assert answer.status_code == 415
    assert tus.patch(address, content=b"1", headers=CHUNK_HEADERS).status_code == 400
