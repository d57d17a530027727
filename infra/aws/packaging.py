"""The functions as Lambda takes them: a zip each, the same bytes from the same files whoever makes it and when.

In a zip are the packages of `functions/<function>/requirements.txt`, the modules of this repository that the function
imports, and bytecode that Python uses without a look at the sources: it is most of a fast start. Packages come
without their sources, as a smaller zip is fetched sooner; ours stay, for tracebacks that show a line.
boto3 is among the packages, though Lambda has one: that one changes under a function that nobody deployed.
"""

import argparse
import ast
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".local/package"
FUNCTIONS = sorted(file.parent.name.replace("_", "-") for file in ROOT.glob("functions/*/handler.py"))
PLATFORMS = {"x86_64": "x86_64-manylinux_2_28", "arm64": "aarch64-manylinux_2_28"}  # Amazon Linux 2023 has glibc 2.34
RUNNING = "{}.{}".format(*sys.version_info)
OURS = ("functions", "shared")
STREAMING = {"ai-finance", "ai-with-rag"}  # behind a Function URL, which their own runtime loop answers
STREAM = "infra/aws/stream.sh"
LOOP = "shared.lambda_runtime"
DATA = {"shared.prompting": "shared/prompts/*.md", "shared.evaluation": "shared/evaluation_sets/*.jsonl"}
DROPPED = (
    *("bin/*", ".*", "*/.*", "*.pyi", "*.pyx", "*.pxd", "*.h", "*.md", "*.rst", "*/py.typed"),
    *("*/tests/*", "*/_tests/*", "*/_testcapi.*", "*/pytest_plugin.py", "*/mypy.py"),
    "*.dist-info/*",  # nothing of it is read when a function runs
    *("boto3/data/*", "boto3/examples/*", "botocore/data/*"),  # twenty megabytes of other services
    "botocore/cacert.pem",  # certifi's is used where certifi is
    "dateutil/zoneinfo/*.tar.gz",  # for systems without time zones
    *("aws_lambda_powertools/event_handler/*", "aws_lambda_powertools/utilities/*"),  # all but its logger
    *("cffi/*", "pycparser/*"),  # the compiler's side of _cffi_backend
    "pydantic/v1/*",  # FastAPI's to refuse, where it is there: twenty milliseconds of a start
    *("h2/*", "hpack/*", "hyperframe/*"),  # httpcore's for HTTP/2, where they are there, which nothing here speaks
)
KEPT = (
    *(f"botocore/data/{service}/*" for service in ("s3", "sqs")),
    *(f"botocore/data/{name}.json" for name in ("_retry", "endpoints", "partitions", "sdk-default-configuration")),
    *("aws_lambda_powertools/utilities/__init__.py", "aws_lambda_powertools/utilities/jmespath_utils/*"),
    *("opentelemetry_*.dist-info/METADATA", "opentelemetry_*.dist-info/entry_points.txt"),  # its parts find each other
)
# It reads its own sources to know what it needn't import, and imports all of itself where there are none.
READ = ("anyio/__init__.py", "anyio/abc/__init__.py")
EPOCH = (1980, 1, 1, 0, 0, 0)  # a zip knows no time before
LEVEL = 7  # 9 takes three times as long, for half a percent


class PackagingError(Exception):
    """A zip can't be made; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a zip is for, and the interpreter that writes its bytecode."""

    architecture: str
    python: str
    interpreter: str

    @property
    def runtime(self) -> str:
        return f"python{self.python}"


def main() -> int:
    arguments = _arguments()
    console = Console(highlight=False, soft_wrap=True)
    try:
        target = Target(arguments.architecture, arguments.python, interpreter(arguments.python))
        written = write(arguments.functions or FUNCTIONS, target, FOLDER / target.architecture, console)
    except PackagingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    console.print(_table(written, target))
    if target.python == "3.11":
        console.print("Lambda's python3.11 has glibc 2.26, these packages need 2.28: for AWS take a newer --python.")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m infra.aws.packaging", description="Zips of the functions.")
    parser.add_argument("functions", nargs="*", metavar="FUNCTION", help=f"{', '.join(FUNCTIONS)}; all, if none")
    parser.add_argument("--architecture", choices=PLATFORMS, default="x86_64", help="%(choices)s; %(default)s, if none")
    parser.add_argument("--python", metavar="3.N", default=RUNNING, help="Lambda's Python; %(default)s, if none")
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.functions) - set(FUNCTIONS)):
        parser.error(f"there is no function {', '.join(unknown)}; there are {', '.join(FUNCTIONS)}")
    return arguments


