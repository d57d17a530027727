"""deploy-model: a fine-tuned model's files into Storage, a version into the registry, users to it, and back."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from functions.deploy_model import events, figures, traffic
from shared import deferred, deployments, registry, storage, web
from shared.deployments import Deploy, Deployment
from shared.invocations import Handler
from shared.registry import Name, Version, Versions, VersionWithHistory
from shared.storage import SignedDownloads
from shared.web import ActorOf, ClientsOf, GatewaysDatabaseOf, Prefer

router = APIRouter()
router.include_router(traffic.router)
router.include_router(figures.router)
ModelName = Annotated[Name | None, Query(alias="modelName")]


@router.post("", status_code=202)
async def deploy(
    body: Deploy, request: Request, response: Response, clients: ClientsOf, actor: ActorOf, prefer: Prefer = None
) -> Deployment:
    """Deploy a version: 201 when its files are there, else 202; the same request again goes on."""
    deadline = web.deadline(request, clients.settings.request_timeout_seconds)
    in_background = deferred.wait_seconds(prefer) is not None
    done = await deployments.begin(clients, body, actor, deadline, in_background)
    response.status_code = 201 if done.model.status == "ready" else 202
    response.headers["location"] = f"{request.url.path.rstrip('/')}/{done.model.model_name}/{done.model.version}"
    return done


@router.post("/{model_name}/{version}/finalize")
async def finalize(
    model_name: Name, version: Name, request: Request, response: Response, clients: ClientsOf, _: ActorOf
) -> Version:
    """Check the files that were uploaded: 200 when the version is ready, 202 while they are read."""
    deadline = web.deadline(request, clients.settings.request_timeout_seconds)
    found = await deployments.finalize(clients, model_name, version, deadline)
    response.status_code = 200 if found.status == "ready" else 202
    return found


@router.get("")
async def list_models(_: ActorOf, db: GatewaysDatabaseOf, name: ModelName = None) -> Versions:
    """All versions, or those of one name, the newest first."""
    return Versions(models=await registry.versions(db, name))


@router.get("/{model_name}/{version}")
async def read_version(model_name: Name, version: Name, _: ActorOf, db: GatewaysDatabaseOf) -> VersionWithHistory:
    """One version, and what was done with it."""
    return await registry.version_with_history(db, model_name, version)


@router.get("/{model_name}/{version}/url")
async def read_urls(
    model_name: Name, version: Name, _: ActorOf, clients: ClientsOf, db: GatewaysDatabaseOf
) -> SignedDownloads:
    """Addresses of the version's files, for five minutes."""
    paths = await registry.paths(db, model_name, version)
    return await storage.Storage(clients.settings, clients.http).sign_downloads(f"{model_name}/{version}", paths)


@router.delete("/{model_name}/{version}")
async def delete(
    model_name: Name, version: Name, clients: ClientsOf, actor: ActorOf, db: GatewaysDatabaseOf
) -> dict[str, str]:
    """Delete a version that has no users, and its files; its name is never given again."""
    await deployments.delete(clients, db, model_name, version, actor)
    return {"modelName": model_name, "version": version}


app = web.create_app("deploy-model", router)
handler = Handler(app, events.consume, events.occurred, deployments.WORKER)
