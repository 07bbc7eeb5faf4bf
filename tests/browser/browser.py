"""Debian's Chromium without a screen, and the page in it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
# A figure of the page is renewed every two seconds, and machines are shared.
PATIENCE_MS = 60_000


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser that is installed already; none is downloaded. Fails, saying what to install, where there is none."""
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        pytest.fail("The tests of the page need Chromium: on Debian, apt-get install chromium.", pytrace=False)
    # Its sandbox refuses to run for root, as whom containers do.
    sandboxed = os.geteuid() != 0
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, chromium_sandbox=sandboxed)
        try:
            yield browser
        finally:
            browser.close()


class Visit:
    """A page that was opened, with what went wrong in it and what it asked for."""

    def __init__(self, browser: Browser, url: str, **options: Any) -> None:
        self.url = url
        self.errors: list[str] = []
        self.requested: list[str] = []
        self.context = browser.new_context(**options)
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE_MS)
        self.page.on("console", lambda said: self.errors.append(said.text) if said.type != "log" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.requested.append(request.url))
        self.page.goto(url)

    def compare(self, texts: list[str], key: str) -> None:
        """Type texts and a key as a person does, and send them by the keyboard."""
        self.page.get_by_label("Texts, one a line").fill("\n".join(texts))
        self.page.get_by_label("API key").fill(key)
        self.page.get_by_label("API key").press("Enter")

    def says(self, sentence: str) -> None:
        """Wait until a sentence can be read."""
        self.page.get_by_text(sentence).wait_for(state="visible")

    def figure(self, card: str) -> str:
        """The large figure of a live card."""
        return self.page.locator(f"#card-{card} .figure b").inner_text()

    def close(self) -> None:
        """Close it, and forget what it kept."""
        self.context.close()
