"""ai-with-rag: anybody's question about tokens, answered with sources; where knowledge is searched and kept."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from functions.ai_with_rag import completions
from shared import answer_cache, chat_completions, cited_answers, knowledge, quotas, web
from shared.cited_answers import Ask, Search
from shared.invocations import Handler
from shared.knowledge import DocumentPage, Documents, Outcome
from shared.web import AdminsDatabaseOf, AnybodyOf, AnybodysDatabaseOf, ClientsOf
from shared.wire import Explained, Found

router = APIRouter()
router.include_router(completions.router, prefix="/v1")
Page = Annotated[int, Query(ge=1, le=100)]
Cursor = Annotated[str | None, Query(max_length=1000, pattern=r"^[^\x00]*$")]
PUT_BYTES = 5 * 1024 * 1024  # Lambda takes 6 MB


@router.post("")
async def ask(body: Ask, request: Request, clients: ClientsOf, caller: AnybodyOf, db: AnybodysDatabaseOf) -> Response:
    """Answer a question from the token knowledge; with `stream` as server-sent events."""
    trace, deadline = web.trace(request), web.deadline(request, clients.settings.request_timeout_seconds)
    quota = quotas.of_turns(clients.settings, caller, web.address(request))
    cache = answer_cache.use(request.headers.get("cache-control"))
    draft = await cited_answers.prepare(clients, db, quota, body, body.model, cache, deadline, trace)
    if web.wants_stream(request, body.stream):
        return await web.event_stream(cited_answers.events(clients, draft, deadline, trace))
    return web.whole(await cited_answers.whole(clients, draft, deadline, trace))


@router.post("/search")
async def search(
    body: Search, request: Request, clients: ClientsOf, caller: AnybodyOf, db: AnybodysDatabaseOf
) -> Found | Explained:
    """The passages that bear on a question, and for admins why; no model is asked."""
    if body.explain:
        web.named(caller)
    trace, deadline = web.trace(request), web.deadline(request, clients.settings.request_timeout_seconds)
    quota = quotas.of_searches(clients.settings, caller, web.address(request))
    passages = await cited_answers.search(clients, db, quota, body, deadline, trace)
    if not body.explain:
        return Found(sources=cited_answers.sources(passages), timings=trace.timings)
    threshold = cited_answers.threshold(clients, body)
    return Explained(sources=cited_answers.explained(passages), threshold=threshold, timings=trace.timings)


@router.put("/documents")
async def put_documents(
    body: Documents, request: Request, response: Response, clients: ClientsOf, db: AdminsDatabaseOf
) -> dict[str, list[Outcome]]:
    """Create or update documents, each as a whole; 207 when any failed."""
    deadline = web.deadline(request, clients.settings.request_timeout_seconds)
    outcomes = await knowledge.put(db, clients.embedder, body.documents, deadline)
    response.status_code = 207 if any(outcome.outcome == "failed" for outcome in outcomes) else 200
    return {"documents": outcomes}


@router.get("/documents")
async def list_documents(
    db: AdminsDatabaseOf, limit: Page = 20, after: Cursor = None, containing: Cursor = None
) -> DocumentPage:
    """The documents by id, or those that have the words in id, title, token or category; `next` is the next `after`."""
    return await knowledge.list_documents(db, limit, after, containing)


@router.delete("/documents/{document_id:path}")
async def delete_document(document_id: str, db: AdminsDatabaseOf) -> dict[str, str]:
    """Delete a document and its passages."""
    await knowledge.delete(db, document_id)
    return {"id": document_id}


app = web.create_app(
    "ai-with-rag", router, larger_bodies={"PUT": PUT_BYTES}, error_shapes={"/v1/": chat_completions.error}
)
handler = Handler(app)
