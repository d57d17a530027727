"""Files as documents: Markdown, text, JSON, and JSON Lines, whose every line is a document."""

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.documents import CONTENT_BYTES, content_hash
from shared.errors import InvalidRequest

FORMATS = {".md": "markdown", ".markdown": "markdown", ".txt": "text", ".json": "json"}
SUFFIXES = (*FORMATS, ".jsonl")


@dataclass(frozen=True, slots=True)
class Entry:
    """A document as `knowledge.put` takes it, or the error why the file or line holds none; `place` is for messages."""

    place: str
    document: dict[str, Any] | None = None
    error: str = ""


def read(paths: Sequence[Path]) -> list[Entry]:
    """The documents of files and, with their subfolders, of folders: each file once.

    Ids are paths, so that a changed file is the same document: from the working directory, or for what lies
    outside from the folder above the path given. Raises `InvalidRequest` for a path that isn't there.
    """
    files: dict[Path, str] = {}
    for path in paths:
        found = list(_files(path))
        if not found:
            raise InvalidRequest(f"{path} can't be read: there is no file of {', '.join(SUFFIXES)} there.")
        files |= {file.resolve(): id_of(file, path) for file in found}
    entries = [entry for file, name in files.items() for entry in _entries(file, name)]
    return list(_unique(entries))


def id_of(file: Path, given: Path) -> str:
    """The id of a file that was found at, or below, the path given; a folder's is how its files' ids begin."""
    file, given, here = Path(os.path.abspath(file)), Path(os.path.abspath(given)), Path.cwd()  # links as they are named
    return file.relative_to(here if file.is_relative_to(here) else given.parent).as_posix()


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(folder, name) for name in sorted(names) if _is_knowledge(name.lower()))


def _is_knowledge(name: str) -> bool:
    """A folder's README is about its files, and is loaded only where it is named itself."""
    return name.endswith(SUFFIXES) and not name.startswith((".", "readme."))


def _entries(file: Path, name: str) -> Iterator[Entry]:
    try:
        if file.suffix.lower() != ".jsonl" and file.stat().st_size > 4 * CONTENT_BYTES:
            raise InvalidRequest("larger than a document may be: split it.")
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError, InvalidRequest) as error:
        yield Entry(name, error=f"can't be read: {error}")
        return
    if file.suffix.lower() == ".jsonl":
        yield from _lines(text, name)
    else:
        form = FORMATS.get(file.suffix.lower(), "text")
        title = {"title": " ".join(re.split(r"[\W_]+", file.stem))} if form == "text" else {}
        yield Entry(name, {"id": _short(name), "content": text, "format": form, "source": name} | title)


def _lines(text: str, name: str) -> Iterator[Entry]:
    """A line's id is its title's, or its content's: its number would change with every line put in above."""
    slugs: Counter[str] = Counter()
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{name}, line {number}"
        try:
            document = json.loads(line)
        except (ValueError, RecursionError):
            document = None
        if not isinstance(document, dict):
            yield Entry(place, error="not a JSON object.")
            continue
        slug = _slug(document)
        slugs[slug] += 1
        own = f"{name}#{slug}" if slugs[slug] == 1 else f"{name}#{slug}-{slugs[slug]}"
        given = {field: value for field, value in document.items() if field != "id" or value is not None}
        yield Entry(place, {"id": _short(own), "source": name} | given)


def _slug(document: dict[str, Any]) -> str:
    title = document.get("title")
    slug = re.sub(r"[\W_]+", "-", title.lower()).strip("-")[:80] if isinstance(title, str) else ""
    return slug or content_hash(json.dumps(document.get("content")))[:16]


def _short(name: str) -> str:
    return name if len(name) <= 255 else f"{name[:200]}-{content_hash(name)[:32]}"


def _unique(entries: Sequence[Entry]) -> Iterator[Entry]:
    """The entries, where two documents say they have one id the first."""
    places: dict[str, str] = {}
    for entry in entries:
        id = str(entry.document.get("id")) if entry.document else entry.place
        if id in places:
            yield Entry(entry.place, error=f"its id {id} is that of {places[id]}.")
        else:
            places[id] = entry.place
            yield entry
