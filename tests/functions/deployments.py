"""deploy-model as the tests call it: with a model's name of a test's own, and the buckets it reads and writes."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import boto3
import httpx
from botocore.config import Config

from infra.local.stack import Stack

PATH = "/functions/v1/deploy-model"


@dataclass
class Registry:
    """One model's versions, through `origin`; `training` and `storage` are S3 clients of either side."""

    stack: Stack
    origin: str
    training: Any
    storage: Any
    name: str = field(default_factory=lambda: f"ton-{uuid4().hex[:8]}")

    def call(self, method: str, path: str = "", body: Any = None, **headers: str) -> httpx.Response:
        """As the holder of the secret key."""
        headers = {"apikey": self.stack.keys.secret, **headers}
        return httpx.request(method, f"{self.origin}{PATH}{path}", json=body, headers=headers, timeout=30)

    def put(self, files: Mapping[str, bytes], folder: str | None = None) -> str:
        """A training job's output in its bucket; gives its address."""
        folder = folder or f"{self.name}/{uuid4().hex[:6]}"
        for path, content in files.items():
            self.training.put_object(Bucket="training", Key=f"{folder}/{path}", Body=content)
        return f"s3://training/{folder}/"

    def deploy(self, source: str, **fields: Any) -> httpx.Response:
        body = {"modelName": self.name, "baseModel": "llama-3.1-8b", "source": source, **fields}
        return self.call("POST", body=body)

    def ready(self, *versions: str, model: str | None = None) -> None:
        """Versions that the provider `tuned` serves by their names, or all as `model`."""
        for version in versions:
            served = {"provider": "tuned", "provider_model": model or version, "status": "ready"}
            arguments = {"model_name": self.name, "version": version, "columns": served}
            headers = {"apikey": self.stack.keys.secret}
            url = f"{self.stack.url}/rest/v1/rpc/register_model"
            httpx.post(url, json=arguments, headers=headers).raise_for_status()

    def activate(self, version: str, **how: Any) -> httpx.Response:
        return self.call("POST", f"/{self.name}/{version}/activate", how)

    def row(self, version: str) -> dict[str, Any]:
        answer = self.call("GET", f"/{self.name}/{version}")
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def served(self) -> dict[str, float]:
        """The versions that have users, and their shares of them."""
        models = self.call("GET", f"?modelName={self.name}").json()["models"]
        return {model["version"]: model["weight"] for model in models if model["weight"]}

    def actions(self, version: str) -> list[str]:
        """What was done with a version, the first first."""
        return [step["action"] for step in reversed(self.row(version)["history"])]

    def until(self, version: str, status: str) -> dict[str, Any]:
        """The version, once its files have come so far."""
        for _ in range(300):
            answer = self.call("GET", f"/{self.name}/{version}")
            if answer.status_code == 200 and answer.json()["status"] == status:
                found: dict[str, Any] = answer.json()
                return found
            time.sleep(0.1)
        raise AssertionError(answer.text)

    def stored(self, version: str) -> dict[str, bytes]:
        """The version's folder in Storage."""
        prefix = f"{self.name}/{version}/"
        listed = self.storage.list_objects_v2(Bucket="ai-models", Prefix=prefix).get("Contents", [])
        keys = [item["Key"] for item in listed]
        bodies = (self.storage.get_object(Bucket="ai-models", Key=key)["Body"] for key in keys)
        return {key.removeprefix(prefix): body.read() for key, body in zip(keys, bodies, strict=True)}

    def orphans(self) -> list[str]:
        """Uploads in parts that nobody has ended."""
        listed = self.storage.list_multipart_uploads(Bucket="ai-models", Prefix=self.name).get("Uploads", [])
        return [upload["Key"] for upload in listed]


def clients(stack: Stack) -> tuple[Any, Any]:
    """S3 of the training jobs, and Storage's S3 protocol."""
    environment = stack.environment
    training = _s3(environment["AWS_ENDPOINT_URL"], "local", "local")
    names = ("STORAGE_S3_URL", "S3_PROTOCOL_ACCESS_KEY_ID", "S3_PROTOCOL_ACCESS_KEY_SECRET")
    return training, _s3(*(environment[name] for name in names))


def _s3(url: str, key_id: str, secret: str) -> Any:
    config = Config(request_checksum_calculation="when_required", response_checksum_validation="when_required")
    keys = {"aws_access_key_id": key_id, "aws_secret_access_key": secret}
    made: Any = boto3.client  # whose types know SQS alone here
    return made("s3", endpoint_url=url, region_name="us-east-1", config=config, **keys)
