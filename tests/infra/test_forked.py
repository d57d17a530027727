"""Processes that are forked with their imports done: what they have of each other."""

import json
import subprocess
import sys

import pytest

from infra.local.parts import ROOT
from tests.infra.test_stack import family, is_alive, wait_until

OPENED = """
import importlib, json, os

def opened():
    links = (f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd"))
    return {os.readlink(link) for link in links if os.path.lexists(link)}

before = opened()
from infra.local.forked import PRELOADED
for name in PRELOADED:
    importlib.import_module(name)
print(json.dumps({"opened": sorted(opened() - before), "threads": len(os.listdir("/proc/self/task"))}))
"""


def test_what_is_imported_before_a_fork_opens_nothing_and_starts_no_thread() -> None:
    """An event loop that two processes have is woken in the other one, and its own waits for good."""
    told = subprocess.run([sys.executable, "-c", OPENED], cwd=ROOT, capture_output=True, check=True, timeout=60)

    assert json.loads(told.stdout) == {"opened": [], "threads": 1}


FORKING = """
import os, sys
from pathlib import Path
from infra.local.forked import Forked

command = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "0"]
print(Forked(command, os.environ, Path(os.devnull), Path.cwd()).pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.timeout(90)
def test_who_is_killed_leaves_neither_the_server_nor_what_it_has_forked() -> None:
    command = [sys.executable, "-c", FORKING]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as doomed:
        assert doomed.stdout
        forked = int(doomed.stdout.readline())
        left = family(doomed.pid) - {doomed.pid}
        doomed.kill()

    assert forked in left
    wait_until(lambda: not any(map(is_alive, left)))
