"""What comes to deploy-model without HTTP: its queue, objects in the training bucket, and the schedule."""

import asyncio
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote_plus
from uuid import uuid4

from shared import activation, deployments, invocations
from shared.clients import kept
from shared.models import Deadline
from shared.queue import Delivery
from shared.telemetry import Trace

MANIFESTS = "manifest.json"


async def consume(delivery: Delivery) -> None:
    """Whatever stands in a message of the queue, objects' events too. Raises what makes it come again."""
    body = delivery.message()
    if "transfer" in body:
        await deployments.carry_on(await kept(), int(body["transfer"]), delivery.seconds)
    elif "activate" in body:
        deadline = Deadline.after(delivery.seconds)
        await activation.carry_on(await kept(), body["activate"], deadline, Trace(str(uuid4())))
    else:
        await occurred(body, delivery.seconds)


async def occurred(event: Mapping[str, Any], seconds: float) -> None:
    """An object that was made, or the time for a look at the canaries and at transfers that nobody is at."""
    records = event.get("Records", [])
    if records and all("s3" in record for record in records):
        await asyncio.gather(*(_object_made(record, seconds) for record in records))
    elif event.get("source") in ("aws.events", "aws.scheduler"):
        await activation.check_canaries(await kept(), "schedule")
        await deployments.wake(await kept())
    elif event.get("Event") != "s3:TestEvent":
        raise invocations.unknown(event)


async def _object_made(record: Mapping[str, Any], seconds: float) -> None:
    made = record["s3"]["object"]
    key = unquote_plus(made["key"])  # as S3 writes them
    if record["eventName"].removeprefix("s3:").startswith("ObjectCreated:") and key.rpartition("/")[2] == MANIFESTS:
        bucket = record["s3"]["bucket"]["name"]
        await deployments.from_manifest(await kept(), bucket, key, Deadline.after(seconds))
