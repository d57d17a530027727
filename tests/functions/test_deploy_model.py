"""deploy-model: a version's files from where they are into Storage, whole and checked, or not at all."""

import asyncio
import gzip
import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from supabase import create_client

from infra.local import parts
from infra.local.stack import Stack
from tests.functions import anybody
from tests.functions.delivery import deliver, invoke, queued
from tests.functions.deployments import PATH, Registry
from tests.functions.test_deferred import queue_of
from tests.shared.model_files import CONFIG, tar_gz, weights
from tests.sql import put_export
from tests.stand_ins import serving
from tests.users import User

FILES = {"model.safetensors": weights(40_000), "config.json": CONFIG}
MIB = 1024 * 1024


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def announced(files: dict[str, bytes]) -> list[dict[str, Any]]:
    return [{"path": path, "sizeBytes": len(each), "sha256": sha256(each)} for path, each in files.items()]


def test_a_training_jobs_output_becomes_a_version(registry: Registry) -> None:
    with psycopg.connect(registry.stack.database_url) as database:
        export_id = put_export(database)

    answer = registry.deploy(
        registry.put(FILES), metrics={"loss": 0.5}, trainingDataSize=120, datasetExportId=export_id
    )

    assert answer.status_code == 201, answer.text
    assert answer.headers["location"] == f"{PATH}/{registry.name}/v1"
    version = answer.json()["model"]
    assert (version["version"], version["status"], version["baseModel"]) == ("v1", "ready", "llama-3.1-8b")
    assert version["storagePath"] == f"ai-models/{registry.name}/v1"
    assert version["sizeBytes"] == sum(map(len, FILES.values()))
    assert (version["trainingDataSize"], version["datasetExportId"]) == (120, export_id)
    assert version["performanceMetrics"] == {"training": {"loss": 0.5}}
    assert {file["path"]: file["sha256"] for file in version["files"]} == {
        path: sha256(content) for path, content in FILES.items()
    }
    [parsed] = [file["metadata"] for file in version["files"] if file["format"] == "safetensors"]
    assert parsed["parameterCount"] == 40_000
    stored = registry.stored("v1")
    manifest = stored.pop("manifest.json")
    assert stored == FILES
    assert version["sha256"] == sha256(manifest)
    assert json.loads(manifest)["provenance"]["baseModel"] == "llama-3.1-8b"
    assert registry.actions("v1") == ["registered", "ready"]


def test_versions_count_on_and_never_change(registry: Registry) -> None:
    source = registry.put(FILES)
    assert registry.deploy(source).json()["model"]["version"] == "v1"
    assert registry.deploy(source).json()["model"]["version"] == "v2"

    again = registry.deploy(registry.put({"model.safetensors": weights(10)}), version="v2")

    assert (again.status_code, again.json()["code"]) == (409, "conflict")
    assert "versions never change" in again.json()["error"]
    assert registry.stored("v2")["model.safetensors"] == FILES["model.safetensors"]


def test_an_archive_is_stored_as_the_files_in_it(registry: Registry) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for path, content in FILES.items():
            entry = tarfile.TarInfo(path)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    source = registry.put({"model.tar.gz": packed.getvalue()})

    assert registry.deploy(source).status_code == 201
    stored = registry.stored("v1")
    del stored["manifest.json"]
    assert stored == FILES


