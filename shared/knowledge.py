"""Knowledge as documents: put, list, delete. What is there already is neither embedded nor written anew.

python -m shared.knowledge load sql/knowledge            # and list, delete, re-embed, switch, drop: see --help
"""

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from postgrest import AsyncPostgrestClient
from pydantic import Field, model_validator

from shared import database, documents, embeddings
from shared.documents import Prepared
from shared.embeddings import Embedder
from shared.errors import (
    DatabaseUnavailable,
    DeadlineExceeded,
    EmbeddingUnavailable,
    GatewayError,
    InvalidRequest,
    NotFound,
)
from shared.models import Deadline
from shared.wire import Wire

# One call of put_documents: below 4 MB, for a vector takes up to 18 KB, and of some seconds, for a passage takes 10 ms.
# One document may be longer than that.
VECTORS_A_CALL = 64
PASSAGES_A_CALL = 256
BYTES_A_CALL = 2_000_000
HASHES_A_CALL = 10_000
WRITE_SECONDS = 60  # its statement timeout
LAST_WRITE_SECONDS = 4  # what the deadline leaves for a write
FAILURES = 3  # so many in a row, and the provider is down: the rest isn't tried
OF_ONE = (EmbeddingUnavailable, InvalidRequest)  # it may be one document that the provider can't embed
VANISHED = 'column "embedding"'  # of PostgreSQL's error for a passage whose stored vector somebody deleted meanwhile

Outcomes = Literal["created", "updated", "unchanged", "failed"]


class Outcome(Wire):
    """What became of a document: its passages, how many of them were embedded just now, and what went wrong.

    A document that failed is as it was before.
    """

    id: str | None
    outcome: Outcomes
    passages: int = 0
    embedded: int = 0
    error: str | None = None
    code: str | None = None
    retryable: bool | None = None


class StoredDocument(Wire):
    """A document as a line of a list."""

    id: str
    title: str | None
    category: str | None
    token_symbol: str | None
    token_address: str | None
    source: str | None
    metadata: dict[str, Any]
    owner_id: int | None
    passages: int
    updated_at: datetime


class Documents(Wire):
    """The body that puts documents: a list of them as JSON, or one alone."""

    documents: list[Any] = Field(min_length=1, max_length=100)

    @model_validator(mode="before")
    @classmethod
    def listed(cls, body: Any) -> Any:
        """A document, or a list of them, is a body too."""
        is_one = isinstance(body, dict) and "documents" not in body
        return {"documents": [body] if is_one else body} if is_one or isinstance(body, list) else body


class DocumentPage(Wire):
    """Some of the documents, by id; `next` is None on the last page."""

    documents: list[StoredDocument]
    next: str | None


async def put(
    db: AsyncPostgrestClient, embedder: Embedder, given: Iterable[object], deadline: Deadline
) -> list[Outcome]:
    """Make the knowledge hold these documents, given as JSON, as they are now; an outcome each, in their order.

    Passages whose text is stored already keep their vectors. Each document is written whole or not at all. What is
    wrong with one fails that one only, and so does the deadline; the same again goes on from there. `db` acts for
    an admin or the gateway.
    Raises `InvalidRequest` for two documents of one id, `DatabaseUnavailable` if it is away from the start.
    """
    prepared = [_prepare(document) for document in given]
    _refuse_repeated(entry.id for entry in prepared)
    ready = [entry for entry in prepared if isinstance(entry, Prepared)]
    missing = await _missing(db, embedder.model, sorted({hash for entry in ready for hash in entry.passages}))
    upload = Upload(db, embedder, deadline, missing)
    for group in _groups(ready, missing):
        await upload.put(group)
    return [upload.outcomes[entry.id] if isinstance(entry, Prepared) else entry for entry in prepared]


