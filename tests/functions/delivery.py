"""An event given to a function in a process of its own, as Lambda gives it one.

python -m tests.functions.delivery deploy-model EVENT SECONDS    # the settings in the environment
"""

import json
import sys
import time
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from infra.local.forked import Forked
from infra.local.parts import ROOT
from infra.local.queue_worker import Context
from infra.local.stack import Stack


def deliver(
    stack: Stack, function: str, event: Mapping[str, Any], settings: Mapping[str, str], seconds: float = 60
) -> None:
    """Invoke the function with an event for so long; what it raises or names as failed fails this."""
    command = [sys.executable, "-m", "tests.functions.delivery", function, json.dumps(event), str(seconds)]
    log = stack.logs / f"{function}-delivered.log"
    assert Forked(command, {**stack.environment, **settings}, log, ROOT).wait(90) == 0, log.read_text()


def queued(body: str) -> dict[str, Any]:
    """The event of a queue's message."""
    return {"Records": [{"eventSource": "aws:sqs", "messageId": "1", "body": body}]}


if __name__ == "__main__":
    function, event, seconds = sys.argv[1:]
    handler = import_module(f"functions.{function.replace('-', '_')}.handler").handler
    told = handler(json.loads(event), Context(function, deadline=time.monotonic() + float(seconds)))
    assert told in (None, {"batchItemFailures": []}), told
