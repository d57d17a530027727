"""Stand-ins for the fine-tuning APIs of Together, OpenAI and Hugging Face on loopback, as strict as they document."""

import base64
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from email.parser import BytesParser
from email.policy import HTTP
from typing import Any
from urllib.parse import parse_qsl

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

Body = dict[str, Any]
KEY = "tuning-key-made-up"
BASE_MODELS = ("meta-llama/Meta-Llama-3.1-8B-Instruct-Reference", "gpt-4.1-mini-2025-04-14", "Qwen/Qwen3-0.6B")
COMMIT = "11c5a3d5811f50298f278a704980280950aedb10"
CHAT, PAIRS = {"messages"}, {"input", "preferred_output", "non_preferred_output"}
LFS = "application/vnd.git-lfs+json"
# Of Together's CreateFineTuneRequest and OpenAI's CreateFineTuningJobRequest.
TOGETHERS = {
    *("model", "training_file", "validation_file", "n_epochs", "n_checkpoints", "n_evals", "batch_size", "suffix"),
    *("learning_rate", "lr_scheduler", "warmup_ratio", "max_grad_norm", "weight_decay", "training_type"),
    *("training_method", "from_checkpoint"),
}
OPENAIS = {"model", "training_file", "validation_file", "suffix", "method", "metadata", "seed", "integrations"}


@dataclass(slots=True)
class Training:
    """What all have: files by their ids, jobs, what was asked, and answers to give instead, each once.

    `instead` holds for what begins with its first word, as does what happens `meanwhile`; `state` is what a job is
    found in, with `more` of it.
    """

    origin: str = ""
    files: dict[str, Body] = field(default_factory=dict)
    contents: dict[str, bytes] = field(default_factory=dict)
    jobs: dict[str, Body] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    instead: list[tuple[str, Response]] = field(default_factory=list)
    meanwhile: list[tuple[str, Callable[[], object]]] = field(default_factory=list)
    state: str = ""
    more: Body = field(default_factory=dict)

    def refused(self, request: Request) -> Response | None:
        """Notes what is asked for."""
        call = f"{request.method} {request.url.path}"
        self.asked.append(call)
        if happening := next((each for each in self.meanwhile if call.startswith(each[0])), None):
            self.meanwhile.remove(happening)
            happening[1]()
        if request.headers.get("authorization") != f"Bearer {KEY}":
            return JSONResponse({"error": {"message": f"Incorrect API key provided: {KEY}."}}, 401)
        return self.answer_instead(call)

    def answer_instead(self, call: str) -> Response | None:
        found = next((each for each in self.instead if call.startswith(each[0])), None)
        if found:
            self.instead.remove(found)
        return found[1] if found else None

    def count(self, call: str) -> int:
        return sum(each.startswith(call) for each in self.asked)

    def rows(self, file_id: str) -> list[Body]:
        """A file's lines, as it was sent."""
        return [json.loads(line) for line in self.contents[file_id].decode().splitlines()]

    async def put(self, request: Request) -> Response:
        """An address that was signed: whoever has it needs no key, and S3 takes nothing of unknown length."""
        call = f"PUT {request.url.path}"
        self.asked.append(call)
        if instead := self.answer_instead(call):
            return instead
        if "authorization" in request.headers or request.query_params.get("signature") != "made-up":
            return Response("<Error><Code>InvalidArgument</Code></Error>", 400)
        if "content-length" not in request.headers or "transfer-encoding" in request.headers:
            return Response("<Error><Code>MissingContentLength</Code></Error>", 411)
        content = await request.body()
        assert len(content) == int(request.headers["content-length"])
        name = request.path_params["name"]
        self.contents[name] = content
        return Response(headers={"etag": f'"{hashlib.sha256(content).hexdigest()[:32]}"'})

    def signed(self, name: str) -> str:
        return f"{self.origin}/signed/{name}?signature=made-up"


