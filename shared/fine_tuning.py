"""Fine-tune jobs: an export's files sent to a provider, the job it runs on them, and the version that comes of it.

A job is its row, which a worker has to himself for as long as he is heard of. Its course is

    uploading    the files are sent, and the job is started
    training     the provider has it
    deploying    the model is registered
    ready, failed, cancelled

and whoever takes it up goes on from there. A file or a job that the provider has and that nobody could write down is
found again by the row's `reference`: in files' names, in OpenAI's metadata, in Hugging Face's labels; at Together by
the job's training file. Only where a provider's list lacks a job that was started a moment ago is it started twice.
"""

import json
import re
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, TypeVar
from uuid import uuid4

from postgrest import AsyncPostgrestClient
from pydantic import AfterValidator, Field

from shared import database, deployments, queue, registry, routing, sources
from shared.clients import Clients
from shared.deployments import Deploy
from shared.errors import (
    Conflict,
    DeadlineExceeded,
    GatewayError,
    InvalidRequest,
    Misconfigured,
    NotFound,
    TransferRunning,
    Unavailable,
)
from shared.models import Deadline
from shared.registry import Name, Text, Version
from shared.settings import provider_key
from shared.storage import Storage
from shared.telemetry import logger
from shared.trainers import huggingface, openai, together
from shared.trainers.api import Api, File, Method, Order, Progress, Trainer
from shared.wire import Wire

Answer = TypeVar("Answer")
TRAINERS: dict[str, Trainer] = {
    "together": together.TRAINER,
    "openai": openai.TRAINER,
    "huggingface": huggingface.TRAINER,
}
LEASE_SECONDS = 60
CHECK_SECONDS = 120  # between two looks at a job that is trained
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 15, 900  # after a failure that passes; SQS delays no longer
TRIES = 20  # at sending the files: some hours
LEAST_SECONDS = 0.2
PARAMS, PARAM_CHARACTERS, PARAM_BYTES = 50, 200, 2000
PAGE_ROWS = 100
GARBAGE = (AttributeError, LookupError, TypeError, ValueError)
# Of what a trainer pushes, no part of a model; the second is a pickle.
LEFT_OUT = (".gitattributes", "training_args.bin")


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
        return cls(**{**row, "model": row["model_name"], "version": row["version"] or _version(row)})


class Jobs(Wire):
    """Jobs, the newest first; `next` is the `before` of the next page."""

    jobs: list[Job]
    next: int | None = None


async def start(clients: Clients, export: Mapping[str, Any], request: FineTune, actor: str, deadline: Deadline) -> Job:
    """Begin a job and bring it as far as the time allows; a worker does the rest.

    The same request again gives the same job, and goes on with it. Raises `InvalidRequest` for what the provider or the
    export can't do, `Conflict` for an export or a version that isn't free for it, and `Misconfigured`.
    """
    trainer, _ = _open(clients, request.provider)
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
            await _advance(clients, row["id"], max(LEAST_SECONDS, deadline.remaining()))
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
    await _advance(clients, job_id, seconds)
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
        await _advance(clients, job_id, seconds)
    except NotFound:
        logger.error("a fine-tune job that isn't there", extra={"jobId": job_id})
        return
    except Misconfigured as error:
        logger.error("a fine-tune job can't go on", extra={"jobId": job_id, "reason": error.message})
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
    trainer, api = _open(clients, job.provider)
    for name in {name for name in job.provider_files.values() if name}:
        await trainer.remove(api, name)
    await database.call(db, "forget_fine_tune_files", {"id": job_id})
    return await read(db, job_id)


# --- a job's course --------------------------------------------------------------------------------------------------


async def _advance(clients: Clients, job_id: int, seconds: float) -> None:
    """Take a job in hand and bring it as far as it goes; a failure that can't be mended ends it.

    Raises `TransferRunning` where somebody else has it, `Unavailable` and, while it is trained, `Misconfigured`.
    """
    deadline = Deadline.after(seconds)
    db = database.as_gateway(clients.http, clients.settings)
    hold = await _Hold.take(db, job_id, seconds)
    if hold is None:
        return
    try:
        async with deadline.enforced():
            await _go_on(clients, hold, deadline)
    except _Lost as error:
        raise TransferRunning("Another worker has the job in hand.", LEASE_SECONDS) from error
    except GatewayError as error:
        failure = _failure(hold.row, error)
        if failure is None:
            await hold.let_go()
            raise
        with suppress(_Lost):
            await hold.note(status="failed", failure=failure)
        logger.error("a fine-tune job failed", extra={"jobId": job_id, "reason": failure})
    else:
        await hold.let_go()


