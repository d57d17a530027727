"""Erasure: a user's conversations and training rows go, and whatever was made of them is found."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field

from shared import database, exports, fine_tuning
from shared.clients import Clients
from shared.errors import GatewayError
from shared.exports import Status
from shared.models import Deadline
from shared.storage import Storage
from shared.telemetry import logger
from shared.wire import Wire

ERASE_SECONDS = 60


class Erase(Wire):
    """Whose rows are to go."""

    user_id: Annotated[int, Field(ge=1, le=2**63 - 1)]


class ErasedExport(Wire):
    """An export that had the user's rows, and the one without them in its place."""

    export_id: int
    replaced_by: int
    status: Status


class ErasedModel(Wire):
    """A version that was trained on the user's rows."""

    model_name: str
    version: str


class ErasedJob(Wire):
    """A fine-tune job that was given the user's rows, and whether its provider has deleted the files."""

    id: int
    provider: str
    provider_job_id: str | None
    status: str
    files_deleted: bool


class Erased(Wire):
    """What was removed, where it had gone, and what no deletion reaches."""

    user_id: int
    conversations: int
    training_data: int
    exports: list[ErasedExport]
    models: list[ErasedModel]
    jobs: list[ErasedJob]
    cannot_be_undone: list[str]


async def erase(clients: Clients, user_id: int, actor: str, deadline: Deadline) -> Erased:
    """Remove a user's conversations and training rows, and write each export that had any of them anew.

    Turns of his that are under way end: their answers aren't kept.

    The exports are written as far as the time allows, by a worker otherwise; their old files go when the new are there.
    """
    Storage(clients.settings, clients.http).destination("")  # without its settings nothing is begun
    db = database.as_gateway(clients.http, clients.settings)
    await database.call(db, "erase_open_turns", {"user_id": user_id})
    erased = {"user_id": user_id, "actor": actor}
    told = await database.call(db, "erase_training_user", erased, ERASE_SECONDS)
    for gone in told["replaced"]:  # whoever finished its successor may have been stopped before he could
        await exports.remove(clients, gone["id"])
    for each in told["exports"]:
        if clients.settings.export_queue_url:
            await exports.hand_over(clients, each["replaced_by"])
        else:
            await exports.do_what_can_be(clients, each["replaced_by"], deadline)
    after = [await exports.read(clients, each["replaced_by"]) for each in told["exports"]]
    jobs = [await _erased_job(clients, job) for job in told["jobs"]]
    return Erased(
        user_id=user_id,
        conversations=told["conversations"],
        training_data=told["training_data"],
        exports=[
            ErasedExport(export_id=each["id"], replaced_by=each["replaced_by"], status=now.status)
            for each, now in zip(told["exports"], after, strict=True)
        ],
        models=[ErasedModel(**model) for model in told["models"]],
        jobs=jobs,
        cannot_be_undone=_cannot_be_undone(told, jobs),
    )


async def _erased_job(clients: Clients, job: Mapping[str, Any]) -> ErasedJob:
    """Whatever has been removed of a job that was uploading, a file may have been under way that nobody has noted."""
    try:
        await fine_tuning.remove_files(clients, job["id"])
        deleted = job["status"] != "uploading"
    except GatewayError as error:
        logger.warning("a provider keeps its files", extra={"jobId": job["id"], "reason": error.message})
        deleted = False
    told = {name: job[name] for name in ("id", "provider", "provider_job_id", "status")}
    return ErasedJob(**told, files_deleted=deleted)


def _cannot_be_undone(told: Mapping[str, Any], jobs: Sequence[ErasedJob]) -> list[str]:
    said = []
    if told["models"]:
        names = ", ".join(f"{model['model_name']} {model['version']}" for model in told["models"])
        said.append(f"The weights of {names} have learned from these rows: retire them, or train them anew.")
    for job in jobs:
        if not job.files_deleted:
            said.append(f"{job.provider} keeps the files of job {job.provider_job_id or job.id}: delete them there.")
        if job.status in ("uploading", "training"):
            said.append(f"Job {job.id} at {job.provider} is still learning from these rows: cancel it there.")
        elif job.status == "deploying":
            said.append(f"Job {job.id} at {job.provider} has learned from these rows: delete its model there.")
    if told["exports"]:
        said.append("Copies that somebody has downloaded are out of reach.")
    return said