WRONG: dict[str, tuple[dict[str, bytes], str]] = {
    "truncated": ({"model.safetensors": FILES["model.safetensors"][:-9]}, "artifact_refused"),
    "empty": ({"model.safetensors": b""}, "artifact_refused"),
    "zip bomb": ({"model.tar.gz": gzip.compress(bytes(60 * MIB))}, "artifact_refused"),
    "pickle": ({"pytorch_model.bin": b"\x80\x04K\x01."}, "pickle_refused"),
    "pickle by another name": ({"model.safetensors": b"\x80\x04K\x01."}, "pickle_refused"),
    "pickle of text": ({"vocab.txt": b"S'" + b"a" * 5000 + b"'\n0cos\nsystem\n(S'true'\ntR."}, "pickle_refused"),
    "many values": ({"tokenizer.json": b"[" + b"[]," * 1_500_000 + b"[]]"}, "artifact_refused"),
    "unknown": ({"model.exe": b"MZ"}, "artifact_refused"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_wrong_with_a_file_is_said_and_nothing_is_stored(registry: Registry, kind: str) -> None:
    files, code = WRONG[kind]

    answer = registry.deploy(registry.put(files))

    assert (answer.status_code, answer.json()["code"]) == (422, code)
    assert next(iter(files)) in answer.json()["error"]
    assert registry.stored("v1") == {}
    assert registry.orphans() == []
    version = registry.row("v1")
    assert (version["status"], version["failure"]) == ("failed", answer.json()["error"])


def test_a_wrong_hash_leaves_nothing_and_the_right_one_goes_on(registry: Registry) -> None:
    source = registry.put({"model.safetensors": weights(20 * MIB)})
    right = sha256(weights(20 * MIB))
    files = [{"path": "model.safetensors", "sha256": "0" * 64}]

    wrong = registry.deploy(source, version="v1", files=files)

    assert (wrong.status_code, wrong.json()["code"]) == (422, "artifact_refused")
    assert right in wrong.json()["error"]
    assert (registry.stored("v1"), registry.orphans()) == ({}, [])
    again = registry.deploy(source, version="v1", files=[{"path": "model.safetensors", "sha256": right}])
    assert (again.status_code, again.json()["model"]["status"]) == (201, "ready")


@pytest.mark.parametrize("kind", ["archive", "plain"])
@pytest.mark.parametrize(
    "file",
    [{"path": "config.json", "sizeBytes": len(CONFIG) + 1}, {"path": "tokenizer.json"}],
    ids=["another size", "not there"],
)
def test_a_file_that_was_announced_is_there_as_it_was_announced(
    registry: Registry, file: dict[str, Any], kind: str
) -> None:
    source = registry.put(FILES if kind == "plain" else {"model.tar.gz": tar_gz(FILES)})

    answer = registry.deploy(source, files=[file])

    assert (answer.status_code, answer.json()["code"]) == (422, "artifact_refused")
    assert file["path"] in answer.json()["error"]
    assert (registry.stored("v1"), registry.orphans()) == ({}, [])


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"modelName": "../secrets"}, "modelName"),
        ({"modelName": "a/b"}, "modelName"),
        ({"version": "..", "modelName": "x"}, "version"),
        ({"version": "v 1"}, "version"),
        ({"files": [{"path": "../../etc/passwd"}]}, "../../etc/passwd"),
        ({"source": "file:///etc/passwd"}, "source"),
        ({"source": "upload"}, "files"),
        ({"source": "http://169.254.169.254/latest/meta-data"}, "source"),
        ({"source": "https://evil.example/model.safetensors"}, "evil.example"),
        ({"source": "s3://training/nothing/there/"}, "nothing/there"),
        ({"source": "s3://"}, "bucket"),
        ({"source": "s3://a bucket/x/"}, "bucket"),
        ({"source": "https://[::1/x"}, "address"),
        ({"source": "https://huggingface.co/\x01"}, "address"),
        ({"source": "https://☃.hf.co/x"}, "address"),
        ({"baseModel": ""}, "baseModel"),
        ({"trainingDataSize": -1}, "trainingDataSize"),
    ],
    ids=lambda value: next(iter(value)) + " " + str(next(iter(value.values())))[:30] if isinstance(value, dict) else "",
)
def test_a_bad_request_says_what_to_change(registry: Registry, fields: dict[str, Any], named: str) -> None:
    answer = registry.call(
        "POST", body={"modelName": registry.name, "baseModel": "llama", "source": "s3://training/x/", **fields}
    )

    assert answer.status_code == 422, answer.text
    assert named in answer.json()["error"]


@pytest.mark.parametrize(
    "metrics",
    ["NaN", "-Infinity", '"\\ud800"', '{"a":' * 300 + "1" + "}" * 300],
    ids=["NaN", "infinite", "half a character", "deep"],
)
def test_metrics_are_what_a_database_takes(registry: Registry, metrics: str) -> None:
    body = json.dumps({"modelName": registry.name, "baseModel": "llama", "source": "s3://training/x/"})
    content = f'{body[:-1]}, "metrics": {{"loss": {metrics}}}}}'
    headers = {"apikey": registry.stack.keys.secret, "content-type": "application/json"}

    answer = httpx.post(f"{registry.origin}{PATH}", content=content, headers=headers, timeout=10)

    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request"), answer.text
    assert "metrics" in answer.json()["error"]


