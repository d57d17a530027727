"""The playground: the page's files, its vendor modules, and where it finds the stack."""

import json
from collections.abc import Awaitable, Callable
from pathlib import Path

from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "infra/playground"
VENDOR = {
    "supabase.js": "@supabase/supabase-js/dist/umd/supabase.js",
    "marked.js": "marked/lib/marked.esm.js",
    "dompurify.js": "dompurify/dist/purify.es.mjs",
    "uplot.js": "uplot/dist/uPlot.esm.js",
    "uplot.css": "uplot/dist/uPlot.min.css",
}
POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' data:",
    "connect-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
    "require-trusted-types-for": "'script'",
    "trusted-types": "dompurify",
}


HEADERS = {
    "content-security-policy": "; ".join(f"{directive} {sources}" for directive, sources in POLICY.items()),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


def routes(publishable_key: str) -> list[BaseRoute]:
    """The page at `/`, to stand behind every other route: a path that is no file of it is not found."""

    async def config(_request: Request) -> Response:
        told = f"export default {{ supabaseUrl: location.origin, publishableKey: {json.dumps(publishable_key)} }}\n"
        return Response(told, media_type="text/javascript")

    files = [
        Route("/config.js", config),
        *(Route(f"/vendor/{name}", _file(ROOT / "node_modules" / path)) for name, path in VENDOR.items()),
        Mount("/", StaticFiles(directory=PAGE, html=True)),
    ]
    return [Mount("/", routes=files, middleware=[Middleware(_guarded)])]


def _file(path: Path) -> Callable[[Request], Awaitable[Response]]:
    media_type = "text/css" if path.suffix == ".css" else "text/javascript"  # .mjs is unknown to older machines

    async def file(_request: Request) -> Response:
        return FileResponse(path, media_type=media_type)

    return file


def _guarded(app: ASGIApp) -> ASGIApp:
    """`app` with the headers of a page that runs nothing but its own files."""

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        async def add(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await app(scope, receive, add)

    return guarded
