"""The Edge Function that forwards to the gateway, run by the Deno it is written for, and deployed by the real CLI."""

import asyncio
import json
import queue
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from infra.local import parts, ports
from infra.local.parts import ROOT
from infra.local.stack import Stack
from tests.functions.anybody import TOKENS, learned
from tests.stand_ins import ANSWER, Model, serving, until
from tests.users import User

DENO = ROOT / "node_modules/@deno/linux-x64-glibc/deno"
CLI = ROOT / "node_modules/@supabase/cli-linux-x64/bin/supabase"
FUNCTION = ROOT / "infra/supabase/functions/_forward/index.ts"
NAMES = sorted(file.parent.name.replace("_", "-") for file in ROOT.glob("functions/*/handler.py"))
SECRETS = ["GATEWAY_URL", *(f"GATEWAY_URL_{name.upper().replace('-', '_')}" for name in NAMES)]
METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]
WAIT_SECONDS = 20
PROJECT = "abcdefghijklmnopqrst"
T = TypeVar("T")

deno = pytest.mark.skipif(not DENO.exists(), reason="npm has this machine's Deno under another name than linux-x64")
cli = pytest.mark.skipif(not CLI.exists(), reason="npm has this machine's CLI under another name than linux-x64")


async def taken(given: "queue.Queue[T]") -> T:
    """The next that a test gives."""
    await until(lambda: not given.empty(), WAIT_SECONDS)
    return given.get()


@dataclass(slots=True)
class Gateway:
    """What is at GATEWAY_URL: keeps each request, and answers as its path says."""

    url: str = ""
    asked: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)
    pieces: "queue.Queue[str]" = field(default_factory=queue.Queue)
    left: threading.Event = field(default_factory=threading.Event)

    def app(self) -> Starlette:
        return Starlette(routes=[Route("/{path:path}", self.answer, methods=METHODS)])

    async def answer(self, request: Request) -> Response:
        target = request.scope["raw_path"].decode() + f"?{request.url.query}" * bool(request.url.query)
        self.asked.append((request.method, target, dict(request.headers), await request.body()))
        if request.url.path.endswith("/events"):
            return StreamingResponse(self.events(), media_type="text/event-stream")
        if request.url.path.endswith("/silent"):
            await self.gone(request)
        if request.url.path.endswith("/elsewhere"):
            return RedirectResponse("http://127.0.0.1:9/")
        if request.url.path.endswith("/nothing"):
            return Response(status_code=204)
        headers = {"x-gateway-model": "stand-in", "access-control-allow-origin": "https://app.example"}
        return JSONResponse({"said": "yes"}, 207, headers)

    async def events(self) -> AsyncIterator[str]:
        """A piece for each that the test has put; the empty one is the last."""
        try:
            while piece := await taken(self.pieces):
                yield piece
        except asyncio.CancelledError:
            self.left.set()
            raise

    async def gone(self, request: Request) -> None:
        while not await request.is_disconnected():  # noqa: ASYNC110  # nothing tells of it
            await asyncio.sleep(0.01)
        self.left.set()


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    made = Gateway()
    with serving(made.app()) as made.url:
        yield made


