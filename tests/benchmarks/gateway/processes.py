"""Processes of this run, each stopped by its own pid when its turn is over, and by Linux if this one is killed."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

from infra.local import ports
from infra.local.parts import ROOT
from infra.local.stack import PR_SET_PDEATHSIG, PRCTL

STOP_SECONDS = 5.0
MEGABYTE = 1024 * 1024


class NotReady(RuntimeError):
    """A process ended before it was ready, or took too long; the message has the end of what it printed."""


@contextmanager
def serving(
    command: Sequence[str], log: Path, environment: Mapping[str, str], ready: str, seconds: float = 60
) -> Iterator[str]:
    """A server on a free port of loopback, `PORT` in its command; gives its origin once `ready` answers with 200."""
    with ports.reserve(None) as held:
        port = ports.number(held)
        with running([part.replace("PORT", str(port)) for part in command], log, environment) as process:
            _await(process, f"{ports.url(port)}{ready}", log, seconds)
            yield ports.url(port)


@contextmanager
def running(
    command: Sequence[str], log: Path, environment: Mapping[str, str], *, has_pipes: bool = False, folder: Path = ROOT
) -> Iterator[subprocess.Popen[bytes]]:
    """A process; what it says goes to `log`, or with pipes only what it complains of."""
    with log.open("wb") as errors:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE if has_pipes else subprocess.DEVNULL,
            stdout=subprocess.PIPE if has_pipes else errors,
            stderr=errors,
            start_new_session=True,  # the terminal's Ctrl-C is this run's alone
            preexec_fn=_end_with_parent,
        )
    try:
        yield process
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ask it to stop, then make it."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    with suppress(ProcessLookupError):  # it has left its group empty
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def resident_mb(pid: int) -> float:
    """The memory a process holds, in MB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MEGABYTE


def _await(process: subprocess.Popen[bytes], url: str, log: Path, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(httpx.TransportError):
            if httpx.get(url, timeout=5, trust_env=False).status_code == 200:
                return
        time.sleep(0.1)
    raise NotReady("\n".join(log.read_text(errors="replace").splitlines()[-5:]) or "it said nothing")


def _end_with_parent() -> None:
    PRCTL(PR_SET_PDEATHSIG, signal.SIGTERM)
