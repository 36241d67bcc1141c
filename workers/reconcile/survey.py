"""The first pass over a file: what it covers, and whether it can be taken at all. Nothing is written before its end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta

from receiver.providers.quickstream import QuickStreamEndpoint
from receiver.providers.quickstream_settlement import Row
from workers.reconcile.calendar import last_settlement_day
from workers.reconcile.reader import Reader, Unreadable

REPORT_EVERY = 5000
_CLOCKS = timedelta(hours=1)
"""By how much the bank's clock may be ahead of ours."""
_DATES_DIFFER = timedelta(days=14)


@dataclass(slots=True)
class Survey:
    """What a file covers. Returned direct debits name the day of their payment or of their return, and cover none."""

    rows: int = 0
    first_day: date | None = None
    last_day: date | None = None
    by_card: bool = False
    by_bank: bool = False
    businesses: set[str] = field(default_factory=set)
    """Supplier business codes of the endpoint that occur; "" of rows that name none."""
    digest: str = ""

    @property
    def has_business(self) -> bool:
        """Whether any row says whose it is."""
        return bool(self.businesses - {""})

    @property
    def covered(self) -> str:
        """In words."""
        if self.first_day is None:
            return "no day"
        return str(self.first_day) if self.first_day == self.last_day else f"{self.first_day} to {self.last_day}"


def _long_before_it_was_made(row: Row) -> bool:
    """One wrong year must not make the file cover all days since then, and every payment of them missing in it."""
    return row.created_at is not None and row.settles_on < row.created_at.date() - _DATES_DIFFER


def survey(
    reader: Reader, endpoint: QuickStreamEndpoint, now: datetime, read: Callable[[int], None] = lambda position: None
) -> Survey:
    """Raises `Unreadable` for a file that is none, is of another business or from the future."""
    found = Survey()
    foreign = 0
    latest, settles_by = now + _CLOCKS, last_settlement_day(now)
    for line in reader:
        found.rows += 1
        if found.rows % REPORT_EVERY == 0:
            read(reader.position)
        row = line.row
        if row is None:
            continue
        if row.settles_on > settles_by or (row.created_at is not None and row.created_at > latest):
            raise Unreadable(f"This file is from the future: see line {line.number}.")
        if row.business and row.business not in endpoint.supplier_business_codes:
            foreign += 1
            continue
        found.businesses.add(row.business)
        if row.is_return or _long_before_it_was_made(row):
            continue
        found.by_bank |= row.by_bank
        found.by_card |= not row.by_bank
        found.first_day = min(found.first_day or row.settles_on, row.settles_on)
        found.last_day = max(found.last_day or row.settles_on, row.settles_on)
    if foreign and not found.businesses:
        raise Unreadable(
            f"This file is of another facility: no row has a supplier business code of {endpoint.path} "
            f"({', '.join(endpoint.supplier_business_codes)})."
        )
    found.digest = reader.digest
    read(reader.position)
    return found