def test_a_source_that_is_none_registers_nothing(registry: Registry) -> None:
    assert registry.deploy("https://evil.example/model.safetensors").status_code == 422

    assert registry.call("GET", f"?modelName={registry.name}").status_code == 404


@pytest.mark.parametrize("caller", ["nobody", "visitor", "user"])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", ""),
        ("GET", ""),
        ("POST", "/canaries"),
        ("GET", "/ton/v1"),
        ("GET", "/ton/v1/url"),
        ("POST", "/ton/v1/finalize"),
        ("POST", "/ton/v1/activate"),
        ("POST", "/ton/rollback"),
        ("DELETE", "/ton/v1"),
    ],
)
def test_only_admins_are_served(registry: Registry, alice: User, caller: str, method: str, path: str) -> None:
    keys = registry.stack.keys
    headers = {"visitor": {"apikey": keys.publishable}, "user": {"authorization": f"Bearer {alice.token}"}}
    body = (
        {"modelName": "ton", "baseModel": "x", "source": "s3://training/x/"} if (method, path) == ("POST", "") else {}
    )

    answer = httpx.request(
        method, f"{registry.origin}{PATH}{path}", json=body, headers=headers.get(caller, {}), timeout=10
    )

    expected = (403, "forbidden") if caller == "user" else (401, "unauthenticated")
    assert (answer.status_code, answer.json()["code"]) == expected


def test_an_admin_is_named_in_the_history(registry: Registry, stack: Stack) -> None:
    body = {"modelName": registry.name, "baseModel": "llama", "source": registry.put(FILES)}

    answer = httpx.post(f"{registry.origin}{PATH}", json=body, headers=anybody.admin(stack), timeout=30)

    assert answer.status_code == 201, answer.text
    assert re.fullmatch(r"user [0-9a-f-]{36}", registry.row("v1")["history"][-1]["actor"])


def test_an_upload_is_checked_before_it_is_a_version(registry: Registry, stack: Stack) -> None:
    begun = registry.deploy("upload", files=announced(FILES))
    assert begun.status_code == 202, begun.text
    uploads = {each["path"]: each for each in begun.json()["uploads"]}
    bucket = create_client(stack.url, stack.keys.publishable).storage.from_("ai-models")

    missing = registry.call("POST", f"/{registry.name}/v1/finalize")
    assert (missing.status_code, missing.json()["code"]) == (422, "artifact_refused")
    assert "2 of 2 files are missing" in missing.json()["error"]

    bucket.upload_to_signed_url(uploads["config.json"]["object"], uploads["config.json"]["token"], b"{}")
    weights_to = uploads["model.safetensors"]
    bucket.upload_to_signed_url(weights_to["object"], weights_to["token"], FILES["model.safetensors"])
    wrong = registry.call("POST", f"/{registry.name}/v1/finalize")
    assert (wrong.status_code, wrong.json()["code"]) == (422, "artifact_refused")
    assert "config.json" in wrong.json()["error"]
    assert registry.row("v1")["status"] == "uploading"

    bucket.upload_to_signed_url(uploads["config.json"]["object"], uploads["config.json"]["token"], CONFIG)
    done = registry.call("POST", f"/{registry.name}/v1/finalize")
    assert (done.status_code, done.json()["status"]) == (200, "ready"), done.text
    assert registry.stored("v1").keys() == {*FILES, "manifest.json"}
    assert registry.call("POST", f"/{registry.name}/v1/finalize").status_code == 200


@pytest.mark.parametrize(
    "paths",
    [["manifest.json"], ["config.json", "Config.json"], ["model.tar.gz"], ["../config.json"]],
    ids=["the manifest", "twice", "archive", "outside"],
)
def test_an_upload_is_refused_by_its_names_before_it_begins(registry: Registry, paths: list[str]) -> None:
    answer = registry.deploy("upload", files=announced(dict.fromkeys(paths, CONFIG)))

    assert (answer.status_code, answer.json()["code"]) == (422, "artifact_refused")
    assert registry.call("GET", f"?modelName={registry.name}").status_code == 404


