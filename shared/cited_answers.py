"""An answer with citations, from a question of anybody's: found, prepared once, then given whole or as it is said.

No question is stored; answers from public knowledge are kept for a while for whoever asks the same.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Self

import anyio
from postgrest import AsyncPostgrestClient
from pydantic import Field, StringConstraints, model_validator

from shared import answer_cache, embeddings, grounding, guards, models, prompting, quotas, retrieval
from shared.clients import Clients
from shared.errors import GatewayError, InvalidRequest, ModelUnavailable
from shared.grounding import Citations
from shared.models import NOTHING, Begun, Deadline, Model, Route, Spent
from shared.prompting import Exchange
from shared.providers.chat import Message
from shared.quotas import Call, Quota
from shared.retrieval import Filters, Passage
from shared.telemetry import Trace
from shared.wire import CitedAnswer, CitedDone, ExplainedSource, Failure, Flag, Token, TokenSource, TokenSources, Wire

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, pattern=r"^[^\x00]*$")]
Label = Annotated[Text, Field(max_length=255)]
EMPTY = "The model gave an empty answer: try again."


class Selection(Wire):
    """Which passages may answer; without a threshold the embedding model's own holds."""

    token_symbol: Label | None = None
    token_address: Label | None = None
    category: Label | None = None
    match_count: int = Field(5, ge=1, le=20)
    match_threshold: float | None = Field(None, ge=-1, le=1)

    @property
    def filters(self) -> Filters:
        return Filters(self.token_symbol, self.token_address, self.category)


class Question(Selection):
    """What is asked: its text comes as `query`, or as ai-finance's `message`."""

    query: Text | None = None
    message: Text | None = None

    @model_validator(mode="after")
    def is_asked_once(self) -> Self:
        if not self.text or (self.message or self.text) != self.text:
            raise InvalidRequest("query: say what you ask in `query`, or in `message`, once.")
        return self

    @property
    def text(self) -> str:
        return self.query or self.message or ""


class Search(Question):
    """A question for passages; `explain` asks for why each is found, and is for admins."""

    explain: bool = False


class Ask(Question):
    """A question to the model, or to the one it names; `stream` asks for the answer as it is said."""

    model: Label | None = None
    stream: bool = False


@dataclass(frozen=True, slots=True)
class Draft:
    """A question ready for the model, and the passages in its prompt; without any, the model isn't asked.

    Nor is it where `reply` is there already, kept from an earlier one; with `key` the answer is kept. `turns` are the
    caller's word of what was said before it, as far as it is in the prompt.
    """

    question: Question
    route: Route
    call: Call
    turns: Sequence[Exchange] = ()
    passages: Sequence[Passage] = ()
    messages: Sequence[Message] = ()
    reply: str | None = None
    model: str | None = None
    key: str | None = None
    spent: Spent = NOTHING


@dataclass(slots=True)
class Said:
    """What the model has said so far, its citations settled."""

    citations: Citations
    raw: str = ""
    begun: Model | None = None
    spent: Spent | None = None


async def search(
    clients: Clients,
    db: AsyncPostgrestClient,
    quota: Quota | None,
    question: Search,
    deadline: Deadline,
    trace: Trace,
) -> list[Passage]:
    """The passages that bear on the question, as far as `db` may see them, best first; no model is asked.

    The call is counted while the question is embedded. Raises `RateLimited`, `InvalidRequest` for a question
    longer than the setting allows, and `SecretInMessage`.
    """
    _check(clients, question)
    with _embedding(clients, quota, question.text, trace) as vector:
        async with deadline.enforced():
            with _admission(clients, quota), trace.step("count"):
                await quotas.count(clients.http, clients.settings, quota)
            return await _find(clients, db, question, await vector(), trace, question.explain)


