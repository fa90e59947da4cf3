"""The page as a browser shows it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.server.page.script import Script


@dataclass
class Shown:
    """The page in a browser. ``faults`` are errors of its scripts and what its policy refused."""

    page: Any
    url: str
    script: Script
    faults: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)  # addresses of requests

    def find(self, selector: str) -> Any:
        return self.page.locator(selector)

    def open(self, path: str = "/") -> None:
        self.page.goto(f"{self.url}{path}")
        self.page.wait_for_selector("#model:not(:empty)")

    def write(self, text: str) -> None:
        """Type a message and send it."""
        self.page.fill("#text", text)
        self.page.press("#text", "Enter")

    def ask(self, text: str, *answer: str) -> dict[str, Any]:
        """Send a message that is answered at once; returns the request."""
        self.write(text)
        request = self.script.request()
        self.script.answer(*(answer or (f"Answer to {text}",)))
        self.wait_for_end()
        return request

    def wait_for_end(self) -> None:
        self.page.wait_for_selector("#send:not([hidden])")

    def until(self, is_so: Callable[[], bool]) -> None:
        """Wait until something is so."""
        end = time.monotonic() + 600
        while not is_so():
            assert time.monotonic() < end
            self.page.wait_for_timeout(20)

    def messages(self) -> list[str]:
        """The texts of what is shown."""
        bodies = self.page.locator(".message .body")
        return [text.strip() for text in bodies.all_inner_texts()]

    def focused(self) -> str:
        found: str = self.page.evaluate("document.activeElement.id")
        return found


def show(browser: Any, url: str, script: Script, **context: Any) -> Iterator[Shown]:
    """The page in a browser that has never seen it."""
    script.forget()
    tab = browser.new_context(**{"viewport": {"width": 1100, "height": 800}, **context})
    tab.set_default_timeout(600_000)
    page = tab.new_page()
    shown = Shown(page, url, script)
    page.on("pageerror", lambda error: shown.faults.append(str(error)))
    page.on("request", lambda request: shown.asked.append(request.url))

    def refuse(dialog: Any) -> None:
        shown.faults.append(dialog.message)
        dialog.dismiss()

    def log(message: Any) -> None:
        # That a request is answered with an error is not one of the page.
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            shown.faults.append(message.text)

    page.on("dialog", refuse)
    page.on("console", log)
    try:
        yield shown
        own = ("data:", "blob:", url)
        assert [one for one in shown.asked if not one.startswith(own)] == []
        assert shown.faults == []
    finally:
        tab.close()
