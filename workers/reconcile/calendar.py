"""The bank's days in Sydney: banking days, cut-offs, and when a settlement file is due.

Public holidays are those of Australia and New South Wales, from the `holidays` package, which is kept up to date.
Cut-offs: https://quickstream.westpac.com.au/docs/quickconnect/, "Transaction Settlement".
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache

from receiver.providers.quickstream import SYDNEY

CARD_CUT_OFF = time(18)
DEBIT_CUT_OFF = time(16)
FILE_MADE_AT = time(20)
FILE_ARRIVES_WITHIN = timedelta(hours=4)
"""After 8 pm; a file that is not here by then is late."""

_DAY = timedelta(days=1)


def is_banking_day(day: date) -> bool:
    return day.weekday() < 5 and day not in _holidays(day.year)


@lru_cache(64)
def _holidays(year: int) -> frozenset[date]:
    import holidays

    return frozenset(holidays.country_holidays("AU", subdiv="NSW", years=year))


def banking_day_from(day: date) -> date:
    """`day`, or the first banking day after it."""
    while not is_banking_day(day):
        day += _DAY
    return day


def banking_day_before(day: date) -> date:
    day -= _DAY
    while not is_banking_day(day):
        day -= _DAY
    return day


def settles_on(created_at: datetime, *, by_bank: bool) -> date:
    """The banking day on which a payment settles: the next one when the cut-off has passed, 18:00 in Sydney for cards
    and 16:00 for bank accounts, in summer and winter alike."""
    local = created_at.astimezone(SYDNEY)
    late = local.time() >= (DEBIT_CUT_OFF if by_bank else CARD_CUT_OFF)
    return banking_day_from(local.date() + late * _DAY)


def last_settlement_day(now: datetime) -> date:
    """The last day on which anything can settle that was paid by `now`: a later one is in the future."""
    return settles_on(now, by_bank=True)


def cut_off_before(day: date) -> datetime:
    """From this moment on a payment may settle on the banking day `day`; aware UTC."""
    return datetime.combine(banking_day_before(day), DEBIT_CUT_OFF, SYDNEY).astimezone(UTC)


def end_of(day: date) -> datetime:
    """The end of `day` in Sydney, as aware UTC."""
    return datetime.combine(day + _DAY, time(), SYDNEY).astimezone(UTC)


def days_due(since: date, now: datetime) -> Iterator[date]:
    """Banking days from `since` on whose file must have arrived by `now`."""
    day = banking_day_from(since)
    while datetime.combine(day, FILE_MADE_AT, SYDNEY).astimezone(UTC) + FILE_ARRIVES_WITHIN <= now.astimezone(UTC):
        yield day
        day = banking_day_from(day + _DAY)