@dataclass(slots=True)
class Together(Training):
    state: str = "completed"

    def app(self) -> ASGIApp:
        return Starlette(
            routes=[
                Route("/v1/files", self.upload, methods=["POST"]),
                Route("/v1/files", self.list_files),
                Route("/v1/files/{id}", self.delete, methods=["DELETE"]),
                Route("/v1/files/{id}/preprocess", self.preprocess, methods=["POST"]),
                Route("/v1/fine-tunes", self.create, methods=["POST"]),
                Route("/v1/fine-tunes", self.list_jobs),
                Route("/v1/fine-tunes/{id}", self.look),
                Route("/signed/{name:path}", self.put, methods=["PUT"]),
            ]
        )

    async def upload(self, request: Request) -> Response:
        if refused := self.refused(request):
            return refused
        form = dict(parse_qsl((await request.body()).decode(), strict_parsing=True))
        if set(form) != {"purpose", "file_name", "file_type"} or form["purpose"] != "fine-tune":
            return JSONResponse({"error": {"message": "missing purpose or file_name", "type": "invalid_request"}}, 400)
        file_id = f"file-{len(self.files)}"
        self.files[file_id] = {
            **{"id": file_id, "object": "file", "created_at": 1793000000, "bytes": 0, "LineCount": 0},
            **{"filename": form["file_name"], "FileType": form["file_type"], "purpose": "fine-tune"},
            "Processed": False,
        }
        return Response(status_code=302, headers={"location": self.signed(file_id), "x-together-file-id": file_id})

    async def preprocess(self, request: Request) -> Response:
        file_id = request.path_params["id"]
        if refused := self.refused(request):
            return refused
        if file_id not in self.contents:
            return JSONResponse({"error": {"message": "file not uploaded"}}, 404)
        counted = {"bytes": len(self.contents[file_id]), "LineCount": len(self.rows(file_id)), "Processed": True}
        self.files[file_id] |= counted
        return JSONResponse(self.files[file_id])

    async def list_files(self, request: Request) -> Response:
        return self.refused(request) or JSONResponse({"data": list(self.files.values())})

    async def delete(self, request: Request) -> Response:
        if refused := self.refused(request):
            return refused
        if self.files.pop(request.path_params["id"], None) is None:
            return JSONResponse({"error": {"message": "file not found"}}, 404)
        return JSONResponse({"id": request.path_params["id"], "object": "file", "deleted": True})

    async def create(self, request: Request) -> Response:
        if refused := self.refused(request):
            return refused
        body = await request.json()
        method = body["training_method"]["method"]
        if strange := body.keys() - TOGETHERS:
            return JSONResponse({"error": {"message": f"unknown field {min(strange)}"}}, 400)
        if body["model"] not in BASE_MODELS:
            return JSONResponse({"error": {"message": f"model {body['model']} can't be fine-tuned"}}, 400)
        assert method == "dpo" or body["training_method"]["train_on_inputs"] in ("auto", True, False)
        assert len(body["suffix"]) <= 40
        for name in ("training_file", "validation_file"):
            assert name not in body or self.files[body[name]]["Processed"]
            assert name not in body or all(
                set(row) == (PAIRS if method == "dpo" else CHAT) for row in self.rows(body[name])
            )
        assert ("n_evals" in body) == ("validation_file" in body)
        job_id = f"ft-0f5e1d3c-{len(self.jobs)}"
        made = {"id": job_id, "status": "pending", "user_id": "user-1", "created_at": "2026-11-01T10:00:00.123Z"}
        self.jobs[job_id] = {**body, **made, "events": []}
        return JSONResponse(self.jobs[job_id])

    async def list_jobs(self, request: Request) -> Response:
        return self.refused(request) or JSONResponse({"data": list(self.jobs.values())})

    async def look(self, request: Request) -> Response:
        if refused := self.refused(request):
            return refused
        job = self.jobs.get(request.path_params["id"])
        if job is None:
            return JSONResponse({"error": {"message": "job not found"}}, 404)
        done = {
            "model_output_name": f"acme/{job['model'].rpartition('/')[2]}-{job['suffix']}-3c1b7a20",
            **{"updated_at": "2026-11-01T11:30:00Z", "token_count": 850000, "epochs_completed": 1, "total_price": 1500},
        }
        return JSONResponse({**job, "status": self.state, **(done if self.state == "completed" else {}), **self.more})


