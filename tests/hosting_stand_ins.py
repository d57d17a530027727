"""Stand-ins for the hosting APIs of Hugging Face and RunPod on loopback, as strict as the documented ones."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

Body = dict[str, Any]
KEY = "hosting-key-made-up"
HARDWARE = ("nvidia-l4", "x1"), ("nvidia-l4", "x4")
COMMIT = "11c5a3d5811f50298f278a704980280950aedb10"
# Of RunPod's CreateEndpointRequest and UpdateEndpointRequest, whose other fields are refused.
CREATED = {
    *("name", "type", "scaling", "gpu", "cpu", "templateId", "env", "image", "args", "disk", "ports", "registry"),
    *("dataCenterIds", "flashboot", "networkVolumes", "timeout", "workers"),
}
UPDATED = CREATED - {"type"}


@dataclass(slots=True)
class Hosting:
    """What both have: the endpoints by their names, what was asked, and answers to give instead, each once."""

    endpoints: dict[str, Body] = field(default_factory=dict)
    asked: list[tuple[str, str, Body]] = field(default_factory=list)
    instead: list[Response] = field(default_factory=list)

    @property
    def calls(self) -> list[str]:
        """What was asked for, in its order."""
        return [f"{method} {path}" for method, path, _ in self.asked]

    async def note(self, request: Request) -> Body:
        body = await request.body()
        sent: Body = await request.json() if body else {}
        self.asked.append((request.method, request.url.path, sent))
        return sent


@dataclass(slots=True)
class HuggingFace(Hosting):
    """Inference Endpoints: one that is made is pending, and `state` is what becomes of it with the next look."""

    state: str = "running"
    url: str | None = "https://vksrvs8pc1xnifhq.us-east-1.aws.endpoints.huggingface.cloud"

    def app(self) -> ASGIApp:
        return Starlette(
            routes=[
                Route("/v2/endpoint/{namespace}", self.create, methods=["POST"]),
                Route("/v2/endpoint/{namespace}/{name}", self.one, methods=["GET", "PUT"]),
            ]
        )

    async def create(self, request: Request) -> Response:
        body = await self.note(request)
        if refused := self._refused(request):
            return refused
        name, image = body["name"], body["model"]["image"]
        if not re.fullmatch(r"[a-z][a-z0-9-]{0,30}[a-z0-9]", name):
            return JSONResponse({"error": f"Invalid endpoint name '{name}'"}, 400)
        if name in self.endpoints:
            return JSONResponse({"error": f"Endpoint '{name}' already exists"}, 409)
        if refused := self._without_hardware(body["compute"], body["provider"]):
            return refused
        assert set(body) == {"name", "type", "provider", "compute", "model"}
        assert set(body["compute"]) == {"accelerator", "instanceType", "instanceSize", "scaling"}
        assert list(image) == ["vLLM"] and image["vLLM"]["url"]
        model = {"revision": COMMIT, **body["model"]}
        self.endpoints[name] = {**body, "model": model, "healthRoute": "/health", "status": self._status("pending")}
        return JSONResponse(self.endpoints[name], 200)

    async def one(self, request: Request) -> Response:
        body, name = await self.note(request), request.path_params["name"]
        if refused := self._refused(request):
            return refused
        if name not in self.endpoints:
            return JSONResponse({"error": "Endpoint not found"}, 404)
        endpoint = self.endpoints[name]
        if request.method == "GET":
            endpoint["status"] = self._status(self.state)
            return JSONResponse(endpoint)
        if refused := self._without_hardware(endpoint["compute"] | body.get("compute", {}), endpoint["provider"]):
            return refused
        for part in ("compute", "model"):
            endpoint[part] |= body.get(part, {})
        endpoint["status"] = self._status("updating")
        return JSONResponse(endpoint)

    def _refused(self, request: Request) -> Response | None:
        if request.headers.get("authorization") != f"Bearer {KEY}":
            return JSONResponse({"error": "Invalid credentials in Authorization header"}, 401)
        return self.instead.pop(0) if self.instead else None

    def _without_hardware(self, compute: Body, provider: Body) -> Response | None:
        if (compute["instanceType"], compute["instanceSize"]) in HARDWARE:
            return None
        told = f"'{compute['instanceType']}' - '{compute['instanceSize']}' in '{provider['vendor']}'"
        return JSONResponse({"error": f"Instance compute 'Gpu' - {told} - '{provider['region']}' not found"}, 400)

    def _status(self, state: str) -> Body:
        by = {"id": "6273f303f6d63a28483fde12", "name": "acme"}
        at = "2026-10-26T12:41:53.263Z"
        status = {"createdAt": at, "createdBy": by, "updatedAt": at, "updatedBy": by, "private": None, "state": state}
        counts = {"message": "Endpoint is ready", "readyReplica": 1, "targetReplica": 1}
        has_url = self.url and state not in ("pending", "initializing", "failed", "paused")
        return status | counts | ({"url": self.url} if has_url else {})


@dataclass(slots=True)
class RunPod(Hosting):
    """Serverless endpoints, by version 2 of the API; a template gives an endpoint its image and more of its env."""

    templates: Sequence[str] = ("30zmvf89kd",)

    def app(self) -> ASGIApp:
        return Starlette(
            routes=[
                Route("/v2/serverless", self.all, methods=["GET", "POST"]),
                Route("/v2/serverless/{id}", self.update, methods=["PATCH"]),
            ]
        )

    async def all(self, request: Request) -> Response:
        body = await self.note(request)
        if refused := self._refused(request):
            return refused
        if request.method == "GET":
            return JSONResponse({"endpoints": list(self.endpoints.values())})
        if refused := self._invalid(body, CREATED, ("name", "type", "scaling")):
            return refused
        if ("gpu" in body) == ("cpu" in body):
            return problem(400, "Bad Request", "exactly one of gpu and cpu is required")
        number = len(self.endpoints)
        endpoint = {**body, "id": f"4m7x2k9q{number}", "env": {"MAX_MODEL_LEN": "4096", **body["env"]}}
        endpoint |= {"image": "runpod/worker-v1-vllm:v2.7.0", "workers": {"min": 0, "max": 3}, "flashboot": "OFF"}
        endpoint.pop("templateId")
        self.endpoints[body["name"]] = endpoint
        return JSONResponse(endpoint, 201)

    async def update(self, request: Request) -> Response:
        body = await self.note(request)
        if refused := self._refused(request) or self._invalid(body, UPDATED, ()):
            return refused
        endpoint = next(row for row in self.endpoints.values() if row["id"] == request.path_params["id"])
        endpoint["env"] = {"MAX_MODEL_LEN": "4096", **body["env"]}
        return JSONResponse(endpoint)

    def _refused(self, request: Request) -> Response | None:
        if request.headers.get("authorization") != f"Bearer {KEY}":
            return problem(401, "Unauthorized", "missing bearer token")
        return self.instead.pop(0) if self.instead else None

    def _invalid(self, body: Body, allowed: set[str], required: Sequence[str]) -> Response | None:
        strange = [f"$: additional properties '{name}' not allowed" for name in body if name not in allowed]
        strange += [f"$: missing property '{name}'" for name in required if name not in body]
        if strange:
            return problem(422, "Unprocessable Entity", "Request validation failed.", errors=strange)
        if body["templateId"] not in self.templates:
            return problem(404, "Not Found", "template not found")
        return None


def problem(status: int, title: str, detail: str, **more: Any) -> Response:
    """An error as RunPod words it, by RFC 9457."""
    body = {"title": title, "status": status, "detail": detail, **more}
    return JSONResponse(body, status, media_type="application/problem+json")
