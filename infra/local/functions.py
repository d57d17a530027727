"""Every function of `functions/` in one ASGI app, each at `/functions/v1/<name>` and `/<name>`."""

from importlib import import_module
from pathlib import Path

from fastapi import APIRouter
from starlette.types import ASGIApp, Receive, Scope, Send

from shared import web

ROUTE = "/functions/v1"
FOLDER = Path(__file__).parents[2] / "functions"


def create() -> ASGIApp:
    """What uvicorn serves; a path that names no function gets the functions' own 404."""
    apps = {file.parent.name.replace("_", "-"): _app(file.parent.name) for file in FOLDER.glob("*/handler.py")}
    unknown = web.create_app("unknown", APIRouter())

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        name = scope["path"].removeprefix(ROUTE).strip("/").partition("/")[0]
        await apps.get(name, unknown)(scope, receive, send)

    return serve


def _app(module: str) -> ASGIApp:
    app: ASGIApp = import_module(f"functions.{module}.handler").app
    return app
