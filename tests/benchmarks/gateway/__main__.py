"""The benchmark of the gateway: what it adds to the model's own time, beside the guide's way and LiteLLM in one run.

python -m tests.benchmarks.gateway                                       # nine minutes on two cores
python -m tests.benchmarks.gateway --requests 40 --memory-requests 1000  # a look: two minutes
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from infra.local import postgres
from infra.local.migrations import MigrationError
from infra.local.parts import ROOT, StackError
from infra.local.stack import Stack, stop_on_signals
from tests.benchmarks.gateway import distributions, litellm_proxy, load, memory, sandboxes, setting
from tests.benchmarks.gateway.load import Call, Refused, Timed
from tests.benchmarks.gateway.measures import PERCENTILES, Answered, Line, percentiles
from tests.benchmarks.gateway.memory import Growth
from tests.benchmarks.gateway.processes import NotReady
from tests.users import User

OUTPUT = ROOT / ".local/bench"
WIDTH = 160  # of a log or a file
CHAT_MS, LONG_CHAT_MS, EMBEDDING_MS = 200, 1000, 20
OURS, LAMBDA, GUIDE = "this gateway, uvicorn", "this gateway, Lambda handler", "the guide, step after step"
LITELLM = f"LiteLLM proxy {litellm_proxy.VERSION}"
CHAT, EMBEDDING = "upstream alone: chat", "upstream alone: embedding"
OURS_IS = (
    "the path we own: the whole time less the upstream's median at that concurrency, less the waits for the database"
    " (match + close + max(0, open - embed)), in which at 8 and 32 at once waits for our own process are too"
)
P50_MS, P99_MS = 5.0, 15.0


@dataclass(frozen=True, slots=True)
class Load:
    """So many requests at once, of a model that takes so long; `is_busy` where two cores have much to do."""

    at_once: int
    chat_ms: int
    is_busy: bool = False

    def __str__(self) -> str:
        return f"{self.at_once}{' busy' * self.is_busy}"

    @property
    def key(self) -> str:
        return f"c{self.at_once}{'_busy' * self.is_busy}"

    @property
    def spread_seconds(self) -> float:
        """An upstream's own time: connections begin spread over it, and don't go in one wave."""
        return (self.chat_ms + EMBEDDING_MS) / 1000


ALONE = Load(1, CHAT_MS)
# Of 32 at once a model of 200 ms is asked 145 times a second.
BUSY = Load(8, CHAT_MS, is_busy=True), Load(32, CHAT_MS, is_busy=True)
CONCURRENCIES = (ALONE, Load(8, LONG_CHAT_MS), Load(32, LONG_CHAT_MS), *BUSY)
Lines = Mapping[str, Mapping[Load, Line]]
Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Gateways:
    """Where everything of this run listens; `litellm` is None where it can't be had."""

    upstream: str
    ours: str
    guide: str
    litellm: str | None
    environment: Mapping[str, str]
    users: Sequence[User]
    folder: Path


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.gateway", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--requests", type=int, default=150, help="one at a time; twice as many at once (150)")
    parser.add_argument("--memory-requests", type=int, default=10_000, help="of the memory part, 0 for none (10000)")
    arguments = parser.parse_args()
    if arguments.requests < 20 or 0 < arguments.memory_requests < 4 * memory.EVERY:
        parser.error(f"--requests: at least 20; --memory-requests: 0, or at least {4 * memory.EVERY}")

    stop_on_signals()
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=OUTPUT) as folder:
        try:
            figures = _run(Path(folder), arguments.requests, arguments.memory_requests, console)
        except (StackError, MigrationError, NotReady, Refused) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        finally:
            postgres.remove(Path(folder))
    file = OUTPUT / "gateway.json"
    file.write_text(json.dumps(figures, indent=2) + "\n")
    console.print(f"Also in {file.relative_to(ROOT)}.")
    return 0


