"""Fine-tune jobs: an export's files sent to a provider, the job it runs on them, and the version that comes of it.

What is asked of them stands here, and what they go through in `fine_tune_course`.
"""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

from postgrest import AsyncPostgrestClient
from pydantic import AfterValidator, Field

from shared import database, queue
from shared.clients import Clients
from shared.errors import Conflict, GatewayError, InvalidRequest, Misconfigured, NotFound, TransferRunning, Unavailable
from shared.exports import WORKER
from shared.fine_tune_course import LEASE_SECONDS, advance, opened, version_name
from shared.models import Deadline
from shared.registry import Name, Text
from shared.telemetry import count_failure, logger
from shared.trainers.api import Method, Trainer
from shared.wire import Wire

CHECK_SECONDS = 120  # between two looks at a job that is trained
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 15, 900  # after a failure that passes; SQS delays no longer
LEAST_SECONDS = 0.2
PARAMS, PARAM_CHARACTERS, PARAM_BYTES = 50, 200, 2000
PAGE_ROWS = 100


def _plain(params: dict[str, Any]) -> dict[str, Any]:
    """Numbers, words and what few hyperparameters have inside them."""
    try:
        told = json.dumps(params, allow_nan=False, ensure_ascii=False)
        told.encode()
    except (ValueError, RecursionError) as error:
        raise ValueError("no NaN, no Infinity and no halves of characters, please") from error
    strings = [value for value in params.values() if isinstance(value, str)]
    too_long = any(len(each) > PARAM_CHARACTERS for each in strings) or "\\u0000" in told
    if too_long or len(params) > PARAMS or len(told) > PARAM_BYTES:
        raise ValueError("too many or too long")
    return params


class FineTune(Wire):
    """What is to be trained on an export: `params` are hyperparameters, by the provider's own names for them.

    Without `model_name` it is the base model's; without `version` that is named by the job.
    """

    provider: Literal["together", "openai", "huggingface"]
    base_model: Text
    method: Method = "supervised"
    params: Annotated[dict[str, Any], AfterValidator(_plain)] = Field(default_factory=dict)
    model_name: Name | None = None
    version: Name | None = None


class Job(Wire):
    """A job as it stands; `model` and `version` are what comes of it, in the registry once its status is ready."""

    id: int
    export_id: int
    provider: str
    base_model: str
    method: str
    params: dict[str, Any]
    status: str
    provider_status: str | None
    provider_job_id: str | None
    provider_files: dict[str, str | None]
    model: str
    version: str
    result: dict[str, Any] | None
    failure: str | None
    actor: str | None
    created_at: datetime
    checked_at: datetime | None
    finished_at: datetime | None

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "Job":
        return cls(**{**row, "model": row["model_name"], "version": row["version"] or version_name(row)})


class Jobs(Wire):
    """Jobs, the newest first; `next` is the `before` of the next page."""

    jobs: list[Job]
    next: int | None = None


async def start(clients: Clients, export: Mapping[str, Any], request: FineTune, actor: str, deadline: Deadline) -> Job:
    """Begin a job and bring it as far as the time allows; a worker does the rest.

    The same request again gives the same job, and goes on with it. Raises `InvalidRequest` for what the provider or the
    export can't do, `Conflict` for an export or a version that isn't free for it, and `Misconfigured`.
    """
    trainer, _ = opened(clients, request.provider)
    files = _files(export, trainer, request)
    db = database.as_gateway(clients.http, clients.settings)
    model_name = request.model_name or _name(request.base_model)
    row = await database.call(
        db,
        "begin_fine_tune",
        {
            "export_id": export["id"],
            **request.model_dump(include={"provider", "base_model", "method", "params", "version"}),
            "model_name": model_name,
            "files": files,
            "actor": actor,
        },
    )
    match row["outcome"]:
        case "unknown":
            raise NotFound(f"There is no export {export['id']}.")
        case "not_ready":
            raise Conflict(f"Export {export['id']} is {row['status']}: fine-tune one that is ready.")
        case "taken":
            raise Conflict(f"version: {request.version} of {model_name} is taken: choose another.")
    if row["status"] in ("uploading", "training", "deploying"):
        try:
            await advance(clients, row["id"], max(LEAST_SECONDS, deadline.remaining()))
        except TransferRunning:
            pass
        except Unavailable as error:
            if not clients.settings.export_queue_url:
                raise
            logger.warning("a fine-tune job waits", extra={"jobId": row["id"], "reason": error.message})
        await _follow(clients, row["id"])
    return await read(db, row["id"])


async def check(clients: Clients, job_id: int, seconds: float = LEASE_SECONDS) -> Job:
    """Bring a job as far as it goes now. Raises `NotFound`, `TransferRunning` and `Unavailable`."""
    await advance(clients, job_id, seconds)
    return await read(database.as_gateway(clients.http, clients.settings), job_id)


