"""deploy-model from outside: files into Storage, versions into the registry, users to them and back."""

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import boto3
import httpx
import psycopg
import pytest
from botocore.config import Config

from infra.local.stack import Stack
from tests.shared.model_files import CONFIG, weights
from tests.users import User

PATH = "/functions/v1/deploy-model"


@dataclass
class Registry:
    """deploy-model for one test, with a model's name of its own, and the buckets it reads and writes."""

    stack: Stack
    origin: str
    training: Any
    storage: Any
    name: str = field(default_factory=lambda: f"ton-{uuid4().hex[:8]}")

    def call(self, method: str, path: str = "", body: Any = None, **headers: str) -> httpx.Response:
        headers = {"apikey": self.stack.keys.secret, **headers}
        return httpx.request(method, f"{self.origin}{PATH}{path}", json=body, headers=headers, timeout=30)

    def put(self, files: dict[str, bytes], folder: str | None = None) -> str:
        """Training output in its bucket; gives its address."""
        folder = folder or f"{self.name}/{uuid4().hex[:6]}"
        for path, content in files.items():
            self.training.put_object(Bucket="training", Key=f"{folder}/{path}", Body=content)
        return f"s3://training/{folder}/"

    def deploy(self, source: str, **fields: Any) -> httpx.Response:
        body = {"modelName": self.name, "baseModel": "llama-3.1-8b", "source": source, **fields}
        return self.call("POST", body=body)

    def stored(self, version: str) -> dict[str, bytes]:
        """The version's folder in Storage."""
        prefix = f"{self.name}/{version}/"
        listed = self.storage.list_objects_v2(Bucket="ai-models", Prefix=prefix).get("Contents", [])
        return {
            item["Key"].removeprefix(prefix): self.storage.get_object(Bucket="ai-models", Key=item["Key"])[
                "Body"
            ].read()
            for item in listed
        }

    def orphans(self) -> list[str]:
        """Uploads in parts that nobody has ended."""
        listed = self.storage.list_multipart_uploads(Bucket="ai-models", Prefix=self.name).get("Uploads", [])
        return [upload["Key"] for upload in listed]

    def row(self, version: str) -> dict[str, Any]:
        answer = self.call("GET", f"/{self.name}/{version}")
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def until(self, version: str, status: str) -> dict[str, Any]:
        """The version, once its files have come so far."""
        for _ in range(200):
            answer = self.call("GET", f"/{self.name}/{version}")
            if answer.status_code == 200 and answer.json()["status"] == status:
                found: dict[str, Any] = answer.json()
                return found
            time.sleep(0.1)
        raise AssertionError(answer.text)


def s3(stack: Stack, **settings: Any) -> Any:
    config = Config(request_checksum_calculation="when_required", response_checksum_validation="when_required")
    return boto3.client("s3", region_name="us-east-1", config=config, **settings)


@pytest.fixture(scope="module")
def deployments(stack: Stack) -> Iterator[Registry]:
    environment = stack.environment
    training = s3(
        stack,
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        aws_access_key_id="local",
        aws_secret_access_key="local",
    )
    storage = s3(
        stack,
        endpoint_url=environment["STORAGE_S3_URL"],
        aws_access_key_id=environment["S3_PROTOCOL_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["S3_PROTOCOL_ACCESS_KEY_SECRET"],
    )
    with stack.functions(ALLOW_PRIVATE_SOURCES="true", SOURCE_HOSTS="127.0.0.1") as origin:
        yield Registry(stack, origin, training, storage)


@pytest.fixture
def registry(deployments: Registry, stack: Stack) -> Iterator[Registry]:
    own = Registry(stack, deployments.origin, deployments.training, deployments.storage)
    yield own
    with psycopg.connect(stack.database_url) as connection:
        connection.execute(
            "update public.model_metadata set is_active = false, traffic_weight = 0 where model_name = %s", [own.name]
        )


FILES = {"model.safetensors": weights(40_000), "config.json": CONFIG}


def test_a_training_jobs_output_becomes_a_version(registry: Registry) -> None:
    answer = registry.deploy(registry.put(FILES), metrics={"loss": 0.5}, trainingDataSize=120)

    assert answer.status_code == 201, answer.text
    version = answer.json()["model"]
    assert (version["version"], version["status"], version["baseModel"]) == ("v1", "ready", "llama-3.1-8b")
    assert version["storagePath"] == f"ai-models/{registry.name}/v1"
    assert version["sizeBytes"] == sum(map(len, FILES.values()))
    assert version["trainingDataSize"] == 120
    assert version["performanceMetrics"] == {"training": {"loss": 0.5}}
    hashes = {path: hashlib.sha256(content).hexdigest() for path, content in FILES.items()}
    assert {file["path"]: file["sha256"] for file in version["files"]} == hashes
    stored = registry.stored("v1")
    manifest = stored.pop("manifest.json")
    assert stored == FILES
    assert version["sha256"] == hashlib.sha256(manifest).hexdigest()
    assert {file["path"]: file["sha256"] for file in json.loads(manifest)["files"]} == hashes
    assert json.loads(manifest)["provenance"]["baseModel"] == "llama-3.1-8b"


def test_a_large_file_goes_on_where_a_killed_run_was(registry: Registry) -> None:
    pass


@pytest.mark.parametrize("token", ["nobody", "publishable", "user"])
def test_only_admins_deploy(registry: Registry, token: str, alice: User) -> None:
    headers = {
        "nobody": {},
        "publishable": {"apikey": registry.stack.keys.publishable},
        "user": {"authorization": f"Bearer {alice.token}"},
    }[token]
    body = {"modelName": registry.name, "baseModel": "x", "source": "upload"}

    answer = httpx.post(f"{registry.origin}{PATH}", json=body, headers=headers)

    assert (answer.status_code, answer.json()["code"]) == (
        (403, "forbidden") if token == "user" else (401, "unauthenticated")
    )
