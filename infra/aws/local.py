"""The built template on this machine: deployed whole by osls onto ministack, beside the embedded Supabase and models.

ministack runs the functions' own zips, each in a process of the Python that runs this. What it does otherwise than AWS:
an answer that streams comes at once, and a Function URL gives the whole answer of the handler as its body.
"""

import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
from rich.console import Console

from infra.aws import deploying, stages
from infra.aws.packaging import FUNCTIONS, RUNNING
from infra.aws.stages import Stage, StageError
from infra.local import parts, ports, stack
from infra.local.__main__ import FOLDER, load_knowledge
from infra.local.migrations import MigrationError
from infra.local.parts import StackError
from infra.local.stack import Stack

NAME = "local"
ARCHITECTURE = "arm64" if platform.machine() == "aarch64" else "x86_64"
PARTS = ("chat", "embeddings", "aws", "postgres", "lite", "gateway")  # the rest of the stack is what runs on ministack
SERVICES = "apigateway,cloudformation,events,iam,lambda,logs,monitoring,s3,scheduler,sns,sqs,ssm,sts"
START_SECONDS = 30
ADDRESS = re.compile(r"https://(\w+)\.(execute-api|lambda-url)\.")


def main() -> int:
    console = Console(highlight=False)
    stack.stop_on_signals()
    os.environ.update(stack.direct(os.environ))
    try:
        with ExitStack() as cleanup:
            running = cleanup.enter_context(Stack(FOLDER, environment=os.environ, only=PARTS, report=console.print))
            load_knowledge(running)
            endpoint = cleanup.enter_context(ministack(FOLDER))
            os.environ.update(credentials(endpoint))
            with console.status("Packaging and deploying"):
                outputs = deploy(running.environment, deploying.package(stage(running.environment), RUNNING))
            told = {name: f"{outputs['HttpApiUrl']}/functions/v1/{name}" for name in FUNCTIONS}
            told |= {"Training bucket": outputs["TrainingBucket"], "AWS": endpoint, "Supabase": running.url}
            told |= {"Publishable key": running.keys.publishable, "Secret key": running.keys.secret}
            for name, value in told.items():
                console.print(f"[bold]{name:<24}[/bold] {value}", soft_wrap=True)
            running.watch()
    except (StackError, MigrationError, StageError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


@contextmanager
def ministack(folder: Path) -> Iterator[str]:
    """ministack on a free port of loopback, until the block is left; gives its address."""
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as cleanup:
        port = ports.number(cleanup.enter_context(ports.reserve(None)))
        environment = {
            "PATH": os.environ["PATH"],
            "TMPDIR": cleanup.enter_context(TemporaryDirectory()),  # the functions' code is unpacked there
            "BIND_HOST": ports.HOST,
            "GATEWAY_PORT": str(port),
            "MINISTACK_ACCOUNT_ID": parts.ACCOUNT,
            "SERVICES": SERVICES,
            "LAMBDA_ASYNC_RETRY_BASE_SECONDS": "0.1",  # where AWS waits a minute
            **stack.direct(os.environ),
        }
        log = cleanup.enter_context((folder / "ministack.log").open("wb"))
        process = subprocess.Popen(
            [sys.executable, "-m", "ministack"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=stack.follow(os.getpid(), signal.SIGTERM),
        )
        cleanup.callback(_stop, process)
        _wait(process, ports.url(port))
        yield ports.url(port)


def credentials(endpoint: str) -> dict[str, str]:
    """What boto3 and osls need to find ministack, where any credentials do, and not to wait as for AWS."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "local",
        "AWS_SECRET_ACCESS_KEY": "local",
        "AWS_REGION": parts.REGION,
        "AWS_DEFAULT_REGION": parts.REGION,
        "SLS_AWS_MONITORING_FREQUENCY": "500",  # milliseconds between osls's looks at a stack that is made at once
    }


def deploy(environment: Mapping[str, str], packages: Path) -> dict[str, str]:
    """Put the secrets into the store and deploy, by the environment's credentials; gives the outputs."""
    to = stage(environment)
    deploying.check_settings(to)
    ssm = deploying.client(to, "ssm")
    for name in {name for function in FUNCTIONS for name in to.parameters(function)} & environment.keys():
        path = f"{to.path}/{name}"
        ssm.put_parameter(Name=path, Value=environment[name], Type="SecureString", Overwrite=True)
    deploying.check_parameters(to)
    deploying.make(to, packages)
    outputs = {name: reachable(value) for name, value in deploying.ship(to, packages).items()}
    deploying.accept(to, outputs["HttpApiUrl"])
    return outputs


def stage(environment: Mapping[str, str]) -> Stage:
    """The stack's own settings as a stage's."""
    chosen = {
        name: value
        for name, value in environment.items()
        if name in stages.settings_names() and name not in stages.TEMPLATES and not stages.is_secret(name)
    }
    deployment = {"AWS_REGION": parts.REGION, "ARCHITECTURE": ARCHITECTURE}
    return Stage(NAME, {**chosen, **deployment}, "the stack's environment")


def reachable(output: str) -> str:
    """An output as it is, but for what AWS has at an address of its own and ministack below its one."""
    if not (address := ADDRESS.match(output)):
        return output
    name, kind = address.groups()
    return f"{os.environ['AWS_ENDPOINT_URL']}/_aws/{kind}/{name}{'/$default' if kind == 'execute-api' else ''}"


def _wait(process: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise StackError(f"ministack ended during the start (status {process.returncode})")
        try:
            httpx.get(f"{url}/_ministack/health", timeout=1)
            return
        except httpx.TransportError:
            time.sleep(0.1)
    raise StackError(f"ministack was not ready within {START_SECONDS} s")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """With the functions' processes, which are of its group."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):  # then the next line ends it
        process.wait(stack.STOP_SECONDS)
    with suppress(ProcessLookupError):  # its group is empty, as it should be
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


if __name__ == "__main__":
    sys.exit(main())
