"""Fine-tuning on Hugging Face's machines: the files as a dataset, a Job that runs TRL on it, a model that it pushes.

By the APIs that huggingface_hub speaks: repositories and commits (src/huggingface_hub/_commit_api.py, lfs.py), and Jobs
(https://huggingface.co/docs/huggingface_hub/guides/jobs). Both repositories are private, and the job is given the key
to read the one and push the other. What runs is TRL's own script of a fixed release, for whose trainers rows are
rewritten (docs/source/dataset_formats.md): of a prompt and its completion it learns the completion alone, as OpenAI and
Together do by the messages' weights. `use_peft` makes an adapter instead of a whole model.
"""

import asyncio
import base64
import hashlib
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from shared.errors import InvalidRequest
from shared.trainers.api import (
    UPLOAD_TIMEOUT,
    Api,
    Course,
    File,
    Method,
    Order,
    Progress,
    Trainer,
    in_thread,
    read,
    rows,
    suffix,
    text,
)

COURSES: dict[str, Course] = {"COMPLETED": "ready", "ERROR": "failed", "CANCELED": "cancelled", "DELETED": "cancelled"}
TRL = "1.9.0"
SCRIPTS = f"https://raw.githubusercontent.com/huggingface/trl/v{TRL}/trl/scripts"
SCRIPT: dict[Method, str] = {"supervised": f"{SCRIPTS}/sft.py", "dpo": f"{SCRIPTS}/dpo.py"}
IMAGE = "ghcr.io/astral-sh/uv:python3.12-bookworm"  # as the client's run_uv_job has it
FLAVOR, TIMEOUT_SECONDS = "a100-large", 6 * 3600
LABEL = "fine-tune"
SAMPLE_BYTES = 512
REGULAR_BYTES = 20 * 1024 * 1024  # of a file in a commit's own body; the Hub has larger ones sent by LFS
LFS = {"accept": "application/vnd.git-lfs+json", "content-type": "application/vnd.git-lfs+json"}
OF_JOB = frozenset({"flavor", "timeout_seconds"})
OF_SCRIPT = frozenset(
    {
        *("num_train_epochs", "max_steps", "learning_rate", "lr_scheduler_type", "warmup_ratio", "warmup_steps"),
        *("weight_decay", "max_grad_norm", "per_device_train_batch_size", "gradient_accumulation_steps", "seed"),
        *("gradient_checkpointing", "max_length", "bf16", "fp16", "dtype", "attn_implementation", "model_revision"),
        *("use_peft", "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "load_in_4bit"),
    }
)
PARAMS: dict[Method, frozenset[str]] = {
    "supervised": OF_JOB | OF_SCRIPT | {"packing", "eos_token"},
    "dpo": OF_JOB | OF_SCRIPT | {"beta", "loss_type"},
}


@dataclass(frozen=True, slots=True)
class Rewritten:
    """A file's rows as TRL's trainers read them, and what has to be known of a file before it is sent."""

    file: File
    size_bytes: int
    oid: str
    sample: bytes

    @classmethod
    def of(cls, file: File) -> "Rewritten":
        """Read the file once for it; blocks."""
        digest, size, sample = hashlib.sha256(), 0, b""
        for chunk in _rewritten(file):
            digest.update(chunk)
            size += len(chunk)
            sample += chunk[: SAMPLE_BYTES - len(sample)]
        return cls(file, size, digest.hexdigest(), sample)

    @property
    def path(self) -> str:
        """By this name `load_dataset` knows the split."""
        return f"{self.file.split}.jsonl"

    def stream(self) -> AsyncIterator[bytes]:
        return in_thread(_rewritten(self.file))


def _rewritten(file: File) -> Iterator[bytes]:
    rest = b""
    for chunk in file.chunks():
        *lines, rest = (rest + chunk).split(b"\n")
        if lines:
            yield b"".join(_row(line) for line in lines if line)
    if rest:
        yield _row(rest)


def _row(line: bytes) -> bytes:
    row = json.loads(line)
    if "messages" in row:
        *prompt, completion = row["messages"]
        told = {"prompt": _said(prompt), "completion": _said([completion])}
    else:
        told = {
            "prompt": _said(row["input"]["messages"]),
            "chosen": _said(row["preferred_output"]),
            "rejected": _said(row["non_preferred_output"]),
        }
    return json.dumps(told, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _said(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"role": message["role"], "content": message["content"]} for message in messages]


async def send(api: Api, order: Order, file: File) -> str:
    """A commit of the dataset; sent again it is another one, of the same content."""
    rewritten, dataset = await asyncio.to_thread(Rewritten.of, file), _dataset(order)
    organization, name = dataset.split("/")
    asked = {"name": name, "organization": organization, "type": "dataset", "visibility": "private"}
    await api.ask("POST", "/api/repos/create", asked, absent=409)  # by a run before
    sample = base64.b64encode(rewritten.sample).decode()
    described = {"files": [{"path": rewritten.path, "sample": sample, "size": rewritten.size_bytes}]}
    modes = await api.ask("POST", f"/api/datasets/{dataset}/preupload/main", described)
    [mode] = rows(api, modes["files"])
    if mode["uploadMode"] == "lfs":
        await _send_object(api, dataset, rewritten)
        pointer = {"path": rewritten.path, "algo": "sha256", "oid": rewritten.oid, "size": rewritten.size_bytes}
        operation = {"key": "lfsFile", "value": pointer}
    else:
        operation = {"key": "file", "value": await _whole(api, rewritten)}
    header = {"key": "header", "value": {"summary": f"{rewritten.file.rows} rows", "description": ""}}
    body = b"".join(json.dumps(line).encode() + b"\n" for line in (header, operation))
    headers = api.headers() | {"content-type": "application/x-ndjson"}
    url = f"{api.base_url}/api/datasets/{dataset}/commit/main"
    response = await api.send("POST", url, content=body, headers=headers, timeout=UPLOAD_TIMEOUT)
    return f"{dataset}@{text(api, read(api, response), 'commitOid')}"


async def _whole(api: Api, rewritten: Rewritten) -> dict[str, str]:
    if rewritten.size_bytes > REGULAR_BYTES:
        raise api.unreadable()
    content = b"".join([chunk async for chunk in rewritten.stream()])
    return {"path": rewritten.path, "content": base64.b64encode(content).decode(), "encoding": "base64"}


async def _send_object(api: Api, dataset: str, rewritten: Rewritten) -> None:
    """Large content by Git LFS, whole or in parts as the Hub says; nothing where it has the content already."""
    wanted = {"oid": rewritten.oid, "size": rewritten.size_bytes}
    batch = {
        "operation": "upload",
        "transfers": ["basic", "multipart"],
        "objects": [wanted],
        "hash_algo": "sha256",
        "ref": {"name": "main"},
    }
    url = f"{api.base_url}/datasets/{dataset}.git/info/lfs/objects/batch"
    answer = read(api, await api.send("POST", url, json=batch, headers=api.headers() | LFS))
    [found] = rows(api, answer["objects"])
    if error := found.get("error"):
        raise InvalidRequest(f"{api.name} refuses this: {api.said(error.get('message'))}.")
    actions = found.get("actions") or {}
    if upload := actions.get("upload"):
        address = text(api, upload, "href")
        if part_bytes := (upload.get("header") or {}).get("chunk_size"):
            await _send_parts(api, address, upload["header"], int(part_bytes), rewritten)
        else:
            await api.put(address, rewritten.stream(), rewritten.size_bytes)
    if verify := actions.get("verify"):
        api.checked(await api.send("POST", text(api, verify, "href"), json=wanted, headers=api.headers()))


async def _send_parts(api: Api, address: str, header: Mapping[str, Any], part_bytes: int, rewritten: Rewritten) -> None:
    """In order, each as it is read; the address is where it is said that all of them are there."""
    urls = [header[number] for number in sorted((name for name in header if name.isdigit()), key=int)]
    if len(urls) != -(-rewritten.size_bytes // part_bytes):
        raise api.unreadable()
    source, parts = _Source(rewritten.stream()), []
    for number, url in enumerate(urls, 1):
        size = min(part_bytes, rewritten.size_bytes - (number - 1) * part_bytes)
        response = await api.put(url, source.take(size), size)
        parts.append({"partNumber": number, "etag": response.headers.get("etag", "")})
    done = {"oid": rewritten.oid, "parts": parts}
    api.checked(await api.send("POST", address, json=done, headers=LFS))


@dataclass(slots=True)
class _Source:
    """A stream that is taken in pieces, one after the other."""

    stream: AsyncIterator[bytes]
    rest: bytes = b""

    async def take(self, size_bytes: int) -> AsyncIterator[bytes]:
        while size_bytes:
            chunk = self.rest or await anext(self.stream)
            piece, self.rest = chunk[:size_bytes], chunk[size_bytes:]
            size_bytes -= len(piece)
            yield piece


async def find(api: Api, order: Order, files: Mapping[str, str]) -> str | None:
    by_label = {"label": f"{LABEL}={order.reference}"}
    listed = rows(api, await api.ask("GET", f"/api/jobs/{order.namespace}", params=by_label))
    ours = (job for job in listed if (job.get("labels") or {}).get(LABEL) == order.reference)
    return next((text(api, job, "id") for job in ours), None)


async def start(api: Api, order: Order, files: Mapping[str, str]) -> str:
    body = {
        "dockerImage": IMAGE,
        "command": ["uv", "run", "--with", f"trl[peft]=={TRL}", SCRIPT[order.method], *_arguments(order, files)],
        "arguments": [],
        "environment": {},
        "secrets": {"HF_TOKEN": api.key.get_secret_value()},
        "flavor": order.params.get("flavor", FLAVOR),
        "timeoutSeconds": int(order.params.get("timeout_seconds", TIMEOUT_SECONDS)),
        "labels": {LABEL: order.reference},
    }
    return text(api, await api.ask("POST", f"/api/jobs/{order.namespace}", body), "id")


def _arguments(order: Order, files: Mapping[str, str]) -> list[str]:
    """The script's; `report_to`, for else some versions make a public dashboard of the run."""
    told = {
        "model_name_or_path": order.base_model,
        "dataset_name": _dataset(order),
        "output_dir": "model",
        "push_to_hub": True,
        "hub_model_id": _model(order),
        "hub_private_repo": True,
        "report_to": "none",
        **({"dataset_test_split": "validation", "eval_strategy": "epoch"} if "validation" in files else {}),
        **{name: value for name, value in order.params.items() if name not in OF_JOB},
    }
    return [argument for name, value in told.items() for argument in _argument(name, value)]


def _argument(name: str, value: Any) -> list[str]:
    """A list's values stand after the name, each for itself. Raises `InvalidRequest` for what would be an option."""
    if not isinstance(value, list):
        return [f"--{name}={str(value).lower() if isinstance(value, bool) else value}"]
    if strange := [each for each in value if isinstance(each, str) and each.startswith("-")]:
        raise InvalidRequest(f"params: {name}: {strange[0]} is no value.")
    return [f"--{name}", *map(str, value)]


async def look(api: Api, order: Order, job_id: str) -> Progress | None:
    """A job that has ended well has pushed a model; where that is not to be had, it hasn't."""
    job = await api.ask("GET", f"/api/jobs/{order.namespace}/{job_id}", absent=404)
    if job is None:
        return None
    state = job.get("status") if isinstance(job, dict) else None
    stage = text(api, state, "stage")
    course = COURSES.get(stage, "training")
    if course == "training":
        return Progress(course, stage)
    if course != "ready":
        message = state.get("message") if isinstance(state, dict) else None
        return Progress(course, stage, f"Hugging Face says {stage}{f': {api.said(message)}' if message else ''}.")
    model = await api.ask("GET", f"/api/models/{_model(order)}", absent=404)
    files = [each.get("rfilename", "") for each in rows(api, (model or {}).get("siblings") or [])]
    if not any(name.endswith(".safetensors") for name in files):
        return Progress("failed", stage, f"The job has ended, and there are no weights at {_model(order)}.")
    finished_at = job.get("finishedAt")
    address = f"{api.base_url}/{_model(order)}/tree/{text(api, model, 'sha')}"
    return Progress(course, stage, address=address, finished_at=finished_at)


async def remove(api: Api, file_id: str) -> None:
    """The dataset, with all that was ever in it."""
    organization, name = file_id.partition("@")[0].split("/")
    asked = {"name": name, "organization": organization, "type": "dataset"}
    await api.ask("DELETE", "/api/repos/delete", asked, absent=404)


def _dataset(order: Order) -> str:
    return f"{order.namespace}/{LABEL}-{order.reference}"


def _model(order: Order) -> str:
    return f"{order.namespace}/{suffix(order.model_name, 60)}-{order.reference.partition('-')[0]}"


TRAINER = Trainer(
    title="Hugging Face",
    formats={"supervised": "openai", "dpo": "together_dpo"},
    params=PARAMS,
    least_rows=1,
    most_bytes=50 * 1000**3,
    needs_namespace=True,
    send=send,
    find=find,
    start=start,
    look=look,
    remove=remove,
)
