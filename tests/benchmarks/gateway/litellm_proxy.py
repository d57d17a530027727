"""LiteLLM's proxy from PyPI, in a virtual environment of its own that the next run finds."""

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.benchmarks.gateway import processes

VERSION = "1.106.12"  # the extra of 1.110 wants a package that PyPI does not have
KEY = f"sk-{secrets.token_hex(24)}"  # it refuses to start with one that can be guessed
INSTALL_SECONDS = 600
START_SECONDS = 120
SETTINGS = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # nothing is fetched
    "LITELLM_LOG": "ERROR",
    "LITELLM_TELEMETRY": "False",
}


class NotInstalled(RuntimeError):
    """pip could not install it; the message is pip's last line."""


def install(folder: Path) -> Path:
    """The proxy's program in the virtual environment `folder`, made unless it is there. Raises `NotInstalled`."""
    done = folder / f".installed-{VERSION}"
    if not done.exists():
        _run([sys.executable, "-m", "venv", "--clear", str(folder)])
        pip = [str(folder / "bin/python"), "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
        _run([*pip, f"litellm[proxy]=={VERSION}"])
        done.touch()
    return folder / "bin/litellm"


@contextmanager
def serving(program: Path, folder: Path, upstream: str) -> Iterator[str]:
    """One worker with one model, the upstream's, without a database; its one key is `KEY`."""
    config = folder / "litellm.yaml"  # JSON is YAML
    parameters = {"model": "openai/stand-in", "api_base": f"{upstream}/v1", "api_key": "none"}
    config.write_text(
        json.dumps(
            {
                "model_list": [{"model_name": "stand-in", "litellm_params": parameters}],
                "litellm_settings": {"telemetry": False, "num_retries": 0},
            }
        )
    )
    command = [str(program), "--config", str(config), "--host", "127.0.0.1", "--port", "PORT", "--num_workers", "1"]
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], "LITELLM_MASTER_KEY": KEY, **SETTINGS}
    with processes.serving(command, folder / "litellm.log", environment, "/health/liveliness", START_SECONDS) as origin:
        yield origin


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise NotInstalled(f"not within {INSTALL_SECONDS} s") from error
    if done.returncode:
        raise NotInstalled((done.stderr.strip().splitlines() or ["pip failed"])[-1])
