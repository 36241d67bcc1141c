"""Banking days and cut-offs in Sydney."""

from __future__ import annotations

from datetime import UTC, date, datetime

import pytest

from receiver.providers.quickstream import SYDNEY
from workers.reconcile.calendar import banking_day_before, cut_off_before, days_due, is_banking_day, settles_on


@pytest.mark.parametrize(
    ("now", "card", "bank"),
    [
        ("2025-03-06 15:59:59", "2025-03-06", "2025-03-06"),
        ("2025-03-06 16:00", "2025-03-06", "2025-03-07"),
        ("2025-03-06 17:59:59", "2025-03-06", "2025-03-07"),
        ("2025-03-06 18:00", "2025-03-07", "2025-03-07"),
        ("2025-03-07 18:00", "2025-03-10", "2025-03-10"),
        ("2025-03-08 09:00", "2025-03-10", "2025-03-10"),
        # Good Friday to Easter Monday, and Anzac Day on the Friday after.
        ("2025-04-17 18:00", "2025-04-22", "2025-04-22"),
        ("2025-04-25 10:00", "2025-04-28", "2025-04-28"),
        # Labour Day of New South Wales, on which daylight saving is a day old.
        ("2025-10-03 18:00", "2025-10-07", "2025-10-07"),
        ("2026-12-24 18:00", "2026-12-29", "2026-12-29"),
    ],
)
def test_settles_on_the_banking_day_that_the_cut_off_allows(now: str, card: str, bank: str) -> None:
    moment = datetime.fromisoformat(now).replace(tzinfo=SYDNEY).astimezone(UTC)
    assert settles_on(moment, by_bank=False).isoformat() == card
    assert settles_on(moment, by_bank=True).isoformat() == bank


@pytest.mark.parametrize(
    ("utc", "card"),
    [
        # 18:00 in Sydney is 07:00 UTC in summer and 08:00 UTC in winter; the clocks change on Sundays between them.
        ("2025-04-04T06:59:59", "2025-04-04"),
        ("2025-04-04T07:00:00", "2025-04-07"),
        ("2025-04-07T07:59:59", "2025-04-07"),
        ("2025-04-07T08:00:00", "2025-04-08"),
        ("2025-10-03T07:59:59", "2025-10-03"),
        ("2025-10-03T08:00:00", "2025-10-07"),
        ("2025-10-07T06:59:59", "2025-10-07"),
        ("2025-10-07T07:00:00", "2025-10-08"),
    ],
)
def test_the_cut_off_follows_daylight_saving(utc: str, card: str) -> None:
    assert settles_on(datetime.fromisoformat(utc).replace(tzinfo=UTC), by_bank=False).isoformat() == card


def test_state_and_national_holidays_are_no_banking_days() -> None:
    assert not any(is_banking_day(date(2025, *day)) for day in [(1, 1), (1, 27), (6, 9), (10, 6), (12, 25), (12, 26)])
    # A holiday of Victoria alone.
    assert is_banking_day(date(2025, 11, 4))
    assert banking_day_before(date(2025, 4, 22)) == date(2025, 4, 17)
    assert cut_off_before(date(2025, 4, 22)) == datetime(2025, 4, 17, 6, tzinfo=UTC)


def test_a_file_is_due_on_banking_days_once_its_evening_is_over() -> None:
    def due(now: str) -> list[str]:
        moment = datetime.fromisoformat(now).replace(tzinfo=SYDNEY)
        return [day.isoformat() for day in days_due(date(2025, 4, 16), moment)]

    assert due("2025-04-16 23:59") == []
    assert due("2025-04-17 00:00") == ["2025-04-16"]
    assert due("2025-04-22 23:00") == ["2025-04-16", "2025-04-17"]
    assert due("2025-04-23 00:00") == ["2025-04-16", "2025-04-17", "2025-04-22"]
