"""The page that a customer sees, in a real browser: light and dark, wide and narrow, and nothing from elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import pytest
from playwright.sync_api import Browser, Page

from receiver.signing import return_digest
from tests.browser import running_chromium
from tests.live.installation import Installation, installed
from tests.support import secrets

PAID = [
    ("communityCode", "LIVE"),
    ("supplierBusinessCode", "ACME"),
    ("paymentAmount", "1001.15"),
    ("surchargeAmount", "1.15"),
    ("receiptNumber", "1003548481"),
    ("responseCode", "08"),
    ("paymentReference", "LONG-" + "REFERENCE" * 20),
]
FAILED = [("action", "Error"), ("supplierBusinessCode", "ACME"), ("paymentAmount", "1001.15")]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    with installed(tmp_path_factory.mktemp("returns")) as here:
        yield here


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_chromium() as browser:
        yield browser


def address(running: Installation, outcome: str) -> str:
    if outcome == "unconfirmed":
        return f"{running.url}/return/debitsuccess/gym?Status=Success&Token=QyqqjL0G&Message="
    if outcome == "refused":
        return f"{running.url}/return/quickstream/acme?{urlencode(PAID)}"
    if outcome == "confirm":
        pairs = [*FAILED, ("errorField", "acceptSurcharge"), ("errorField", "ignoreDuplicate")]
        return f"{running.url}/return/quickstream/acme?{urlencode(pairs)}"
    pairs = [*PAID, ("summaryCode", {"approved": "0", "declined": "1", "pending": "2"}[outcome])]
    pairs.append(("hmac", return_digest(pairs, *secrets("return-new-password"))))
    return f"{running.url}/return/quickstream/acme?{urlencode(pairs)}"


def luminance(colour: str) -> float:
    """WCAG 2's relative luminance of ``rgb(...)``."""
    channels = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(page: Page, selector: str) -> float:
    colours: Any = page.evaluate(
        "s => [getComputedStyle(document.querySelector(s)).color,"
        " getComputedStyle(document.querySelector('main')).backgroundColor]",
        selector,
    )
    lighter, darker = sorted(map(luminance, colours), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("width", [320, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("outcome", ["approved", "declined", "pending", "confirm", "unconfirmed", "refused"])
def test_the_page_can_be_read(running: Installation, browser: Browser, outcome: str, scheme: Any, width: int) -> None:
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 700})
    page = context.new_page()
    requested: list[str] = []
    said: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    url = address(running, outcome)
    page.goto(url)
    assert [each for each in requested if each != url] == []
    # Chromium itself remarks on the status of a refusal, and on nothing else.
    assert [text for text in said if "403" not in text] == []
    assert page.locator("html").get_attribute("lang") == "en"
    assert page.get_by_role("main").count() == page.get_by_role("heading", level=1).count() == 1
    assert page.title() == page.get_by_role("heading", level=1).inner_text()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "it scrolls sideways"
    for selector in ("h1", "p", ".note", "dt", "dd"):
        if page.locator(selector).count():
            assert contrast(page, selector) >= 4.5, (selector, scheme)
    dark: Any = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (luminance(dark) < 0.2) == (scheme == "dark"), "the style was not applied"
    context.close()
