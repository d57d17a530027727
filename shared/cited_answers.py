"""An answer with citations, from a question of anybody's: found, prepared once, then given whole or as it is said.

Nothing is stored.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass
from typing import Annotated, Self

from postgrest import AsyncPostgrestClient
from pydantic import Field, StringConstraints, model_validator

from shared import embeddings, grounding, guards, models, prompting, quotas, retrieval
from shared.clients import Clients
from shared.errors import GatewayError, InvalidRequest, ModelUnavailable
from shared.grounding import Citations
from shared.models import Begun, Deadline
from shared.providers.chat import Message, Usage
from shared.quotas import Quota
from shared.retrieval import Filters, Passage
from shared.telemetry import Trace
from shared.wire import CitedAnswer, CitedDone, Failure, Flag, Token, TokenSource, TokenSources, TokenUsage, Wire

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, pattern=r"^[^\x00]*$")]
Label = Annotated[Text, Field(max_length=255)]
NO_USAGE = Usage(0, 0)
EMPTY = "The model gave an empty answer: try again."


class Question(Wire):
    """What is asked, and which passages may answer; without a threshold the embedding model's own holds.

    The text comes as `query`, or as ai-finance's `message`.
    """

    query: Text | None = None
    message: Text | None = None
    token_symbol: Label | None = None
    token_address: Label | None = None
    category: Label | None = None
    match_count: int = Field(5, ge=1, le=20)
    match_threshold: float | None = Field(None, ge=-1, le=1)

    @model_validator(mode="after")
    def is_asked_once(self) -> Self:
        if not self.text or (self.message or self.text) != self.text:
            raise InvalidRequest("query: say what you ask in `query`, or in `message`, once.")
        return self

    @property
    def text(self) -> str:
        return self.query or self.message or ""

    @property
    def filters(self) -> Filters:
        return Filters(self.token_symbol, self.token_address, self.category)


class Ask(Question):
    """A question to the model; `stream` asks for the answer as it is said."""

    stream: bool = False


@dataclass(frozen=True, slots=True)
class Draft:
    """A question ready for the model, and the passages in its prompt; without any, the model isn't asked."""

    question: Question
    passages: Sequence[Passage]
    messages: Sequence[Message]


async def find(
    clients: Clients,
    db: AsyncPostgrestClient,
    quota: Quota | None,
    question: Question,
    deadline: Deadline,
    trace: Trace,
) -> list[Passage]:
    """The passages that bear on the question, as far as `db` may see them, best first.

    The call is counted while the question is embedded. Raises `RateLimited`, `InvalidRequest` for a question
    longer than the setting allows, and `SecretInMessage`.
    """
    limit = clients.settings.message_characters
    if len(question.text) > limit:
        raise InvalidRequest(f"query: longer than {limit} characters.")
    guards.refuse_secrets(question.text)
    async with deadline.enforced():
        vector = await _counted_vector(clients, quota, question.text, trace)
        threshold = clients.embedder.threshold if question.match_threshold is None else question.match_threshold
        with trace.step("search"):
            passages = await retrieval.search(
                db, vector, question.text, clients.embedder.model, question.match_count, threshold, question.filters
            )
    trace.facts["passages"] = len(passages)
    return passages


async def prepare(
    clients: Clients,
    db: AsyncPostgrestClient,
    quota: Quota | None,
    question: Question,
    deadline: Deadline,
    trace: Trace,
) -> Draft:
    """Find the passages and build the prompt. Raises what `find` does."""
    passages = await find(clients, db, quota, question, deadline, trace)
    prompt = prompting.build_cited(question.text, passages, clients.settings.prompt_tokens)
    return Draft(question, prompt.passages, prompt.messages)