def test_an_upload_that_is_begun_again_goes_on_with_what_is_missing(registry: Registry) -> None:
    registry.deploy("upload", version="v1", files=announced(FILES))
    registry.storage.put_object(Bucket="ai-models", Key=f"{registry.name}/v1/config.json", Body=CONFIG)

    again = registry.deploy("upload", version="v1", files=announced(FILES))
    other = registry.deploy("upload", version="v1", files=announced({**FILES, "config.json": b"[]"}))

    assert [upload["path"] for upload in again.json()["uploads"]] == ["model.safetensors"]
    assert (other.status_code, other.json()["code"]) == (409, "conflict")
    assert "other files" in other.json()["error"]


@pytest.mark.parametrize("right", [True, False], ids=["right", "wrong"])
def test_an_upload_that_a_request_has_no_time_to_read_a_worker_reads(
    registry: Registry, stack: Stack, right: bool
) -> None:
    content = weights(100 * MIB)
    [file] = announced({"model.safetensors": content})
    registry.deploy("upload", files=[file if right else {**file, "sha256": "0" * 64}])
    registry.storage.put_object(Bucket="ai-models", Key=f"{registry.name}/v1/model.safetensors", Body=content)

    with stack.functions(REQUEST_TIMEOUT_SECONDS="6") as origin:
        brief = Registry(stack, origin, registry.training, registry.storage, registry.name)
        answer = brief.call("POST", f"/{registry.name}/v1/finalize")

    assert (answer.status_code, answer.json()["status"]) == (202, "uploading")
    if right:
        assert registry.until("v1", "ready")["files"][0]["sha256"] == sha256(content)
    else:
        _wait_for_a_step(registry, "not_finalized")
        assert file["sha256"] in registry.row("v1")["history"][0]["reason"]


def test_an_upload_in_chunks_is_taken_up_again(registry: Registry, tmp_path: Path) -> None:
    content = weights(14 * MIB)
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    [upload] = registry.deploy("upload", files=announced({file.name: content})).json()["uploads"]

    told = [upload[name] for name in ("resumableUrl", "token", "bucket", "object")]
    command = [parts.node(), str(Path(__file__).with_name("tus_client.mjs")), *told, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50)

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"first": False, "second": True}
    assert registry.call("POST", f"/{registry.name}/v1/finalize").json()["status"] == "ready"
    assert registry.stored("v1")["model.safetensors"] == content


def test_a_manifest_in_the_training_bucket_starts_a_deployment(registry: Registry) -> None:
    run = {"modelName": registry.name, "version": "run-7", "baseModel": "llama", "metrics": {"loss": 0.1}}
    folder = f"{registry.name}/a run+7"  # S3 writes keys as forms do

    registry.put({**FILES, "manifest.json": json.dumps(run).encode()}, folder)

    version = registry.until("run-7", "ready")
    assert version["performanceMetrics"] == {"training": {"loss": 0.1}}
    assert version["history"][-1]["actor"] == f"s3://training/{folder}/manifest.json"
    assert {file["path"] for file in version["files"]} == set(FILES)


@pytest.mark.parametrize("version", [{}, {"version": None}], ids=["none", "null"])
def test_the_same_event_again_deploys_nothing_again(registry: Registry, version: dict[str, None]) -> None:
    run = json.dumps({"modelName": registry.name, "baseModel": "llama", **version}).encode()
    folder = f"{registry.name}/run"
    registry.put(FILES, folder)
    for _ in range(3):
        registry.put({"manifest.json": run}, folder)

    [name] = _until_ready(registry, 1)
    registry.put({"manifest.json": run}, folder)
    time.sleep(0.5)
    assert re.fullmatch("run-[0-9a-f]{12}", name)
    assert _until_ready(registry, 1) == [name]


