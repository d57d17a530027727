"""ai-finance: a signed-in user's question, answered from the knowledge base and the user's own swaps."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Header, Path, Query, Request
from fastapi.responses import Response

from functions.ai_finance import webhooks
from shared import answering, auth, conversations, deferred, quotas, web
from shared.answering import Ask, Question
from shared.conversations import ConversationPage, Rating, ThreadPage, WholeConversation
from shared.invocations import Handler
from shared.web import CallerOf, ClientsOf, DatabaseOf, Prefer
from shared.wire import Pending, Usage

router = APIRouter()
router.include_router(webhooks.router, prefix="/webhooks")
Page = Annotated[int, Query(ge=1, le=100)]
Cursor = Annotated[int | None, Query(ge=1, le=2**63 - 1)]
Id = Annotated[int, Path(ge=1, le=2**63 - 1)]
Key = Annotated[str | None, Header(min_length=1, max_length=255)]


@router.post("")
async def ask(
    body: Ask,
    request: Request,
    clients: ClientsOf,
    caller: CallerOf,
    idempotency_key: Key = None,
    prefer: Prefer = None,
) -> Response:
    """Answer a question: whole, as server-sent events (`stream`), or later (`Prefer: respond-async`, `wait=N`)."""
    trace, deadline = web.trace(request), web.deadline(request, clients.settings.request_timeout_seconds)
    question = Question.of(body, auth.claimed_user_id(caller, body.user_id), idempotency_key)
    streams, wait = web.wants_stream(request, body.stream), deferred.wait_seconds(prefer)
    if wait is not None and not streams and clients.settings.queue_url:
        told = await deferred.answer(clients, caller, question, wait, body.broadcast, deadline, trace)
        return web.later(request, wait, told) if isinstance(told, Pending) else web.whole(told)
    draft, route = await answering.prepare(clients, caller, question, deadline, trace)
    if streams:
        return await web.event_stream(answering.events(clients, draft, route, deadline, trace))
    return web.whole(await answering.whole(clients, draft, route, deadline, trace))


@router.get("/conversations/{conversation_id}")
async def read_conversation(conversation_id: Id, db: DatabaseOf) -> WholeConversation:
    """One of the caller's conversations, pending or answered."""
    return await conversations.read(db, conversation_id)


@router.post("/feedback")
async def rate(rating: Rating, db: DatabaseOf) -> Rating:
    """Set the caller's thumb on one of his conversations."""
    await conversations.rate(db, rating.conversation_id, rating.feedback)
    return rating


@router.get("/threads")
async def list_threads(db: DatabaseOf, limit: Page = 20, before: Cursor = None) -> ThreadPage:
    """The caller's threads, the latest first; `next` is the `before` of the next page."""
    return await conversations.list_threads(db, limit, before)


@router.get("/threads/{thread_id}")
async def read_thread(thread_id: UUID, db: DatabaseOf, limit: Page = 50, before: Cursor = None) -> ConversationPage:
    """A thread's conversations, the latest first; `next` is the `before` of the next page."""
    return await conversations.read_thread(db, thread_id, limit, before)


@router.get("/usage")
async def read_usage(db: DatabaseOf) -> Usage:
    """The caller's plan, and what he has spent of it."""
    return await quotas.read_usage(db)


app = web.create_app("ai-finance", router)
handler = Handler(app, deferred.consume, worker=deferred.WORKER)
