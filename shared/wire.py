"""Bodies on the wire: camelCase there, snake_case here."""

from uuid import UUID

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel


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


class Done(Wire):
    """The payload of a `done` event; `model` is None where no model was asked; timings in milliseconds."""

    conversation_id: int
    thread_id: UUID
    model: str | None
    usage: TokenUsage
    timings: dict[str, float]


class Answer(Done):
    """A whole answer."""

    response: str
    sources: list[Source]


class Failure(Wire):
    """The payload of an `error` event, in the shape of every error."""

    error: str
    code: str
    request_id: str
    retryable: bool