def _run(folder: Path, request_count: int, memory_count: int, console: Console) -> dict[str, Any]:
    def report(step: str) -> None:
        console.print(f"[dim]{step}[/dim]", highlight=False)

    program = _litellm(report)
    with setting.upstream(folder, CHAT_MS, EMBEDDING_MS) as upstream:
        environment = {**setting.SETTINGS, **setting.at(upstream)}
        report("starting the embedded stack")
        parts = {"postgres", "lite", "gateway"}
        with Stack(folder, environment=environment, only=parts, preferred_ports={}) as stack:
            users = setting.fill(stack)
            with _gateways(stack, upstream, program, users, report) as gateways:
                lines = _measure(gateways, request_count, report)
            console.print(*_tables(lines), *_targets(lines), sep="\n", highlight=False)
            distributions.plot(_spreads(lines), OUTPUT / "gateway-latency.png")
            console.print("How the added time is spread: .local/bench/gateway-latency.png")
            growth = _memory(stack, users, memory_count, report) if memory_count else None
    figures = _figures(lines)
    if growth:
        console.print(_told(growth))
        figures |= _memory_figures(growth)
    return figures


def _litellm(report: Report) -> Path | None:
    report(f"{LITELLM}: looking for its virtual environment; the first time it takes a minute to make")
    try:
        return litellm_proxy.install(OUTPUT / "litellm-venv")
    except litellm_proxy.NotInstalled as error:
        report(f"{LITELLM} can't be installed: {error}")
        return None


@contextmanager
def _gateways(
    stack: Stack, upstream: str, program: Path | None, users: Sequence[User], report: Report
) -> Iterator[Gateways]:
    with ExitStack() as running:
        report("starting the gateways")
        ours = running.enter_context(stack.functions())
        guide = running.enter_context(setting.guide(stack, stack.folder))
        litellm = None
        try:
            if program:
                litellm = running.enter_context(litellm_proxy.serving(program, stack.folder, upstream))
        except NotReady as error:
            report(f"{LITELLM} doesn't start: {error}")
        yield Gateways(upstream, ours, guide, litellm, stack.environment, users, stack.folder)


def _measure(gateways: Gateways, request_count: int, report: Report) -> Lines:
    """Every line at each concurrency; those of one concurrency follow each other."""
    lines: dict[str, dict[Load, Line]] = {}

    def note(name: str, concurrency: Load, line: Line) -> float:
        lines.setdefault(name, {})[concurrency] = line
        p50_ms = percentiles(line.whole())[50]
        report(f"{concurrency!s:>7} at once  {name:<30} {len(line.answered):>5} requests, p50 {p50_ms:6.1f} ms")
        return p50_ms

    for concurrency in CONCURRENCIES:
        count = request_count if concurrency is ALONE else max(2 * request_count, 2 * concurrency.at_once)
        httpx.get(f"{gateways.upstream}/chat-ms/{concurrency.chat_ms}").raise_for_status()
        served = partial(_served, concurrency=concurrency, count=count)
        ask = partial(setting.questions, gateways.users)
        keyed = partial(setting.completions, key=litellm_proxy.KEY)
        chat_ms = note(CHAT, concurrency, served(gateways.upstream, setting.completions))
        embedding_ms = note(EMBEDDING, concurrency, served(gateways.upstream, setting.embeddings))
        both_ms = chat_ms + embedding_ms
        note(OURS, concurrency, served(gateways.ours, ask, upstream_ms=both_ms, has_steps=True))
        note(LAMBDA, concurrency, _in_sandboxes(gateways, concurrency, count, both_ms))
        if gateways.litellm:
            note(LITELLM, concurrency, served(gateways.litellm, keyed, upstream_ms=chat_ms))
        note(GUIDE, concurrency, served(gateways.guide, ask, upstream_ms=both_ms))
    return lines


def _served(
    origin: str,
    calls: Callable[[int], list[Call]],
    *,
    concurrency: Load,
    count: int,
    upstream_ms: float = 0,
    has_steps: bool = False,
) -> Line:
    """So many answers over so many connections, after two for each and twenty in all to warm up."""
    warm = 20 + 2 * concurrency.at_once
    spread = concurrency.spread_seconds
    timed = asyncio.run(load.run(origin, calls(warm + count), concurrency.at_once, spread_seconds=spread))
    answered = [Answered(each.whole_ms, each.steps() if has_steps else {}) for each in timed[warm:]]
    return Line(answered, upstream_ms, _per_second(timed[warm - 1 :]))


