"""Work that must not be lost, through SQS: sent by a request, done by the same function's worker."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from shared.errors import Unavailable
from shared.telemetry import logger

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient

Event = Mapping[str, Any]


async def send(queue_url: str, body: Mapping[str, Any]) -> None:
    """Put one message on the queue. Raises `Unavailable`."""
    await asyncio.to_thread(_send, queue_url, json.dumps(body))


def is_delivery(event: Event) -> bool:
    """Whether a Lambda event is a batch of queue messages."""
    records = event.get("Records") or [{}]
    return bool(records[0].get("eventSource") == "aws:sqs")


async def consume(event: Event, work: Callable[[str], Awaitable[None]]) -> dict[str, Any]:
    """Do each message's work; the answer names those that failed, so that SQS delivers only these again.

    The event source mapping must have ReportBatchItemFailures.
    """
    failures = []
    for record in event["Records"]:
        try:
            await work(record["body"])
        except Exception as error:
            logger.error("queue message failed", extra={"messageId": record["messageId"], "kind": type(error).__name__})
            failures.append({"itemIdentifier": record["messageId"]})
    return {"batchItemFailures": failures}


def _send(queue_url: str, text: str) -> None:
    from botocore.exceptions import BotoCoreError, ClientError  # a quarter of a second that only a failed write pays

    try:
        _sqs().send_message(QueueUrl=queue_url, MessageBody=text)
    except (BotoCoreError, ClientError) as error:
        raise Unavailable("The queue can't be reached.") from error


@cache
def _sqs() -> "SQSClient":
    import boto3
    from botocore.config import Config

    return boto3.client("sqs", config=Config(connect_timeout=1, read_timeout=2, retries={"total_max_attempts": 2}))
