"""What every provider of a chat model is asked, how it answers, and how it fails."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from typing_extensions import TypedDict  # pydantic reads typing's from Python 3.12 on

JOB_SECONDS = 600


class Message(TypedDict):
    """One message of a chat: `role` is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one call; `estimated` where the server didn't report them.

    Those it had in its cache are among the input tokens, those of its reasoning among the output tokens.
    """

    input_tokens: int
    output_tokens: int
    estimated: bool = False
    cached_tokens: int = 0
    reasoning_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Ask:
    """One call: what the model is told, how much it may say, and by when it must have said it."""

    model: str
    messages: Sequence[Message]
    max_tokens: int
    timeout_seconds: float


@dataclass(frozen=True, slots=True)
class Said:
    """A whole answer: `cut_off` where `max_tokens` ended it, its usage and its model where the server reported them."""

    text: str
    cut_off: bool
    usage: Usage | None
    model: str | None = None


class Failure(Enum):
    """Why a call failed, which says what to do next.

    REFUSED: the key, the account or the model's name isn't accepted; another provider may. BUSY: too many calls;
    the same again later. FAILING: the provider's own error, or none could be reached, or its answer can't be read.
    LATE: no answer within the call's time. EMPTY: an answer without a word. TOO_LONG: more than the model's context
    holds. UNACCEPTABLE: its content policy, or a request it won't take.
    """

    REFUSED = "refused"
    BUSY = "busy"
    FAILING = "failing"
    LATE = "late"
    EMPTY = "empty"
    TOO_LONG = "too_long"
    UNACCEPTABLE = "unacceptable"


class ProviderFailed(Exception):
    """A call that failed; its words are the provider's and stay inside."""

    def __init__(self, failure: Failure, message: str = "", retry_after_seconds: float | None = None):
        super().__init__(message)
        self.failure = failure
        self.retry_after_seconds = retry_after_seconds


@dataclass(frozen=True, slots=True)
class Chat:
    """A provider with its address and key: `generate` answers whole, `stream` piece by piece and its usage last.

    Cancelled, or closed, both stop the work at the provider. One that can be left alone has the other three: `submit`
    starts a job that lives for `JOB_SECONDS` at most, with an address the provider calls when it is over, and gives its
    id; `collect` says what has come of it, None while it goes on or can't be seen; `cancel` ends it. All raise
    `ProviderFailed` alone, `cancel` not even that, and `collect` only for a job that has failed or doesn't exist.
    """

    generate: Callable[[Ask], Awaitable[Said]]
    stream: Callable[[Ask], AsyncGenerator[str | Usage, None]]
    submit: Callable[[Ask, str], Awaitable[str]] | None = None
    collect: Callable[[Ask, str], Awaitable[Said | None]] | None = None
    cancel: Callable[[Ask, str], Awaitable[None]] | None = None
