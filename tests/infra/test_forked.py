"""Processes that are forked with their imports done: what they have of each other."""

import json
import subprocess
import sys

from infra.local.parts import ROOT

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
