"""export-training-data's routes for fine-tune jobs on an export; they stand before those of one export."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response

from shared import exports, fine_tuning, web
from shared.fine_tuning import FineTune, Job, Jobs
from shared.web import ActorOf, ClientsOf, GatewaysDatabaseOf

router = APIRouter()
Id = Annotated[int, Path(ge=1, le=2**63 - 1)]
AnId = Annotated[int | None, Query(ge=1, le=2**63 - 1)]
ExportId = Annotated[int | None, Query(alias="exportId", ge=1, le=2**63 - 1)]


@router.post("/{export_id}/fine-tune", status_code=202)
async def start(
    export_id: Id,
    body: FineTune,
    request: Request,
    response: Response,
    clients: ClientsOf,
    actor: ActorOf,
) -> Job:
    """Begin a fine-tune job on the export's files; the same request again gives the same job."""
    export = await exports.described(clients, export_id)
    deadline = web.deadline(request, clients.settings.request_timeout_seconds)
    job = await fine_tuning.start(clients, export, body, actor, deadline)
    root = request.url.path.partition(f"/{export_id}/")[0]
    response.headers["location"] = f"{root}/fine-tunes/{job.id}"
    return job


@router.get("/fine-tunes")
async def list_jobs(_: ActorOf, db: GatewaysDatabaseOf, export_id: ExportId = None, before: AnId = None) -> Jobs:
    """Jobs of one export or of all, the newest first."""
    return await fine_tuning.page(db, export_id, before)


@router.get("/fine-tunes/{job_id}")
async def read_job(job_id: Id, _: ActorOf, db: GatewaysDatabaseOf) -> Job:
    """One job, as it stood when it was last looked at."""
    return await fine_tuning.read(db, job_id)


@router.post("/fine-tunes/{job_id}/check")
async def check_job(job_id: Id, request: Request, clients: ClientsOf, _: ActorOf) -> Job:
    """Look at a job now, as the queue's worker and the schedule do."""
    deadline = web.deadline(request, clients.settings.request_timeout_seconds)
    return await fine_tuning.check(clients, job_id, deadline.remaining())
