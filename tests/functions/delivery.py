"""An event given to a function in a process of its own, as Lambda gives it one.

python -m tests.functions.delivery deploy-model EVENT SECONDS    # the settings in the environment
"""

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from infra.local.queue_worker import Context
from infra.local.stack import Stack
from tests import commands


def invoke(
    stack: Stack, function: str, event: Mapping[str, Any], settings: Mapping[str, str], seconds: float = 40
) -> "subprocess.CompletedProcess[str]":
    """What a function that has so long for an event prints; it ends badly where anything of the event fails."""
    environment = {**stack.environment, **settings}
    command = "tests.functions.delivery", function, json.dumps(event), seconds
    return commands.run(environment, *command, seconds=seconds + 5)


def deliver(
    stack: Stack, function: str, event: Mapping[str, Any], settings: Mapping[str, str], seconds: float = 40
) -> None:
    """The same, and what it raises or names as failed fails this."""
    done = invoke(stack, function, event, settings, seconds)
    assert done.returncode == 0, done.stdout + done.stderr


def queued(body: str) -> dict[str, Any]:
    """The event of a queue's message."""
    return {"Records": [{"eventSource": "aws:sqs", "messageId": "1", "body": body}]}


if __name__ == "__main__":
    function, event, seconds = sys.argv[1:]
    handler = import_module(f"functions.{function.replace('-', '_')}.handler").handler
    told = handler(json.loads(event), Context(function, deadline=time.monotonic() + float(seconds)))
    assert told in (None, {"batchItemFailures": []}), told
