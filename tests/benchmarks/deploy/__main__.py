"""The benchmark of deploy-model's transfers, from S3 into Storage, beside boto3's own upload and the guide's way.

python -m tests.benchmarks.deploy                  # 2 GB: five minutes on two cores, and 10 GB of memory
python -m tests.benchmarks.deploy --gigabytes 0.2  # a look
"""

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from infra.local import postgres
from infra.local.migrations import MigrationError
from infra.local.parts import ROOT, StackError
from infra.local.stack import Stack, stop_on_signals
from tests.benchmarks.deploy.ways import BUCKET, TRAINING, WAYS
from tests.functions.deployments import clients

OUTPUT = ROOT / ".local/bench"
WIDTH = 160  # of a log or a file
MEGABYTE = 1024 * 1024
PIECE = 16 * MEGABYTE
TOLD = {"ours": "this gateway", "boto3": "boto3's upload_fileobj", "guide": "the guide: read it all, then upload"}
LEAST_SPEED, MOST_MEMORY = 0.8, 200
KILLED_GB = 1.0


class Broken(RuntimeError):
    """A way that failed; nothing of such a run counts."""


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.deploy", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--gigabytes", type=float, default=2, help="the file's size (2)")
    parser.add_argument("--rounds", type=int, default=3, help="of each way, in turn (3)")
    arguments = parser.parse_args()
    if not 0.05 <= arguments.gigabytes <= 20 or arguments.rounds < 1:
        parser.error("--gigabytes: from 0.05 to 20; --rounds: at least 1")

    stop_on_signals()
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=OUTPUT) as folder:
        try:
            figures = _run(Path(folder), arguments.gigabytes, arguments.rounds, console)
        except (StackError, MigrationError, Broken) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        finally:
            postgres.remove(Path(folder))
    file = OUTPUT / "deploy.json"
    file.write_text(json.dumps(figures, indent=2) + "\n")
    console.print(f"Also in {file.relative_to(ROOT)}.")
    return 0


def _run(folder: Path, gigabytes: float, rounds: int, console: Console) -> dict[str, Any]:
    environment = {"MODEL_BASE_URL": "http://127.0.0.1:9/v1", "MODEL_NAME": "none", "EMBEDDING_MODEL": "none"}
    environment |= {"EMBEDDING_BASE_URL": "http://127.0.0.1:9/v1", "FILE_SIZE_LIMIT": str(21 * 1024**3)}
    console.print("[dim]starting the embedded stack[/dim]")
    with Stack(
        folder, environment=environment, only={"aws", "postgres", "lite", "gateway"}, preferred_ports={}
    ) as stack:
        size = int(gigabytes * 1024**3)
        console.print(f"[dim]making a file of {gigabytes:g} GB[/dim]")
        _put(stack, "speed.safetensors", size)
        measured: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
        for number in range(1, rounds + 1):
            for way in WAYS if number == 1 else ["ours", "boto3"]:  # the guide's takes minutes
                seconds, peak_mb = _measure(stack, way, f"{way}/{number}")
                measured[way].append((size / MEGABYTE / seconds, peak_mb))
                console.print(f"[dim]round {number}  {TOLD[way]:<36} {seconds:6.1f} s  {peak_mb:7.0f} MB[/dim]")
        console.print(_table(measured, gigabytes), *_targets(measured), sep="\n", highlight=False)
        _drop(stack, "speed.safetensors")
        console.print(_killed(stack, folder), highlight=False)
    return {f"mb_s_{way}": _speed(measured, way) for way in WAYS} | {
        f"peak_mb_{way}": _peak(measured, way) for way in WAYS
    }


def _measure(stack: Stack, way: str, folder: str) -> tuple[float, float]:
    """Seconds and peak memory of one way; what it has stored goes at once, for the stand-in keeps all in memory."""
    command = [sys.executable, "-m", "tests.benchmarks.deploy.ways", way, "speed.safetensors", folder]
    done = subprocess.run(command, env=_environment(stack), cwd=ROOT, capture_output=True, text=True, timeout=1800)
    if done.returncode:
        raise Broken(f"{TOLD[way]}: {done.stderr.strip().splitlines()[-1]}")
    told = json.loads(done.stdout.splitlines()[-1])
    _delete(stack, folder)
    return told["seconds"], told["peak_mb"]