async def list_documents(
    db: AsyncPostgrestClient, limit: int, after: str | None, containing: str | None = None
) -> DocumentPage:
    """The documents by id, those after the one named, with these words in their id, title, token or category."""
    arguments = {"page_size": limit + 1, "after_id": after, "containing": containing}
    rows = await database.call(db, "list_documents", arguments)
    documents = [StoredDocument(**row) for row in rows[:limit]]
    return DocumentPage(documents=documents, next=documents[-1].id if len(rows) > limit else None)


async def delete(db: AsyncPostgrestClient, document_id: str) -> None:
    """Delete a document with its passages. Raises `NotFound` where there is none."""
    if "\x00" in document_id or not await database.run(
        db.from_("documents").delete().eq("id", document_id).select("id").execute()
    ):
        raise NotFound("There is no such document.")


@dataclass(slots=True)
class Upload:
    """Documents on their way in: the hashes whose vectors are `missing` or `new`, and what became of each so far.

    What has `stopped` it stands for all that is still to come: the deadline, the database, a wrong setting, or
    an embedding provider that failed several documents in a row.
    """

    db: AsyncPostgrestClient
    embedder: Embedder
    deadline: Deadline
    missing: set[str]
    new: set[str] = field(default_factory=set)
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    failures: int = 0
    stopped: GatewayError | None = None

    async def put(self, group: Sequence[Prepared]) -> None:
        """Embed what the group's documents lack, and write them; where that fails, see which of them it is."""
        try:
            self._check()
            outcomes = await self._write(group, await self._vectors(group))
            self.failures = 0
        except GatewayError as error:
            if len(group) > 1 and isinstance(error, OF_ONE):
                for entry in group:
                    await self.put([entry])
                return
            self._count(error)
            outcomes = [_failed(entry.id, error) for entry in group]
        self.outcomes |= {entry.id: outcome for entry, outcome in zip(group, outcomes, strict=True)}

    async def _vectors(self, group: Sequence[Prepared]) -> dict[str, str]:
        """The missing vectors by hash, written out; those too many for the call that writes are staged before it."""
        texts = {hash: chunk.text for entry in group for hash, chunk in entry.passages.items() if hash in self.missing}
        vectors: dict[str, str] = {}
        for hashes in _cut(list(texts), VECTORS_A_CALL):
            if vectors:
                arguments = {"vectors": vectors, "model": self.embedder.model}
                await database.call(self.db, "stage_embeddings", arguments, self._write_seconds())
                self.missing -= vectors.keys()
            vectors = await self._embed({hash: texts[hash] for hash in hashes})
        return vectors

    async def _embed(self, texts: Mapping[str, str]) -> dict[str, str]:
        try:
            async with self.deadline.enforced():
                vectors = await embeddings.embed(self.embedder, list(texts.values()), "passage")
        except DeadlineExceeded as error:
            raise _too_late() from error
        self.new |= texts.keys()
        return {hash: written(vector) for hash, vector in zip(texts, vectors, strict=True)}

    async def _write(self, group: Sequence[Prepared], vectors: Mapping[str, str]) -> list[Outcome]:
        arguments = {"documents": [_row(entry, vectors) for entry in group], "model": self.embedder.model}
        results = await database.call(self.db, "put_documents", arguments, self._write_seconds())
        outcomes = [self._outcome(entry, result) for entry, result in zip(group, results, strict=True)]
        for entry, outcome in zip(group, outcomes, strict=True):
            if outcome.outcome != "failed":
                self.missing -= vectors.keys() & entry.passages.keys()
        return outcomes

    def _outcome(self, entry: Prepared, result: Mapping[str, Any]) -> Outcome:
        if result["outcome"] == "failed":
            return _failed(entry.id, _refusal(result["error"]))
        new = self.new & entry.passages.keys()
        self.new -= new
        return Outcome(id=entry.id, outcome=result["outcome"], passages=result["passages"], embedded=len(new))

    def _write_seconds(self) -> float:
        return min(WRITE_SECONDS, max(0.0, self.deadline.remaining()) + LAST_WRITE_SECONDS)

    def _check(self) -> None:
        if self.stopped:
            raise self.stopped
        if self.deadline.remaining() <= 0:
            raise _too_late()

    def _count(self, error: GatewayError) -> None:
        self.failures += isinstance(error, EmbeddingUnavailable)
        if self.failures >= FAILURES or not isinstance(error, OF_ONE):
            self.stopped = error