async def whole(clients: Clients, draft: Draft, deadline: Deadline, trace: Trace) -> CitedAnswer:
    """The whole answer, its citations checked."""
    citations, usage, model = Citations(len(draft.passages)), NO_USAGE, None
    if draft.passages:
        with trace.step("model"):
            reply = await models.generate(clients.route, draft.messages, deadline)
        trace.facts["attempts"] = reply.attempts
        citations.hear(reply.text)
        citations.rest()
        usage, model = reply.usage, reply.model
        _check_said(citations)
    response = citations.text.strip() if draft.passages else prompting.NOTHING_KNOWN
    done = _done(draft, citations, model, usage, trace)
    return CitedAnswer(response=response, sources=sources(draft.passages), **done.model_dump())


async def events(
    clients: Clients, draft: Draft, deadline: Deadline, trace: Trace
) -> AsyncGenerator[tuple[str, Wire], None]:
    """The answer as it is said: `sources`, `token` …, then `done` or `error`.

    A client that goes away closes this generator, and with it the connection to the model.
    """
    citations, usage, model = Citations(len(draft.passages)), NO_USAGE, None
    trace.facts["code"] = "client_gone"
    try:
        yield "sources", TokenSources(sources=sources(draft.passages))
        with trace.step("model"):
            async with aclosing(_said(clients, draft, citations, deadline)) as parts:
                async for part in parts:
                    if isinstance(part, Begun):
                        model, trace.facts["attempts"] = part.model, part.attempts
                    elif isinstance(part, Usage):
                        usage = part
                    else:
                        yield "token", Token(token=part)
    except Exception as error:
        failure = error if isinstance(error, GatewayError) else GatewayError()
        trace.facts |= {"code": failure.code, "cause": type(error.__cause__ or error).__name__}
        yield "error", Failure(**failure.body(trace.request_id))
    else:
        del trace.facts["code"]
        yield "done", _done(draft, citations, model, usage, trace)


def sources(passages: Sequence[Passage]) -> list[TokenSource]:
    """The passages as the client sees them."""
    return [TokenSource(**asdict(passage)) for passage in passages]


async def _counted_vector(clients: Clients, quota: Quota | None, text: str, trace: Trace) -> list[float]:
    """The question's vector, unless the caller has asked too often; a visitor's is asked for after that is known."""
    if quota and quota.is_visitors:
        with trace.step("count"):
            await quotas.count(clients.http, clients.settings, quota)
        return await _embed(clients, text, trace)
    embedding = asyncio.create_task(_embed(clients, text, trace))
    embedding.add_done_callback(lambda task: task.cancelled() or task.exception())  # a refused call never asks for it
    try:
        with trace.step("count"):
            await quotas.count(clients.http, clients.settings, quota)
        return await embedding
    finally:
        embedding.cancel()


async def _embed(clients: Clients, text: str, trace: Trace) -> list[float]:
    with trace.step("embed"):
        return await embeddings.embed_query(clients.embedder, text)


async def _said(
    clients: Clients, draft: Draft, citations: Citations, deadline: Deadline
) -> AsyncGenerator[Begun | str | Usage, None]:
    """The answer's pieces once their citations are settled, and its usage."""
    if not draft.passages:
        yield prompting.NOTHING_KNOWN
        return
    async with aclosing(models.stream(clients.route, draft.messages, deadline)) as parts:
        async for part in parts:
            said = citations.hear(part) if isinstance(part, str) else part
            if said:
                yield said
    if rest := citations.rest():
        yield rest
    _check_said(citations)


def _check_said(citations: Citations) -> None:
    if not citations.text.strip():
        raise ModelUnavailable(EMPTY)  # of citations alone, of passages that don't exist


def _done(draft: Draft, citations: Citations, model: str | None, usage: Usage, trace: Trace) -> CitedDone:
    trace.facts |= {"model": model, "inputTokens": usage.input_tokens, "outputTokens": usage.output_tokens}
    flags = grounding.unknown(citations.text, prompting.told(draft.question.text, draft.passages))
    return CitedDone(
        citations=citations.numbers,
        flags=[Flag(**asdict(flag)) for flag in flags],
        model=model,
        usage=TokenUsage(**asdict(usage)),
        timings=trace.timings,
    )
