"""What comes to export-training-data without HTTP: its queue, and its schedules."""

import json
from collections.abc import Mapping
from typing import Any

from shared import exports, fine_tuning
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
    elif "fineTune" in body:
        await fine_tuning.carry_on(kept(), int(body["fineTune"]), delivery.seconds)
    else:
        logger.error("a message that nobody knows", extra={"keys": sorted(map(str, body))[:20]})


async def occurred(event: Mapping[str, Any], seconds: float) -> None:
    """The time to look after jobs, and for an export: of what is new, or of what the event's `export` says."""
    if event.get("source") not in SCHEDULES:
        logger.error("an event that nobody knows", extra={"keys": sorted(map(str, event))[:20]})
        return
    await fine_tuning.check_all(kept(), seconds / 2)
    export = Export(**event.get("export", {"incremental": True}))
    await exports.begin(kept(), export, "schedule", Deadline.after(seconds), in_background=True)