async def _missing(db: AsyncPostgrestClient, model: str, hashes: Sequence[str]) -> set[str]:
    missing: set[str] = set()
    for batch in _cut(hashes, HASHES_A_CALL):
        missing |= set(await database.call(db, "missing_passages", {"hashes": batch, "model": model}))
    return missing


def _groups(ready: Sequence[Prepared], missing: AbstractSet[str]) -> Iterator[list[Prepared]]:
    """The documents as they are written together, those that need no vectors first: no provider is in their way.

    By id, so that two uploads of the same documents don't wait for each other's in a circle.
    """
    group: list[Prepared] = []
    room = vectors_room = bytes_room = 0
    for entry in sorted(ready, key=lambda entry: (not missing.isdisjoint(entry.passages), entry.id)):
        vectors = sum(hash in missing for hash in entry.passages)
        size = sum(len(chunk.text.encode()) for chunk in entry.passages.values())
        begins = bool(vectors) and vectors_room == VECTORS_A_CALL
        if group and (begins or len(entry.passages) > room or vectors > vectors_room or size > bytes_room):
            yield group
            group = []
        if not group:
            room, vectors_room, bytes_room = PASSAGES_A_CALL, VECTORS_A_CALL, BYTES_A_CALL
        group.append(entry)
        room, vectors_room, bytes_room = room - len(entry.passages), vectors_room - vectors, bytes_room - size
    if group:
        yield group


def _cut(hashes: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for start in range(0, len(hashes), size):
        yield hashes[start : start + size]


def _prepare(given: object) -> Prepared | Outcome:
    try:
        return documents.prepare(given)
    except GatewayError as error:
        id = given.get("id") if isinstance(given, dict) else None
        return _failed(id if isinstance(id, str) and id.isprintable() else None, error)


def _refuse_repeated(ids: Iterable[str | None]) -> None:
    repeated = [id for id, count in Counter(filter(None, ids)).items() if count > 1]
    if repeated:
        raise InvalidRequest(f"documents: there are two with the id {repeated[0]}.")


def _row(entry: Prepared, vectors: Mapping[str, str]) -> dict[str, Any]:
    return {
        **entry.row,
        "passages": [
            {"title": chunk.title or None, "content": chunk.content, "content_hash": hash}
            | ({"embedding": vectors[hash]} if hash in vectors else {})
            for hash, chunk in entry.passages.items()
        ],
    }


def _failed(id: str | None, error: GatewayError) -> Outcome:
    return Outcome(id=id, outcome="failed", error=error.message, code=error.code, retryable=error.retryable)


def _refusal(said: str) -> GatewayError:
    """PostgreSQL's words for a document it doesn't take, as ours."""
    if "owner_id" in said:
        return InvalidRequest("ownerId: there is no such user.")
    if VANISHED in said:
        return DatabaseUnavailable("The document's passages were changed meanwhile: try again.")
    return InvalidRequest("The database doesn't take it: a value has the wrong form.")


def _too_late() -> DeadlineExceeded:
    return DeadlineExceeded("The request's time was used up before this document: send it again.")


def written(vector: Sequence[float]) -> str:
    """A vector as PostgreSQL reads it: a column of float4 keeps 8 digits, where JSON would take 20."""
    return f"[{','.join(f'{number:.8g}' for number in vector)}]"


if __name__ == "__main__":
    from shared.knowledge_command import main  # the terminal's part, which no function needs

    sys.exit(main())