async def check_all(clients: Clients, seconds: float = LEASE_SECONDS) -> list[Job]:
    """Look after all jobs that aren't over, for a schedule: so none is lost with its message."""
    db, deadline = database.as_gateway(clients.http, clients.settings), Deadline.after(seconds)
    checked: list[Job] = []
    before: int | None = None
    while True:
        page = await database.call(db, "list_fine_tunes", {"unfinished": True, "before": before})
        for row in page["jobs"]:
            if deadline.remaining() < LEAST_SECONDS:
                return checked
            try:
                checked.append(await check(clients, row["id"], deadline.remaining()))
            except (GatewayError, TimeoutError) as error:
                logger.warning("a fine-tune job can't be checked", extra={"jobId": row["id"], "reason": str(error)})
        if len(page["jobs"]) < PAGE_ROWS:
            return checked
        before = page["jobs"][-1]["id"]


async def carry_on(clients: Clients, job_id: int, seconds: float) -> None:
    """A worker's part of the queue's message `{"fineTune": id}`, which is sent anew until the job is over."""
    wait_seconds: int | None = None
    try:
        await advance(clients, job_id, seconds)
    except NotFound:
        logger.error("a fine-tune job that isn't there", extra={"jobId": job_id})
        return
    except Misconfigured as error:
        logger.error("a fine-tune job can't go on", extra={"jobId": job_id, "reason": error.message})
        count_failure(WORKER, error)
        wait_seconds = LONGEST_WAIT_SECONDS
    except (TransferRunning, Unavailable) as error:
        wait_seconds = error.retry_after_seconds
    await _follow(clients, job_id, wait_seconds)


async def read(db: AsyncPostgrestClient, job_id: int) -> Job:
    """Raises `NotFound`."""
    row = await database.call(db, "read_fine_tune", {"id": job_id})
    if row.get("outcome") == "unknown":
        raise NotFound(f"There is no fine-tune job {job_id}.")
    return Job.of(row)


async def page(db: AsyncPostgrestClient, export_id: int | None, before: int | None) -> Jobs:
    """Jobs of one export or of all, those before `before`."""
    found = await database.call(db, "list_fine_tunes", {"export_id": export_id, "before": before})
    jobs = [Job.of(row) for row in found["jobs"]]
    return Jobs(jobs=jobs, next=jobs[-1].id if len(jobs) == PAGE_ROWS else None)


async def remove_files(clients: Clients, job_id: int) -> Job:
    """Have the provider delete what it was sent; what it has learnt from it stays learnt. Raises what its API does."""
    db = database.as_gateway(clients.http, clients.settings)
    job = await read(db, job_id)
    trainer, api = opened(clients, job.provider)
    for name in {name for name in job.provider_files.values() if name}:
        await trainer.remove(api, name)
    await database.call(db, "forget_fine_tune_files", {"id": job_id})
    return await read(db, job_id)


async def _follow(clients: Clients, job_id: int, wait_seconds: int | None = None) -> None:
    """Have a worker look again, unless the job is over; without a queue the schedule does."""
    url = clients.settings.export_queue_url
    if not url:
        return
    db = database.as_gateway(clients.http, clients.settings)
    row = await database.call(db, "read_fine_tune", {"id": job_id})
    match row.get("status"):
        case "training":
            wait_seconds = wait_seconds or CHECK_SECONDS
        case "uploading" | "deploying":
            wait_seconds = wait_seconds or FIRST_WAIT_SECONDS * 2 ** min(row["tries"], 10)
        case _:
            return
    await queue.send(url, {"fineTune": job_id}, min(wait_seconds, LONGEST_WAIT_SECONDS))


def _files(export: Mapping[str, Any], trainer: Trainer, request: FineTune) -> list[dict[str, Any]]:
    """Those of the export's files that are sent. Raises `InvalidRequest` for what can't be trained on them."""
    allowed = trainer.params[request.method]
    if strange := sorted(request.params.keys() - allowed):
        raise InvalidRequest(f"params: {', '.join(strange)}: none of {', '.join(sorted(allowed))}.")
    name = trainer.formats[request.method]
    files: Sequence[Mapping[str, Any]] = export.get("files") or ()
    found = {file["split"]: file for file in files if file.get("format") == name and file["rows"]}
    if name not in (export.get("options") or {}).get("formats", [name]) or (not found and files):
        raise InvalidRequest(f"formats: export with {name} for {request.method} fine-tuning by {trainer.title}.")
    rows = found["train"]["rows"] if "train" in found else 0
    if rows < trainer.least_rows:
        raise InvalidRequest(
            f"Export {export['id']} has {rows} rows to train on, and {trainer.title} takes no fewer than "
            f"{trainer.least_rows}: export with weaker filters."
        )
    if too_large := [file["path"] for file in found.values() if file["sizeBytes"] > trainer.most_bytes]:
        raise InvalidRequest(
            f"{too_large[0]} is larger than the {trainer.most_bytes // 1000**2} MB that {trainer.title} takes: export "
            "with stronger filters."
        )
    kept = ("path", "split", "rows", "sizeBytes", "sha256")
    return [{name: found[split][name] for name in kept} for split in ("train", "validation") if split in found]


def _name(base_model: str) -> str:
    """A base model's name as a model of the registry has it."""
    kept = re.sub(r"[^a-z0-9]+", "-", base_model.rpartition("/")[2].lower()).strip("-")[:100]
    return kept.strip("-") or "fine-tuned"
