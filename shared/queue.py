"""Work that must not be lost, through SQS: sent by a request, done by the same function's worker."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from shared.errors import Unavailable
from shared.telemetry import count_failure, logger, span

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient

Event = Mapping[str, Any]
MARGIN_SECONDS = 5  # of an invocation's time, to write down what its work came to


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message as it comes, and how long its work may take."""

    body: str
    seconds: float

    def message(self) -> dict[str, Any]:
        """What is to be done; of a dead letter that Lambda wrapped, the event that the invocation had."""
        told = json.loads(self.body)
        message: dict[str, Any] = told.get("requestPayload", told)
        return message


async def send(queue_url: str, body: Mapping[str, Any], delay_seconds: int = 0) -> None:
    """Put one message on the queue, to be delivered after the delay (15 minutes at most). Raises `Unavailable`."""
    await asyncio.to_thread(_send, queue_url, json.dumps(body), delay_seconds)


async def put_off(queue_url: str | None, body: Mapping[str, Any]) -> str:
    """Send a write that the database didn't take; what has become of it, for the log."""
    if not queue_url:
        return "lost"
    try:
        await send(queue_url, body)
    except Unavailable:
        return "lost"
    return "queued"


def is_delivery(event: Event) -> bool:
    """Whether a Lambda event is a batch of queue messages."""
    records = event.get("Records") or [{}]
    return bool(records[0].get("eventSource") == "aws:sqs")


async def consume(
    event: Event, work: Callable[[Delivery], Awaitable[None]], worker: str, seconds: float
) -> dict[str, Any]:
    """Do the messages' work side by side; the answer names those that failed, so that SQS delivers only these again.

    The event source mapping must have ReportBatchItemFailures. Lambda counts no error then: they are counted here, as
    `worker`'s.
    """
    records = event["Records"]
    deliveries = [Delivery(record["body"], seconds - MARGIN_SECONDS) for record in records]
    outcomes = await asyncio.gather(*(_done(work, each) for each in deliveries), return_exceptions=True)
    failures = []
    for record, outcome in zip(records, outcomes, strict=True):
        if isinstance(outcome, BaseException):
            extra = {"messageId": record["messageId"], "kind": type(outcome).__name__}
            logger.error("queue message failed", extra=extra)
            count_failure(worker, outcome)
            failures.append({"itemIdentifier": record["messageId"]})
    return {"batchItemFailures": failures}


async def _done(work: Callable[[Delivery], Awaitable[None]], delivery: Delivery) -> None:
    attributes = {"messaging.system": "aws_sqs", "messaging.operation.type": "process"}
    with span("process queue", "CONSUMER", attributes):
        await work(delivery)


def _send(queue_url: str, text: str, delay_seconds: int) -> None:
    from botocore.exceptions import BotoCoreError, ClientError  # a quarter of a second that only a failed write pays

    try:
        _sqs().send_message(QueueUrl=queue_url, MessageBody=text, DelaySeconds=delay_seconds)
    except (BotoCoreError, ClientError) as error:
        raise Unavailable("The queue can't be reached.") from error


@cache
def _sqs() -> "SQSClient":
    import boto3
    from botocore.config import Config

    return boto3.client("sqs", config=Config(connect_timeout=1, read_timeout=2, retries={"total_max_attempts": 2}))
