"""The benchmark of export-training-data, beside the guide's code made complete and a bare COPY of the same columns.

python -m tests.benchmarks.export                # 1,000,000 conversations: ten minutes on two cores
python -m tests.benchmarks.export --rows 100000  # a look
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from infra.local import postgres
from infra.local.migrations import MigrationError
from infra.local.parts import ROOT, StackError
from infra.local.stack import Stack, stop_on_signals
from tests.benchmarks.export import conversations

OUTPUT = ROOT / ".local/bench"
WIDTH = 160
TOLD = {
    "ours": "this gateway, all of it new: redacted, scored, no duplicates, into training_data and a file",
    "again": "this gateway, once more: what was read before is not read again",
    "guide": "the guide made complete: supabase-py, pages by range, one upload",
    "copy": "COPY of the same columns, out of PostgreSQL",
}
LEAST_TIMES, MOST_MEMORY = 5, 200
SAMPLE_SECONDS = 0.2


class Broken(RuntimeError):
    """A way that failed; nothing of such a run counts."""


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.export", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--rows", type=int, default=1_000_000, help="conversations (1000000)")
    parser.add_argument("--workers", type=int, default=2, help="that collect at once (2)")
    arguments = parser.parse_args()
    if arguments.rows < 1000 or not 1 <= arguments.workers <= 16:
        parser.error("--rows: at least 1000; --workers: from 1 to 16")

    stop_on_signals()
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=OUTPUT) as folder:
        try:
            figures = _run(Path(folder), arguments.rows, arguments.workers, console)
        except (StackError, MigrationError, Broken) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        finally:
            postgres.remove(Path(folder))
    file = OUTPUT / "export.json"
    file.write_text(json.dumps(figures, indent=2) + "\n")
    console.print(f"Also in {file.relative_to(ROOT)}.")
    return 0


def _run(folder: Path, rows: int, workers: int, console: Console) -> dict[str, Any]:
    environment = {"MODEL_BASE_URL": "http://127.0.0.1:9/v1", "MODEL_NAME": "none", "EMBEDDING_MODEL": "none"}
    environment |= {"EMBEDDING_BASE_URL": "http://127.0.0.1:9/v1", "FILE_SIZE_LIMIT": str(8 * 1024**3)}
    console.print("[dim]starting the embedded stack[/dim]")
    parts = {"aws", "postgres", "lite", "gateway"}
    with Stack(folder, environment=environment, only=parts, preferred_ports={}) as stack:
        console.print(f"[dim]making {rows:,} conversations[/dim]")
        conversations.load(stack.database_url, rows)
        measured = {}
        for way in ("copy", "guide", "ours", "again"):
            measured[way] = _measure(stack, way, -(-rows // workers), workers if way == "ours" else 1)
            told = measured[way]
            if told["rows"] != rows:
                raise Broken(f"{TOLD[way]}: {told['rows']} rows of {rows}")
            console.print(f"[dim]{TOLD[way]}: {told['seconds']:.1f} s[/dim]")
        console.print(_table(measured, rows), *_targets(measured), sep="\n", highlight=False)
    speeds = {f"rows_s_{way}": round(told["rows"] / told["seconds"]) for way, told in measured.items()}
    return {"rows": rows, **speeds, "peak_mb_ours": measured["ours"]["peak_mb"], "workers": workers}


def _measure(stack: Stack, way: str, shard_rows: int, workers: int) -> dict[str, Any]:
    """What one way says of itself; of several workers the time of the first, and the highest peak of memory."""
    environment = {**os.environ, **stack.environment, "DATABASE_URL": stack.database_url}
    environment |= {"EXPORT_SHARD_ROWS": str(max(1000, shard_rows)), "EXPORT_QUEUE_URL": ""}
    name = "ours" if way == "again" else way
    first = _begin(environment, name)
    assert first.stdout
    helpers = []
    if workers > 1:
        export_id = json.loads(first.stdout.readline())["export"]
        helpers = [_begin(environment, name, str(export_id)) for _ in range(workers - 1)]
    memory = [_Memory(process) for process in (first, *helpers)]
    told = [_end(process, way) for process in (first, *helpers)]
    return {
        **told[0],
        "requests": sum(each["requests"] for each in told),
        "peak_mb": round(max(each["peak_mb"] for each in told), 1),
        "memory": memory[0].told(),
    }


def _begin(environment: Mapping[str, str], *arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "tests.benchmarks.export.ways", *arguments]
    return subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def _end(process: "subprocess.Popen[str]", way: str) -> dict[str, Any]:
    output, _ = process.communicate(timeout=3600)
    if process.returncode:
        raise Broken(f"{TOLD[way]}: it ended with {process.returncode}")
    told: dict[str, Any] = json.loads(output.splitlines()[-1])
    return told


class _Memory:
    """A process's memory while it runs."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.samples: list[float] = []
        self.process = process
        threading.Thread(target=self._watch, daemon=True).start()

    def told(self) -> str:
        """At a quarter, half and three quarters of its time."""
        places = (len(self.samples) * quarter // 4 for quarter in (1, 2, 3))
        return " / ".join(f"{self.samples[place]:.0f}" for place in places) if self.samples else "-"

    def _watch(self) -> None:
        status = Path(f"/proc/{self.process.pid}/status")
        while self.process.poll() is None:
            try:
                lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
                self.samples.append(int(lines["VmRSS"].split()[0]) / 1024)
            except (OSError, KeyError):
                return
            threading.Event().wait(SAMPLE_SECONDS)


def _table(measured: Mapping[str, dict[str, Any]], rows: int) -> Table:
    table = Table(title=f"{rows:,} liked conversations", title_justify="left")
    for title in ("", "rows/s", "beside the guide", "peak memory, MB", "at 1/4, 1/2, 3/4", "requests"):
        table.add_column(title, justify="left" if not title else "right")
    for way, told in measured.items():
        times = measured["guide"]["seconds"] / told["seconds"]
        cells = f"{told['rows'] / told['seconds']:,.0f}", f"{times:.2f} x", f"{told['peak_mb']:.0f}", told["memory"]
        table.add_row(TOLD[way], *cells, f"{told['requests']:,}")
    return table


def _targets(measured: Mapping[str, dict[str, Any]]) -> list[str]:
    ours, guide, bare = (measured[way]["seconds"] for way in ("ours", "guide", "copy"))
    times, peak = guide / ours, measured["ours"]["peak_mb"]
    return [
        f"{'met   ' if times >= LEAST_TIMES else 'MISSED'} {times:.1f} times the guide's speed, at least {LEAST_TIMES}",
        f"{'met   ' if peak <= MOST_MEMORY else 'MISSED'} peak memory {peak:.0f} MB, at most {MOST_MEMORY}",
        f"       {ours / bare:.0f} times the time of the bare COPY",
    ]


if __name__ == "__main__":
    sys.exit(main())