@dataclass(slots=True)
class OpenAI(Training):
    """Lists have `page_rows` a page."""

    state: str = "succeeded"
    page_rows: int = 2

    def app(self) -> ASGIApp:
        return Starlette(
            routes=[
                Route("/v1/files", self.upload, methods=["POST"]),
                Route("/v1/files", self.list_files),
                Route("/v1/files/{id}", self.delete, methods=["DELETE"]),
                Route("/v1/fine_tuning/jobs", self.create, methods=["POST"]),
                Route("/v1/fine_tuning/jobs", self.list_jobs),
                Route("/v1/fine_tuning/jobs/{id}", self.look),
                Route("/v1/fine_tuning/jobs/{id}/checkpoints", self.checkpoints),
            ]
        )

    async def upload(self, request: Request) -> Response:
        if refused := self.refused(request):
            return refused
        assert "transfer-encoding" not in request.headers
        head = f"content-type: {request.headers['content-type']}\r\n\r\n".encode()
        parts = BytesParser(policy=HTTP).parsebytes(head + await request.body()).get_payload()
        form = {part.get_param("name", header="content-disposition"): part for part in parts}  # type: ignore[union-attr]
        file, purpose = form["file"], form["purpose"].get_content()  # type: ignore[union-attr]
        assert set(form) == {"file", "purpose"}
        name = str(file.get_filename())  # type: ignore[union-attr]
        if purpose.strip() != "fine-tune" or not name.endswith(".jsonl"):
            return _openais_error(400, "Invalid file format. Must be .jsonl")
        return JSONResponse(self.keep(name, file.get_payload(decode=True)))  # type: ignore[union-attr,arg-type]

    def keep(self, name: str, content: bytes) -> Body:
        file_id = f"file-{len(self.files)}"
        self.contents[file_id] = content
        self.files[file_id] = {
            **{"id": file_id, "object": "file", "bytes": len(content), "created_at": 1793000000, "filename": name},
            **{"purpose": "fine-tune", "status": "processed"},
        }
        return self.files[file_id]

    async def list_files(self, request: Request) -> Response:
        return self.refused(request) or self._page(request, list(self.files.values()))

    async def delete(self, request: Request) -> Response:
        if refused := self.refused(request):
            return refused
        if self.files.pop(request.path_params["id"], None) is None:
            return _openais_error(404, "No such File object")
        return JSONResponse({"id": request.path_params["id"], "object": "file", "deleted": True})

    async def create(self, request: Request) -> Response:
        if refused := self.refused(request):
            return refused
        body = await request.json()
        if strange := body.keys() - OPENAIS:
            return _openais_error(400, f"Unrecognized request argument supplied: {min(strange)}")
        if body["model"] not in BASE_MODELS:
            return _openais_error(400, f"Model {body['model']} is not available for fine-tuning")
        kind = body["method"]["type"]
        assert kind in ("supervised", "dpo") and set(body["method"]) == {"type", kind}
        allowed = {"n_epochs", "batch_size", "learning_rate_multiplier"} | ({"beta"} if kind == "dpo" else set())
        assert body["method"][kind].get("hyperparameters", {}).keys() <= allowed
        assert len(body["suffix"]) <= 64
        for name in ("training_file", "validation_file"):
            assert name not in body or all(
                set(row) == (PAIRS if kind == "dpo" else CHAT) for row in self.rows(body[name])
            )
        job_id = f"ftjob-abc{len(self.jobs)}"
        made = {"id": job_id, "object": "fine_tuning.job", "created_at": 1793000000, "status": "validating_files"}
        empty: Body = {
            "fine_tuned_model": None,
            "finished_at": None,
            "error": {},
            "trained_tokens": None,
            "result_files": [],
        }
        self.jobs[job_id] = {**body, **made, **empty}
        return JSONResponse(self.jobs[job_id])

    async def list_jobs(self, request: Request) -> Response:
        if refused := self.refused(request):
            return refused
        wanted = {
            found[1]: value
            for name, value in request.query_params.items()
            if (found := re.match(r"metadata\[(\w+)]", name))
        }
        jobs = [job for job in self.jobs.values() if wanted.items() <= (job.get("metadata") or {}).items()]
        return self._page(request, jobs)

    async def look(self, request: Request) -> Response:
        if refused := self.refused(request):
            return refused
        job = self.jobs.get(request.path_params["id"])
        if job is None:
            return _openais_error(404, "Could not find fine tune")
        name = f"ft:{job['model']}:acme:{job['suffix']}:7p4lURel"
        done = {"fine_tuned_model": name, "finished_at": 1793005200, "trained_tokens": 5768}
        return JSONResponse({**job, "status": self.state, **(done if self.state == "succeeded" else {}), **self.more})

    async def checkpoints(self, request: Request) -> Response:
        if refused := self.refused(request):
            return refused
        metrics = {"step": 88.0, "train_loss": 0.478, "valid_loss": 0.5, "full_valid_loss": None}
        kind = {"object": "fine_tuning.job.checkpoint", "fine_tuned_model_checkpoint": "ft:x:acme::a:ckpt-step-88"}
        last = {"id": "ftckpt_b", **kind, "step_number": 88, "metrics": metrics}
        first = {"id": "ftckpt_a", **kind, "step_number": 44, "metrics": {"step": 44.0, "train_loss": 0.9}}
        return JSONResponse({"object": "list", "data": [last, first], "has_more": False})

    def _page(self, request: Request, rows: list[Body]) -> Response:
        after = request.query_params.get("after")
        start = next((number for number, row in enumerate(rows, 1) if row["id"] == after), 0)
        page = rows[start : start + self.page_rows]
        return JSONResponse({"object": "list", "data": page, "has_more": start + len(page) < len(rows)})


