"""Bodies on the wire: camelCase there, snake_case here."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

from shared.grounding import FlagKind


class Wire(BaseModel):
    """A request or response body; keys the model doesn't know are ignored, as older servers must."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)


class Source(Wire):
    """A passage the answer was given from."""

    id: int
    content: str
    similarity: float
    token_symbol: str | None


class Sources(Wire):
    """The payload of a `sources` event."""

    sources: list[Source]


class Token(Wire):
    """The payload of a `token` event: the next piece of the answer."""

    token: str


class TokenUsage(Wire):
    """Tokens of the model's call; `estimated` where the server didn't count them."""

    input_tokens: int
    output_tokens: int
    estimated: bool


class Flag(Wire):
    """An address or a URL of the answer that stands in nothing the model was told."""

    kind: FlagKind
    text: str


class Done(Wire):
    """The payload of a `done` event; `model` is None where no model was asked; timings in milliseconds."""

    conversation_id: int
    thread_id: UUID
    flags: list[Flag]
    model: str | None
    usage: TokenUsage
    timings: dict[str, float]


class Answer(Done):
    """A whole answer."""

    response: str
    sources: list[Source]


class TokenSource(Source):
    """A passage of the token knowledge; `score` is its rank's worth, from 0 to 1."""

    score: float
    title: str | None
    token_address: str | None
    source: str | None
    metadata: Mapping[str, Any]


class TokenSources(Wire):
    """The payload of ai-with-rag's `sources` event."""

    sources: list[TokenSource]


class Found(TokenSources):
    """What a search found, best first; timings in milliseconds."""

    timings: dict[str, float]


class CitedDone(Wire):
    """The payload of ai-with-rag's `done` event.

    `citations` are the sources the answer names, by number from 1, in the order of their first use; `model` is
    None where no model was asked.
    """

    citations: list[int]
    flags: list[Flag]
    model: str | None
    usage: TokenUsage
    timings: dict[str, float]


class CitedAnswer(CitedDone):
    """A whole answer of ai-with-rag."""

    response: str
    sources: list[TokenSource]


class Failure(Wire):
    """The payload of an `error` event, in the shape of every error."""

    error: str
    code: str
    request_id: str
    retryable: bool