def test_the_same_manifest_in_another_folder_or_beside_new_weights_is_another_version(registry: Registry) -> None:
    run = json.dumps({"modelName": registry.name, "baseModel": "llama", "leaveOut": ["*.log"]}).encode()
    new = weights(50_000)

    registry.put({**FILES, "manifest.json": run}, f"{registry.name}/7")
    _until_ready(registry, 1)
    registry.put({**FILES, "manifest.json": run}, f"{registry.name}/8")
    _until_ready(registry, 2)
    registry.put({"train.log": b"done", "model.safetensors": new, "manifest.json": run}, f"{registry.name}/7")
    versions = _until_ready(registry, 3)
    registry.put({"train.log": b"done, and tidied up", "manifest.json": run}, f"{registry.name}/7")
    time.sleep(0.5)

    assert _until_ready(registry, 3) == versions
    sources = [registry.row(version)["source"].rpartition("/")[0][-1] for version in versions]
    assert sources == ["7", "8", "7"]
    assert registry.stored(versions[-1])["model.safetensors"] == new


def test_a_manifest_whose_version_is_something_else_is_an_error(registry: Registry) -> None:
    run = {"modelName": registry.name, "version": "run-7", "baseModel": "llama"}
    files = {**FILES, "manifest.json": json.dumps(run).encode()}
    folder = f"{registry.name}/7"
    registry.put(files, folder)
    registry.until("run-7", "ready")

    again = _object_made(registry, f"{folder}/manifest.json")
    registry.put({"model.safetensors": weights(50_000)}, folder)
    other = _object_made(registry, f"{folder}/manifest.json")

    assert [line["level"] for line in again if "manifest" in line["message"]] == ["INFO"]
    assert [line["level"] for line in other if "manifest" in line["message"]] == ["ERROR"]
    assert "versions never change" in other[-1]["reason"]


def test_a_dead_letter_of_an_event_is_done_when_it_is_moved_to_the_queue(registry: Registry) -> None:
    run = {"modelName": registry.name, "version": "run-7", "baseModel": "llama"}
    registry.put({**FILES, "manifest.json": json.dumps(run).encode()}, f"{registry.name}/7")
    registry.until("run-7", "ready")

    logged = _object_made(registry, f"{registry.name}/7/manifest.json", wrapped=True)

    assert [line["message"] for line in logged] == ["a manifest that was deployed before"]


def _object_made(registry: Registry, key: str, wrapped: bool = False) -> list[dict[str, Any]]:
    """Invoke the function with an object's event from its queue, as a dead letter if so wished; gives what it logs."""
    made = {"bucket": {"name": "training"}, "object": {"key": key}}
    event: dict[str, Any] = {"Records": [{"eventSource": "aws:s3", "eventName": "ObjectCreated:Put", "s3": made}]}
    if wrapped:
        event = {"version": "1.0", "requestContext": {"condition": "RetriesExhausted"}, "requestPayload": event}
    done = invoke(registry.stack, "deploy-model", queued(json.dumps(event)), {})
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def _until_ready(registry: Registry, count: int) -> list[str]:
    """The model's versions, the first first, once so many are there and all are ready."""
    for _ in range(300):
        models = registry.call("GET", f"?modelName={registry.name}").json().get("models", [])
        if len(models) >= count and all(model["status"] == "ready" for model in models):
            return [model["version"] for model in reversed(models)]
        time.sleep(0.1)
    raise AssertionError(models)


def test_what_a_request_has_no_time_for_a_worker_does(registry: Registry, stack: Stack) -> None:
    content = weights(100 * MIB)
    source = registry.put({"model.safetensors": content})
    with stack.functions(REQUEST_TIMEOUT_SECONDS="6") as origin:
        brief = Registry(stack, origin, registry.training, registry.storage, registry.name)
        begun = brief.deploy(source)

    assert (begun.status_code, begun.json()["model"]["status"]) == (202, "transferring")
    transfer = begun.json()["model"]["transfer"]
    assert transfer["bytesDone"] < transfer["bytesTotal"] == len(content)
    version = registry.until("v1", "ready")
    assert version["files"][0]["sha256"] == sha256(content)
    assert registry.orphans() == []
    assert registry.actions("v1") == ["registered", "ready"]


