"""The functions while somebody edits them: what can't be loaded is said in every answer, until the next edit."""

import traceback
from importlib import import_module

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

CORS = Middleware(CORSMiddleware, allow_origins=["*"], allow_methods=["*"], allow_headers=["*"])


def create() -> ASGIApp:
    """What uvicorn reloads. Alone it would end at an import that fails, with its port left open and silent."""
    try:
        app: ASGIApp = import_module("infra.local.functions").create()
    except Exception as error:
        traceback.print_exc()  # into the functions' log
        return _explaining(f"The functions can't be loaded: {type(error).__name__}: {error}")
    return app


def _explaining(reason: str) -> ASGIApp:
    async def explain(_request: Request) -> Response:
        return JSONResponse({"error": reason, "code": "internal", "requestId": "", "retryable": False}, 500)

    return Starlette(routes=[Route("/{path:path}", explain, methods=["GET", "POST"])], middleware=[CORS])
