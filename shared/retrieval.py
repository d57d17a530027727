"""Passages of the knowledge base that bear on a question."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from postgrest import AsyncPostgrestClient

from shared import database


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of knowledge, its cosine similarity to the question, and its rank's worth from 0 to 1.

    `ranks` are there where they were asked for: the passage's `rank`, `value` and `share` in each list it is in.
    """

    id: int
    content: str
    similarity: float
    token_symbol: str | None
    score: float = 0
    title: str | None = None
    token_address: str | None = None
    source: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    content_hash: str = ""
    is_private: bool = False
    ranks: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.title}: {self.content}" if self.title else self.content


@dataclass(frozen=True, slots=True)
class Filters:
    """What every passage must be about; a symbol's case and an address's form don't matter."""

    token_symbol: str | None = None
    token_address: str | None = None
    category: str | None = None


EVERYTHING = Filters()
NAMES = {column.name for column in fields(Passage)}


async def search(
    db: AsyncPostgrestClient,
    vector: Sequence[float],
    text: str,
    model: str,
    count: int,
    threshold: float,
    filters: Filters = EVERYTHING,
    explained: bool = False,
) -> list[Passage]:
    """The `count` best passages by meaning and by words, best first, as far as the caller may see them.

    `threshold` is the cosine similarity that a passage must exceed which shares few words with the question;
    `explained`, with their `ranks`, is for admins.
    """
    rows = await database.call(
        db,
        "explain_search" if explained else "search_finance_knowledge",
        {
            "query_embedding": list(vector),
            "query_text": text,
            "match_threshold": threshold,
            "match_count": count,
            "model": model,
            "filter_token_symbol": filters.token_symbol,
            "filter_token_address": filters.token_address,
            "filter_category": filters.category,
        },
    )
    return [Passage(**{name: value for name, value in row.items() if name in NAMES}) for row in rows]
