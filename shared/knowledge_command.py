"""The command line of the knowledge: python -m shared.knowledge. With the secret key, as the project's owner."""

import argparse
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from postgrest import AsyncPostgrestClient

from shared import knowledge, knowledge_files, re_embedding, terminal
from shared.embeddings import Embedder
from shared.errors import InvalidRequest, NotFound
from shared.knowledge import Outcome, StoredDocument
from shared.knowledge_files import Entry
from shared.models import Deadline
from shared.terminal import Arguments, Owner, command, complain

BATCH = 100  # documents of one call, after which the progress shows
PAGE = 500
PATIENCE_SECONDS = 3600.0  # of one batch


def main() -> int:
    """Run the command that the arguments name; 1 if something failed."""
    return terminal.main(_parser())


async def _load(owner: Owner, arguments: Arguments) -> int:
    entries = knowledge_files.read(arguments.paths)
    # By the names of the wire, which win over a document's own spelling of them.
    named = {"category": arguments.category, "tokenSymbol": arguments.token_symbol, "ownerId": arguments.owner}
    given = {name: value for name, value in named.items() if value is not None}
    failures = [(entry.place, entry.error) for entry in entries if entry.document is None]
    readable = [entry for entry in entries if entry.document is not None]
    outcomes = await _put(owner, readable, given)
    failures += [
        (entry.place, str(outcome.error))
        for entry, outcome in zip(readable, outcomes, strict=True)
        if outcome.outcome == "failed"
    ]
    owner.console.print(_summary(outcomes, len(entries), len(failures)))
    for place, error in failures:
        complain(f"{place}: {error}")
    if arguments.prune and failures:
        complain("Nothing is pruned while documents fail.")
    elif arguments.prune:
        await _prune(owner, arguments.paths, {outcome.id for outcome in outcomes})
    return 1 if failures else 0


async def _put(owner: Owner, entries: Sequence[Entry], given: dict[str, object]) -> list[Outcome]:
    outcomes: list[Outcome] = []
    with owner.progress() as progress:
        task = progress.add_task("Documents", total=len(entries))
        for start in range(0, len(entries), BATCH):
            documents = [{**(entry.document or {}), **given} for entry in entries[start : start + BATCH]]
            deadline = Deadline.after(PATIENCE_SECONDS)
            outcomes += await knowledge.put(owner.db, owner.clients.embedder, documents, deadline)
            progress.advance(task, len(documents))
    return outcomes


def _summary(outcomes: Sequence[Outcome], documents: int, failed: int) -> str:
    counts = Counter(outcome.outcome for outcome in outcomes)
    done = ", ".join(f"{counts[name]} {name}" for name in ("created", "updated", "unchanged"))
    passages, embedded = sum(done.passages for done in outcomes), sum(done.embedded for done in outcomes)
    return f"Knowledge: {documents} documents ({done}, {failed} failed), {passages} passages, {embedded} embedded."


async def _prune(owner: Owner, paths: Sequence[Path], present: set[str | None]) -> None:
    """Delete the documents whose ids begin as those of the folders and files given, and that aren't there any more."""
    prefixes = tuple(f"{knowledge_files.id_of(path, path)}{'/' if path.is_dir() else '#'}" for path in paths)
    if "./" in prefixes:
        raise InvalidRequest("--prune needs folders below the working directory: every document's id is in this one.")
    stored = [document.id async for document in _documents(owner.db)]
    gone = [id for id in stored if id.startswith(prefixes) and id not in present]
    for id in gone:
        await knowledge.delete(owner.db, id)
    owner.console.print(f"Pruned: {len(gone)} documents.")


async def _list(owner: Owner, arguments: Arguments) -> int:
    """One line a document, its cells between tabs, for other programs to read too."""
    async for document in _documents(owner.db):
        title = " ".join((document.title or "-").split())
        updated = f"{document.updated_at:%Y-%m-%d %H:%M}"
        print(document.id, f"{document.passages} passages", updated, document.token_symbol or "-", title, sep="\t")
    return 0


async def _documents(db: AsyncPostgrestClient) -> AsyncIterator[StoredDocument]:
    after = None
    while True:
        page = await knowledge.list_documents(db, PAGE, after)
        for document in page.documents:
            yield document
        if not (after := page.next):
            return


