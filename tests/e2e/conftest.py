"""Fixtures for tests in a browser."""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.e2e.small_server import Served
from tests.missing import is_missing

PATIENCE_MS = 60_000
# A page's own patience leaves out what is expected of it.
expect.set_options(timeout=PATIENCE_MS)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, write_checkpoint_in: Callable[[Path], Path]) -> Iterator[Served]:
    started = Served(write_checkpoint_in(tmp_path_factory.mktemp("playground") / "checkpoint"))
    yield started
    started.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        is_missing("there is no chromium to test the page at / with; install Debian's package `chromium`")
    with sync_playwright() as playwright:
        # Chromium's own walls need rights that root in a container does not have.
        started = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"] if os.geteuid() == 0 else [])
        yield started
        started.close()


@contextmanager
def pages_of(browser: Browser, url: str, refusals: str) -> Iterator[Callable[..., Page]]:
    """Make pages; whatever a browser complains about fails the test, but what the server refused on purpose."""
    complaints: list[str] = []
    contexts = []

    def make_page(**options: Any) -> Page:
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.on("console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "request",
            lambda request: complaints.append(request.url) if not request.url.startswith((url, "data:", "blob:")) else None,
        )
        return page

    try:
        yield make_page
        for page in [page for context in contexts for page in context.pages]:
            # A handler that still fetches when its context closes would fail the next test.
            page.unroute_all(behavior="wait")
    finally:
        for context in contexts:
            context.close()
    assert [one for one in complaints if not re.search(rf"responded with a status of ({refusals})", one)] == []


@pytest.fixture
def open_page(browser: Browser, served: Served) -> Iterator[Callable[..., Page]]:
    """Open the page, and wait until it has found the version."""
    with pages_of(browser, served.url, "422|429|503|504") as make_page:

        def open_it(**options: Any) -> Page:
            page = make_page(**options)
            page.goto(served.url)
            expect(page.locator("#served")).to_have_text("version 3 · float32", timeout=PATIENCE_MS)
            return page

        served.answerer.refusals = 0
        yield open_it


@pytest.fixture
def page(open_page: Callable[..., Page]) -> Page:
    return open_page()