def _killed(stack: Stack, folder: Path) -> str:
    """A transfer that is killed half way and run again: what is there then."""
    size = int(KILLED_GB * 1024**3)
    sha256 = _put(stack, "killed.safetensors", size)
    _, storage = clients(stack)
    position = folder / "position.json"
    key = "killed/killed.safetensors"
    command = [sys.executable, "-m", "tests.benchmarks.deploy.ways", "ours", "killed.safetensors", "killed"]
    command.append(str(position))
    with subprocess.Popen(command, env=_environment(stack), cwd=ROOT, stdout=subprocess.DEVNULL) as doomed:
        while doomed.poll() is None and _parts(storage, key) < size // PIECE // 2:
            time.sleep(0.05)
        doomed.send_signal(signal.SIGKILL)
    there = _parts(storage, key)
    if not there:
        raise Broken("it was too fast to be killed half way")
    subprocess.run(command, env=_environment(stack), cwd=ROOT, check=True, stdout=subprocess.DEVNULL, timeout=1800)
    digest = hashlib.sha256()
    for chunk in storage.get_object(Bucket=BUCKET, Key=key)["Body"].iter_chunks(MEGABYTE):
        digest.update(chunk)
    orphans = storage.list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])
    whole = "whole, its hash right" if digest.hexdigest() == sha256 else "WRONG"
    return (
        f"{KILLED_GB:g} GB, killed when {there} of {size // PIECE} parts were there, and run again:"
        f" the file is {whole}, {len(orphans)} orphan parts."
    )


def _parts(storage: Any, key: str) -> int:
    for upload in storage.list_multipart_uploads(Bucket=BUCKET, Prefix=key).get("Uploads", []):
        told = storage.list_parts(Bucket=BUCKET, Key=key, UploadId=upload["UploadId"])
        return len(told.get("Parts", []))
    return 0


def _put(stack: Stack, key: str, size: int) -> str:
    """A safetensors file of one tensor in the training bucket; gives its hash."""
    training, _ = clients(stack)
    digest = hashlib.sha256()
    upload = training.create_multipart_upload(Bucket=TRAINING, Key=key)["UploadId"]
    parts = []
    for number, piece in enumerate(_content(size), 1):
        digest.update(piece)
        sent = training.upload_part(Bucket=TRAINING, Key=key, UploadId=upload, PartNumber=number, Body=piece)
        parts.append({"PartNumber": number, "ETag": sent["ETag"]})
    training.complete_multipart_upload(Bucket=TRAINING, Key=key, UploadId=upload, MultipartUpload={"Parts": parts})
    return digest.hexdigest()


def _content(size: int) -> Iterator[bytes]:
    header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    head = len(header).to_bytes(8, "little") + header
    block = os.urandom(PIECE)
    yield head + block[: min(size, PIECE)]
    for start in range(PIECE, size, PIECE):
        yield start.to_bytes(8, "little") + block[8 : min(PIECE, size - start)]


def _delete(stack: Stack, folder: str) -> None:
    _, storage = clients(stack)
    for item in storage.list_objects_v2(Bucket=BUCKET, Prefix=folder).get("Contents", []):
        storage.delete_object(Bucket=BUCKET, Key=item["Key"])


def _drop(stack: Stack, key: str) -> None:
    clients(stack)[0].delete_object(Bucket=TRAINING, Key=key)


def _environment(stack: Stack) -> Mapping[str, str]:
    return {**os.environ, **stack.environment}


def _speed(measured: Mapping[str, list[tuple[float, float]]], way: str) -> float:
    return round(median(speed for speed, _ in measured[way]), 1)


def _peak(measured: Mapping[str, list[tuple[float, float]]], way: str) -> float:
    return round(max(peak for _, peak in measured[way]), 1)


def _table(measured: Mapping[str, list[tuple[float, float]]], gigabytes: float) -> Table:
    table = Table(title=f"{gigabytes:g} GB from S3 into Storage", title_justify="left")
    for title in ("", "MB/s, median", "beside boto3", "peak memory, MB"):
        table.add_column(title, justify="left" if not title else "right")
    for way in WAYS:
        ratio = _speed(measured, way) / _speed(measured, "boto3")
        table.add_row(TOLD[way], f"{_speed(measured, way):.0f}", f"{ratio:.2f} x", f"{_peak(measured, way):.0f}")
    return table


def _targets(measured: Mapping[str, list[tuple[float, float]]]) -> list[str]:
    ratio, peak = _speed(measured, "ours") / _speed(measured, "boto3"), _peak(measured, "ours")
    return [
        f"{'met   ' if ratio >= LEAST_SPEED else 'MISSED'} speed {ratio:.2f} of boto3's, at least {LEAST_SPEED:g}",
        f"{'met   ' if peak <= MOST_MEMORY else 'MISSED'} peak memory {peak:.0f} MB, at most {MOST_MEMORY}",
    ]


if __name__ == "__main__":
    sys.exit(main())
