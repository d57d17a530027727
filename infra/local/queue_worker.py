"""A function's queue taken to its Lambda handler, batch by batch, as an event source mapping does it.

python -m infra.local.queue_worker ai-finance QUEUE_URL    # the setting that says where its queue is
"""

import os
import signal
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

import boto3

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient
    from mypy_boto3_sqs.type_defs import MessageTypeDef

BATCH = 10
POLL_SECONDS = 5
TIMEOUT_SECONDS = 60

Handler = Callable[[dict[str, Any], "Context"], Mapping[str, Any] | None]


@dataclass(frozen=True, slots=True)
class Context:
    """What Lambda tells a handler about its invocation."""

    function_name: str
    aws_request_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    deadline: float = field(default_factory=lambda: time.monotonic() + TIMEOUT_SECONDS)
    function_version: str = "$LATEST"
    memory_limit_in_mb: str = "512"

    @property
    def invoked_function_arn(self) -> str:
        return f"arn:aws:lambda:us-east-1:123456789012:function:{self.function_name}"

    def get_remaining_time_in_millis(self) -> int:
        return max(0, int((self.deadline - time.monotonic()) * 1000))


def poll(sqs: "SQSClient", queue_url: str, handler: Handler, wait_seconds: int) -> None:
    """Wait for messages and invoke the function with them; those it doesn't name as failed are deleted.

    The others come back when their visibility timeout is over: all of them where the function raised, or
    named a message it wasn't given.
    """
    messages = sqs.receive_message(
        QueueUrl=queue_url,
        MaxNumberOfMessages=BATCH,
        WaitTimeSeconds=wait_seconds,
        AttributeNames=["All"],
        MessageAttributeNames=["All"],
    ).get("Messages", [])
    if not messages:
        return
    arn = sqs.get_queue_attributes(QueueUrl=queue_url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    failed = _failed(handler, _event(messages, arn), arn.rpartition(":")[2])
    for message in messages:
        if message["MessageId"] not in failed:
            sqs.delete_message(QueueUrl=queue_url, ReceiptHandle=message["ReceiptHandle"])


def _failed(handler: Handler, event: dict[str, Any], function: str) -> set[str]:
    delivered = {record["messageId"] for record in event["Records"]}
    try:
        answer = handler(event, Context(function)) or {}
        failed = {failure["itemIdentifier"] for failure in answer.get("batchItemFailures", [])}
    except Exception:
        traceback.print_exc()  # into the worker's log; whatever a function raises, its batch is not done
        return delivered
    return failed if failed <= delivered else delivered


def _event(messages: Sequence["MessageTypeDef"], arn: str) -> dict[str, Any]:
    return {"Records": [_record(message, arn) for message in messages]}


def _record(message: "MessageTypeDef", arn: str) -> dict[str, Any]:
    return {
        "messageId": message["MessageId"],
        "receiptHandle": message["ReceiptHandle"],
        "body": message["Body"],
        "attributes": message.get("Attributes", {}),
        "messageAttributes": {
            name: {_lowered(key): value for key, value in attribute.items()}
            for name, attribute in message.get("MessageAttributes", {}).items()
        },
        "md5OfBody": message["MD5OfBody"],
        "eventSource": "aws:sqs",
        "eventSourceARN": arn,
        "awsRegion": arn.split(":")[3],
    }


def _lowered(key: str) -> str:
    return key[0].lower() + key[1:]


def _invoke(function: str, event: dict[str, Any], context: Context) -> Mapping[str, Any] | None:
    """Call the function, which is imported with its first message: the start of a stack doesn't wait for it."""
    handler: Handler = import_module(f"functions.{function.replace('-', '_')}.handler").handler
    return handler(event, context)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # how `make dev` restarts it
    function, setting = sys.argv[1:]
    sqs: SQSClient = boto3.client("sqs")
    print(f"polling for {function}", flush=True)
    while True:
        poll(sqs, os.environ[setting], partial(_invoke, function), POLL_SECONDS)


if __name__ == "__main__":
    main()