async def _delete(owner: Owner, arguments: Arguments) -> int:
    absent = 0
    for id in arguments.ids:
        try:
            await knowledge.delete(owner.db, id)
        except NotFound:
            absent += 1
            complain(f"{id}: there is no such document.")
    owner.console.print(f"Deleted: {len(arguments.ids) - absent} documents.")
    return 1 if absent else 0


async def _re_embed(owner: Owner, arguments: Arguments) -> int:
    chosen = {"embedding_model": arguments.model} if arguments.model else {}
    embedder = Embedder.open(owner.clients.settings.model_copy(update=chosen), owner.clients.http)
    done = refused = 0
    with owner.progress() as progress:
        task = progress.add_task(f"Passages by {embedder.model}", total=None)
        async for step in re_embedding.re_embed(owner.db, embedder):
            progress.update(task, completed=step.done, total=step.total)
            for id, reason in step.refused.items():
                complain(f"Passage {id}: {reason}")
            done, refused = step.done, refused + len(step.refused)
    if refused:
        owner.console.print(f"{done - refused} passages embedded by {embedder.model}, {refused} refused.")
        return 1
    owner.console.print(f"{done} passages embedded by {embedder.model}; every passage has its vector of it now.")
    models = await re_embedding.list_models(owner.db)
    if not any(row.model == embedder.model and row.is_current for row in models):
        setting = arguments.model or owner.clients.settings.embedding_model
        owner.console.print(
            f"Next: deploy the functions with EMBEDDING_MODEL={setting},"
            f" then python -m shared.knowledge switch {embedder.model}"
        )
    return 0


async def _switch(owner: Owner, arguments: Arguments) -> int:
    await re_embedding.switch(owner.db, arguments.model)
    others = [row.model for row in await re_embedding.list_models(owner.db) if not row.is_current]
    owner.console.print(f"Searches that name no model mean {arguments.model} now.")
    owner.console.print("The functions ask for their EMBEDDING_MODEL: deploy them with this one's if they aren't yet.")
    for model in others:
        owner.console.print(f"Once nothing asks for {model} any more: python -m shared.knowledge drop {model}")
    return 0


async def _drop(owner: Owner, arguments: Arguments) -> int:
    if arguments.model == owner.clients.embedder.model:
        raise InvalidRequest(f"{arguments.model} is the EMBEDDING_MODEL that is set: set another one first.")
    dropped = 0
    with owner.progress() as progress:
        task = progress.add_task(f"Rows of {arguments.model}", total=None)
        async for dropped, total in re_embedding.drop(owner.db, arguments.model):
            progress.update(task, completed=dropped, total=total)
    owner.console.print(f"Dropped: {dropped} rows of {arguments.model}.")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m shared.knowledge", description="The knowledge of the project that the settings name."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    load = command(commands, "load", _load, "put files; what is there already is not embedded anew")
    kinds = "*.md, *.markdown, *.txt, *.json and *.jsonl, whose every line is a document"
    load.add_argument("paths", nargs="+", type=Path, metavar="PATH", help=f"{kinds}; or folders of them, less READMEs")
    load.add_argument("--category", help="of all the documents, whatever they say")
    load.add_argument("--token-symbol", metavar="SYMBOL", help="the token that all the documents are about")
    load.add_argument("--owner", type=int, metavar="USER_ID", help="the users.user_id that alone may see them")
    prune = "delete documents whose files or lines are gone, but for lines with an id of their own"
    load.add_argument("--prune", action="store_true", help=prune)

    command(commands, "list", _list, "print the documents: id, passages, time, token, title")
    delete = command(commands, "delete", _delete, "delete documents and their passages")
    delete.add_argument("ids", nargs="+", metavar="ID", help="as list prints them")

    re_embed = command(commands, "re-embed", _re_embed, "embed all passages by another model beside the one in use")
    re_embed.add_argument("--model", metavar="NAME", help="as EMBEDDING_MODEL, which it is by default")
    switch = command(commands, "switch", _switch, "make a model the one in use")
    switch.add_argument("model", metavar="MODEL", help="whose passages re-embed has made")
    drop = command(commands, "drop", _drop, "delete the vectors of a model that is no more in use")
    drop.add_argument("model", metavar="MODEL")
    return parser
