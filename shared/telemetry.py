"""Logs as JSON, one line a request, and the time each step of it took; never a text, a token or a key."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aws_lambda_powertools import Logger

logger = Logger(service="supabase-ai-gateway", use_rfc3339=True)


@dataclass(slots=True)
class Trace:
    """What is known of one request so far: its id, its steps' milliseconds, facts worth a log field, and headers."""

    request_id: str
    timings: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time a step; steps that run side by side overlap."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.timings[name] = round((time.perf_counter() - started) * 1000, 1)