def interpreter(python: str) -> str:
    """The program of that version of Python: bytecode is written by the version that reads it."""
    if python == RUNNING:
        return sys.executable
    found = shutil.which(f"python{python}")
    asked = [found or "false", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]  # a shim may find none
    if subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip() == python:
        return str(found)
    raise PackagingError(f"There is no python{python} on PATH that runs; install it, or leave out --python.")


def write(functions: Iterable[str], target: Target, folder: Path, console: Console) -> dict[str, Path]:
    """Each function's zip, made where what is in it has changed, and `package.json`, which says what there is.

    Of two at once in a folder one waits, and finds what the other has made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _write_all(functions, target, folder, console)


def _write_all(functions: Iterable[str], target: Target, folder: Path, console: Console) -> dict[str, Path]:
    facts = _facts(folder / "package.json", target)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        told = {name: pool.submit(_write, name, target, folder, facts.get(name, {}), console) for name in functions}
    facts |= {name: writing.result() for name, writing in told.items()}
    whole = {"runtime": target.runtime, "architecture": target.architecture, "functions": dict(sorted(facts.items()))}
    _replace(folder / "package.json", f"{json.dumps(whole, indent=2)}\n".encode())
    return {name: folder / facts[name]["zip"] for name in told}


def closure(function: str) -> dict[str, Path]:
    """The function's modules of this repository, with those that a request imports, by name."""
    roots = [f"functions.{function.replace('-', '_')}.handler", *([LOOP] if function in STREAMING else [])]
    found: dict[str, Path] = {}
    while roots:
        name = roots.pop()
        file = _file(name)
        if file and name not in found:
            found[name] = file
            roots += [name.rpartition(".")[0], *(other for other in imports(file) if other.startswith(OURS))]
    return dict(sorted(found.items()))


def imports(file: Path) -> set[str]:
    """What a module imports at any time, by full names; what is `from` a package may be a name in it.

    Not what types alone need, nor what is for a terminal.
    """
    names: set[str] = set()
    for node in _statements(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        yield child
        if not (isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "__name__ == '__main__'")):
            yield from _statements(child)


def _file(module: str) -> Path | None:
    path = ROOT / module.replace(".", "/")
    candidates = (path.with_suffix(".py"), path / "__init__.py")
    return next((file for file in candidates if module and file.is_file()), None)


def _write(function: str, target: Target, folder: Path, before: dict[str, Any], console: Console) -> dict[str, Any]:
    """The zip's facts; it is made anew unless the one that is there is of the same inputs, and whole."""
    ours = _ours(function)
    requirements = ROOT / "functions" / function.replace("-", "_") / "requirements.txt"
    inputs = _digest(target, requirements, ours)
    zipped = folder / f"{function}.zip"
    if before.get("inputs") == inputs and zipped.is_file() and before["sha256"] == _sha256(zipped.read_bytes()):
        return before
    _make(function, requirements, ours, target, zipped, console)
    content = zipped.read_bytes()
    facts = {"zip": zipped.name, "sha256": _sha256(content), "bytes": len(content)}
    return {**facts, "unzipped_bytes": sum(entry.file_size for entry in _entries(zipped)), "inputs": inputs}


def _make(
    function: str, requirements: Path, ours: dict[str, Path], target: Target, zipped: Path, console: Console
) -> None:
    with tempfile.TemporaryDirectory() as made:
        stage = Path(made)
        console.print(f"[dim]{function}: packages for {target.runtime} on {target.architecture}[/dim]")
        _install(requirements, target, stage)
        console.print(f"[dim]{function}: bytecode[/dim]")
        _compile(target, stage, ours)
        console.print(f"[dim]{function}: zip[/dim]")
        _zip(stage, zipped)


def _entries(zipped: Path) -> list[zipfile.ZipInfo]:
    with zipfile.ZipFile(zipped) as opened:
        return opened.infolist()


def _ours(function: str) -> dict[str, Path]:
    """This repository's files in the zip, by their names there."""
    modules = closure(function)
    data = [file for module, pattern in DATA.items() if module in modules for file in ROOT.glob(pattern)]
    files = {file.relative_to(ROOT).as_posix(): file for file in sorted([*modules.values(), *data])}
    return files | ({"stream": ROOT / STREAM} if function in STREAMING else {})