def _failure(row: Mapping[str, Any], error: GatewayError) -> str | None:
    """What ends a job; None for what may pass, as a wrong key does while the provider has the job."""
    if not error.retryable:
        return None if isinstance(error, Misconfigured) and row["status"] == "training" else error.message
    if row["status"] == "uploading" and row["tries"] >= TRIES:
        reason = (
            "The time of a run is too short for its files." if isinstance(error, DeadlineExceeded) else error.message
        )
        return f"It could not be begun in {TRIES} tries. {reason}"
    return None


async def _go_on(clients: Clients, hold: "_Hold", deadline: Deadline) -> None:
    trainer, api = _open(clients, hold.row["provider"])
    order = _order(clients, hold.row)
    if hold.row["status"] == "uploading":
        await _send(clients, hold, trainer, api, order)
    if hold.row["status"] == "training":
        await _look(hold, trainer, api, order)
    if hold.row["status"] == "deploying" and deadline.remaining() > deployments.NOTE_SECONDS:
        await _deploy(clients, hold, deadline)


async def _send(clients: Clients, hold: "_Hold", trainer: Trainer, api: Api, order: Order) -> None:
    """Send the files that aren't noted yet and start the job, once."""
    if hold.row["export_status"] != "ready":
        raise Conflict(f"Export {hold.row['export_id']} is {hold.row['export_status']} by now: fine-tune a ready one.")
    for kept in hold.row["files"]:
        sent = hold.row["provider_files"]
        if kept["split"] not in sent:
            name = await _told(api, trainer.send(api, order, _file(clients, hold.row["export_id"], kept)))
            await hold.note(provider_files={**sent, kept["split"]: name})
    files = hold.row["provider_files"]
    found = await _told(api, trainer.find(api, order, files))
    job_id = found or await _told(api, trainer.start(api, order, files))
    await hold.note(status="training", provider_job_id=job_id)


async def _look(hold: "_Hold", trainer: Trainer, api: Api, order: Order) -> None:
    progress = await _told(api, trainer.look(api, order, hold.row["provider_job_id"]))
    if progress is None:
        await hold.note(status="failed", failure=f"{trainer.title} doesn't know the job any more.")
        return
    status = "deploying" if progress.course == "ready" else progress.course
    result = {name: value for name, value in asdict(progress).items() if value and name not in ("course", "failure")}
    await hold.note(status=status, provider_status=progress.status, failure=progress.failure, result=result)


async def _told(api: Api, asked: Awaitable[Answer]) -> Answer:
    """What a provider tells. Raises `Unavailable` for what has another shape than the API's."""
    try:
        return await asked
    except GARBAGE as error:
        raise api.unreadable() from error


async def _deploy(clients: Clients, hold: "_Hold", deadline: Deadline) -> None:
    """Deploy what came of it once, and see to it until its files are there."""
    row = hold.row
    if row["deployed_version"] is None:
        version = await _registered(clients, row, deadline)
        await hold.note(deployed_version=version.version)
    else:
        version = await registry.version(hold.db, row["model_name"], row["deployed_version"])
        if version.status == "transferring" and not clients.settings.deployment_queue_url:
            await deployments.carry_on(clients, version.id, deadline.remaining() - deployments.NOTE_SECONDS)
            version = await registry.version(hold.db, row["model_name"], row["deployed_version"])
    if version.status == "ready":
        await hold.note(status="ready")
    elif version.status == "failed":
        await hold.note(status="failed", failure=version.failure)


async def _registered(clients: Clients, row: Mapping[str, Any], deadline: Deadline) -> Version:
    """What the provider serves is ready with its name there; weights on the Hugging Face Hub are brought into Storage.

    Asked for again it is the same version.
    """
    result = Progress(course="ready", **row["result"])
    run = Deploy(
        model_name=row["model_name"],
        version=row["version"] or _version(row),
        base_model=row["base_model"],
        source=result.address or f"{row['provider']}:{row['provider_job_id']}",
        provider=row["provider"],
        provider_model=result.provider_model,
        metrics=dict(result.metrics) or None,
        training_data_size=sum(file["rows"] for file in row["files"] if file["split"] == "train"),
        dataset_export_id=row["export_id"],
        fine_tuned_on=_moment(result.finished_at),
        leave_out=LEFT_OUT,
    )
    actor = f"fine-tune job {row['id']}"
    if result.address is None:
        return await deployments.register_served(clients, run, actor)
    try:
        return (await deployments.begin(clients, run, actor, deadline, in_background=True)).model
    except Conflict:
        db = database.as_gateway(clients.http, clients.settings)
        version = await registry.version(db, row["model_name"], run.version or "")
        if version.source != run.source:
            raise
        return version


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


