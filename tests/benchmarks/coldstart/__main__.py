"""The benchmark of a function's start: from its process to its first answer, under Lambda's own runtime.

python -m tests.benchmarks.coldstart               # eleven rounds: about four minutes on two cores
python -m tests.benchmarks.coldstart --rounds 3    # a look
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from infra.aws.packaging import PackagingError
from infra.local import postgres, runtime_api
from infra.local.migrations import MigrationError
from infra.local.parts import ROOT, StackError
from infra.local.runtime_api import FunctionError
from infra.local.stack import Stack, stop_on_signals
from tests import lambda_processes
from tests.benchmarks.coldstart import environments
from tests.benchmarks.coldstart.environments import BARE, EAGER, RIVALS, NotInstalled
from tests.benchmarks.gateway import setting
from tests.benchmarks.gateway.processes import NotReady
from tests.lambda_processes import BUFFERED, HANDLER, STREAMING
from tests.users import User

OUTPUT = ROOT / ".local/bench"
STREAMED = ("ai-finance", "ai-with-rag")
BARE_TIMES, EAGER_TIMES, ZIP_MB = 1.5, 0.6, 15.0
Event = Mapping[str, Any]
Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Case:
    """A process to start, what it is asked first, and the status it answers with."""

    key: str
    name: str
    folder: Path
    handler: str
    runtime: str
    event: Event
    status: int
    times: list[float] = field(default_factory=list)  # milliseconds

    @property
    def ms(self) -> float:
        return median(self.times)

    @property
    def least_ms(self) -> float:
        return min(self.times)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.coldstart", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--rounds", type=int, default=11, help="starts of each (11)")
    arguments = parser.parse_args()

    stop_on_signals()
    console = Console(width=None if sys.stdout.isatty() else 160)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=OUTPUT) as folder:
        try:
            cases, megabytes = _run(Path(folder), arguments.rounds, console)
        except (
            StackError,
            MigrationError,
            NotReady,
            NotInstalled,
            PackagingError,
            FunctionError,
            TimeoutError,
        ) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        finally:
            postgres.remove(Path(folder))
    console.print(_table(cases, megabytes), *_targets(cases, megabytes), sep="\n", highlight=False)
    file = OUTPUT / "coldstart.json"
    file.write_text(json.dumps(_figures(cases, megabytes), indent=2) + "\n")
    console.print(f"Also in {file.relative_to(ROOT)}.")
    return 0


def _run(folder: Path, rounds: int, console: Console) -> tuple[list[Case], dict[str, float]]:
    def report(step: str) -> None:
        console.print(f"[dim]{step}[/dim]", highlight=False)

    report("the functions' zips, and the rivals' folders")
    kept = OUTPUT / "coldstart"
    python = str(environments.interpreter(kept))
    unpacked, megabytes = environments.functions(folder / "task", console)
    cases = list(_rivals(kept, report))
    with setting.upstream(folder, 0, 0) as upstream:
        report("starting the embedded stack")
        environment = {**setting.SETTINGS, **setting.at(upstream), "CACHE_SECONDS": "0"}
        parts = {"postgres", "lite", "gateway"}
        with Stack(folder, environment=environment, only=parts, preferred_ports={}) as stack:
            cases += _functions(unpacked, stack, setting.fill(stack))
            for number in range(rounds + 1):
                report(f"round {number} of {rounds}" if number else "a round that doesn't count")
                for case in cases[number % len(cases) :] + cases[: number % len(cases)]:
                    took = _start(case, python, stack.environment, folder)
                    case.times.extend([took] if number else [])
    return cases, megabytes


def _rivals(kept: Path, report: Report) -> Iterator[Case]:
    for name, rival in RIVALS.items():
        try:
            folder = environments.rival(name, kept)
        except NotInstalled as error:
            if name in (BARE, EAGER):  # there is nothing to compare with
                raise
            report(f"{rival.name}: can't be installed: {error}")
            continue
        yield Case(name, rival.name, folder, "rival.handler.handler", BUFFERED, _event("/answer", {}), 200)


def _functions(unpacked: Mapping[str, Path], stack: Stack, users: Sequence[User]) -> Iterator[Case]:
    """Each function with a request that it refuses; those that stream, under their own runtime, and with a question."""
    for name, folder in unpacked.items():
        key, handler = name.replace("-", "_"), HANDLER.format(name.replace("-", "_"))
        refused = _event(f"/functions/v1/{name}", {})
        yield Case(key, name, folder, handler, BUFFERED, refused, 401)
        if name in STREAMED:
            yield Case(
                f"{key}_streaming", f"{name}, its own runtime", folder, handler, STREAMING, _streamed(refused), 401
            )
    asked = {
        "ai-finance": ({"message": setting.QUESTIONS[0]}, {"authorization": f"Bearer {users[0].token}"}),
        "ai-with-rag": ({"query": setting.QUESTIONS[0], "matchThreshold": -1}, {"apikey": stack.keys.publishable}),
    }
    for name, (body, headers) in asked.items():
        key, handler = f"first_question_{name.replace('-', '_')}", HANDLER.format(name.replace("-", "_"))
        event = _streamed(_event(f"/functions/v1/{name}", body, headers))
        yield Case(key, f"{name}, a question answered", unpacked[name], handler, STREAMING, event, 200)


def _start(case: Case, python: str, environment: Mapping[str, str], folder: Path) -> float:
    """The milliseconds from before the process to its answer. Raises `FunctionError`, also for another answer."""
    command = lambda_processes.command(case.handler, case.runtime, case.folder / "stream", python)
    told = {**environment, "PYTHONDONTWRITEBYTECODE": "1"}  # as where the folder can't be written
    log = folder / f"{case.key}.log"
    with runtime_api.serving() as api:
        began = time.perf_counter()
        with lambda_processes.started(api, command, case.handler, told, log, case.folder):
            answer = api.invoke(case.event)
            took = (time.perf_counter() - began) * 1000
    if answer["statusCode"] != case.status:
        raise FunctionError({"errorType": case.name, "errorMessage": answer})
    return took


def _event(path: str, body: Any, headers: Mapping[str, str] | None = None) -> dict[str, Any]:
    """An event of API Gateway's HTTP API, version 2.0."""
    http = {"method": "POST", "path": path, "protocol": "HTTP/1.1", "sourceIp": "127.0.0.1"}
    return {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": path,
        "rawQueryString": "",
        "headers": {"content-type": "application/json", "host": "127.0.0.1", **(headers or {})},
        "requestContext": {"http": http, "requestId": "JKJaXmPLvHcESHA=", "stage": "$default"},
        "body": json.dumps(body),
        "isBase64Encoded": False,
    }


