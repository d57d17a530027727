"""Chat completions, models and errors as OpenAI's clients know them, over ai-with-rag's answers.

https://platform.openai.com/docs/api-reference/chat/object has the shapes.

The last message is the question; those before it are data in its prompt. A system message is anybody's text, as all of
a request is: it is looked at for secrets and goes no further, so that nobody's instructions stand beside the gateway's.
"""

import json
import re
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Annotated, Any, Literal, Self

from postgrest import AsyncPostgrestClient
from pydantic import BaseModel, BeforeValidator, Field, StringConstraints, model_validator

from shared import answer_cache, cited_answers, errors, guards
from shared.cited_answers import Draft, Label, Question, Selection
from shared.clients import Clients
from shared.errors import (
    Forbidden,
    GatewayError,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    QuotaExhausted,
    RateLimited,
    Unauthenticated,
    UnknownModel,
    Unsupported,
)
from shared.models import Deadline
from shared.prompting import Exchange
from shared.providers.openai_compatible import clean
from shared.quotas import Quota
from shared.routing import Router
from shared.telemetry import Trace
from shared.wire import CitedDone, Failure, Flag, Token, TokenSource, TokenSources, TokenUsage, Wire

Finish = Literal["stop", "length"]

ROUTE = "ai-with-rag"  # the model that is whichever the gateway would ask; also the one of answers that needed none
ROUTED = {ROUTE, "default"}
MESSAGES = 100
# What can't be left out of an answer, as a temperature can, and the values that ask for nothing.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "tools": (None, []),
    "functions": (None, []),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "logprobs": (None, False),
    "n": (None, 1),
}
# The type and code of an error; without a code it keeps its own.
KINDS: dict[type[GatewayError], tuple[str, str | None]] = {
    Unauthenticated: ("authentication_error", "invalid_api_key"),
    Forbidden: ("permission_error", None),
    UnknownModel: ("invalid_request_error", "model_not_found"),
    InvalidRequest: ("invalid_request_error", None),
    NotFound: ("invalid_request_error", None),
    MethodNotAllowed: ("invalid_request_error", None),
    QuotaExhausted: ("insufficient_quota", "insufficient_quota"),
    RateLimited: ("rate_limit_error", "rate_limit_exceeded"),
    GatewayError: ("api_error", None),
}
FIELD = re.compile(r"^(\w+): ")
QUESTION = re.compile(r"^(?:query|message): ")  # what the last message is elsewhere


def _text(content: Any) -> Any:
    """A message's text, in one piece or in parts. Raises `Unsupported` for any other kind of part."""
    if not isinstance(content, list):
        return content
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            raise Unsupported(f"messages: {clean(str(kind)[:40])} is not supported, only parts of type text are.")
    texts = [part.get("text") for part in content]
    return "\n".join(texts) if all(isinstance(text, str) for text in texts) else content


class ChatMessage(Wire):
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_text), StringConstraints(strip_whitespace=True, pattern=r"^[^\x00]*$")]

    @model_validator(mode="before")
    @classmethod
    def calls_no_tools(cls, message: Any) -> Any:
        if isinstance(message, dict) and (message.get("tool_calls") or message.get("role") in ("tool", "function")):
            raise Unsupported("messages: calls of tools and their results are not supported.")
        return message


class StreamOptions(Wire):
    include_usage: bool | None = Field(None, alias="include_usage")


