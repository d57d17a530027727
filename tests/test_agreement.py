"""Where two files must agree, both are read."""

import re
from pathlib import Path

import httpx

from infra.local.stack import Stack
from shared.settings import Settings

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()


def targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))


def setting_names() -> set[str]:
    names = set()
    for name, field in Settings.model_fields.items():
        alias = field.validation_alias
        names |= set(alias.choices) if alias is not None and not isinstance(alias, str) else {name.upper()}  # type: ignore[union-attr]
    read_apart = re.findall(r'environ\.get\("((?!AWS_)\w+)"', (ROOT / "shared/settings.py").read_text())
    return {str(name) for name in names} | set(read_apart)


def test_every_make_command_of_the_readme_exists() -> None:
    named = set(re.findall(r"make ([a-z-]+)", README))

    assert named <= targets()
    assert {"demo", "test", "dev", "check", "bench", "reset", "lock"} <= named


def test_the_readme_names_exactly_the_settings() -> None:
    table = README.partition("## Configuration")[2].partition("\n## ")[0]
    first_cells = [line.split("|")[1] + line.split("|")[3] for line in table.splitlines() if line.startswith("| `")]

    named = {name for cell in first_cells for name in re.findall(r"`([A-Z][A-Z0-9_]+)`", cell)}

    assert named == setting_names()


def test_every_function_answers_at_its_folders_name(stack: Stack) -> None:
    folders = [file.parent.name for file in ROOT.glob("functions/*/handler.py")]

    assert folders
    for folder in folders:
        answer = httpx.post(f"{stack.url}/functions/v1/{folder.replace('_', '-')}")
        assert answer.json()["code"] == "unauthenticated"


def test_continuous_integration_runs_check_and_test() -> None:
    script = (ROOT / ".ci/run").read_text()

    assert re.search(r"^(exec )?make check test$", script, re.MULTILINE)


def test_the_readme_counts_the_seed_knowledge() -> None:
    lines = [line for file in (ROOT / "sql/knowledge").glob("*.jsonl") for line in file.read_text().splitlines()]

    assert f"{len(lines)} passages" in README


def test_nothing_names_a_registry_or_a_folder_of_a_machine() -> None:
    hosts = re.compile(r"npm" r"js\.(org|com)|py" r"pi\.org|python" r"hosted\.org")
    files = [ROOT / name for name in ("requirements.lock", "requirements-node.lock", "package-lock.json", "README.md")]

    assert [file.name for file in files if hosts.search(file.read_text())] == []
    assert '"resolved"' not in (ROOT / "package-lock.json").read_text()