@dataclass(slots=True)
class HuggingFace(Training):
    """`files` are repositories of data sets by their names, `contents` objects, or files as repo/path.

    With `part_bytes` objects are taken in parts of this size. A job that is completed has pushed `pushed`, of which
    safetensors are to be had at another address.
    """

    state: str = "COMPLETED"
    mode: str = "lfs"
    part_bytes: int | None = None
    pushed: dict[str, bytes] = field(default_factory=lambda: {"config.json": b"{}", "model.safetensors": b"weights"})

    def app(self) -> ASGIApp:
        return Starlette(
            routes=[
                Route("/api/repos/create", self.create_repo, methods=["POST"]),
                Route("/api/repos/delete", self.delete_repo, methods=["DELETE"]),
                Route("/api/datasets/{repo:path}/preupload/main", self.preupload, methods=["POST"]),
                Route("/api/datasets/{repo:path}/commit/main", self.commit, methods=["POST"]),
                Route("/datasets/{repo:path}.git/info/lfs/objects/batch", self.batch, methods=["POST"]),
                Route("/complete/{oid}", self.complete, methods=["POST"]),
                Route("/verify/{oid}", self.verify, methods=["POST"]),
                Route("/signed/{name:path}", self.put, methods=["PUT"]),
                Route("/api/jobs/{namespace}", self.create, methods=["POST"]),
                Route("/api/jobs/{namespace}", self.list_jobs),
                Route("/api/jobs/{namespace}/{id}", self.look),
                Route("/api/models/{repo:path}/tree/" + COMMIT, self.tree),
                Route("/api/models/{repo:path}", self.model),
                Route("/cdn/{name:path}", self.cdn),
                Route("/{owner}/{repo}/resolve/" + COMMIT + "/{name:path}", self.resolve),
            ]
        )

    async def create_repo(self, request: Request) -> Response:
        if refused := self.refused(request):
            return refused
        body = await request.json()
        assert set(body) == {"name", "organization", "type", "visibility"} and body["type"] == "dataset"
        assert body["visibility"] == "private" and re.fullmatch(r"[\w.-]{1,96}", body["name"])
        repo = f"{body['organization']}/{body['name']}"
        if repo in self.files:
            return JSONResponse({"error": "You already created this dataset repo", "url": f"/datasets/{repo}"}, 409)
        self.files[repo] = {}
        return JSONResponse({"url": f"{self.origin}/datasets/{repo}", "name": repo})

    async def delete_repo(self, request: Request) -> Response:
        if refused := self.refused(request):
            return refused
        body = await request.json()
        if self.files.pop(f"{body['organization']}/{body['name']}", None) is None:
            return JSONResponse({"error": "Repository not found"}, 404)
        return Response()

    async def preupload(self, request: Request) -> Response:
        if refused := self.refused(request) or self._without(request):
            return refused
        [file] = (await request.json())["files"]
        assert len(base64.b64decode(file["sample"])) == min(512, file["size"])
        return JSONResponse({"files": [{"path": file["path"], "uploadMode": self.mode, "shouldIgnore": False}]})

    async def batch(self, request: Request) -> Response:
        if refused := self.refused(request) or self._without(request):
            return refused
        assert request.headers["accept"] == request.headers["content-type"] == LFS
        body = await request.json()
        assert body["operation"] == "upload" and body["hash_algo"] == "sha256"
        [wanted] = body["objects"]
        oid, size = wanted["oid"], wanted["size"]
        if oid in self.contents:
            return JSONResponse({"transfer": "basic", "objects": [wanted]})
        upload: Body = {"href": self.signed(oid)}
        if self.part_bytes:
            numbers = range(1, -(-size // self.part_bytes) + 1)
            urls = {str(number): self.signed(f"{oid}/{number}") for number in reversed(numbers)}
            header = {"chunk_size": str(self.part_bytes), **urls}
            upload = {"href": f"{self.origin}/complete/{oid}", "header": header}
        actions = {"upload": upload, "verify": {"href": f"{self.origin}/verify/{oid}"}}
        return JSONResponse({"objects": [{**wanted, "authenticated": True, "actions": actions}]})

    async def complete(self, request: Request) -> Response:
        assert "authorization" not in request.headers
        body, oid = await request.json(), request.path_params["oid"]
        parts = [self.contents.pop(f"{oid}/{part['partNumber']}") for part in body["parts"]]
        assert [f'"{hashlib.sha256(part).hexdigest()[:32]}"' for part in parts] == [
            part["etag"] for part in body["parts"]
        ]
        self.contents[oid] = b"".join(parts)
        return JSONResponse({})

    async def verify(self, request: Request) -> Response:
        if refused := self.refused(request):
            return refused
        body = await request.json()
        content = self.contents.get(body["oid"], b"")
        is_right = hashlib.sha256(content).hexdigest() == body["oid"] and len(content) == body["size"]
        return Response() if is_right else JSONResponse({"error": "Object verification failed"}, 422)

    async def commit(self, request: Request) -> Response:
        if refused := self.refused(request) or self._without(request):
            return refused
        assert request.headers["content-type"] == "application/x-ndjson"
        header, operation = [json.loads(line) for line in (await request.body()).splitlines()]
        assert header["key"] == "header" and header["value"]["summary"]
        value, repo = operation["value"], request.path_params["repo"]
        if operation["key"] == "lfsFile":
            assert value["algo"] == "sha256" and len(self.contents[value["oid"]]) == value["size"]
            content = self.contents[value["oid"]]
        else:
            assert operation["key"] == "file" and value["encoding"] == "base64"
            content = base64.b64decode(value["content"])
        self.contents[f"{repo}/{value['path']}"] = content
        self.files[repo][value["path"]] = len(content)
        return JSONResponse({"success": True, "commitOid": COMMIT, "commitUrl": f"{self.origin}/commit/{COMMIT}"})

    async def create(self, request: Request) -> Response:
        if refused := self.refused(request):
            return refused
        body = await request.json()
        allowed = {
            "dockerImage",
            "command",
            "arguments",
            "environment",
            "flavor",
            "secrets",
            "timeoutSeconds",
            "labels",
        }
        assert set(body) <= allowed and body["secrets"] == {"HF_TOKEN": KEY}
        if body["flavor"] not in ("a100-large", "l4x1"):
            return JSONResponse({"error": f"Invalid flavor {body['flavor']}"}, 400)
        job_id = f"687f911eaea852de79c4a50{len(self.jobs)}"
        owner = {"id": "5e9ecfc04957053f60648a3e", "name": request.path_params["namespace"], "type": "org"}
        told = {name: value for name, value in body.items() if name != "secrets"}
        self.jobs[job_id] = {
            **told,
            **{"id": job_id, "createdAt": "2026-11-01T10:00:00.000Z", "owner": owner, "initiator": None},
            "status": {"stage": "SCHEDULING", "message": None},
        }
        return JSONResponse(self.jobs[job_id])

    async def list_jobs(self, request: Request) -> Response:
        if refused := self.refused(request):
            return refused
        wanted = {tuple(each.split("=", 1)) for each in request.query_params.getlist("label")}
        return JSONResponse([job for job in self.jobs.values() if wanted <= set(job["labels"].items())])

    async def look(self, request: Request) -> Response:
        if refused := self.refused(request):
            return refused
        job = self.jobs.get(request.path_params["id"])
        if job is None:
            return JSONResponse({"error": "Job not found"}, 404)
        status = {"stage": self.state, "message": None, **self.more}
        return JSONResponse({**job, "status": status, "finishedAt": "2026-11-01T11:30:00.000Z"})

    async def model(self, request: Request) -> Response:
        if refused := self.refused(request):
            return refused
        repo = request.path_params["repo"]
        if not self._is_model(repo):
            return JSONResponse({"error": "Repository not found"}, 404)
        files = [{"rfilename": name} for name in self.pushed]
        return JSONResponse({"id": repo, "modelId": repo, "sha": COMMIT, "private": True, "siblings": files})

    async def tree(self, request: Request) -> Response:
        if refused := self.refused(request):
            return refused
        assert request.query_params["recursive"] == "true"
        if not self._is_model(request.path_params["repo"]):
            return JSONResponse({"error": "Repository not found"}, 404)
        files = [{"type": "file", "oid": COMMIT, "path": path, "size": len(data)} for path, data in self.pushed.items()]
        return JSONResponse([{"type": "directory", "oid": COMMIT, "path": "original", "size": 0}, *files])

    async def resolve(self, request: Request) -> Response:
        if refused := self.refused(request):
            return refused
        name = request.path_params["name"]
        if name.endswith(".safetensors"):
            return RedirectResponse(f"{self.origin.replace('127.0.0.1', 'localhost')}/cdn/{name}", 302)
        return self._content(request, self.pushed[name])

    async def cdn(self, request: Request) -> Response:
        if "authorization" in request.headers:
            return Response("<Error><Code>InvalidArgument</Code></Error>", 400)
        return self._content(request, self.pushed[request.path_params["name"]])

    def _content(self, request: Request, data: bytes) -> Response:
        start, end = map(int, request.headers["range"].removeprefix("bytes=").split("-"))
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        headers = {"etag": etag, "content-range": f"bytes {start}-{min(end, len(data) - 1)}/{len(data)}"}
        return Response(data[start : end + 1], 206, headers)

    def _is_model(self, repo: str) -> bool:
        pushed = any(f"--hub_model_id={repo}" in job["command"] for job in self.jobs.values())
        return pushed and bool(self.pushed)

    def _without(self, request: Request) -> Response | None:
        known = request.path_params["repo"] in self.files
        return None if known else JSONResponse({"error": "Repository not found"}, 404)


def _openais_error(status: int, message: str) -> Response:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
    return JSONResponse({"error": error}, status)
