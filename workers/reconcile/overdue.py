"""Which settlement files should be here by now and are not."""

from __future__ import annotations

from datetime import date, datetime, timedelta

from sqlalchemy import Connection

from receiver.providers.base import Endpoint
from receiver.providers.quickstream import SYDNEY
from workers.ledger.reconciliations import empty_files, first_reconciled, reconciled_days
from workers.reconcile.calendar import days_due

LOOK_BACK = timedelta(days=14)
"""An older file that never came is known by then, or nobody wants it."""


def days_without_file(connection: Connection, endpoint: Endpoint, now: datetime) -> list[date]:
    """Banking days of the last two weeks that no reconciled file covers, from the first file of the endpoint on. The
    file of a day is due four hours after 8 pm in Sydney. A file without rows counts for the day on which it was read.
    """
    first = first_reconciled(connection, endpoint.provider, endpoint.facility)
    if first is None:
        return []
    since = max(first, (now - LOOK_BACK).astimezone(SYDNEY).date())
    covered = reconciled_days(connection, endpoint.provider, endpoint.facility, since)
    for began_at in empty_files(connection, endpoint.provider, endpoint.facility, now - LOOK_BACK):
        # Whoever reads it in the night after 8 pm reads the file of the day before.
        covered.add((began_at.astimezone(SYDNEY) - timedelta(hours=6)).date())
    return [day for day in days_due(since, now) if day not in covered]
