"""What is started: each function's zip, unpacked, and rivals in folders of their own with the same bytecode."""

import platform
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from infra.aws import packaging
from infra.local.parts import ROOT
from tests.benchmarks.gateway import litellm_proxy

INSTALL_SECONDS = 600
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
ARCHITECTURES = {"x86_64": "x86_64", "aarch64": "arm64"}  # Lambda's names
LOCKED = ("--constraints", str(ROOT / "requirements.lock"))
APP = """
from fastapi import FastAPI
from mangum import Mangum

app = FastAPI()


@app.post("/{path:path}")
async def answer() -> dict[str, str]:
    return {"answer": "here"}


handler = Mangum(app, lifespan="off")
"""
PLAIN = """

def handler(event, context):
    return {"statusCode": 200, "body": "here"}
"""


class NotInstalled(RuntimeError):
    """A rival's packages can't be had; the message is the installer's last line."""


@dataclass(frozen=True, slots=True)
class Rival:
    """What somebody's function would import, and its handler; its packages are of our versions where they are ours."""

    name: str
    packages: Sequence[str]
    source: str
    options: Sequence[str] = LOCKED


BARE, EAGER, LITELLM, LANGCHAIN = "bare_fastapi", "eager_all", "litellm", "langchain"
RIVALS = {
    BARE: Rival("FastAPI + Mangum, nothing else", ("fastapi", "mangum"), APP),
    EAGER: Rival(
        "the same, importing all of a gateway's packages",
        ("fastapi", "mangum", "supabase", "openai", "httpx", "pydantic-settings"),
        "import httpx, openai, pydantic_settings, supabase\n" + APP,
    ),
    LITELLM: Rival(
        "LiteLLM, a handler that returns",
        (f"litellm=={litellm_proxy.VERSION}",),
        "from litellm import completion\n" + PLAIN,
        (),
    ),
    LANGCHAIN: Rival(
        "langchain-openai and SupabaseVectorStore, the same",
        ("langchain-openai", "langchain-community", "supabase"),
        "from langchain_community.vectorstores import SupabaseVectorStore\nfrom langchain_openai import ChatOpenAI\n"
        + PLAIN,
        (),
    ),
}


def interpreter(folder: Path) -> Path:
    """A Python of this version that has nothing but awslambdaric, as Lambda's; made unless it is there."""
    made = folder / f"python{PYTHON}"
    python, packages = made / "bin/python", made / f"lib/python{PYTHON}/site-packages"
    if not (packages / "awslambdaric").exists():
        _run([sys.executable, "-m", "venv", "--clear", "--without-pip", str(made)])
        _install(["awslambdaric"], ("--python", str(python), *LOCKED))
        _compile(packages)
    return python


def functions(folder: Path, console: Console) -> tuple[dict[str, Path], dict[str, float]]:
    """Each function's zip unpacked into `folder`, and its megabytes."""
    target = packaging.Target(ARCHITECTURES[platform.machine()], PYTHON, sys.executable)
    zips = packaging.write(packaging.FUNCTIONS, target, packaging.FOLDER / target.architecture, console)
    for name, zipped in zips.items():
        with zipfile.ZipFile(zipped) as reading:
            reading.extractall(folder / name)
    return {name: folder / name for name in zips}, {name: file.stat().st_size / 1e6 for name, file in zips.items()}


def rival(name: str, folder: Path) -> Path:
    """A rival's folder in `folder`, made unless it is there. Raises `NotInstalled`."""
    chosen, made = RIVALS[name], folder / f"{name}-{PYTHON}"
    done = made / f".installed-{'-'.join(chosen.packages)}"
    if not done.exists():
        shutil.rmtree(made, ignore_errors=True)
        _install(chosen.packages, ("--python", sys.executable, "--target", str(made), *chosen.options))
        _compile(made)
        done.touch()
    (made / "rival").mkdir(exist_ok=True)
    (made / "rival/handler.py").write_text(chosen.source)
    _compile(made / "rival")
    return made


def _install(packages: Sequence[str], options: Sequence[str]) -> None:
    _run([sys.executable, "-m", "uv", "--no-config", "pip", "install", "--quiet", *options, *packages])


def _compile(folder: Path) -> None:
    """Bytecode as in our zips, used without a look at the sources; what isn't Python of this version has none."""
    unchecked = ["-m", "compileall", "-q", "-j", "0", "--invalidation-mode", "unchecked-hash", str(folder)]
    subprocess.run([sys.executable, *unchecked], capture_output=True, timeout=INSTALL_SECONDS, check=False)


def _run(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise NotInstalled(f"not within {INSTALL_SECONDS} s") from error
    if done.returncode:
        raise NotInstalled((done.stderr.strip().splitlines() or ["uv failed"])[-1])
