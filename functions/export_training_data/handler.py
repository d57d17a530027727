"""export-training-data: what users liked as clean training files, the jobs that learn from them, and erasure."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response

from functions.export_training_data import events, fine_tunes
from shared import deferred, erasure, exports, web
from shared.erasure import Erase, Erased
from shared.exports import Export, Exported, Exports
from shared.invocations import Handler
from shared.storage import SignedDownloads
from shared.web import ActorOf, ClientsOf, Prefer

router = APIRouter()
router.include_router(fine_tunes.router)
ExportId = Annotated[int, Path(ge=1, le=2**63 - 1)]
After = Annotated[int | None, Query(ge=1, le=2**63 - 1)]


@router.post("", status_code=202)
async def export(
    request: Request,
    response: Response,
    clients: ClientsOf,
    actor: ActorOf,
    body: Export | None = None,
    prefer: Prefer = None,
) -> Exported:
    """Export: 201 when the files are there, else 202; the same request again goes on."""
    deadline = web.deadline(request, clients.settings.request_timeout_seconds)
    in_background = deferred.wait_seconds(prefer) is not None
    done = await exports.begin(clients, body or Export(), actor, deadline, in_background)
    response.status_code = 201 if done.status == "ready" else 202
    response.headers["location"] = f"{request.url.path.rstrip('/')}/{done.export_id}"
    return done


@router.get("")
async def list_exports(clients: ClientsOf, _: ActorOf, after: After = None) -> Exports:
    """The newest hundred, or those before `after`."""
    return await exports.page(clients, after)


@router.post("/erase")
async def erase(body: Erase, request: Request, clients: ClientsOf, actor: ActorOf) -> Erased:
    """Remove a user's rows, here and from the files of every export."""
    deadline = web.deadline(request, clients.settings.request_timeout_seconds)
    return await erasure.erase(clients, body.user_id, actor, deadline)


@router.get("/{export_id}")
async def read_export(export_id: ExportId, clients: ClientsOf, _: ActorOf) -> Exported:
    """One export, however far it is."""
    return await exports.read(clients, export_id)


@router.get("/{export_id}/urls")
async def read_urls(export_id: ExportId, clients: ClientsOf, _: ActorOf) -> SignedDownloads:
    """Addresses of the export's files, for five minutes."""
    return await exports.sign(clients, export_id)


app = web.create_app("export-training-data", router)
handler = Handler(app, events.consume, events.occurred, exports.WORKER)
