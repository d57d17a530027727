"""Tabs of one headless Chromium, and what every view must be: for everybody, light and dark, wide and narrow."""

import itertools
import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.local import parts
from tests.browser import chromium

SCRIPT = Path(__file__).with_name("pages.mjs")
SCREENSHOTS = parts.ROOT / ".local/screenshots"
SIZES = {"desktop": {"width": 1280, "height": 800}, "phone": {"width": 390, "height": 844}}
THEMES = ("light", "dark")
# What stands out at the right of a narrow screen, but for what scrolls sideways by itself.
SIDEWAYS = """
    [...document.querySelectorAll('main *')].filter((element) => element.checkVisibility()
      && element.getBoundingClientRect().right > innerWidth + 1
      && !element.closest('.table, pre, .plot, .hidden')).map((element) => element.outerHTML.slice(0, 120))
"""
NETWORK = re.compile("^Failed to load resource|^WebSocket connection to")  # what Chromium says when a server refuses


class Browser:
    """The running browser; contexts are as strange to each other as two people's machines."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.numbers = itertools.count()

    def do(self, command: str, **options: Any) -> Any:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps({"command": command, **options}) + "\n")
        self.process.stdin.flush()
        told = json.loads(self.process.stdout.readline())
        assert "error" not in told, f"{command} {options}: {told['error']}"
        return told["result"]

    @contextmanager
    def tab(self, url: str, size: str = "desktop", **options: Any) -> Iterator["Tab"]:
        """A tab at `url` in a context of its own; leaving checks that it has said no error."""
        context = f"context-{next(self.numbers)}"
        opened = Tab(self, context, f"tab-{next(self.numbers)}", url)
        try:
            opened.open({"viewport": SIZES[size], "colorScheme": "light", "reducedMotion": "reduce"} | options)
            yield opened
            for each in [opened, *opened.others]:
                each.check()
        finally:
            self.do("close", context=context)


@dataclass(slots=True)
class Tab:
    """A page, found in by Playwright's selectors; whatever isn't there yet is waited for."""

    browser: Browser
    context: str
    name: str
    url: str
    expects_refusals: bool = False
    others: list["Tab"] = field(default_factory=list)

    def open(self, options: dict[str, Any]) -> None:
        self.browser.do("open", context=self.context, page=self.name, options=options)
        self.go("")

    def another(self, path: str = "") -> "Tab":
        """One more tab of the same person."""
        other = Tab(self.browser, self.context, f"tab-{next(self.browser.numbers)}", self.url)
        other.browser.do("open", context=self.context, page=other.name)
        other.go(path)
        self.others.append(other)
        return other

    def call(self, method: str, *args: Any, locator: str | None = None) -> Any:
        told = {} if locator is None else {"locator": locator}
        return self.browser.do("call", page=self.name, method=method, args=args, **told)

    def go(self, path: str) -> None:
        self.call("goto", f"{self.url}/{path}")

    def click(self, selector: str) -> None:
        self.call("click", selector)

    def fill(self, selector: str, text: str) -> None:
        self.call("fill", selector, text)

    def press(self, key: str) -> None:
        self.browser.do("press", page=self.name, key=key)

    def sees(self, selector: str) -> str:
        """The text of what is there, once it is to be seen."""
        self.call("waitFor", locator=f"{selector} >> nth=0")
        text: str = self.call("innerText", locator=f"{selector} >> nth=0")
        return text

    def count(self, selector: str) -> int:
        found: int = self.call("count", locator=selector)
        return found

    def until(self, expression: str) -> None:
        """Wait until the expression is true in the page."""
        self.browser.do("until", page=self.name, expression=expression)

    def evaluate(self, expression: str) -> Any:
        return self.call("evaluate", expression)

    def offline(self, is_: bool) -> None:
        self.browser.do("offline", context=self.context, **{"is": is_})

    def check(self) -> None:
        """The page has said no error, and its policy has stopped nothing."""
        told = self.browser.do("told", page=self.name)
        assert [text for text in told if not (self.expects_refusals and NETWORK.search(text))] == []

    def look(self, view: str, size: str) -> None:
        """Screenshots in both themes, no serious finding of axe (colours are a phone's too), 360 pixels are enough."""
        for theme in THEMES:
            self.call("emulateMedia", {"colorScheme": theme})
            self.until(f"document.documentElement.dataset.theme === '{theme}'")
            path = SCREENSHOTS / f"{view}-{size}-{theme}.png"
            self.browser.do("screenshot", page=self.name, path=str(path))
            if size == "desktop" or theme == THEMES[0]:
                assert self.browser.do("axe", page=self.name) == [], f"{view}, {size}, {theme}"
        if size == "phone":
            self.call("setViewportSize", SIZES[size] | {"width": 360})
            assert self.evaluate("document.documentElement.scrollWidth") == 360, view
            assert self.evaluate(SIDEWAYS) == [], view
            self.call("setViewportSize", SIZES[size])


@contextmanager
def browser() -> Iterator[Browser]:
    command = [parts.node(), str(SCRIPT), chromium.executable()]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Browser(process)
        finally:
            assert process.stdin
            process.stdin.close()
            process.wait(10)