async def prepare(
    clients: Clients,
    db: AsyncPostgrestClient,
    quota: Quota | None,
    question: Question,
    wanted: str | None,
    cache: answer_cache.Use,
    deadline: Deadline,
    trace: Trace,
    turns: Sequence[Exchange] = (),
    answer_tokens: int | None = None,
) -> Draft:
    """Find the passages and build the prompt, or find the answer; one that follows on earlier turns is not kept.

    `answer_tokens` may lower the setting. Raises what `search` does, `UnknownModel` and `QuotaExhausted`.
    """
    settings = clients.settings
    _check(clients, question)
    with _embedding(clients, quota, question.text, trace) as vector:
        async with deadline.enforced():
            with _admission(clients, quota):
                route = await clients.router.route(quota.person if quota else "", wanted)
                if answer_tokens:
                    route = replace(route, answer_tokens=min(route.answer_tokens, answer_tokens))
                with trace.step("count"):
                    most = route.most(settings.prompt_tokens)
                    call = await quotas.open_call(clients.http, settings, quota, most, trace)
        draft = Draft(question, route, call)
        async with _charged_if_failed(clients, draft, trace), deadline.enforced():
            passages = await _find(clients, db, question, await vector(), trace)
            prompt = prompting.build_cited(question.text, passages, settings.prompt_tokens, turns)
            draft = replace(draft, turns=prompt.turns, passages=prompt.passages, messages=prompt.messages)
            may_be_kept = settings.cache_seconds and draft.passages and not turns
            return await _kept(clients, draft, cache, trace) if may_be_kept else draft


async def whole(clients: Clients, draft: Draft, deadline: Deadline, trace: Trace) -> CitedAnswer:
    """The whole answer, its citations checked."""
    if draft.passages and draft.reply is None:
        async with _charged_if_failed(clients, draft, trace):
            with trace.step("model"):
                reply = await models.generate(draft.route, draft.messages, deadline, trace)
        trace.facts["attempts"] = reply.attempts
        draft = replace(draft, reply=reply.text, model=reply.model, spent=reply.spent)
    said = Said(Citations(len(draft.passages)), draft.reply or "")
    said.citations.hear(said.raw)
    said.citations.rest()
    failure = _failure(draft, said)
    await _close(clients, draft, said, trace, failure.code if failure else None)
    if failure:
        raise failure
    response = said.citations.text.strip() if draft.passages else prompting.NOTHING_KNOWN
    return CitedAnswer(
        response=response, sources=sources(draft.passages), **_done(draft, said.citations, trace).model_dump()
    )


async def events(
    clients: Clients, draft: Draft, deadline: Deadline, trace: Trace
) -> AsyncGenerator[tuple[str, Wire], None]:
    """The answer as it is said: `sources`, `token` …, then `done` or `error`.

    A client that goes away closes this generator, and with it the connection to the model.
    """
    said, code = Said(Citations(len(draft.passages))), "client_gone"
    failure: GatewayError | None = None
    try:
        yield "sources", TokenSources(sources=sources(draft.passages))
        async with aclosing(_pieces(draft, said, deadline, trace)) as pieces:
            async for piece in pieces:
                trace.note_token()
                yield "token", Token(token=piece)
        code = ""
    except Exception as error:
        failure = error if isinstance(error, GatewayError) else GatewayError()
        code = failure.code
        trace.facts["cause"] = type(error.__cause__ or error).__name__
    finally:
        with anyio.CancelScope(shield=True):
            if said.begun:
                spent = said.spent or said.begun.spent(models.estimate(draft.messages, said.raw))
                draft = replace(draft, model=said.begun.name, spent=spent)
            trace.facts |= {"code": code} if code else {}
            await _close(clients, draft, said, trace, code or None)
    if failure:
        yield "error", Failure(**failure.body(trace.request_id))
    else:
        yield "done", _done(draft, said.citations, trace)


def sources(passages: Sequence[Passage]) -> list[TokenSource]:
    """The passages as the client sees them."""
    return [TokenSource(**asdict(passage)) for passage in passages]


def explained(passages: Sequence[Passage]) -> list[ExplainedSource]:
    """The passages as an admin sees them."""
    return [ExplainedSource(**asdict(passage)) for passage in passages]


def threshold(clients: Clients, question: Question) -> float:
    """The cosine similarity that a passage must exceed which shares few words with the question."""
    return clients.embedder.threshold if question.match_threshold is None else question.match_threshold


def _check(clients: Clients, question: Question) -> None:
    limit = clients.settings.message_characters
    if len(question.text) > limit:
        raise InvalidRequest(f"query: longer than {limit} characters.")
    guards.refuse_secrets(question.text)


@contextmanager
def _embedding(
    clients: Clients, quota: Quota | None, text: str, trace: Trace
) -> Iterator[Callable[[], Awaitable[list[float]]]]:
    """How to get the question's vector, which is asked for while the caller is admitted.

    Only after that for a visitor, and for a user who was just refused.
    """
    if quota and (not quota.user or clients.refusals.hold(quota.key)):
        yield lambda: _embed(clients, text, trace)
        return
    embedding = asyncio.create_task(_embed(clients, text, trace))
    embedding.add_done_callback(lambda task: task.cancelled() or task.exception())  # a refused call never asks for it
    try:
        yield lambda: embedding
    finally:
        embedding.cancel()


