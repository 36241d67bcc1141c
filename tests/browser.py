"""A real Chromium for the tests of pages: the machine's own, as its package has it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, sync_playwright

from tests.servers import absent

_NAMES = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def running_chromium() -> Iterator[Browser]:
    """A headless browser. One that cannot be had skips its tests on a laptop and fails them when `CI` is set."""
    path = next(filter(None, map(shutil.which, _NAMES)), None)
    if path is None:
        absent("Chromium", FileNotFoundError("no chromium on the PATH"))
    with sync_playwright() as playwright:
        # Without its sandbox, which root may not have; it sees pages of ours alone.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()
