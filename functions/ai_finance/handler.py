"""ai-finance: a signed-in user's question, answered from the knowledge base and the user's own swaps."""

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import Response
from pydantic import Field, StrictInt, StringConstraints

from shared import answering, auth, conversations, web
from shared.answering import Question
from shared.web import CallerOf, ClientsOf, DatabaseOf
from shared.wire import Answer, Wire

router = APIRouter()
Page = Annotated[int, Query(ge=1, le=100)]
Cursor = Annotated[int | None, Query(ge=1, le=2**63 - 1)]
Key = Annotated[str | None, Header(min_length=1, max_length=255)]


class Ask(Wire):
    message: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, pattern=r"^[^\x00]*$")]
    user_id: StrictInt | str | None = None
    thread_id: UUID | None = None
    match_count: int = Field(3, ge=1, le=20)
    match_threshold: float | None = Field(None, ge=-1, le=1)
    stream: bool = False


class Rating(Wire):
    conversation_id: int = Field(ge=1, le=2**63 - 1)
    feedback: int = Field(ge=-1, le=1, strict=True)


@router.post("", response_model=Answer)
async def ask(
    body: Ask, request: Request, clients: ClientsOf, caller: CallerOf, idempotency_key: Key = None
) -> Response | Answer:
    """Answer a question; with `stream` or `Accept: text/event-stream` as server-sent events."""
    trace, deadline = web.trace(request), web.deadline(request, clients.settings.request_timeout_seconds)
    question = Question(
        message=body.message,
        thread_id=body.thread_id,
        claimed_user_id=auth.claimed_user_id(caller, body.user_id),
        idempotency_key=idempotency_key,
        match_count=body.match_count,
        match_threshold=body.match_threshold,
    )
    draft = await answering.prepare(clients, caller, question, deadline, trace)
    if web.wants_stream(request, body.stream):
        return await web.event_stream(answering.events(clients, draft, deadline, trace))
    return await answering.whole(clients, draft, deadline, trace)


@router.post("/feedback")
async def rate(rating: Rating, db: DatabaseOf) -> Rating:
    """Set the caller's thumb on one of his conversations."""
    await conversations.rate(db, rating.conversation_id, rating.feedback)
    return rating


@router.get("/threads")
async def list_threads(db: DatabaseOf, limit: Page = 20, before: Cursor = None) -> conversations.ThreadPage:
    """The caller's threads, the latest first; `next` is the `before` of the next page."""
    return await conversations.list_threads(db, limit, before)


@router.get("/threads/{thread_id}")
async def read_thread(
    thread_id: UUID, db: DatabaseOf, limit: Page = 50, before: Cursor = None
) -> conversations.ConversationPage:
    """A thread's conversations, the latest first; `next` is the `before` of the next page."""
    return await conversations.read_thread(db, thread_id, limit, before)


app = web.create_app("ai-finance", router)
handler: Any = web.create_handler(app, answering.close_from_queue)