def _digest(target: Target, requirements: Path, ours: dict[str, Path]) -> str:
    asked = [target.interpreter, "-c", "import sys; print(sys.version)"]
    version = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    files = {**ours, "requirements": requirements, "packaging": Path(__file__)}
    contents = {name: _sha256(file.read_bytes()) for name, file in files.items()}
    return _sha256(json.dumps([target.architecture, version, zlib.ZLIB_RUNTIME_VERSION, contents]).encode())


def _install(requirements: Path, target: Target, stage: Path) -> None:
    uv = [sys.executable, "-m", "uv", "--no-config", "pip", "install", "--quiet", "--target", str(stage)]
    platform = ["--python-platform", PLATFORMS[target.architecture], "--python-version", target.python]
    exact = ["--only-binary", ":all:", "--require-hashes", "--no-deps", "-r", str(requirements)]
    done = subprocess.run([*uv, *platform, *exact], capture_output=True, text=True, check=False)
    if done.returncode:
        raise PackagingError(f"{requirements.parent.name}: {done.stderr.strip()}\n{_advice(done.stderr, target)}")
    for file in [file for file in stage.rglob("*") if file.is_file()]:
        if _is_dropped(file.relative_to(stage).as_posix()):
            file.unlink()


def _advice(told: str, target: Target) -> str:
    if "No module named uv" in told:
        return "uv isn't installed here; `make install` does it."
    if "wheel" in told:
        return f"A package has no wheel for {target.runtime} on {target.architecture}: take another --python."
    return "Packages come from the registry once and from uv's cache then: is there a network?"


def _is_dropped(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in DROPPED) and not any(fnmatch(name, pattern) for pattern in KEPT)


def _compile(target: Target, stage: Path, ours: dict[str, Path]) -> None:
    """Bytecode in the place of the packages' sources, and beside ours."""
    _compileall(target, stage, "-b", str(stage))
    read = [stage / name for name in READ]
    for file in stage.rglob("*.py"):
        (file.with_suffix(".pyc") if file in read else file).unlink()
    for name, file in ours.items():
        (stage / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, stage / name)
    _compileall(target, stage, *(str(stage / folder) for folder in OURS), *map(str, read))


def _compileall(target: Target, stage: Path, *what: str) -> None:
    """In one process, for the bytes depend on which strings a process has seen before."""
    unchecked = ["-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", "-s", str(stage), "-p", "/var/task"]
    command = [target.interpreter, "-I", *unchecked, *what]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PackagingError(f"{target.runtime} can't compile:\n{done.stdout}{done.stderr}")


def _zip(stage: Path, zipped: Path) -> None:
    part = zipped.with_suffix(".part")
    with zipfile.ZipFile(part, "w") as writing:
        for file in sorted(file for file in stage.rglob("*") if file.is_file()):
            name = file.relative_to(stage).as_posix()
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.create_system = 3  # Unix, whose modes these are
            entry.external_attr = (0o100755 if name == "stream" else 0o100644) << 16
            writing.writestr(entry, file.read_bytes(), zipfile.ZIP_DEFLATED, compresslevel=LEVEL)
    part.replace(zipped)


def _facts(file: Path, target: Target) -> dict[str, dict[str, Any]]:
    """What the folder holds of functions for the same runtime."""
    before: dict[str, Any] = json.loads(file.read_bytes()) if file.is_file() else {}
    return before["functions"] if before.get("runtime") == target.runtime else {}


def _table(written: dict[str, Path], target: Target) -> Table:
    table = Table(title=f"{target.runtime} on {target.architecture}", title_justify="left")
    for heading in ("function", "zip MB", "unzipped MB", "largest packages, zipped MB"):
        table.add_column(heading, justify="right" if heading.endswith("zip MB") else "left")
    for function, file in written.items():
        entries = _entries(file)
        packages = Counter[str]()
        for entry in entries:
            packages[entry.filename.partition("/")[0]] += entry.compress_size
        largest = ", ".join(f"{name} {size / 1e6:.1f}" for name, size in packages.most_common(3))
        unzipped = sum(entry.file_size for entry in entries)
        table.add_row(function, f"{file.stat().st_size / 1e6:.2f}", f"{unzipped / 1e6:.1f}", largest)
    return table


def _replace(file: Path, content: bytes) -> None:
    part = file.with_suffix(".part")
    part.write_bytes(content)
    part.replace(file)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
