"""Documents as they are given: checked, and made into the rows and passages that are stored."""

import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, StringConstraints, ValidationError

from shared import chunking
from shared.chunking import Chunk, Format
from shared.errors import InvalidRequest
from shared.wire import Wire

CONTENT_BYTES = 1024 * 1024
METADATA_BYTES = 16 * 1024
DEPTH = 32
PASSAGES = 2000  # of one document
COLUMNS = {"id", "title", "category", "token_symbol", "token_address", "source", "metadata", "owner_id"}
CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff]")
RUBBISH = {"Cn", "Co"}  # no characters of any writing; nor is U+FFFD, which stands for what couldn't be read
UNPRINTABLE = 0.1  # more than this share of such characters is no text

Label = Annotated[str | None, StringConstraints(strip_whitespace=True, max_length=255)]


class Document(Wire):
    """A document as it is put; `content` is text, or a JSON value, which makes its format json.

    Without an `id` it is known by its owner, token, title and content, so that a change makes another document. Only
    the user `owner_id` (users.user_id) sees it, everybody where there is none.
    """

    id: str | None = Field(None, min_length=1, max_length=255)
    title: Label = None
    content: str | dict[str, Any] | list[Any]
    format: Format = "markdown"
    category: Label = None
    token_symbol: Label = None
    token_address: Label = None
    source: Label = None
    metadata: dict[str, Any] = Field(default_factory=dict)
    owner_id: int | None = Field(None, ge=1, lt=2**63, strict=True)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A document that can be put: its row, and its passages by the hash of what is embedded."""

    id: str
    row: Mapping[str, Any]
    passages: Mapping[str, Chunk]


def prepare(given: object) -> Prepared:
    """A `Document`, or JSON that is to be one, ready to be put. Raises `InvalidRequest`, naming the field."""
    try:
        document = Document.model_validate(given)
    except ValidationError as error:
        problem = error.errors()[0]
        place = str(problem["loc"][0]) if problem["loc"] else "document"
        raise InvalidRequest(f"{place}: {problem['msg']}.") from error
    text, form = _readable(document)
    title = document.title or chunking.find_title(text, form)
    passages = {content_hash(chunk.text): chunk for chunk in chunking.chunk(text, title, form)}
    if len(passages) > PASSAGES:
        raise InvalidRequest(f"content: {len(passages)} passages are in it, {PASSAGES} are the most: split it.")
    row = document.model_dump(include=COLUMNS) | {"title": title}
    known_by = [document.owner_id, document.token_symbol, document.token_address, document.title, text]
    row["id"] = document.id or f"content-{content_hash(json.dumps(known_by))[:32]}"
    row["content_hash"] = content_hash(json.dumps([row, list(passages)], sort_keys=True))
    return Prepared(row["id"], row, passages)


def _readable(document: Document) -> tuple[str, Format]:
    """The document's text and format. Raises `InvalidRequest` for what is too large, too deep, or no text at all."""
    for name in COLUMNS - {"metadata", "owner_id"}:
        _check_text(getattr(document, name) or "", name)
    _check_json(document.metadata, "metadata")
    if len(_dumped(document.metadata, "metadata").encode()) > METADATA_BYTES:
        raise InvalidRequest(f"metadata: larger than {METADATA_BYTES // 1024} KB.")
    text, form = document.content, document.format
    if form == "json" and isinstance(text, str):
        text = chunking.parse(text)  # its escapes can hold what no text may
        form = "text" if isinstance(text, str) else form
    if isinstance(text, str):
        _check_text(text, "content")
    else:
        _check_json(text, "content")
        text, form = _dumped(text, "content"), "json"
    if len(text.encode()) > CONTENT_BYTES:
        raise InvalidRequest(f"content: larger than {CONTENT_BYTES // 1024} KB: split it.")
    return text, form


def _check_json(value: Any, place: str) -> None:
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > DEPTH:
            raise InvalidRequest(f"{place}: nested more than {DEPTH} levels deep.")
        for part in level:
            for text in [part] if isinstance(part, str) else part if isinstance(part, dict) else []:
                _check_text(text, place)
        level = [
            inner
            for part in level
            if isinstance(part, dict | list)
            for inner in (part.values() if isinstance(part, dict) else part)
        ]


def _check_text(text: str, place: str) -> None:
    if control := CONTROL.search(text):
        raise InvalidRequest(
            f"{place}: the character U+{ord(control[0]):04X} at position {control.start()} is none of a text."
        )
    rubbish = sum(unicodedata.category(character) in RUBBISH for character in text if not character.isprintable())
    if rubbish + text.count("\ufffd") > len(text) * UNPRINTABLE:
        raise InvalidRequest(f"{place}: that is no text.")


def _dumped(value: Any, place: str) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise InvalidRequest(f"{place}: not JSON: {error}.") from error


def content_hash(text: str) -> str:
    """SHA-256, in hex, by which a text is known to be the same."""
    return hashlib.sha256(text.encode()).hexdigest()