@pytest.fixture(scope="module")
def forward(gateway: Gateway, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The function's origin, which forwards to the stand-in under a path of its own, as a stage has."""
    with running(tmp_path_factory.mktemp("deno"), GATEWAY_URL=f"{gateway.url}/prod/") as origin:
        yield origin


@contextmanager
def running(folder: Path, **secrets: str) -> Iterator[str]:
    """The function under Deno, which may read its secrets and speak with loopback, and has no other module."""
    with ports.reserve(None) as held:
        port = ports.number(held)
    allowed = ["--allow-net=127.0.0.1", f"--allow-env={','.join([*SECRETS, 'FORWARD_SILENCE_SECONDS'])}"]
    command = [str(DENO), "run", "--no-prompt", "--no-config", "--no-remote", "--no-npm", *allowed, str(FUNCTION)]
    environment = {
        "DENO_DIR": str(folder),
        "DENO_NO_UPDATE_CHECK": "1",
        "DENO_SERVE_ADDRESS": f"tcp:127.0.0.1:{port}",
        "NO_COLOR": "1",
        **secrets,
    }
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert process.stdout
        said = process.stdout.readline()
        assert "Listening on" in said, said + process.stdout.read()
        yield ports.url(port)
    finally:
        process.kill()
        process.communicate()


@deno
@pytest.mark.parametrize("command", ["check", "lint", "fmt --check --line-width=120"])
def test_deno_finds_nothing_to_say_of_it(command: str, tmp_path: Path) -> None:
    environment = {"DENO_DIR": str(tmp_path), "DENO_NO_UPDATE_CHECK": "1"}
    done = subprocess.run([DENO, *command.split(), "--no-config", FUNCTION], env=environment, capture_output=True)

    assert done.returncode == 0, done.stderr


@deno
@pytest.mark.parametrize("name", NAMES)
def test_forwards_method_path_query_and_body_of_each_function(gateway: Gateway, forward: str, name: str) -> None:
    answered = httpx.put(f"{forward}/{name}/a%2Fb/c?limit=2&of=%C3%A9", content="{}")

    assert (answered.status_code, answered.json()) == (207, {"said": "yes"})
    method, target, _, body = gateway.asked[-1]
    assert (method, target, body) == ("PUT", f"/prod/functions/v1/{name}/a%2Fb/c?limit=2&of=%C3%A9", b"{}")


@deno
def test_forwards_what_the_gateway_reads_and_no_other_header(gateway: Gateway, forward: str) -> None:
    kept = {
        "authorization": "Bearer token",
        "apikey": "sb_publishable_1",
        "content-type": "application/json",
        "accept": "text/event-stream",
        "prefer": "respond-async",
        "idempotency-key": "one",
        "x-request-id": "request-1",
        "traceparent": "00-1",
        "cache-control": "no-store",
        "x-client-info": "supabase-js",
        "origin": "https://app.example",
    }
    dropped = {"cookie": "session=1", "x-forwarded-for": "10.0.0.1", "x-region": "any", "referer": "https://a"}

    answered = httpx.post(f"{forward}/ai-finance", content="{}", headers=kept | dropped)

    seen = gateway.asked[-1][2]
    assert kept.items() <= seen.items()
    assert not dropped.keys() & seen.keys()
    assert seen["content-length"] == "2"
    assert answered.headers["x-gateway-model"] == "stand-in"
    assert answered.headers["access-control-allow-origin"] == "https://app.example"


@deno
@pytest.mark.parametrize(
    "path", ["/", "/unknown", "//127.0.0.1:9/ai-finance", "/@127.0.0.1:9", "/ai-finance/../health"]
)
def test_nothing_else_is_forwarded(gateway: Gateway, forward: str, path: str) -> None:
    before = len(gateway.asked)

    refused = httpx.get(httpx.URL(forward, raw_path=path.encode()))

    assert (refused.status_code, refused.json()["code"]) == (404, "not_found")
    assert len(gateway.asked) == before


@deno
def test_a_redirect_is_the_clients_to_follow(forward: str) -> None:
    answered = httpx.get(f"{forward}/ai-finance/elsewhere")

    assert (answered.status_code, answered.headers["location"]) == (307, "http://127.0.0.1:9/")


@deno
def test_an_answer_without_a_body_stays_one(forward: str) -> None:
    answered = httpx.delete(f"{forward}/ai-with-rag/nothing")

    assert (answered.status_code, answered.content) == (204, b"")


@deno
def test_a_preflight_is_answered_without_the_gateway(gateway: Gateway, forward: str) -> None:
    before = len(gateway.asked)
    asked = {"origin": "https://app.example", "access-control-request-headers": "authorization, prefer"}

    answered = httpx.options(f"{forward}/ai-finance", headers=asked)

    assert answered.status_code == 204
    assert answered.headers["access-control-allow-origin"] == "*"
    assert answered.headers["access-control-allow-headers"] == "authorization, prefer"
    assert "DELETE" in answered.headers["access-control-allow-methods"]
    assert len(gateway.asked) == before


@deno
def test_passes_each_event_on_as_it_comes(gateway: Gateway, forward: str) -> None:
    gateway.pieces.put("data: 1\n\n")
    with httpx.stream("POST", f"{forward}/ai-finance/events", timeout=WAIT_SECONDS) as answer:
        lines = answer.iter_lines()
        assert answer.headers["content-type"].startswith("text/event-stream")
        for number in (1, 2, 3):
            assert next(lines) == f"data: {number}"  # the next one isn't there yet
            assert next(lines) == ""
            gateway.pieces.put(f"data: {number + 1}\n\n" if number < 3 else "")
        assert list(lines) == []


@deno
def test_a_client_that_leaves_takes_the_gateways_request_along(gateway: Gateway, forward: str) -> None:
    gateway.left.clear()
    gateway.pieces.put("data: 1\n\n")
    with httpx.stream("POST", f"{forward}/ai-finance/events", timeout=WAIT_SECONDS) as answer:
        next(answer.iter_lines())
    assert gateway.left.wait(WAIT_SECONDS)

    gateway.left.clear()
    before = len(gateway.asked)
    with pytest.raises(httpx.ReadTimeout):
        httpx.get(f"{forward}/ai-finance/silent", timeout=httpx.Timeout(WAIT_SECONDS, read=1))
    assert gateway.left.wait(WAIT_SECONDS)
    assert len(gateway.asked) == before + 1


@deno
def test_a_gateway_that_is_silent_is_given_up(gateway: Gateway, tmp_path: Path) -> None:
    gateway.left.clear()
    with running(tmp_path, GATEWAY_URL=gateway.url, FORWARD_SILENCE_SECONDS="0.5") as origin:
        late = httpx.get(f"{origin}/ai-finance/silent", timeout=WAIT_SECONDS)

    assert (late.status_code, late.json()["code"], late.json()["retryable"]) == (504, "deadline_exceeded", True)
    assert gateway.left.wait(WAIT_SECONDS)


@deno
def test_a_gateway_that_cant_be_reached_is_a_502_in_the_gateways_own_shape(tmp_path: Path) -> None:
    with ports.reserve(None) as held, running(tmp_path, GATEWAY_URL=ports.url(ports.number(held))) as origin:
        named = httpx.post(f"{origin}/ai-finance", content="{}", headers={"x-request-id": "request-2"})
        nameless = httpx.post(f"{origin}/ai-finance", content="{}")

    message = "The gateway can't be reached."
    told = {"error": message, "code": "unavailable", "requestId": "request-2", "retryable": True}
    assert (named.status_code, named.json()) == (502, told)
    assert named.headers["access-control-allow-origin"] == "*"
    assert nameless.json()["requestId"] == nameless.headers["x-request-id"]


@deno
@pytest.mark.parametrize("address", ["", "nowhere", "http://gateway.example"])
def test_an_address_that_is_none_or_not_encrypted_is_refused(tmp_path: Path, address: str) -> None:
    with running(tmp_path, GATEWAY_URL=address) as origin:
        refused = httpx.post(f"{origin}/ai-finance", content="{}")

    assert (refused.status_code, refused.json()["code"]) == (500, "misconfigured")


@deno
def test_a_function_may_have_an_address_of_its_own(gateway: Gateway, tmp_path: Path) -> None:
    with running(tmp_path, GATEWAY_URL="http://127.0.0.1:9", GATEWAY_URL_AI_FINANCE=gateway.url) as origin:
        own = httpx.get(f"{origin}/ai-finance/threads")
        others = httpx.get(f"{origin}/ai-with-rag/documents")

    assert (own.status_code, others.status_code) == (207, 502)
    assert gateway.asked[-1][1] == "/functions/v1/ai-finance/threads"


@dataclass(slots=True)
class Gated(Model):
    """A chat server that gives the pieces of a question with [gated] one by one, as the test lets them go."""

    gate: "queue.Queue[None]" = field(default_factory=queue.Queue)
    left: threading.Event = field(default_factory=threading.Event)

    async def _chunks(self, question: str, pieces: list[str]) -> AsyncIterator[str]:
        try:
            async for chunk in Model._chunks(self, question, pieces):
                yield chunk
                if "[gated]" in question:
                    await taken(self.gate)
        except asyncio.CancelledError:
            self.left.set()
            raise


@deno
@pytest.mark.timeout(120)  # the stack, the functions once more, Deno and Node start within it
def test_supabase_js_invokes_ai_finance_through_it(stack: Stack, tmp_path: Path) -> None:
    model, user = Gated(), User.sign_up(stack)
    with (
        learned(stack, *TOKENS),
        serving(model.app()) as url,
        stack.functions(MODEL_BASE_URL=f"{url}/v1", MODEL_NAME="stand-in") as origin,
        running(tmp_path, GATEWAY_URL=origin) as forwarding,
        invoking(stack, forwarding, user, "What is Notcoin?") as (told, hang_up),
    ):
        answer, refusal = next(told), next(told)
        assert answer["response"] == "".join(ANSWER)
        assert answer["sources"]
        assert refusal["code"] == "invalid_request"

        assert next(told) == ANSWER[0]
        model.gate.put(None)
        assert next(told) == ANSWER[1]
        hang_up()
        assert next(told) == "hung up"
        assert model.left.wait(WAIT_SECONDS)


@contextmanager
def invoking(stack: Stack, forwarding: str, user: User, message: str) -> Iterator[Any]:
    """What the client tells line by line, and how it is made to hang up."""
    script = Path(__file__).with_name("invoking.mjs")
    told = [stack.url, forwarding, stack.keys.publishable, user.email, user.password, message]
    command = [parts.node(), "--experimental-websocket", str(script), *told]
    client = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert client.stdin and client.stdout
    entered = client.stdin
    try:
        yield map(json.loads, client.stdout), lambda: print("now", file=entered, flush=True)
    finally:
        client.kill()
        client.communicate()


@dataclass(slots=True)
class Management:
    """Supabase's management API as far as deploying functions needs it; keeps what it is sent."""

    files: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)

    def app(self) -> Starlette:
        routes = [
            Route("/v1/projects/{ref}/functions/deploy", self.deploy, methods=["POST"]),
            Route("/v1/projects/{ref}/functions", self.activate, methods=["PUT"]),
        ]
        return Starlette(routes=routes)

    async def deploy(self, request: Request) -> Response:
        slug = request.query_params["slug"]
        head = f"content-type: {request.headers['content-type']}\r\n\r\n".encode()
        for part in message_from_bytes(head + await request.body()).walk():
            name, content = part.get_param("name", header="content-disposition"), part.get_payload(decode=True)
            if isinstance(content, bytes):
                (self.files if name == "file" else self.metadata)[slug] = content.decode()
        kept = {"id": slug, "slug": slug, "name": slug, "version": 1, "status": "ACTIVE", "created_at": 1}
        return JSONResponse({**kept, "updated_at": 1, "verify_jwt": False}, 201)

    async def activate(self, request: Request) -> Response:
        return JSONResponse({"functions": await request.json()})


@cli
def test_the_cli_deploys_the_one_file_under_each_functions_name(tmp_path: Path) -> None:
    management = Management()
    with serving(management.app()) as url:
        profile = tmp_path / "profile.yaml"
        profile.write_text(f"name: local\napi_url: {url}\ndashboard_url: {url}\nproject_host: localhost\n")
        command = [str(CLI), "--workdir", str(ROOT / "infra"), "--profile", str(profile), "--yes"]
        deployed = subprocess.run(
            [*command, "functions", "deploy", "--use-api", f"--remote={PROJECT}"],
            env={
                "HOME": str(tmp_path),
                "HTTPS_PROXY": "http://127.0.0.1:9",  # nothing outside is needed
                "SUPABASE_TELEMETRY_DISABLED": "1",
                "SUPABASE_ACCESS_TOKEN": "sbp_" + "0" * 40,
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    assert deployed.returncode == 0, deployed.stdout + deployed.stderr
    assert management.files == dict.fromkeys(NAMES, FUNCTION.read_text())
    told = {name: json.loads(metadata) for name, metadata in management.metadata.items()}
    assert [told[name]["verify_jwt"] for name in NAMES] == [False] * len(NAMES)  # the gateway verifies