def _streamed(event: Mapping[str, Any]) -> dict[str, Any]:
    """The same from a Function URL."""
    return {**event, "requestContext": {**event["requestContext"], "domainName": runtime_api.DOMAIN}}


def _table(cases: Sequence[Case], megabytes: Mapping[str, float]) -> Table:
    table = Table(title="From the process to its first answer, ms", title_justify="left", title_style="bold")
    for heading in ("", "median", "of bare", "of eager", "minimum", "of bare", "of eager", "zip MB"):
        table.add_column(heading, justify="right" if heading else "left")
    known = {case.key: case for case in cases}
    for case in cases:
        size = megabytes.get(case.name)
        medians = _cells(case.ms, known[BARE].ms, known[EAGER].ms)
        minimums = _cells(case.least_ms, known[BARE].least_ms, known[EAGER].least_ms)
        table.add_row(case.name, *medians, *minimums, f"{size:.1f}" if size else "")
    return table


def _cells(ms: float, *bases: float) -> list[str]:
    return [f"{ms:.0f}", *(f"{ms / base:.2f}" for base in bases)]


def _targets(cases: Sequence[Case], megabytes: Mapping[str, float]) -> Iterator[str]:
    known, ours = {case.key: case for case in cases}, [case for case in cases if case.name in megabytes]
    for base, most in ((known[BARE], BARE_TIMES), (known[EAGER], EAGER_TIMES)):
        times, least = max(case.ms for case in ours) / base.ms, max(case.least_ms for case in ours) / base.least_ms
        found = f"{times:.2f} by median, {least:.2f} by minimum"
        yield f"Slowest function, of {base.name}: {found}; at most {most}: {'met' if times <= most else 'missed'}."
    largest = max(megabytes.values())
    yield f"Largest zip: {largest:.1f} MB; at most {ZIP_MB:.0f}: {'met' if largest <= ZIP_MB else 'missed'}."


def _figures(cases: Sequence[Case], megabytes: Mapping[str, float]) -> dict[str, float]:
    figures = {f"ms_{case.key}": round(case.ms, 1) for case in cases}
    figures |= {f"ms_{case.key}_min": round(case.least_ms, 1) for case in cases}
    return figures | {f"zip_mb_{name.replace('-', '_')}": round(size, 2) for name, size in megabytes.items()}


if __name__ == "__main__":
    sys.exit(main())
