"""ai-finance for providers that call back when an answer is there."""

from typing import Literal
from uuid import UUID

from fastapi import APIRouter, Request

from shared import deferred
from shared.web import ClientsOf

router = APIRouter()


@router.post("/{wire}/{token}")
async def call_back(
    wire: Literal["replicate", "runpod"], token: UUID, request: Request, clients: ClientsOf
) -> dict[str, bool]:
    """A provider's word that an answer it was left alone with is there."""
    over = await deferred.called_back(clients, wire, str(token), request.headers, await request.body())
    return {"over": over}
