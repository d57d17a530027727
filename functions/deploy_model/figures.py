"""deploy-model's routes for figures that change nothing: what models cost over time, how their canaries stand."""

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import AwareDatetime

from shared import activation, model_usage
from shared.activation import Checks
from shared.model_usage import Bucket, ModelUsage
from shared.web import ActorOf, ClientsOf, GatewaysDatabaseOf

router = APIRouter()
From = Annotated[AwareDatetime | None, Query(alias="from")]


@router.get("/usage")
async def read_usage(
    _: ActorOf,
    db: GatewaysDatabaseOf,
    since: From = None,
    until: AwareDatetime | None = None,
    bucket: Bucket = "day",
) -> ModelUsage:
    """Requests, errors, tokens, cost, latency and thumbs by model, in a span: without one, the last 30 days."""
    return await model_usage.read(db, since, until or datetime.now(UTC), bucket)


@router.get("/canaries")
async def weigh_canaries(clients: ClientsOf, _: ActorOf) -> Checks:
    """What a check of every canary would decide now, and on which figures."""
    return Checks(decisions=await activation.weigh_canaries(clients))
