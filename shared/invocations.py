"""A function as Lambda invokes it: HTTP goes to its app, a queue's messages to `work`, other events to `occurred`.

`worker` is what messages that fail are counted as in the metrics.
"""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Mapping
from functools import cached_property
from typing import Any, cast

from mangum import Mangum
from mangum.types import ASGI
from starlette.types import ASGIApp

from shared import queue, telemetry
from shared.errors import AnswerTooLarge
from shared.queue import Delivery
from shared.telemetry import logger

ANSWER_BYTES = 6 * 1024 * 1024  # of a whole invocation's answer, as Lambda returns it
ESCAPES = sys.version_info < (3, 12)  # Lambda's runtimes since write other letters than ASCII's as they are


class UnknownEvent(Exception):
    """An event that isn't one of the function's; Lambda takes it to the dead letters."""


class Handler:
    """The Lambda entry, on one event loop for as long as the process lives: what it keeps belongs to that loop."""

    def __init__(
        self,
        app: ASGIApp,
        work: Callable[[Delivery], Awaitable[None]] | None = None,
        occurred: Callable[[Mapping[str, Any], float], Awaitable[None]] | None = None,
        worker: str = "",
    ) -> None:
        self.app = app
        self.work = work
        self.occurred = occurred
        self.worker = worker

    @cached_property
    def loop(self) -> asyncio.AbstractEventLoop:
        """Opened by the first invocation: processes that were forked from one that has it would wake each other's."""
        return asyncio.new_event_loop()

    @cached_property
    def adapter(self) -> Mangum:
        """Of the first HTTP request, for Mangum opens a loop where it finds none."""
        return Mangum(cast(ASGI, self.app), lifespan="off")

    def __call__(self, event: dict[str, Any], context: Any) -> Any:
        """An invocation's answer. Raises `UnknownEvent`, and what `occurred` raises."""
        asyncio.set_event_loop(self.loop)
        try:
            if "requestContext" in event:
                return _returnable(self.adapter(event, context))
            seconds = context.get_remaining_time_in_millis() / 1000
            if self.work and queue.is_delivery(event):
                return self.loop.run_until_complete(queue.consume(event, self.work, self.worker, seconds))
            if self.occurred:
                return self.loop.run_until_complete(self.occurred(event, seconds - queue.MARGIN_SECONDS))
            raise unknown(event)
        finally:
            telemetry.flush()


def unknown(event: Mapping[str, Any]) -> UnknownEvent:
    """The error for an event or a message; its kind is logged, its content is not."""
    kind = event.get("source") or event.get("detail-type") or event.get("Event")
    records = event.get("Records")
    if isinstance(records, list) and records and isinstance(records[0], dict):
        kind = records[0].get("eventSource") or records[0].get("EventSource")
    logger.error("an event that nobody knows", extra={"kind": str(kind)[:100], "keys": sorted(map(str, event))[:20]})
    return UnknownEvent(f"There is nothing to do with an event of {kind or 'no source'}.")


def _returnable(answer: dict[str, Any]) -> dict[str, Any]:
    """The answer, or where Lambda couldn't return it an error that says so: API Gateway would make a 502 of it."""
    if len(answer["body"]) < ANSWER_BYTES // 6 or len(json.dumps(answer, ensure_ascii=ESCAPES).encode()) < ANSWER_BYTES:
        return answer
    error = AnswerTooLarge("The answer is larger than 6 MB: ask for less, with a lower limit.")
    request_id = answer["headers"]["x-request-id"]
    logger.error("an answer too large for Lambda", extra={"requestId": request_id})
    headers = {**answer["headers"], "content-type": "application/json"}
    headers.pop("content-length", None)
    body = json.dumps(error.body(request_id))
    return {**answer, "statusCode": error.status, "headers": headers, "body": body, "isBase64Encoded": False}
