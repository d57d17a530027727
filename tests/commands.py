"""This repository's commands, `python -m …`, in processes that are forked with their imports done."""

import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from infra.local.forked import Forked
from infra.local.parts import ROOT


def run(environment: Mapping[str, str], *arguments: object, seconds: float = 50) -> "subprocess.CompletedProcess[str]":
    """What a module with these arguments has printed, and how it ended."""
    command = [sys.executable, "-m", *map(str, arguments)]
    with tempfile.TemporaryDirectory() as folder:
        printed, told = Path(folder, "printed"), Path(folder, "told")
        process = Forked(command, environment, printed, ROOT, told)
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired as error:
            process.send_signal(signal.SIGABRT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(5)
            process.send_signal(signal.SIGKILL)
            raise AssertionError(f"{command} hasn't ended in {seconds} s: {told.read_text()}") from error
        return subprocess.CompletedProcess(command, status, printed.read_text(), told.read_text())


def load_knowledge(environment: Mapping[str, str]) -> None:
    """A part of the seed knowledge, loaded by the command that loads all of it."""
    done = run(environment, "shared.knowledge", "load", "sql/knowledge/ton.jsonl")
    assert done.returncode == 0, done.stderr
