"""Invokes ai-finance's Lambda handler with each event file named, in one warm process; prints the results as JSON.

python -m tests.functions.invoke EVENT.json … (the access token in TOKEN, the settings in the environment)
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from functions.ai_finance.handler import handler


class Context:
    """What Lambda hands to a handler."""

    aws_request_id = "5f0b8a1e-1111-2222-3333-444455556666"
    function_name = "ai-finance"

    def __init__(self) -> None:
        self.ends = time.monotonic() + 30

    def get_remaining_time_in_millis(self) -> int:
        return int((self.ends - time.monotonic()) * 1000)


results: list[Any] = []
for file in sys.argv[1:]:
    event = json.loads(Path(file).read_text())
    if "headers" in event:
        event["headers"]["authorization"] = f"Bearer {os.environ['TOKEN']}"
    results.append(handler(event, Context()))
print(json.dumps(results))
