"""What a file should have and has not: cut-offs and banking days decide what it should have."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date, timedelta
from typing import Any

from sqlalchemy import Connection

from receiver.money import text_from_minor
from receiver.notification import PaymentState
from receiver.providers.quickstream import QuickStreamEndpoint
from workers.ledger.reconciliations import merchants, paid_between, settled_on_another_day
from workers.reconcile.calendar import cut_off_before, settles_on
from workers.reconcile.compare import PAID, Kind
from workers.reconcile.findings import Finding
from workers.reconcile.seen import Seen
from workers.reconcile.survey import Survey

_MOVES_AT_MOST = timedelta(days=14)
"""By how much a settlement date may differ between a notification and the file."""


def paid_payments(
    connection: Connection, endpoint: QuickStreamEndpoint, first: date, last: date
) -> Iterator[Sequence[Any]]:
    """Paid payments of which at least one date says that they settle from `first` to `last`; in pages."""
    since = cut_off_before(first)
    return paid_between(connection, endpoint.provider, endpoint.facility, PAID, first, last, since)


def missing_in_file(
    connection: Connection, endpoint: QuickStreamEndpoint, covers: Survey, seen: Seen
) -> Iterator[Finding]:
    first, last = covers.first_day, covers.last_day
    if first is None or last is None:
        return
    for page in paid_payments(connection, endpoint, first, last):
        expected = [row for row in page if first <= expected_on(row) <= last and _in_these_files(row, endpoint, covers)]
        absent = seen.absent([row.receipt_number for row in expected]) if expected else set()
        missing = [row for row in expected if row.receipt_number in absent]
        ids = [row.payment_id for row in missing]
        of = merchants(connection, endpoint, ids) if endpoint.settlement_split else {}
        elsewhere = settled_on_another_day(connection, endpoint, ids, first - _MOVES_AT_MOST)
        for row in missing:
            if row.payment_id not in elsewhere and of.get(row.payment_id) in (None, *covers.businesses):
                amount = "" if row.amount is None else f" {text_from_minor(row.amount, row.exponent)}"
                detail = f"{row.card_scheme or 'Bank account'}{amount}, expected on {expected_on(row)}."
                yield Finding(
                    Kind.MISSING_IN_FILE, None, row.receipt_number, row.payment_id, here=row.state, detail=detail
                )


def expected_on(row: Any) -> date:
    """The day in whose file a payment stands: the settlement date that its notification gave, but not before the day
    that its cut-off allows."""
    settlement_date: date | None = row.settlement_date
    # After a refund the ledger's time is that of the refund.
    if settlement_date is not None and row.state != PaymentState.CAPTURED:
        return settlement_date
    day = settles_on(row.occurred_at, by_bank=row.card_scheme is None)
    return day if settlement_date is None else max(day, settlement_date)


def _in_these_files(row: Any, endpoint: QuickStreamEndpoint, covers: Survey) -> bool:
    """Where the bank writes several files a day, only what this one has any row of is looked for in it."""
    if not endpoint.settlement_split:
        return True
    return covers.by_bank if row.card_scheme is None else covers.by_card
