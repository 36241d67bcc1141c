"""The hours of the overview are counted beside the requests."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from datetime import datetime
from typing import Any

import pytest

from receiver.errors import LedgerAway
from receiver.notification import new_id, now_us
from tests.console.conftest import Browser
from tests.workers.material import event, processed
from workers.console import activity as module
from workers.console.activity import HOURS, Activity
from workers.ledger import activity as counting
from workers.ledger.ledger import Ledger

EARLIER = 5 * 3_600_000_000


def record(browser: Browser, *keys: str) -> None:
    Ledger(browser.site.engine).record(
        [processed(key, event(payment_id=key), id=new_id(now_us() - EARLIER)) for key in keys]
    )


def accepted(browser: Browser) -> int:
    return sum(hour.accepted for hour in browser.site.activity.charts()["checkout", "main"])


def test_a_look_counts_only_what_is_not_known(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    record(browser, "a", "b")
    browser.site.activity.refresh()
    asked: list[int] = []
    of_hours = counting.of_hours

    def counted(connection: Any, starts: list[datetime]) -> Any:
        asked.append(len(starts))
        return of_hours(connection, starts)

    monkeypatch.setattr(counting, "of_hours", counted)
    assert (accepted(browser), asked) == (2, [2])
    # An earlier hour is as it was counted, until it is counted again.
    record(browser, "c")
    assert accepted(browser) == 2
    browser.site.activity.refresh()
    assert accepted(browser) == 3
    monkeypatch.setattr(module, "_COUNTED_AGAIN", -1.0)
    assert (accepted(browser), asked[-1]) == (3, HOURS)


def test_it_goes_on_whatever_happens(
    browser: Browser, monkeypatch: pytest.MonkeyPatch, logged: list[MutableMapping[str, Any]]
) -> None:
    tried: list[int] = []

    def refresh(self: Activity) -> None:
        tried.append(1)
        if len(tried) < 3:
            raise LedgerAway("gone") if len(tried) == 1 else ValueError("a fault")

    monkeypatch.setattr(Activity, "refresh", refresh)
    monkeypatch.setattr(module, "_REFRESHED", 0.0)
    monkeypatch.setattr(module, "_TRIED_AGAIN", 0.0)

    async def keep() -> None:
        task = asyncio.create_task(browser.site.activity.keep())
        while len(tried) < 4:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(asyncio.wait_for(keep(), 30))
    assert [each["event"] for each in logged if each["event"] == "activity_not_counted"] == ["activity_not_counted"]