def test_a_run_that_is_killed_leaves_its_parts_to_the_next(registry: Registry, stack: Stack) -> None:
    content = weights(100 * MIB)
    source = registry.put({"model.safetensors": content})
    before = set(stack.pids)
    with stack.functions(DEPLOYMENT_QUEUE_URL="") as origin:
        [name] = set(stack.pids) - before
        doomed = Registry(stack, origin, registry.training, registry.storage, registry.name)
        asking = threading.Thread(target=_ask_in_vain, args=(doomed, source))
        asking.start()
        _wait_for_a_part(registry)
        os.kill(stack.pids[name], signal.SIGKILL)
        asking.join()

    assert registry.row("v1")["status"] == "transferring"
    assert registry.stored("v1") == {}
    with psycopg.connect(stack.database_url, autocommit=True) as database:  # as if its minute were over
        database.execute("update private.transfers set expires_at = now()")
    again = registry.deploy(source, version="v1")
    assert again.status_code in (201, 202), again.text
    version = registry.until("v1", "ready")
    assert version["files"][0]["sha256"] == sha256(content)
    assert sha256(registry.stored("v1")["model.safetensors"]) == sha256(content)
    assert registry.orphans() == []


def test_the_schedule_sends_for_a_transfer_whose_message_was_lost(registry: Registry, stack: Stack) -> None:
    source = registry.put(FILES)
    with queue_of(stack) as queue, stack.functions(DEPLOYMENT_QUEUE_URL=queue.url) as origin:
        lost = Registry(stack, origin, registry.training, registry.storage, registry.name)
        begun = lost.call(
            "POST", body={"modelName": lost.name, "baseModel": "llama", "source": source}, prefer="respond-async"
        )
    assert begun.json()["model"]["status"] == "transferring"

    _on_schedule(stack)
    assert registry.row("v1")["status"] == "transferring"  # its message might still come
    with psycopg.connect(stack.database_url, autocommit=True) as database:  # as if it had been twenty minutes
        database.execute(
            "update private.transfers set expires_at = now() - interval '20 min' where model_id = %s",
            [begun.json()["model"]["id"]],
        )
    _on_schedule(stack)

    assert {file["path"] for file in registry.until("v1", "ready")["files"]} == set(FILES)


def test_a_file_that_no_run_can_read_whole_is_given_up(registry: Registry, stack: Stack) -> None:
    content = weights(40 * MIB)

    async def drip(_: Any) -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            for start in range(0, len(content), MIB):
                yield content[start : start + MIB]
                await asyncio.sleep(0.2)

        return StreamingResponse(pieces(), headers={"content-length": str(len(content)), "etag": '"1"'})

    with serving(Starlette(routes=[Route("/{name}", drip)])) as url, queue_of(stack) as queue:
        settings = {
            "SOURCE_HOSTS": url.removeprefix("http://"),
            "ALLOW_PRIVATE_SOURCES": "true",
            "DEPLOYMENT_QUEUE_URL": queue.url,
        }
        with stack.functions(**settings) as origin:
            slow = Registry(stack, origin, registry.training, registry.storage, registry.name)
            body = {"modelName": slow.name, "baseModel": "llama", "source": f"{url}/model.safetensors"}
            begun = slow.call("POST", body=body, prefer="respond-async")
        asked = json.dumps({"transfer": begun.json()["model"]["id"]})
        deliver(stack, "deploy-model", queued(asked), settings, seconds=6)

    version = registry.row("v1")
    assert version["status"] == "failed"
    assert "smaller shards" in version["failure"]
    assert (registry.stored("v1"), registry.orphans()) == ({}, [])


def test_a_files_address_is_for_a_while(registry: Registry) -> None:
    registry.deploy(registry.put(FILES))

    answer = registry.call("GET", f"/{registry.name}/v1/url").json()

    assert answer["expiresIn"] == 300
    got = {file["path"]: httpx.get(file["url"]).content for file in answer["files"]}
    assert got == FILES


def test_a_version_is_deleted_with_its_files_and_its_name_is_not_given_again(registry: Registry) -> None:
    source = registry.put(FILES)
    registry.deploy(source)

    assert registry.call("DELETE", f"/{registry.name}/v1").status_code == 200

    assert registry.stored("v1") == {}
    assert registry.call("GET", f"/{registry.name}/v1").status_code == 404
    assert registry.deploy(source, version="v1").status_code == 409
    assert registry.deploy(source).json()["model"]["version"] == "v2"
    assert registry.call("DELETE", f"/{registry.name}/v1").status_code == 404