class Chat(Selection):
    """A conversation that asks for its next answer; which passages may answer is this API's own, beside OpenAI's."""

    model: Label
    messages: list[ChatMessage] = Field(min_length=1, max_length=MESSAGES)
    stream: bool | None = None
    stream_options: StreamOptions | None = Field(None, alias="stream_options")
    max_tokens: int | None = Field(None, ge=1, alias="max_tokens")
    max_completion_tokens: int | None = Field(None, ge=1, alias="max_completion_tokens")

    @model_validator(mode="before")
    @classmethod
    def asks_for_what_there_is(cls, body: Any) -> Any:
        for field, nothing in UNSUPPORTED.items():
            if isinstance(body, dict) and body.get(field) not in nothing:
                raise Unsupported(f"{field}: not supported, leave it out.")
        return body

    @model_validator(mode="after")
    def ends_with_a_question(self) -> Self:
        if not self.said or self.said[-1].role != "user" or not self.said[-1].content:
            raise InvalidRequest("messages: the last one must be the user's, and ask something.")
        return self

    @property
    def said(self) -> list[ChatMessage]:
        """The messages without the system's."""
        return [message for message in self.messages if message.role in ("user", "assistant")]

    @property
    def question(self) -> Question:
        return Question(query=self.said[-1].content, **{name: getattr(self, name) for name in Selection.model_fields})

    @property
    def turns(self) -> list[Exchange]:
        """The messages before the question, the oldest first: each of the user's with what was answered to it."""
        turns: list[Exchange] = []
        for message in self.said[:-1]:
            if message.role == "user":
                turns.append(Exchange(message.content, ""))
            elif turns:
                turns[-1] = replace(turns[-1], response=f"{turns[-1].response}\n{message.content}".strip())
            else:
                turns.append(Exchange("", message.content))
        return turns

    @property
    def answer_tokens(self) -> int | None:
        return min((limit for limit in (self.max_tokens, self.max_completion_tokens) if limit), default=None)


class Said(BaseModel):
    role: Literal["assistant"] | None = None
    content: str | None = None
    refusal: None = None


class Choice(BaseModel):
    """The one answer there is: whole as `message`, a piece of it as `delta`."""

    index: int = 0
    message: Said | None = None
    delta: Said | None = None
    finish_reason: Finish | None = None
    logprobs: None = None


class CachedTokens(BaseModel):
    cached_tokens: int


class ReasoningTokens(BaseModel):
    reasoning_tokens: int


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens
    completion_tokens_details: ReasoningTokens


class Completion(BaseModel):
    """An answer, or a chunk of one, with what it stands on and its price beside what OpenAI's API has.

    The first chunk has the sources, the one with the finish reason the rest. Only fields that are set are for the wire.
    """

    id: str
    object: Literal["chat.completion", "chat.completion.chunk"]
    created: int
    model: str
    choices: list[Choice]
    usage: Usage | None = None
    sources: list[TokenSource] | None = None
    citations: list[int] | None = None
    flags: list[Flag] | None = None
    cost_usd: float | None = None


