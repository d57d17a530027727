"""Where Chromium is; where there is none, Debian's package of what of it needs no screen, which takes half the time."""

import fcntl
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
LACKING = "There is no Chromium: apt-get install chromium, or name one in the environment variable CHROMIUM."


def executable() -> str:
    """The browser that CHROMIUM names, or one on PATH, installed now where this is root's machine with apt-get."""
    return os.environ.get("CHROMIUM") or _on_path() or _installed()


def _on_path() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


def _installed() -> str:
    assert os.geteuid() == 0 and shutil.which("apt-get"), LACKING
    with Path(tempfile.gettempdir(), "supabase-ai-gateway-chromium.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the tests' other processes wait for the first one's
        found = _on_path() or _install()
    assert found, LACKING
    return found


def _install() -> str | None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = "install --yes --no-install-recommends fonts-dejavu-core"
    for command in ("update", f"{install} chromium-headless-shell", f"{install} chromium"):
        if not _on_path():  # not every distribution has the first
            subprocess.run(["apt-get", "--quiet", *command.split()], env=environment, check=False, timeout=240)
    return _on_path()
