"""Functions as processes that Lambda would start, each before a Runtime API of its own."""

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.local import runtime_api
from infra.local.parts import ROOT
from infra.local.runtime_api import RuntimeApi
from tests.benchmarks.gateway import processes

HANDLER = "functions.{}.handler.handler"
BUFFERED, STREAMING = "awslambdaric", "streaming"


@dataclass(frozen=True, slots=True)
class LambdaProcess:
    """A function's process, who invokes it, and what it prints."""

    api: RuntimeApi
    log: Path

    def invoke(self, event: Mapping[str, Any]) -> Any:
        return self.api.invoke(event)

    def lines(self) -> list[dict[str, Any]]:
        """The JSON it has printed."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]


@contextmanager
def running(handler: str, runtime: str, environment: Mapping[str, str], log: Path) -> Iterator[LambdaProcess]:
    """A handler of this repository under either runtime."""
    with (
        runtime_api.serving() as api,
        started(api, command(handler, runtime, ROOT / "infra/aws/stream.sh"), handler, environment, log),
    ):
        yield LambdaProcess(api, log)


def command(handler: str, runtime: str, stream: Path, python: str = sys.executable) -> Sequence[str]:
    """As Lambda starts AWS's own runtime, or the script `stream`, which it gives the command of AWS's own."""
    if runtime == BUFFERED:
        return [python, "-m", "awslambdaric", handler]
    return ["/bin/sh", str(stream), python, "/var/runtime/bootstrap.py"]


@contextmanager
def started(
    api: RuntimeApi,
    command: Sequence[str],
    handler: str,
    environment: Mapping[str, str],
    log: Path,
    folder: Path = ROOT,
) -> Iterator[None]:
    """A process in its folder, with nothing in its environment but this and what Lambda sets."""
    told = {
        "PATH": os.environ["PATH"],
        "AWS_LAMBDA_RUNTIME_API": api.address,
        "AWS_LAMBDA_FUNCTION_NAME": handler.split(".")[-3].replace("_", "-"),
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "512",
        "LAMBDA_TASK_ROOT": str(folder),
        "_HANDLER": handler,
    }
    with processes.running(command, log, told | dict(environment), folder=folder):
        yield
