"""Knowledge into the database: files of passages, embedded in batches, each passage once.

python -m shared.knowledge load sql/knowledge            # every *.jsonl of a folder, or single files
"""

import argparse
import asyncio
import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from postgrest import AsyncPostgrestClient
from pydantic import BaseModel, Field, ValidationError

from shared import database, embeddings, settings
from shared.clients import Clients
from shared.errors import GatewayError, InvalidRequest

BATCH = 32


class Entry(BaseModel):
    """A line of a knowledge file."""

    title: str = Field(min_length=1)
    content: str = Field(min_length=1)
    category: str | None = None
    token_symbol: str | None = None
    token_address: str | None = None
    source: str | None = None

    @property
    def text(self) -> str:
        """What is embedded: a passage is found better under its title."""
        return f"{self.title}\n{self.content}"

    @property
    def content_hash(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()


def read(paths: Iterable[Path]) -> list[Entry]:
    """The entries of files and of folders' *.jsonl, each text once. Raises `InvalidRequest`, naming file and line."""
    files = [file for path in paths for file in (sorted(path.glob("*.jsonl")) if path.is_dir() else [path])]
    entries: dict[str, Entry] = {}
    for file in files:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidRequest(f"{file} can't be read: {error}") from error
        for number, line in enumerate(lines, start=1):
            try:
                entry = Entry(**json.loads(line))
            except (ValueError, TypeError, ValidationError) as error:
                raise InvalidRequest(f"{file}, line {number}: not a passage ({type(error).__name__})") from error
            entries[entry.content_hash] = entry
    return list(entries.values())


async def load(clients: Clients, entries: Sequence[Entry], loaded: Callable[[int], None]) -> int:
    """Embed and insert the entries that aren't there yet for this embedding model; returns how many were new.

    With the secret key: knowledge is written by the project's owner, not by users. `loaded` hears of each
    batch's size. A run that breaks off leaves whole batches, and the next one goes on from there.
    """
    db, model = database.as_gateway(clients.http, clients.settings), clients.settings.embedding_model
    new = 0
    for start in range(0, len(entries), BATCH):
        batch = entries[start : start + BATCH]
        known = await _known(db, model, batch)
        missing = [entry for entry in batch if entry.content_hash not in known]
        if missing:
            vectors = await embeddings.embed(clients.embedder, model, [entry.text for entry in missing], "passage")
            rows = [
                entry.model_dump() | {"embedding": vector, "embedding_model": model, "content_hash": entry.content_hash}
                for entry, vector in zip(missing, vectors, strict=True)
            ]
            await database.run(
                db.from_("finance_knowledge")
                .upsert(rows, on_conflict="content_hash,embedding_model", ignore_duplicates=True)
                .execute()
            )
        new += len(missing)
        loaded(len(batch))
    return new


async def _known(db: AsyncPostgrestClient, model: str, batch: Sequence[Entry]) -> set[str]:
    rows = await database.run(
        db.from_("finance_knowledge")
        .select("content_hash")
        .eq("embedding_model", model)
        .in_("content_hash", [entry.content_hash for entry in batch])
        .execute()
    )
    return {row["content_hash"] for row in rows}


async def _load_with_progress(paths: Sequence[Path]) -> None:
    from rich.console import Console  # the terminal's library, which no function needs
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    entries = read(paths)
    clients = Clients.open(settings.load())
    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("Knowledge", total=len(entries))
        new = await load(clients, entries, lambda size: progress.advance(task, size))
    await clients.http.aclose()
    console.print(f"Knowledge: {len(entries)} passages, {new} new.")


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m shared.knowledge", description="Load passages into Supabase.")
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("load", help="embed and insert the passages that aren't there yet")
    command.add_argument("paths", nargs="+", type=Path, help="JSON Lines files, or folders of them")
    arguments = parser.parse_args()
    try:
        asyncio.run(_load_with_progress(arguments.paths))
    except GatewayError as error:
        print(error.message, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
