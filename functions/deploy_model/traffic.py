"""deploy-model's routes for who asks which version: hosting, the gate, canaries, rollbacks."""

from fastapi import APIRouter, Request, Response

from shared import activation, deferred, registry, web
from shared.activation import Activate, Activated, Checks, Evaluating, Host, HostedVersion
from shared.registry import Name, Rollback, Traffic
from shared.web import ActorOf, ClientsOf, GatewaysDatabaseOf, Prefer

router = APIRouter()


@router.post("/{model_name}/{version}/host")
async def host(
    model_name: Name, version: Name, body: Host, response: Response, clients: ClientsOf, _: ActorOf
) -> HostedVersion:
    """Have the version's provider serve it: 202 until it does; the same request again looks how it stands."""
    hosted = await activation.host(clients, model_name, version, body)
    response.status_code = 202 if hosted.status == "starting" else 200
    return hosted


@router.post("/{model_name}/{version}/activate")
async def activate(
    model_name: Name,
    version: Name,
    request: Request,
    response: Response,
    clients: ClientsOf,
    actor: ActorOf,
    body: Activate | None = None,
    prefer: Prefer = None,
) -> Activated | Evaluating:
    """Let the version have users, if it passes the gate: all of them, or as a canary the share that `weight` says."""
    trace, deadline = web.trace(request), web.deadline(request, clients.settings.request_timeout_seconds)
    how, in_background = body or Activate(), deferred.wait_seconds(prefer) is not None
    done = await activation.activate(clients, model_name, version, how, actor, deadline, trace, in_background)
    response.status_code = 202 if isinstance(done, Evaluating) else 200
    return done


@router.post("/{model_name}/rollback")
async def roll_back(model_name: Name, actor: ActorOf, db: GatewaysDatabaseOf, body: Rollback | None = None) -> Traffic:
    """Take back the canary, or without one the active version."""
    told = body or Rollback()
    return await registry.roll_back(db, model_name, actor, told.reason, version=told.version)


@router.post("/canaries")
async def check_canaries(clients: ClientsOf, actor: ActorOf) -> Checks:
    """Weigh every canary now, as the schedule does."""
    return Checks(decisions=await activation.check_canaries(clients, actor))
