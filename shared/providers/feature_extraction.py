"""Embeddings on Hugging Face's wire: the task feature-extraction of its Inference API."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any
from urllib.parse import quote

import httpx
from pydantic import SecretStr

from shared.errors import Misconfigured


def embedder(
    http: httpx.AsyncClient, base_url: str, key: SecretStr
) -> Callable[[str, Sequence[str], Mapping[str, Any]], Awaitable[list[Any]]]:
    """`embed` for one server and key."""
    return partial(embed, http, base_url, key)


async def embed(
    http: httpx.AsyncClient, base_url: str, key: SecretStr, model: str, texts: Sequence[str], options: Mapping[str, Any]
) -> list[Any]:
    """The texts' vectors as they came: nobody has looked at their numbers. A text too long is cut by the server.

    Raises httpx's errors, what a body that isn't the API's leads to, and `Misconfigured` for a model that gives
    a vector for each token, which no pooling has made one of the text.
    """
    answer = await http.post(
        f"{base_url}/models/{quote(model)}/pipeline/feature-extraction",
        json={"inputs": list(texts), "normalize": True, "truncate": True, **options},
        headers={"Authorization": f"Bearer {key.get_secret_value()}"},
    )
    vectors = answer.raise_for_status().json()
    if not isinstance(vectors, list):
        raise TypeError("not an array")
    if vectors and isinstance(vectors[0], list) and vectors[0] and isinstance(vectors[0][0], list):
        raise Misconfigured(f"{model} gives a vector a token and none of a text: set another EMBEDDING_MODEL.")
    return vectors
