"""A browser's tab with supabase-ai.js in it, as far as Node can be one."""

import json
import queue
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from infra.local import parts
from infra.local.stack import Stack
from tests.users import User

SCRIPT = Path(__file__).with_name("client.mjs")
WAIT_SECONDS = 30


class Tab:
    """The running script: what it is told to do, and what it hears."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.lines: queue.Queue[dict[str, Any]] = queue.Queue()
        self.heard: list[dict[str, Any]] = []
        self.reading = threading.Thread(target=self._read, daemon=True)
        self.reading.start()

    def do(self, command: str, **options: Any) -> None:
        assert self.process.stdin
        self.process.stdin.write(json.dumps({"command": command, **options}) + "\n")
        self.process.stdin.flush()

    def hears(self, kind: str, **wanted: Any) -> dict[str, Any]:
        """The next of this kind with these values; a failure that nobody waits for is the test's."""
        limit = time.monotonic() + WAIT_SECONDS
        while True:
            try:
                line = self.lines.get(timeout=max(0, limit - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"{kind} {wanted} was not heard, but {self.heard}") from None
            self.heard.append(line)
            if line["heard"] == kind and line.items() >= wanted.items():
                return line
            assert line["heard"] not in ("failure", "ended"), line

    def asks(self, message: str, **options: Any) -> dict[str, Any]:
        """The answer to a question."""
        self.do("ask", message=message, **options)
        answer: dict[str, Any] = self.hears("answer")["answer"]
        return answer

    def calls(self, name: str, *args: Any) -> Any:
        """What one of the module's functions gives."""
        self.do("call", name=name, args=args)
        return self.hears("told")["told"]

    def kinds(self) -> list[str]:
        return [line["heard"] for line in self.heard]

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.lines.put(json.loads(line))
        self.lines.put({"heard": "ended"})


@contextmanager
def tab(
    stack: Stack, user: User | None, origin: str | None = None, url: str | None = None, **more: Any
) -> Iterator[Tab]:
    """A tab where the user is signed in; its functions are at `origin`, all else of Supabase at `url`.

    `polls=False` looks for an answer once only, `isOld` has an old supabase-js, `token` is what its app mints.
    """
    told = {"url": url or stack.url, "key": stack.keys.publishable, **more}
    told |= {"functionsUrl": f"{origin}/functions/v1"} if origin else {}
    told |= {"email": user.email, "password": user.password} if user else {}
    command = [parts.node(), "--experimental-websocket", "--no-warnings", str(SCRIPT), json.dumps(told)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            opened = Tab(process)
            opened.hears("ready")
            yield opened
        finally:
            process.kill()
