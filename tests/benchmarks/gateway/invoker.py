"""One Lambda sandbox of ai-finance: its handler, called with one event at a time.

Reads a line of JSON, `{"events": […], "warm": 20}`; says `ready` once the warm ones are answered; after another line
answers the others, and prints `[[milliseconds, the answer's timings], …]`.
"""

import json
import os
import sys
import time
from typing import Any

told = os.fdopen(os.dup(1), "w")
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # where the handler logs

from functions.ai_finance.handler import handler  # noqa: E402


class Context:
    """What Lambda hands to a handler."""

    aws_request_id = "5f0b8a1e-1111-2222-3333-444455556666"
    function_name = "ai-finance"

    def get_remaining_time_in_millis(self) -> int:
        return 30_000


def main() -> None:
    """The protocol above."""
    asked = json.loads(sys.stdin.readline())
    events, warm = asked["events"], asked["warm"]
    for event in events[:warm]:
        _timed(event)
    print("ready", file=told, flush=True)
    sys.stdin.readline()
    print(json.dumps([_timed(event) for event in events[warm:]]), file=told, flush=True)


def _timed(event: dict[str, Any]) -> tuple[float, dict[str, float]]:
    started = time.perf_counter()
    result = handler(event, Context())
    whole_ms = (time.perf_counter() - started) * 1000
    body = json.loads(result["body"])
    if result["statusCode"] != 200:
        raise RuntimeError(f"the handler answered {result['statusCode']}: {body}")
    return whole_ms, body["timings"]


if __name__ == "__main__":
    main()
