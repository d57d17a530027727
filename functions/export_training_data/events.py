"""What comes to export-training-data without HTTP: its queue, and its schedules."""

import json
from collections.abc import Mapping
from typing import Any

from shared import exports
from shared.clients import kept
from shared.exports import Export
from shared.models import Deadline
from shared.queue import Delivery
from shared.telemetry import logger

SCHEDULES = ("aws.events", "aws.scheduler")


async def consume(delivery: Delivery) -> None:
    """A message of the queue. Raises what makes it come again."""
    body = json.loads(delivery.body)
    if "export" in body:
        await exports.carry_on(kept(), int(body["export"]), delivery.seconds)
    else:
        logger.error("a message that nobody knows", extra={"keys": sorted(map(str, body))[:20]})


async def occurred(event: Mapping[str, Any], seconds: float) -> None:
    """The time for an export: what is new since the last, or what the schedule's `export` says."""
    if event.get("source") not in SCHEDULES:
        logger.error("an event that nobody knows", extra={"keys": sorted(map(str, event))[:20]})
        return
    export = Export(**event.get("export", {"incremental": True}))
    await exports.begin(kept(), export, "schedule", Deadline.after(seconds), in_background=True)