def test_a_version_that_is_deleted_while_its_files_come_leaves_none(registry: Registry) -> None:
    source = registry.put({"config.json": CONFIG, "model.safetensors": weights(100 * MIB)})
    answers: list[httpx.Response] = []
    asking = threading.Thread(target=lambda: answers.append(registry.deploy(source, version="v1")))
    asking.start()
    _wait_for_a_part(registry)

    assert registry.call("DELETE", f"/{registry.name}/v1").status_code == 200
    asking.join()

    assert [answer.status_code for answer in answers] == [404], answers[0].text
    assert (registry.stored("v1"), registry.orphans()) == ({}, [])


def test_what_storage_kept_of_a_deleted_version_the_same_request_removes(registry: Registry) -> None:
    registry.deploy(registry.put(FILES))
    registry.call("DELETE", f"/{registry.name}/v1")
    registry.storage.put_object(Bucket="ai-models", Key=f"{registry.name}/v1/config.json", Body=CONFIG)

    answers = [registry.call("DELETE", f"/{registry.name}/v1").status_code for _ in range(2)]

    assert answers == [200, 404]
    assert registry.stored("v1") == {}


def test_a_source_that_fails_is_told_of_where_nobody_goes_on(registry: Registry, stack: Stack, files: str) -> None:
    settings = {"SOURCE_HOSTS": files.removeprefix("http://"), "ALLOW_PRIVATE_SOURCES": "true"}
    with stack.functions(**settings, DEPLOYMENT_QUEUE_URL="") as origin:
        alone = Registry(stack, origin, registry.training, registry.storage, registry.name)
        answer = alone.deploy(f"{files}/busy")

    assert (answer.status_code, answer.json()["code"]) == (503, "storage_unavailable")
    assert registry.row("v1")["status"] == "transferring"


def test_a_file_comes_from_a_host_that_is_allowed(registry: Registry, stack: Stack, files: str) -> None:
    host = files.removeprefix("http://")
    with stack.functions(SOURCE_HOSTS=f"example.org, {host}", ALLOW_PRIVATE_SOURCES="true") as origin:
        allowing = Registry(stack, origin, registry.training, registry.storage, registry.name)
        answer = allowing.deploy(f"{files}/model.safetensors")

    assert answer.status_code == 201, answer.text
    assert registry.stored("v1")["model.safetensors"] == FILES["model.safetensors"]


@pytest.fixture(scope="module")
def files() -> Iterator[str]:
    async def give(request: Request) -> Response:
        if request.path_params["name"] == "busy":
            return Response(status_code=503)
        return Response(FILES["model.safetensors"])

    with serving(Starlette(routes=[Route("/{name}", give)])) as url:
        yield url


def _wait_for_a_step(registry: Registry, action: str) -> None:
    for _ in range(300):
        if action in registry.actions("v1"):
            return
        time.sleep(0.1)
    raise AssertionError(registry.row("v1"))


def _ask_in_vain(registry: Registry, source: str) -> None:
    try:
        registry.deploy(source, version="v1")
    except httpx.TransportError:
        return
    raise AssertionError("it was not killed in time")


def _wait_for_a_part(registry: Registry) -> None:
    key = f"{registry.name}/v1/model.safetensors"
    for _ in range(500):
        for upload in registry.storage.list_multipart_uploads(Bucket="ai-models", Prefix=key).get("Uploads", []):
            listed = registry.storage.list_parts(Bucket="ai-models", Key=key, UploadId=upload["UploadId"])
            if len(listed.get("Parts", [])) >= 2:
                return
        time.sleep(0.01)
    raise AssertionError("no part came")


def _on_schedule(stack: Stack) -> None:
    code = "from functions.deploy_model.handler import handler; from infra.local.queue_worker import Context;"
    code += "handler({'source': 'aws.scheduler'}, Context('deploy-model'))"
    command = [sys.executable, "-c", code]
    subprocess.run(command, env={**os.environ, **stack.environment}, check=True, timeout=60)
