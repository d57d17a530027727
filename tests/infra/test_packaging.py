"""The zips that go to Lambda, as the command makes them from a copy of this repository."""

import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

from infra.aws import packaging

ROOT = Path(__file__).parents[2]
FUNCTIONS = ["ai-finance", "ai-with-rag", "deploy-model", "export-training-data"]
HERE, OTHER = ("arm64", "x86_64") if platform.machine() == "aarch64" else ("x86_64", "arm64")
MACHINES = {"x86_64": 62, "arm64": 183}  # in an ELF file's head
UNCHECKED = 1  # in a .pyc's head: by hash, and not looked at
OPTIONAL = "opentelemetry"  # its SDK is the extra `otel`
IMPORT = """
import sys
from importlib import import_module

folder, *names = sys.argv[1:]
sys.path.insert(0, folder)
for name in names:
    try:
        import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name or "." not in name:
            raise
        module, _, attribute = name.rpartition(".")
        getattr(import_module(module), attribute)
for service in ("s3", "sqs"):
    import_module("boto3").client(service, "eu-central-1", aws_access_key_id="a", aws_secret_access_key="b")
"""

pytestmark = pytest.mark.timeout(300)  # a package is fetched once


def copy(folder: Path) -> Path:
    """What the command reads, in a folder of its own."""
    for name in ("functions", "shared", "infra/aws"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def package(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "infra.aws.packaging", *arguments]
    return subprocess.run(
        command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, timeout=250, check=False
    )


def packaged(folder: Path, *arguments: str, architecture: str = HERE) -> Path:
    """The folder of the zips."""
    done = package(folder, "--architecture", architecture, *arguments)
    assert done.returncode == 0, done.stderr
    return folder / ".local/package" / architecture


@pytest.fixture(scope="module")
def zips() -> Path:
    """This checkout's own, which are made anew only where they have to be."""
    return packaged(ROOT)


@pytest.fixture(scope="module")
def copied(zips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another checkout, with the same zips."""
    folder = copy(tmp_path_factory.mktemp("copy"))
    shutil.copytree(zips, folder / ".local/package" / HERE)
    return folder


@pytest.fixture(params=FUNCTIONS)
def function(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def zipped(zips: Path, function: str) -> Iterator[zipfile.ZipFile]:
    with zipfile.ZipFile(zips / f"{function}.zip") as opened:
        yield opened


def outside(function: str) -> set[str]:
    """The names of packages that the function's modules import, now or later."""
    names = {name for file in packaging.closure(function).values() for name in packaging.imports(file)}
    ours = {"functions", "shared", OPTIONAL}
    return {name for name in names if name.partition(".")[0] not in {*ours, *sys.stdlib_module_names}}


@cache
def distributions() -> Mapping[str, list[str]]:
    """The packages that are installed here, by what is imported of them."""
    return importlib.metadata.packages_distributions()


def pins(file: Path) -> set[str]:
    """Versions and hashes, as the file says them."""
    return set(re.findall(r"^[a-z0-9-]+==[^ ;]+|--hash=\S+", file.read_text(), re.MULTILINE))


def requirements(function: str) -> Path:
    return ROOT / "functions" / function.replace("-", "_") / "requirements.txt"


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.partition("[")[0]).lower()


def test_everything_that_a_function_imports_is_in_its_zip(
    zipped: zipfile.ZipFile, function: str, tmp_path: Path
) -> None:
    zipped.extractall(tmp_path)
    ours = [f"functions.{function.replace('-', '_')}.handler", *packaging.closure(function)]

    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", IMPORT, tmp_path, *ours, *sorted(outside(function))],
        env={}, cwd="/", capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert {file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*") if file.is_file()} == set(
        zipped.namelist()
    )  # Python had no bytecode to write


def test_a_function_asks_for_the_packages_that_it_imports_and_no_other(function: str) -> None:
    imported = {canonical(distributions()[name.partition(".")[0]][0]) for name in outside(function)}

    asked = requirements(function).with_suffix(".in").read_text().split()

    assert {canonical(name) for name in asked} == imported
    assert asked == sorted(asked)


def test_versions_and_hashes_are_those_of_the_lock(function: str) -> None:
    assert pins(requirements(function)) <= pins(ROOT / "requirements.lock")


def test_pins_are_of_what_is_asked_for(function: str) -> None:
    file = requirements(function)

    told = re.findall(r"^(\S+)==[^#]*((?: +#.*\n)+)", file.read_text(), re.MULTILINE)

    direct = {name for name, via in told if "requirements.in" in via}
    assert direct == {canonical(name) for name in file.with_suffix(".in").read_text().split()}


def test_a_zip_has_at_most_15_mb_and_is_told_of(zips: Path, zipped: zipfile.ZipFile, function: str) -> None:
    told = json.loads((zips / "package.json").read_text())

    facts = told["functions"][function]

    content = (zips / facts["zip"]).read_bytes()
    assert told["runtime"] == "python{}.{}".format(*sys.version_info)
    assert told["architecture"] == HERE
    assert facts["bytes"] == len(content) <= 15_000_000
    assert facts["sha256"] == hashlib.sha256(content).hexdigest()
    assert facts["unzipped_bytes"] == sum(entry.file_size for entry in zipped.infolist())


def test_bytecode_is_taken_as_it_is(zipped: zipfile.ZipFile) -> None:
    bytecode = {name: zipped.read(name) for name in zipped.namelist() if name.endswith(".pyc")}

    assert {int.from_bytes(content[4:8], "little") for content in bytecode.values()} == {UNCHECKED}
    assert not [name for name, content in bytecode.items() if b"/var/task/" not in content]
    sources = [Path(name) for name in zipped.namelist() if name.endswith(".py")]
    tag = sys.implementation.cache_tag
    assert {f"{file.parent}/__pycache__/{file.stem}.{tag}.pyc" for file in sources} <= set(bytecode)


def test_nothing_comes_along_that_no_function_reads(zipped: zipfile.ZipFile) -> None:
    names = zipped.namelist()

    ours = ("functions/", "shared/")
    assert not [name for name in names if name.endswith((".pyi", ".h", ".rst")) or "/tests/" in name]
    sources = [name for name in names if name.endswith((".py", ".md")) and not name.startswith(ours)]
    assert sources == list(packaging.READ)
    assert not [name for name in names if ".dist-info/" in name and not name.startswith(OPTIONAL)]
    assert not [name for name in names if name.endswith("_command.py")]
    services = {name.split("/")[2] for name in names if name.startswith("botocore/data/") and name.count("/") > 2}
    assert services == {"s3", "sqs"}


def test_files_that_a_module_reads_are_beside_it(zipped: zipfile.ZipFile) -> None:
    readers = {"prompts": "shared/prompting.py", "evaluation_sets": "shared/evaluation.py"}
    files = [file for file in (ROOT / "shared").rglob("*.*") if file.suffix not in (".py", ".pyc")]

    names = set(zipped.namelist())

    assert {file.parent.name for file in files} == set(readers)
    for file in files:
        assert (file.relative_to(ROOT).as_posix() in names) == (readers[file.parent.name] in names)


def test_a_zip_says_nothing_of_who_made_it_and_when(zipped: zipfile.ZipFile) -> None:
    entries = zipped.infolist()

    names = [entry.filename for entry in entries]
    assert names == sorted(names)
    assert {entry.date_time for entry in entries} == {(1980, 1, 1, 0, 0, 0)}
    modes = {entry.filename: entry.external_attr >> 16 & 0o777 for entry in entries}
    assert modes == {name: 0o755 if name == "stream" else 0o644 for name in names}


def test_a_function_that_streams_has_its_own_runtime(zipped: zipfile.ZipFile, function: str) -> None:
    streams = function in {"ai-finance", "ai-with-rag"}

    assert ({"stream", "shared/lambda_runtime.py"} <= set(zipped.namelist())) == streams


def test_what_has_changed_is_made_anew_and_another_checkout_makes_the_same_bytes(
    copied: Path,
) -> None:
    zips = copied / ".local/package" / HERE
    before = json.loads((zips / "package.json").read_text())["functions"]
    written = {name: (zips / f"{name}.zip").stat().st_mtime_ns for name in FUNCTIONS}
    prompt = copied / "shared/prompts/ai_finance.md"
    text = prompt.read_text()
    try:
        packaged(copied, "ai-finance", "ai-with-rag", "deploy-model")
        assert {name: (zips / f"{name}.zip").stat().st_mtime_ns for name in FUNCTIONS} == written
        prompt.write_text("Answer in rhymes.")
        packaged(copied, "ai-finance")
        with zipfile.ZipFile(zips / "ai-finance.zip") as zipped:
            assert zipped.read("shared/prompts/ai_finance.md") == b"Answer in rhymes."
    finally:
        prompt.write_text(text)
    (zips / "ai-finance.zip").write_bytes(b"torn")
    packaged(copied, "ai-finance")
    assert json.loads((zips / "package.json").read_text())["functions"] == before


@pytest.mark.parametrize("architecture", [HERE, OTHER])
def test_compiled_parts_are_of_the_architecture(zips: Path, copied: Path, architecture: str) -> None:
    folder = zips if architecture == HERE else packaged(copied, "export-training-data", architecture=OTHER)
    with zipfile.ZipFile(folder / "export-training-data.zip") as zipped:
        compiled = [zipped.read(name) for name in zipped.namelist() if re.search(r"\.so(\.|$)", name)]

    assert len(compiled) > 5
    assert {int.from_bytes(content[18:20], "little") for content in compiled} == {MACHINES[architecture]}


def test_a_missing_interpreter_is_named(copied: Path) -> None:
    done = package(copied, "--python", "3.99")

    assert done.returncode == 1
    assert done.stderr == "error: There is no python3.99 on PATH that runs; install it, or leave out --python.\n"


def test_a_package_without_a_wheel_is_named(copied: Path, tmp_path: Path) -> None:
    interpreter = tmp_path / "python3.99"
    interpreter.write_text("#!/bin/sh\necho 3.99\n")
    interpreter.chmod(0o755)

    done = package(copied, "ai-finance", "--python", "3.99", PATH=f"{tmp_path}:{os.environ['PATH']}")

    assert done.returncode == 1
    assert "cffi" in done.stderr
    assert done.stderr.endswith("A package has no wheel for python3.99 on x86_64: take another --python.\n")


def test_a_network_that_is_not_there_is_named(copied: Path, tmp_path: Path) -> None:
    done = package(copied, "ai-finance", "--architecture", OTHER, UV_CACHE_DIR=str(tmp_path), UV_OFFLINE="1")

    assert done.returncode == 1
    assert done.stderr.endswith("is there a network?\n")


def test_what_types_and_terminals_need_is_not_an_import(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text(
        "import json\n"
        "if TYPE_CHECKING:\n    import typing_only\n"
        "def late():\n    from a.b import c\n"
        "if __name__ == '__main__':\n    import terminal\n"
    )

    assert packaging.imports(module) == {"json", "a.b", "a.b.c"}
