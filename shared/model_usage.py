"""What the models cost over time, how long they took, how often they failed, how their answers were liked."""

from datetime import datetime, timedelta
from typing import Literal

from postgrest import AsyncPostgrestClient

from shared import database
from shared.errors import InvalidRequest
from shared.wire import Wire

Bucket = Literal["hour", "day"]
SECONDS = {"hour": 3600, "day": 86400}
DAYS = 30
BUCKETS = 400


class Figures(Wire):
    """Counts of calls and thumbs; `errors` are calls that failed; latencies in milliseconds, to 1 %."""

    requests: int = 0
    errors: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float = 0
    p50_ms: float | None = None
    p95_ms: float | None = None
    likes: int = 0
    dislikes: int = 0


class ModelFigures(Figures):
    """Those of one model, which was asked last; None: no model was asked."""

    model: str | None


class BucketFigures(ModelFigures):
    """Those of one model in the hour or the day, in UTC, that begins then."""

    start: datetime


class ModelUsage(Wire):
    """A span's figures: of all, of each model, the dearest first, and of each model over time."""

    since: datetime
    until: datetime
    bucket: Bucket
    total: Figures
    models: list[ModelFigures]
    buckets: list[BucketFigures]


async def read(db: AsyncPostgrestClient, since: datetime | None, until: datetime, bucket: Bucket) -> ModelUsage:
    """The figures of a span, by default of 30 days. Raises `InvalidRequest` for a span of too many buckets."""
    since = since or until - timedelta(days=DAYS)
    width = timedelta(seconds=SECONDS[bucket])
    if not timedelta(0) < until - since <= BUCKETS * width:
        raise InvalidRequest(f"from: must be before until, by {BUCKETS} {bucket}s at most.")
    span = {"since": since.isoformat(), "until": until.isoformat(), "bucket": f"1 {bucket}"}
    told = await database.call(db, "summarize_usage", span)
    return ModelUsage(**{**told, "total": told["total"] or {}}, since=since, until=until, bucket=bucket)
