"""A fine-tune job's course: whoever takes it up brings it as far as it goes.

A job is its row, which a worker has to himself for as long as he is heard of. It goes

    uploading    the files are sent, and the job is started
    training     the provider has it
    deploying    the model is registered
    ready, failed, cancelled

and whoever takes it up goes on from there. A file or a job that the provider has and that nobody could write down is
found again by the row's `reference`: in files' names, in OpenAI's metadata, in Hugging Face's labels; at Together by
the job's training file. Only where a provider's list lacks a job that was started a moment ago is it started twice.
"""

from collections.abc import Awaitable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar
from uuid import uuid4

from postgrest import AsyncPostgrestClient

from shared import database, deployments, registry, routing, sources
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
from shared.exports import WORKER
from shared.models import Deadline
from shared.registry import Version
from shared.settings import key_name, provider_key
from shared.storage import Storage
from shared.telemetry import count_failure, logger
from shared.trainers import huggingface, openai, together
from shared.trainers.api import Api, File, Order, Progress, Trainer

Answer = TypeVar("Answer")
TRAINERS: dict[str, Trainer] = {
    "together": together.TRAINER,
    "openai": openai.TRAINER,
    "huggingface": huggingface.TRAINER,
}
LEASE_SECONDS = 60
TRIES = 20  # at sending the files: some hours
GARBAGE = (AttributeError, LookupError, TypeError, ValueError)
# Of what a trainer pushes, no part of a model; the second is a pickle.
LEFT_OUT = (".gitattributes", "training_args.bin")


async def advance(clients: Clients, job_id: int, seconds: float) -> None:
    """Take a job in hand and bring it as far as it goes; a failure that can't be mended ends it.

    Raises `TransferRunning` where somebody else has it, `Unavailable` and, once the provider has it, `Misconfigured`.
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
        count_failure(WORKER, error)
    else:
        await hold.let_go()


def _failure(row: Mapping[str, Any], error: GatewayError) -> str | None:
    """What ends a job; None for what may pass, as a wrong key does once the provider has the job."""
    if not error.retryable:
        may_pass = isinstance(error, Misconfigured) and row["status"] in ("training", "deploying")
        return None if may_pass else error.message
    if row["status"] == "uploading" and row["tries"] >= TRIES:
        reason = (
            "The time of a run is too short for its files." if isinstance(error, DeadlineExceeded) else error.message
        )
        return f"It could not be begun in {TRIES} tries. {reason}"
    return None


async def _go_on(clients: Clients, hold: "_Hold", deadline: Deadline) -> None:
    trainer, api = opened(clients, hold.row["provider"])
    order = _order(clients, hold.row)
    if hold.row["status"] == "uploading":
        await _send(clients, hold, trainer, api, order)
    if hold.row["status"] == "training":
        await _look(hold, trainer, api, order)
    if hold.row["status"] == "deploying" and deadline.remaining() > deployments.NOTE_SECONDS:
        await _deploy(clients, hold, deadline)


async def _send(clients: Clients, hold: "_Hold", trainer: Trainer, api: Api, order: Order) -> None:
    """Send the files that aren't noted yet and start the job, once; if it is ended meanwhile, none stays there."""
    if hold.row["export_status"] != "ready":
        raise Conflict(f"Export {hold.row['export_id']} is {hold.row['export_status']} by now: fine-tune a ready one.")
    sent: list[str] = []
    try:
        for kept in hold.row["files"]:
            if kept["split"] not in hold.row["provider_files"]:
                name = await _told(api, trainer.send(api, order, _file(clients, hold.row["export_id"], kept)))
                sent.append(name)
                await hold.note_file(kept["split"], name)
        files = hold.row["provider_files"]
        if None in files.values():
            raise Conflict("Its files have been removed: begin it anew.")
        found = await _told(api, trainer.find(api, order, files))
        job_id = found or await _told(api, trainer.start(api, order, files))
        await hold.note(status="training", provider_job_id=job_id)
    except _Lost:
        if await hold.is_ended():  # or else they are another worker's, who has found them there
            await _take_back(trainer, api, hold.row["id"], sent)
        raise


async def _take_back(trainer: Trainer, api: Api, job_id: int, names: Iterable[str]) -> None:
    for name in names:
        try:
            await trainer.remove(api, name)
        except GatewayError as error:
            extra = {"jobId": job_id, "file": name, "reason": error.message}
            logger.error("a provider keeps a file of a job that was ended", extra=extra)


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
        version=row["version"] or version_name(row),
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

    async def note_file(self, split: str, name: str) -> None:
        """What a file is called there, beside the others as they stand by now: some may have been removed.

        Raises `_Lost`.
        """
        now = await self._read()
        await self.note(provider_files={**now.get("provider_files", {}), split: name})

    async def is_ended(self) -> bool:
        """Whether nothing is to come of it any more."""
        return (await self._read()).get("status") in ("failed", "cancelled")

    async def let_go(self) -> None:
        with suppress(Unavailable, _Lost):
            await self._note({}, 0)

    async def _read(self) -> dict[str, Any]:
        row: dict[str, Any] = await database.call(self.db, "read_fine_tune", {"id": self.row["id"]})
        return row

    async def _note(self, changes: Mapping[str, Any], lease_seconds: int) -> None:
        arguments = {"id": self.row["id"], "worker": self.worker, "changes": changes, "lease_seconds": lease_seconds}
        told = await database.call(self.db, "note_fine_tune", arguments)
        if told["outcome"] != "noted":
            raise _Lost
        self.row |= told


def opened(clients: Clients, provider: str) -> tuple[Trainer, Api]:
    """Raises `InvalidRequest` for a provider that trains nothing from here, `Misconfigured` without its settings."""
    row, trainer = routing.known_providers(clients.settings).get(provider), TRAINERS.get(provider)
    if row is None or trainer is None or row.tuning_url is None:
        raise InvalidRequest(f"provider: {provider} fine-tunes nothing from here: give its row a tuning_url.")
    if trainer.needs_namespace and not clients.settings.huggingface_namespace:
        raise Misconfigured("Missing settings: HUGGINGFACE_NAMESPACE, whose data sets, jobs and models they are.")
    return trainer, Api(clients.http, trainer.title, row.tuning_url, provider_key(provider), key_name(provider))


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


def version_name(row: Mapping[str, Any]) -> str:
    """What a job's version is called where nobody says: the same one however often it is deployed."""
    return f"job-{row['id']}"


def _moment(told: str | None) -> datetime:
    """The provider's moment, or now where it has none."""
    with suppress(ValueError):
        found = datetime.fromisoformat(told or "")
        return found if found.tzinfo else found.replace(tzinfo=UTC)
    return datetime.now(UTC)