class Model(BaseModel):
    """One that a request may name; since when there is such a one, nobody knows."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


async def prepare(
    clients: Clients,
    db: AsyncPostgrestClient,
    quota: Quota | None,
    chat: Chat,
    cache: answer_cache.Use,
    deadline: Deadline,
    trace: Trace,
) -> Draft:
    """As `cited_answers.prepare`, whose errors it raises, for a conversation."""
    guards.refuse_secrets("\n".join(message.content for message in chat.messages))
    wanted = None if chat.model in ROUTED else chat.model
    return await cited_answers.prepare(
        clients, db, quota, chat.question, wanted, cache, deadline, trace, chat.turns, chat.answer_tokens
    )


async def whole(clients: Clients, draft: Draft, deadline: Deadline, trace: Trace) -> Completion:
    """The whole answer."""
    answer = await cited_answers.whole(clients, draft, deadline, trace)
    message = Said(role="assistant", content=answer.response, refusal=None)
    return Completion(
        id=_id(draft),
        object="chat.completion",
        created=int(time.time()),
        model=answer.model or ROUTE,
        choices=[Choice(index=0, message=message, finish_reason=_finish(draft, answer.usage), logprobs=None)],
        usage=_usage(answer.usage),
        sources=answer.sources,
        citations=answer.citations,
        flags=answer.flags,
        cost_usd=answer.usage.cost_usd,
    )


async def chunks(
    clients: Clients, draft: Draft, chat: Chat, deadline: Deadline, trace: Trace
) -> AsyncGenerator[str, None]:
    """The answer as it is said, in OpenAI's server-sent events.

    Until it is over nobody can tell which model of the chain will have said it: `model` is the first of it so long.
    """
    with_usage = bool(chat.stream_options and chat.stream_options.include_usage)
    head: dict[str, Any] = {
        "id": _id(draft),
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": draft.model or (draft.route.chain[0].name if draft.passages else ROUTE),
        **({"usage": None} if with_usage else {}),
    }
    async with aclosing(cited_answers.events(clients, draft, deadline, trace)) as events:
        async for _, told in events:
            match told:
                case TokenSources():
                    yield _frame(head, [_piece(Said(role="assistant", content=""))], sources=told.sources)
                case Token():
                    yield _frame(head, [_piece(Said(content=told.token))])
                case CitedDone():
                    head["model"] = told.model or ROUTE
                    checked = {"citations": told.citations, "flags": told.flags, "cost_usd": told.usage.cost_usd}
                    yield _frame(head, [_piece(Said(), _finish(draft, told.usage))], **checked)
                    if with_usage:
                        yield _frame(head | {"usage": _usage(told.usage)}, [])
                    yield "data: [DONE]\n\n"
                case Failure():
                    _, body = error(errors.of_code(told.code, told.error), told.request_id)
                    yield f"data: {json.dumps(body)}\n\n"


async def list_models(router: Router) -> ModelList:
    """The route itself, and the models a request may name."""
    owners = {ROUTE: ROUTE} | {name: model.provider for name, model in (await router.known()).items()}
    return ModelList(data=[Model(id=name, owned_by=owner) for name, owner in owners.items()])


async def read_model(router: Router, name: str) -> Model:
    """One of the list. Raises `UnknownModel`."""
    for model in (await list_models(router)).data:
        if model.id == name:
            return model
    raise UnknownModel("model: there is none of this name.")


def error(error: GatewayError, _: str) -> tuple[int, dict[str, Any]]:
    """The status and body by which OpenAI's clients know an error."""
    kind, code = next(KINDS[each] for each in type(error).__mro__ if each in KINDS)
    status = 404 if isinstance(error, UnknownModel) else 400 if error.status == 422 else error.status
    message = QUESTION.sub("messages: ", error.message)
    field = FIELD.match(message) if isinstance(error, InvalidRequest) else None
    param = field[1] if field and field[1] != "body" else None
    return status, {"error": {"message": message, "type": kind, "param": param, "code": code or error.code}}


def _frame(head: dict[str, Any], choices: list[Choice], **more: Any) -> str:
    chunk = Completion(choices=choices, **head, **more)
    return f"data: {chunk.model_dump_json(exclude_unset=True, by_alias=True)}\n\n"


def _piece(delta: Said, finish_reason: Finish | None = None) -> Choice:
    return Choice(index=0, delta=delta, finish_reason=finish_reason, logprobs=None)


def _id(draft: Draft) -> str:
    """The call's own id, by which the ledger knows it."""
    return f"chatcmpl-{draft.call.id.replace('-', '')}"


def _finish(draft: Draft, usage: TokenUsage) -> Finish:
    """An answer that has used up its tokens was cut off."""
    return "length" if usage.output_tokens >= draft.route.answer_tokens else "stop"


def _usage(usage: TokenUsage) -> Usage:
    return Usage(
        prompt_tokens=usage.input_tokens,
        completion_tokens=usage.output_tokens,
        total_tokens=usage.input_tokens + usage.output_tokens,
        prompt_tokens_details=CachedTokens(cached_tokens=usage.cached_tokens),
        completion_tokens_details=ReasoningTokens(reasoning_tokens=usage.reasoning_tokens),
    )
