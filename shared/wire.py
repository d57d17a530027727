"""Bodies on the wire: camelCase there, snake_case here."""

from collections.abc import Mapping
from datetime import date
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

from shared.grounding import FlagKind


class Wire(BaseModel):
    """A request or response body; keys the model doesn't know are ignored, as older servers must.

    It is built when it is first used: a cold start needs one or two of them.
    """

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, defer_build=True)


class Source(Wire):
    """A passage the answer was given from."""

    id: int
    content: str
    similarity: float
    token_symbol: str | None


class Sources(Wire):
    """The payload of a `sources` event: what the answer is given from, and the conversation it will be."""

    conversation_id: int
    thread_id: UUID
    sources: list[Source]


class Token(Wire):
    """The payload of a `token` event: the next piece of the answer."""

    token: str


class TokenUsage(Wire):
    """Tokens of the model's call and their cost; `estimated` where nobody counted them, or knows their price.

    Cached tokens are among the input's, reasoning tokens among the output's.
    """

    input_tokens: int
    cached_tokens: int
    output_tokens: int
    reasoning_tokens: int
    cost_usd: float
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


class Pending(Wire):
    """A conversation that is answered later: over Realtime, and to who asks for it by its id."""

    conversation_id: int
    thread_id: UUID
    status: Literal["pending"] = "pending"


class Spending(Wire):
    """What was spent since the day it starts on, reservations included; a limit is None where the plan has none."""

    starts_on: date
    requests: int
    tokens: int
    tokens_limit: int | None
    cost_usd: float
    usd_limit: float | None


class ModelUsage(Wire):
    """What a model was asked this month."""

    model: str
    requests: int
    input_tokens: int
    output_tokens: int
    cost_usd: float


class Usage(Wire):
    """A user's plan and spending."""

    plan: str | None
    day: Spending
    month: Spending
    models: list[ModelUsage]


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


class Rank(Wire):
    """A passage's place in one of the lists that are fused, from 1.

    `value` is what the list goes by, a similarity or a score of words; `share` what its place adds to the score.
    """

    rank: int
    value: float
    share: float


class ExplainedSource(TokenSource):
    """A passage, and its place in the lists it is in: the nearest by `meaning`, the best by `words` and by `names`."""

    ranks: dict[Literal["meaning", "words", "names"], Rank]


class Explained(Wire):
    """What a search found and why; `threshold` is the similarity it asked of what shares few words with it."""

    sources: list[ExplainedSource]
    threshold: float
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
