"""ai-finance behind its Lambda handler: as many processes as there are events at once, as Lambda has it."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.benchmarks.gateway import processes
from tests.benchmarks.gateway.load import Call, Refused
from tests.benchmarks.gateway.measures import Answered

COMMAND = [sys.executable, "-m", "tests.benchmarks.gateway.invoker"]


def run(
    calls: Sequence[Call],
    process_count: int,
    warm_count: int,
    environment: Mapping[str, str],
    folder: Path,
    spread_seconds: float,
) -> tuple[list[Answered], float]:
    """Each process answers its share of the calls, after `warm_count` of them to warm up; and the seconds it took.

    Raises `Refused` where one can't.
    """
    with ExitStack() as stack:
        started = [
            stack.enter_context(processes.running(COMMAND, log, {**os.environ, **environment}, has_pipes=True))
            for log in (folder / f"sandbox-{place}.log" for place in range(process_count))
        ]
        for place, process in enumerate(started):
            events = [_event(call) for call in calls[place::process_count]]
            _say(process, json.dumps({"events": events, "warm": warm_count}))
        for place, process in enumerate(started):
            _hear(process, folder / f"sandbox-{place}.log")
        began = time.perf_counter()
        for process in started:
            _say(process, "go")
            time.sleep(spread_seconds / process_count)
        heard = [_hear(process, folder / f"sandbox-{place}.log") for place, process in enumerate(started)]
        seconds = time.perf_counter() - began
    return [Answered(whole_ms, steps) for line in heard for whole_ms, steps in json.loads(line)], seconds


def _say(process: subprocess.Popen[bytes], line: str) -> None:
    assert process.stdin
    process.stdin.write(f"{line}\n".encode())
    process.stdin.flush()


def _hear(process: subprocess.Popen[bytes], log: Path) -> bytes:
    assert process.stdout
    if line := process.stdout.readline():
        return line
    process.wait()
    raise Refused(log.read_text(errors="replace")[-500:])


def _event(call: Call) -> dict[str, Any]:
    """An event of API Gateway's HTTP API, version 2.0."""
    http = {"method": "POST", "path": call.path, "protocol": "HTTP/1.1", "sourceIp": "127.0.0.1"}
    return {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": call.path,
        "rawQueryString": "",
        "headers": {"content-type": "application/json", "host": "127.0.0.1", **call.headers},
        "requestContext": {"http": http, "requestId": "JKJaXmPLvHcESHA=", "stage": "$default"},
        "body": json.dumps(call.body),
        "isBase64Encoded": False,
    }