def _per_second(timed: Sequence[Timed]) -> float:
    return (len(timed) - 1) / (timed[-1].ended - timed[0].ended)


def _in_sandboxes(gateways: Gateways, concurrency: Load, count: int, upstream_ms: float) -> Line:
    """The same by as many processes, each of which has five calls to warm up, or twenty if it is alone."""
    warm, processes = 20 if concurrency is ALONE else 5, concurrency.at_once
    calls = setting.questions(gateways.users, count + warm * processes)
    folder, spread = gateways.folder, concurrency.spread_seconds
    answered, seconds = sandboxes.run(calls, processes, warm, gateways.environment, folder, spread)
    return Line(answered, upstream_ms, len(answered) / seconds)


def _memory(stack: Stack, users: Sequence[User], count: int, report: Report) -> Growth:
    report(f"memory: {count:,} requests to an upstream that doesn't wait")
    before = set(stack.pids)
    with setting.upstream(stack.folder, 0, 0) as upstream, stack.functions(**setting.at(upstream)) as origin:
        [name] = set(stack.pids) - before
        calls = setting.questions(users, memory.WARM_COUNT + count)
        growth = asyncio.run(memory.measure(origin, stack.pids[name], calls))
    memory.plot(growth, OUTPUT / "gateway-memory.png")
    return growth


def _tables(lines: Lines) -> list[Table]:
    added = _table("Added to the upstream's own time, ms: whole time less the upstream's median at that concurrency")
    for name in (OURS, LAMBDA):
        added.add_row(f"{name}: path we own", *_cells(lines[name], Line.path))
        added.add_row("  and its database", *_cells(lines[name], Line.added))
    added.add_row(
        f"{LITELLM}: model call only", *(_cells(lines[LITELLM], Line.added) if LITELLM in lines else ["none"])
    )
    added.add_row(f"{GUIDE}, and its database", *_cells(lines[GUIDE], Line.added))

    waits = f"{CHAT_MS} ms for chat alone and where it is busy, else {LONG_CHAT_MS}; {EMBEDDING_MS} for an embedding"
    whole = _table(f"Whole request, ms: upstream waits {waits}")
    for concurrency in CONCURRENCIES:
        whole.add_column(f"{concurrency}: per s", justify="right")
    for name, by_concurrency in lines.items():
        rates = (f"{line.per_second:.0f}" for line in by_concurrency.values())
        whole.add_row(name, *_cells(by_concurrency, Line.whole), *rates)
    return [added, whole]


def _table(title: str) -> Table:
    """A column for each percentile of each concurrency: `8: p95` is of eight at once."""
    table = Table(title=title, title_justify="left")
    table.add_column("", no_wrap=True)
    for concurrency in CONCURRENCIES:
        for percent in PERCENTILES:
            table.add_column(f"{concurrency}: p{percent}", justify="right", no_wrap=True)
    return table


def _cells(by_concurrency: Mapping[Load, Line], values: Callable[[Line], list[float]]) -> list[str]:
    return [f"{value:.1f}" for line in by_concurrency.values() for value in percentiles(values(line)).values()]


def _spreads(lines: Lines) -> dict[str, distributions.Spread]:
    """What each gateway added, and of ours the path apart from its database, by concurrency."""
    spreads: dict[str, distributions.Spread] = {}
    for concurrency in CONCURRENCIES:
        added = {name: line[concurrency].added() for name, line in lines.items() if name not in (CHAT, EMBEDDING)}
        spreads[str(concurrency)] = {f"{OURS}: path we own": lines[OURS][concurrency].path(), **added}
    return spreads


