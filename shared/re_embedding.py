"""The whole knowledge moved to another embedding model, while searches go on with the old one."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from postgrest import AsyncPostgrestClient

from shared import database, embeddings
from shared.chunking import Chunk
from shared.embeddings import Embedder
from shared.errors import InvalidRequest
from shared.knowledge import written

PASSAGES_A_CALL = 64
CALL_SECONDS = 60  # these calls' own statement timeout


@dataclass(frozen=True, slots=True)
class EmbeddingModel:
    """A model that embedded passages which are stored; `is_current`: searches that name no model mean it."""

    model: str
    passages: int
    is_current: bool


@dataclass(frozen=True, slots=True)
class Progress:
    """The passages looked at so far, about how many there are, and those just `refused`, by id, with the reason."""

    done: int
    total: int
    refused: Mapping[int, str]


async def re_embed(db: AsyncPostgrestClient, embedder: Embedder) -> AsyncIterator[Progress]:
    """Give every passage a row of the embedder's model beside those it has, but for those that the model can't take.

    Searches see nothing of it until they ask for that model. Broken off, it goes on where it was.
    """
    models = await list_models(db)
    there = {row.model: row.passages for row in models}
    total = max((row.passages for row in models if row.is_current), default=0) - there.get(embedder.model, 0)
    after, done = 0, 0
    while page := await _lacking(db, embedder.model, after):
        texts = {row["id"]: Chunk(row["title"] or "", row["content"]).text for row in page}
        vectors, refused = await _vectors(embedder, texts)
        given = [{"id": id, "embedding": written(vector)} for id, vector in vectors.items()]
        await database.call(db, "add_embeddings", {"model": embedder.model, "vectors": given}, CALL_SECONDS)
        after, done = page[-1]["id"], done + len(page)
        yield Progress(done, max(done, total), refused)


async def list_models(db: AsyncPostgrestClient) -> list[EmbeddingModel]:
    """The models of all passages stored."""
    return [EmbeddingModel(**row) for row in await database.call(db, "list_embedding_models", {})]


async def switch(db: AsyncPostgrestClient, model: str) -> None:
    """Make it the model that searches mean which name none. Raises `InvalidRequest` while it lacks passages."""
    await _known(db, model)
    if await _lacking(db, model, 0):
        raise InvalidRequest(f"{model} lacks passages that others have: run re-embed by it once more.")
    await database.call(db, "use_embedding_model", {"model": model})


async def drop(db: AsyncPostgrestClient, model: str) -> AsyncIterator[tuple[int, int]]:
    """Delete the model's rows; yields how many are gone, and how many there were.

    Raises `InvalidRequest` for the current model, and for one that has passages which the current one lacks.
    """
    found = await _known(db, model)
    if found.is_current:
        raise InvalidRequest(f"{model} is the model in use: switch to another one first.")
    for row in await list_models(db):
        if row.is_current and await _lacking(db, row.model, 0, of_model=model):
            raise InvalidRequest(f"{model} has passages that {row.model}, in use, lacks: run re-embed by that first.")
    gone = 0
    while dropped := await database.call(db, "drop_embeddings", {"model": model}, CALL_SECONDS):
        gone += dropped
        yield gone, max(gone, found.passages)


async def _vectors(embedder: Embedder, texts: Mapping[int, str]) -> tuple[dict[int, list[float]], dict[int, str]]:
    """The passages' vectors by id; where one is refused each is asked for alone, and the refused have their reasons."""
    try:
        return dict(zip(texts, await embeddings.embed(embedder, list(texts.values()), "passage"), strict=True)), {}
    except InvalidRequest as error:
        if len(texts) == 1:
            return {}, dict.fromkeys(texts, error.message)
    vectors: dict[int, list[float]] = {}
    refused: dict[int, str] = {}
    for id, text in texts.items():
        taken, not_taken = await _vectors(embedder, {id: text})
        vectors |= taken
        refused |= not_taken
    return vectors, refused


async def _known(db: AsyncPostgrestClient, model: str) -> EmbeddingModel:
    models = {row.model: row for row in await list_models(db)}
    if model not in models:
        raise InvalidRequest(f"No passage is embedded by {model}, but by {', '.join(models) or 'none'}.")
    return models[model]


async def _lacking(
    db: AsyncPostgrestClient, model: str, after: int, of_model: str | None = None
) -> list[dict[str, Any]]:
    """The next passages, of all models or of one, without a row of the model."""
    arguments = {"model": model, "after_id": after, "page_size": PASSAGES_A_CALL, "of_model": of_model}
    rows: list[dict[str, Any]] = await database.call(db, "list_passages_to_embed", arguments, CALL_SECONDS)
    return rows