class _Lost(Exception):
    """Another worker has the job, or has ended it."""


@dataclass(slots=True)
class _Hold:
    """A job that is this worker's; `row` is what was last noted of it."""

    db: AsyncPostgrestClient
    row: dict[str, Any]
    worker: str
    lease_seconds: int

    @classmethod
    async def take(cls, db: AsyncPostgrestClient, job_id: int, seconds: float) -> "_Hold | None":
        """None for one that is over. The lease lasts as long as the run, for nothing is noted while a file goes."""
        worker, lease_seconds = str(uuid4()), int(seconds) + LEASE_SECONDS
        row = await database.call(
            db, "claim_fine_tune", {"id": job_id, "worker": worker, "lease_seconds": lease_seconds}
        )
        match row["outcome"]:
            case "unknown":
                raise NotFound(f"There is no fine-tune job {job_id}.")
            case "busy":
                raise TransferRunning("Another worker has the job in hand.", row["retry_after_seconds"])
            case "over":
                return None
        return cls(db, row, worker, lease_seconds)

    async def note(self, **changes: Any) -> None:
        """Raises `_Lost`."""
        await self._note(changes, self.lease_seconds)

    async def let_go(self) -> None:
        with suppress(Unavailable, _Lost):
            await self._note({}, 0)

    async def _note(self, changes: Mapping[str, Any], lease_seconds: int) -> None:
        arguments = {"id": self.row["id"], "worker": self.worker, "changes": changes, "lease_seconds": lease_seconds}
        told = await database.call(self.db, "note_fine_tune", arguments)
        if told["outcome"] != "noted":
            raise _Lost
        self.row |= told


# --- what a job is made of -------------------------------------------------------------------------------------------


def _open(clients: Clients, provider: str) -> tuple[Trainer, Api]:
    """Raises `InvalidRequest` for a provider that trains nothing from here, `Misconfigured` without its settings."""
    row, trainer = routing.known_providers(clients.settings).get(provider), TRAINERS.get(provider)
    if row is None or trainer is None or row.tuning_url is None:
        raise InvalidRequest(f"provider: {provider} fine-tunes nothing from here: give its row a tuning_url.")
    if trainer.needs_namespace and not clients.settings.huggingface_namespace:
        raise Misconfigured("Missing settings: HUGGINGFACE_NAMESPACE, whose data sets, jobs and models they are.")
    key_name = f"{provider.upper()}_API_KEY"
    return trainer, Api(clients.http, trainer.title, row.tuning_url, provider_key(provider), key_name)


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


def _file(clients: Clients, export_id: int, kept: Mapping[str, Any]) -> File:
    """A file as it is read from Storage, from its beginning whenever that is asked for."""
    folder = Storage(clients.settings, clients.http).destination(f"datasets/{export_id}")

    def chunks() -> Iterator[bytes]:
        [remote] = sources.find(f"s3://{folder.bucket}/{folder.key(kept['path'])}", folder.s3)
        if remote.size != kept["sizeBytes"]:
            raise Conflict(f"{kept['path']} is no longer what was exported: export anew.")
        yield from remote.chunks(0, remote.size)

    return File(kept["split"], kept["rows"], kept["sizeBytes"], kept["sha256"], chunks)


def _order(clients: Clients, row: Mapping[str, Any]) -> Order:
    return Order(
        reference=row["reference"],
        namespace=clients.settings.huggingface_namespace,
        base_model=row["base_model"],
        model_name=row["model_name"],
        method=row["method"],
        params=row["params"],
    )


def _name(base_model: str) -> str:
    """A base model's name as a model of the registry has it."""
    kept = re.sub(r"[^a-z0-9]+", "-", base_model.rpartition("/")[2].lower()).strip("-")[:100]
    return kept.strip("-") or "fine-tuned"


def _version(row: Mapping[str, Any]) -> str:
    """What a job's version is called where nobody says: the same one however often it is deployed."""
    return f"job-{row['id']}"


def _moment(told: str | None) -> datetime:
    """The provider's moment, or now where it has none."""
    with suppress(ValueError):
        found = datetime.fromisoformat(told or "")
        return found if found.tzinfo else found.replace(tzinfo=UTC)
    return datetime.now(UTC)
