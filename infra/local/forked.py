"""Processes that begin with their imports done: forked from a server that has made them, for stacks that start many.

A function's process takes a second and a half to import what it is made of; forked, it is there at once.
"""

import faulthandler
import gc
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

PRELOADED = (
    "functions.ai_finance.handler",
    "functions.ai_with_rag.handler",
    "functions.deploy_model.handler",
    "functions.export_training_data.handler",
    # And what they import when they need it.
    *("jwt", "storage3", "markdown_it", "boto3", "shared.training_quality", "anyio._backends._asyncio"),
    "infra.local.stack",
    "infra.local.functions",
    "infra.local.queue_worker",
    "uvicorn.loops.uvloop",
    "uvicorn.protocols.http.httptools_impl",
    "uvicorn.protocols.websockets.auto",
)


class Forked:
    """A `python -m …` command as a forked process, with what is used of `subprocess.Popen`.

    What it prints goes to the end of `log`, what it says of failures too where no `errors` are named.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        folder: Path,
        errors: Path | None = None,
    ) -> None:
        assert command[:2] == [sys.executable, "-m"]
        arguments = list(command[2:]), dict(environment), str(log), str(errors or log), str(folder)
        self._process = _context().Process(target=_become, args=arguments)
        self._process.start()
        assert self._process.pid
        self.pid: int = self._process.pid

    def poll(self) -> int | None:
        status: int | None = self._process.exitcode
        return status

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def wait(self, timeout: float | None = None) -> int:
        """Raises `subprocess.TimeoutExpired`."""
        self._process.join(timeout)
        status = self.poll()
        if status is None:
            raise subprocess.TimeoutExpired("python -m", timeout or 0)
        return status


@cache
def _context() -> Any:
    """The server ends with this process, and what it has forked with it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["infra.local.forked", *PRELOADED])
    return context


def _become(command: list[str], environment: dict[str, str], log: str, errors: str, folder: str) -> None:
    from infra.local.stack import PR_SET_PDEATHSIG, PRCTL

    os.setsid()
    PRCTL(PR_SET_PDEATHSIG, signal.SIGTERM)
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    with open(os.devnull, "rb") as nothing, open(log, "ab") as output, open(errors, "ab") as told:
        os.dup2(nothing.fileno(), 0)
        os.dup2(output.fileno(), 1)
        os.dup2(told.fileno(), 2)
    for number in os.listdir("/proc/self/fd"):  # one of them keeps the server there when who started it is gone
        if int(number) > 2:
            with suppress(OSError):  # what listed them
                os.close(int(number))
    faulthandler.enable(file=2)  # what it was at is told on SIGABRT
    gc.freeze()  # what is shared stays so
    warnings.filterwarnings("ignore", "'.*' found in sys.modules", RuntimeWarning)  # as it should be
    sys.argv = command
    sys.path.insert(0, folder)
    runpy.run_module(command[0], run_name="__main__", alter_sys=True)
