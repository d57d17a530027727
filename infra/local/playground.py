"""The playground: the page's files, its vendor modules, and where it finds its project.

python -m infra.local.playground SUPABASE_URL PUBLISHABLE_KEY [FUNCTIONS_URL] puts all of it into .local/playground, for
any static host.
"""

import json
import re
import shutil
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
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
NOT_SERVED = ("README.md", "tsconfig.json", "*.d.ts", "*.png")
POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' data:",
    "base-uri": "'none'",
    "form-action": "'none'",
    "require-trusted-types-for": "'script'",
    "trusted-types": "dompurify",
}
HOST = re.compile(r"[\w.-]+(:\d+)?")
HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


def main() -> None:
    """Write the page for the project that the arguments name."""
    if len(sys.argv) not in (3, 4) or not all(sys.argv[1:3]):
        sys.exit("usage: python -m infra.local.playground SUPABASE_URL PUBLISHABLE_KEY [FUNCTIONS_URL]")
    folder = ROOT / ".local/playground"
    write(folder, *sys.argv[1:])
    print(f"{folder.relative_to(ROOT)} holds the page: serve it from any static host.")


def write(folder: Path, supabase_url: str, publishable_key: str, functions_url: str | None = None) -> None:
    """The page into `folder`, whatever was there, with its policy in its head: it talks to these origins alone."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(PAGE, folder, ignore=shutil.ignore_patterns(*NOT_SERVED))
    (folder / "vendor").mkdir()
    for name, path in VENDOR.items():
        shutil.copyfile(ROOT / "node_modules" / path, folder / "vendor" / name)
    functions_url = functions_url and functions_url.rstrip("/")
    told = {"supabaseUrl": supabase_url.rstrip("/"), "publishableKey": publishable_key, "functionsUrl": functions_url}
    (folder / "config.js").write_text(f"export default {json.dumps(told)}\n")
    origins = dict.fromkeys(_origin(url) for url in (supabase_url, functions_url) if url)
    live = _origin(supabase_url).replace("http", "ws", 1)
    index = folder / "index.html"
    policy = _policy(*origins, live)
    meta = f'<meta charset="utf-8">\n    <meta http-equiv="Content-Security-Policy" content="{policy}">'
    index.write_text(index.read_text().replace('<meta charset="utf-8">', meta))


def _policy(*origins: str) -> str:
    """The policy of a page that also talks to these origins."""
    directives = POLICY | {"connect-src": " ".join(["'self'", *origins])}
    return "; ".join(f"{name} {sources}" for name, sources in directives.items())


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


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
        host = Headers(scope=scope).get("host", "")
        # Not every browser counts them among 'self'.
        sockets = [f"ws://{host}", f"wss://{host}"] if HOST.fullmatch(host) else []
        policy = f"{_policy(*sockets)}; frame-ancestors 'none'"  # which no page can say of itself

        async def add(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS | {"content-security-policy": policy})
            await send(message)

        await app(scope, receive, add)

    return guarded


if __name__ == "__main__":
    main()
