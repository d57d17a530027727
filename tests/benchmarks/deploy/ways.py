"""One way to bring a file from a bucket of S3 into Storage, in a process of its own, so that its memory is its own.

python -m tests.benchmarks.deploy.ways ours|boto3|guide KEY FOLDER [POSITION_FILE]

It prints {"seconds", "peak_mb"} as JSON. With a file for its position `ours` goes on from there, and keeps it there.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import boto3
from supabase import create_client

from shared import sources, transfers
from shared.artifacts import Rules
from shared.transfers import Destination

BUCKET, TRAINING = "ai-models", "training"
NAME = "model.safetensors"


def clients() -> tuple[Any, Any]:
    """S3, and Storage's S3 protocol, as the function has them."""
    environment = os.environ
    keys = environment["S3_PROTOCOL_ACCESS_KEY_ID"], environment["S3_PROTOCOL_ACCESS_KEY_SECRET"]
    return transfers.client(), transfers.client(environment["STORAGE_S3_URL"], environment["S3_PROTOCOL_REGION"], keys)


def ours(key: str, folder: str, position_file: Path | None) -> None:
    """As deploy-model does it: every header read, every byte hashed."""
    training, storage = clients()
    kept = position_file and position_file.exists() and json.loads(position_file.read_text())

    def keep(position: Mapping[str, Any]) -> None:
        if position_file:
            position_file.write_text(json.dumps(position))

    transfers.transfer_all(
        sources.find(f"s3://{TRAINING}/{key}", training),
        Destination(storage, BUCKET, folder),
        rules=Rules(),
        expected={},
        position=kept or None,
        stop_at=time.monotonic() + 3600,
        keep=keep,
    )


def by_boto3(key: str, folder: str, _: Path | None) -> None:
    """boto3's own managed upload, of what it streams from the other side; nothing is hashed or looked at."""
    training, storage = clients()
    body = training.get_object(Bucket=TRAINING, Key=key)["Body"]
    storage.upload_fileobj(body, BUCKET, f"{folder}/{NAME}")


def as_the_guide(key: str, folder: str, _: Path | None) -> None:
    """The whole file in memory, then one upload."""
    made: Any = boto3.client
    content = made("s3").get_object(Bucket=TRAINING, Key=key)["Body"].read()
    client = create_client(os.environ["SUPABASE_URL"], os.environ["SUPABASE_SECRET_KEY"])
    client.storage.session.timeout = 600
    client.storage.from_(BUCKET).upload(f"{folder}/{NAME}", content)


WAYS = {"ours": ours, "boto3": by_boto3, "guide": as_the_guide}


def main() -> None:
    way, key, folder = sys.argv[1:4]
    position_file = Path(sys.argv[4]) if len(sys.argv) > 4 else None
    started = time.perf_counter()
    WAYS[way](key, folder, position_file)
    seconds = time.perf_counter() - started
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "peak_mb": peak_mb}))


if __name__ == "__main__":
    main()
