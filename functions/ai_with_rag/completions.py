"""ai-with-rag for clients of OpenAI's API: the same answers as chat completions, and the models there are."""

from fastapi import APIRouter, Request, Response

from shared import answer_cache, chat_completions, quotas, web
from shared.chat_completions import Chat, Completion, Model, ModelList
from shared.web import AnybodyOf, AnybodysDatabaseOf, ClientsOf

router = APIRouter()


@router.post("/chat/completions", response_model=Completion, response_model_exclude_unset=True)
async def complete(
    body: Chat, request: Request, clients: ClientsOf, caller: AnybodyOf, db: AnybodysDatabaseOf
) -> Response | Completion:
    """Answer the last message from the token knowledge; with `stream` in chunks."""
    trace, deadline = web.trace(request), web.deadline(request, clients.settings.request_timeout_seconds)
    quota = quotas.of_turns(clients.settings, caller, web.address(request))
    cache = answer_cache.use(request.headers.get("cache-control"))
    draft = await chat_completions.prepare(clients, db, quota, body, cache, deadline, trace)
    if body.stream:
        return await web.frame_stream(chat_completions.chunks(clients, draft, body, deadline, trace))
    return await chat_completions.whole(clients, draft, deadline, trace)


@router.get("/models")
async def list_models(clients: ClientsOf, _: AnybodyOf) -> ModelList:
    """The names a request may have for a model."""
    return await chat_completions.list_models(clients.router)


@router.get("/models/{name:path}")
async def read_model(name: str, clients: ClientsOf, _: AnybodyOf) -> Model:
    """One of them."""
    return await chat_completions.read_model(clients.router, name)