@contextmanager
def _admission(clients: Clients, quota: Quota | None) -> Iterator[None]:
    """What admits the caller runs inside; of a user it is remembered how that went."""
    user = quota.key if quota and quota.user else None
    with clients.refusals.noted(user):
        yield
    clients.refusals.forget(user)


async def _embed(clients: Clients, text: str, trace: Trace) -> list[float]:
    with trace.step("embed"):
        return await embeddings.embed_query(clients.embedder, text)


async def _find(
    clients: Clients,
    db: AsyncPostgrestClient,
    question: Question,
    vector: list[float],
    trace: Trace,
    explains: bool = False,
) -> list[Passage]:
    model, least = clients.embedder.model, threshold(clients, question)
    with trace.step("search"):
        passages = await retrieval.search(
            db, vector, question.text, model, question.match_count, least, question.filters, explains
        )
    trace.facts["passages"] = len(passages)
    return passages


async def _kept(clients: Clients, draft: Draft, cache: answer_cache.Use, trace: Trace) -> Draft:
    """With the answer that was kept for the same, or the key to keep this one by."""
    question = draft.question
    key = answer_cache.key(draft.route, draft.messages, question.text, question.filters, draft.passages)
    if key is None or cache == "none":
        return draft
    kept = await answer_cache.read(clients, key, trace) if cache == "both" else None
    if kept is None:
        return replace(draft, key=key)
    trace.facts["attempts"] = 0
    return replace(draft, reply=kept["text"], model=kept["model"])


async def _pieces(draft: Draft, said: Said, deadline: Deadline, trace: Trace) -> AsyncGenerator[str, None]:
    """The answer's pieces once their citations are settled; what is known of it besides stands in `said`."""
    if not draft.passages:
        yield prompting.NOTHING_KNOWN
        return
    if draft.reply is not None:
        said.raw = draft.reply
        yield said.citations.hear(draft.reply)
    else:
        with trace.step("model"):
            async with aclosing(models.stream(draft.route, draft.messages, deadline, trace)) as parts:
                async for part in parts:
                    if isinstance(part, Begun):
                        said.begun, trace.facts["attempts"] = part.model, part.attempts
                    elif isinstance(part, Spent):
                        said.spent = part
                    else:
                        said.raw += part
                        if piece := said.citations.hear(part):
                            yield piece
    if rest := said.citations.rest():
        yield rest
    if failure := _failure(draft, said):
        raise failure


@asynccontextmanager
async def _charged_if_failed(clients: Clients, draft: Draft, trace: Trace) -> AsyncIterator[None]:
    """Gives back what a call has reserved and not spent where what runs inside fails."""
    try:
        yield
    except BaseException as error:
        code = error.code if isinstance(error, GatewayError) else "internal"
        spent = models.charged(draft.spent, trace)
        trace.facts |= quotas.facts(spent)
        with anyio.CancelScope(shield=True):
            await quotas.close_call(clients.http, clients.settings, draft.call, spent, trace, error_code=code)
        raise


async def _close(clients: Clients, draft: Draft, said: Said, trace: Trace, error_code: str | None = None) -> None:
    """Charge the call, and keep a whole answer of the model it was meant for."""
    spent = models.charged(draft.spent, trace)
    trace.facts |= {"model": draft.model or trace.facts.get("model"), **quotas.facts(spent)}
    closing = quotas.close_call(clients.http, clients.settings, draft.call, spent, trace, draft.model, error_code)
    with trace.step("close"):
        if draft.key and draft.model == draft.route.chain[0].name and not error_code:
            await asyncio.gather(closing, answer_cache.keep(clients, draft.key, said.raw, draft.model, trace))
        else:
            await closing


def _failure(draft: Draft, said: Said) -> GatewayError | None:
    """For an answer of citations alone, of passages that don't exist."""
    return ModelUnavailable(EMPTY) if draft.passages and not said.citations.text.strip() else None


def _done(draft: Draft, citations: Citations, trace: Trace) -> CitedDone:
    # Earlier answers prove nothing: they come from the client.
    asked = "\n".join([*(turn.message for turn in draft.turns), draft.question.text])
    flags = grounding.unknown(citations.text, prompting.told(asked, draft.passages))
    return CitedDone(
        citations=citations.numbers,
        flags=[Flag(**asdict(flag)) for flag in flags],
        model=draft.model,
        usage=quotas.told(draft.spent),
        timings=trace.timings,
    )
