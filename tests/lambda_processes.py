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
STREAM = str(ROOT / "infra/aws/stream.sh")
BUFFERED, STREAMING = "awslambdaric", "streaming"
# As Lambda starts AWS's own, and the wrapper, which it gives the command of AWS's own.
RUNTIMES: dict[str, Sequence[str]] = {
    BUFFERED: [sys.executable, "-m", "awslambdaric", "HANDLER"],
    STREAMING: [STREAM, sys.executable, "/var/runtime/bootstrap.py"],
}


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
    """The handler under one of `RUNTIMES`, with nothing in its environment but this and what Lambda sets."""
    with runtime_api.serving() as api:
        told = {
            "PATH": os.environ["PATH"],
            "AWS_LAMBDA_RUNTIME_API": api.address,
            "AWS_LAMBDA_FUNCTION_NAME": handler.split(".")[-3].replace("_", "-"),
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "512",
            "LAMBDA_TASK_ROOT": str(ROOT),
            "_HANDLER": handler,
        }
        command = [handler if part == "HANDLER" else part for part in RUNTIMES[runtime]]
        with processes.running(command, log, told | dict(environment)):
            yield LambdaProcess(api, log)