def _targets(lines: Lines) -> list[str]:
    alone = percentiles(lines[OURS][ALONE].path())
    told = [
        _target(f"path we own, one at a time: p50 {alone[50]:.1f} ms, at most {P50_MS:.0f}", alone[50] <= P50_MS),
        _target(f"path we own, one at a time: p99 {alone[99]:.1f} ms, at most {P99_MS:.0f}", alone[99] <= P99_MS),
    ]
    if LITELLM in lines:
        above = _above_litellm(lines)
        told.append(_target(f"path we own below LiteLLM's at every percentile, the busy aside{above}", not above))
    for concurrency, ours in lines[OURS].items():
        saved = percentiles(lines[GUIDE][concurrency].whole())[50] - percentiles(ours.whole())[50]
        hidden = f"two steps side by side take {ours.hidden_ms():.1f} ms off"
        told.append(
            _target(f"whole request {saved:.1f} ms below the guide's at {concurrency} at once; {hidden}", saved > 0)
        )
    return told


def _above_litellm(lines: Lines) -> str:
    """Where ours is not below, to be added to a sentence."""
    above = []
    for concurrency, line in lines[OURS].items():
        if concurrency.is_busy:
            continue  # queueing: whose requests take the most of the two cores, its database's too, waits the longest
        theirs = percentiles(lines[LITELLM][concurrency].added())
        above += [f"p{at} at {concurrency}" for at, ms in percentiles(line.path()).items() if ms >= theirs[at]]
    return f"; not {', '.join(above)}" if above else ""


def _target(told: str, is_met: bool) -> str:
    return f"{'met   ' if is_met else 'missed'}  {told}"


def _told(growth: Growth) -> str:
    return (
        f"Memory: {growth.megabytes[0]:.1f} MB after the warm-up, {growth.megabytes[-1]:.1f} MB after"
        f" {growth.requests[-1]:,} requests; {growth.slope_kb():+.0f} KB for 1,000 requests in the second half:"
        f" .local/bench/gateway-memory.png"
    )


def _figures(lines: Lines) -> dict[str, Any]:
    ours, in_lambda, guide = lines[OURS], lines[LAMBDA], lines[GUIDE]
    return {
        "ours_is": OURS_IS,
        "ours": _overhead(ours, Line.path),
        "ours_with_database": _overhead(ours, Line.added),
        "ours_lambda": _overhead(in_lambda, Line.path),
        "ours_lambda_with_database": _overhead(in_lambda, Line.added),
        "litellm": _overhead(lines[LITELLM], Line.added) if LITELLM in lines else None,
        "guide": _overhead(guide, Line.added),
        "whole_ms": {
            "ours": _named(ours, Line.whole, ""),
            "ours_lambda": _named(in_lambda, Line.whole, ""),
            "guide": _named(guide, Line.whole, ""),
        },
        "upstream_ms": {
            "chat": _named(lines[CHAT], Line.whole, ""),
            "embedding": _named(lines[EMBEDDING], Line.whole, ""),
        },
        "requests_per_second": {
            name: {concurrency.key: line.per_second for concurrency, line in by_concurrency.items()}
            for name, by_concurrency in lines.items()
        },
        "litellm_version": litellm_proxy.VERSION,
        "requests": {concurrency.key: len(line.answered) for concurrency, line in ours.items()},
        "processors": os.cpu_count(),
    }


def _overhead(by_concurrency: Mapping[Load, Line], values: Callable[[Line], list[float]]) -> dict[str, float]:
    return _named(by_concurrency, values, "overhead_ms_")


def _named(by_concurrency: Mapping[Load, Line], values: Callable[[Line], list[float]], prefix: str) -> dict[str, float]:
    return {
        f"{prefix}p{percent}_{concurrency.key}": round(value, 2)
        for concurrency, line in by_concurrency.items()
        for percent, value in percentiles(values(line)).items()
    }


def _memory_figures(growth: Growth) -> dict[str, Any]:
    return {
        "rss_mb_start": round(growth.megabytes[0], 1),
        "rss_mb_end": round(growth.megabytes[-1], 1),
        "rss_kb_per_1000_requests": round(growth.slope_kb(), 1),
        "memory_requests": growth.requests[-1],
    }


if __name__ == "__main__":
    sys.exit(main())
