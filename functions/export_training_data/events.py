"""What comes to export-training-data without HTTP: its queue, and its schedules."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from shared import exports, fine_tuning, invocations
from shared.clients import kept
from shared.errors import InvalidRequest
from shared.exports import Export
from shared.models import Deadline
from shared.queue import Delivery
from shared.telemetry import logger

SCHEDULES = ("aws.events", "aws.scheduler")


async def consume(delivery: Delivery) -> None:
    """Whatever stands in a message of the queue, a schedule's event too. Raises what makes it come again."""
    body = delivery.message()
    if body.get("source") in SCHEDULES:
        await occurred(body, delivery.seconds)
    elif "export" in body:
        await exports.carry_on(await kept(), int(body["export"]), delivery.seconds)
    elif "fineTune" in body:
        await fine_tuning.carry_on(await kept(), int(body["fineTune"]), delivery.seconds)
    else:
        raise invocations.unknown(body)


async def occurred(event: Mapping[str, Any], seconds: float) -> None:
    """The time to look after what isn't finished; and to export, where the event says `export`, with its options."""
    if event.get("source") not in SCHEDULES:
        raise invocations.unknown(event)
    await fine_tuning.check_all(await kept(), seconds / 3)
    await exports.carry_on_all(await kept(), seconds / 3)
    if "export" not in event:
        return
    try:
        export = Export(**event["export"])
    except (ValidationError, InvalidRequest, TypeError) as error:
        logger.error("a schedule's export that can't be read", extra={"reason": type(error).__name__})
        raise
    await exports.begin(await kept(), export, "schedule", Deadline.after(seconds / 3), in_background=True)
