"""deploy-model: a fine-tuned model's files into Storage, a version into the registry, users to it, and back."""

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response

from functions.deploy_model import events
from shared import activation, deferred, deployments, registry, storage, web
from shared.activation import Activate, Activated, Checked, Evaluating
from shared.deployments import Deploy, Deployment
from shared.registry import Name, Step, Traffic, Version
from shared.web import ActorOf, ClientsOf, GatewaysDatabaseOf
from shared.wire import Wire

router = APIRouter()
Prefer = Annotated[str | None, Header(max_length=255)]
URL_SECONDS = 300


class Why(Wire):
    """What the history is to say of a step."""

    reason: deployments.Text | None = None


class VersionWithHistory(Version):
    """A version, and what was done with it, the newest first."""

    history: list[Step]


@router.post("", status_code=202)
async def deploy(
    body: Deploy, request: Request, response: Response, clients: ClientsOf, actor: ActorOf, prefer: Prefer = None
) -> Deployment:
    """Deploy a version: 201 when its files are there, else 202; the same request again goes on."""
    in_background = deferred.wait_seconds(prefer) is not None
    deadline = web.deadline(request, clients.settings.request_timeout_seconds)
    done = await deployments.begin(clients, body, actor, deadline, in_background)
    response.status_code = 201 if done.model.status == "ready" else 202
    response.headers["location"] = f"{request.url.path.rstrip('/')}/{done.model.model_name}/{done.model.version}"
    return done


@router.get("")
async def list_models(
    _: ActorOf, db: GatewaysDatabaseOf, name: Annotated[Name | None, Query(alias="modelName")] = None
) -> dict[str, list[Version]]:
    """All versions, or those of one name, the newest first."""
    return {"models": await registry.versions(db, name)}


@router.post("/canaries")
async def check_canaries(clients: ClientsOf, actor: ActorOf) -> dict[str, list[Checked]]:
    """Weigh every canary now, as the schedule does."""
    return {"decisions": await activation.check_canaries(clients, actor)}


@router.get("/{model_name}/{version}")
async def read_version(model_name: Name, version: Name, _: ActorOf, db: GatewaysDatabaseOf) -> VersionWithHistory:
    """One version with its history."""
    found = await registry.version(db, model_name, version)
    return VersionWithHistory(**dict(found), history=await registry.history(db, model_name, version))


@router.get("/{model_name}/{version}/url")
async def read_urls(
    model_name: Name, version: Name, _: ActorOf, clients: ClientsOf, db: GatewaysDatabaseOf
) -> dict[str, Any]:
    """Addresses of the version's files, for five minutes."""
    found = await registry.version(db, model_name, version)
    if found.status != "ready":
        raise registry.not_ready(version, found.status)
    bucket, folder = storage.Storage(clients.settings, clients.http), f"{model_name}/{version}"
    paths = [file["path"] for file in found.files or []]
    urls = [{"path": path, "url": await bucket.sign_download(folder, path, URL_SECONDS)} for path in paths]
    return {"files": urls, "expiresIn": URL_SECONDS}


@router.post("/{model_name}/{version}/finalize")
async def finalize(
    model_name: Name, version: Name, request: Request, response: Response, clients: ClientsOf, _: ActorOf
) -> Version:
    """Check the files that were uploaded: 200 when the version is ready, 202 while they are read."""
    deadline = web.deadline(request, clients.settings.request_timeout_seconds)
    found = await deployments.finalize(clients, model_name, version, deadline)
    response.status_code = 200 if found.status == "ready" else 202
    return found


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
async def roll_back(model_name: Name, actor: ActorOf, db: GatewaysDatabaseOf, body: Why | None = None) -> Traffic:
    """Take back the canary, or without one the active version."""
    return await registry.roll_back(db, model_name, actor, body.reason if body else None)


@router.delete("/{model_name}/{version}")
async def delete(
    model_name: Name, version: Name, clients: ClientsOf, actor: ActorOf, db: GatewaysDatabaseOf
) -> dict[str, str]:
    """Delete a version that has no users, and its files."""
    found = await registry.version(db, model_name, version)
    await registry.delete(db, model_name, version, actor)
    await deployments.remove_files(clients, found)
    return {"modelName": model_name, "version": version}


app = web.create_app("deploy-model", router)
handler: Any = web.create_handler(app, events.consume, events.occurred)
