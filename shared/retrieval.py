"""Passages of the knowledge base that bear on a question."""

from collections.abc import Sequence
from dataclasses import dataclass

from postgrest import AsyncPostgrestClient

from shared import database, embeddings


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of knowledge and its cosine similarity to the question."""

    id: int
    content: str
    similarity: float
    token_symbol: str | None

    def __str__(self) -> str:
        return self.content


async def match(
    db: AsyncPostgrestClient, vector: Sequence[float], model: str, count: int, threshold: float | None = None
) -> list[Passage]:
    """The `count` nearest passages above the threshold, nearest first; by default the model's own threshold."""
    rows = await database.call(
        db,
        "match_finance_knowledge",
        {
            "query_embedding": list(vector),
            "match_threshold": embeddings.model(model).threshold if threshold is None else threshold,
            "match_count": count,
            "model": model,
        },
    )
    return [Passage(row["id"], row["content"], row["similarity"], row["token_symbol"]) for row in rows]
