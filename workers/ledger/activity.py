"""How many notifications an endpoint got in an hour, counted along indexes that end with the id, which is a time."""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime, timedelta

from sqlalchemy import Connection, func, select

from workers.ledger.loose import combinations
from workers.ledger.pages import first_id
from workers.ledger.tables import notifications, repeats

Endpoint = tuple[str, str]
Counts = dict[Endpoint, dict[str, int]]
"""By endpoint: ``accepted``, ``failed`` (of which nothing came) and ``duplicates`` (conflicts included)."""

HOUR = timedelta(hours=1)


def of_hour(connection: Connection, begins: datetime) -> Counts:
    """What came in the hour from `begins`."""
    counts: Counts = defaultdict(lambda: {"accepted": 0, "failed": 0, "duplicates": 0})
    first, after = first_id(begins), first_id(begins + HOUR)
    c = notifications.c
    for provider, facility, state in combinations(connection, (c.provider, c.facility, c.state)):
        here = (c.provider == provider, c.facility == facility, c.state == state, c.id >= first, c.id < after)
        if number := connection.scalar(select(func.count()).select_from(notifications).where(*here)):
            kind = "failed" if state in ("failed", "quarantined") else "accepted"
            counts[provider, facility][kind] += number
    r = repeats.c
    for provider, facility in combinations(connection, (r.provider, r.facility)):
        # Both kinds are named for the index, which has them before the id.
        kinds = r.conflict.in_((False, True))
        here = (r.provider == provider, r.facility == facility, kinds, r.id >= first, r.id < after)
        if number := connection.scalar(select(func.count()).select_from(repeats).where(*here)):
            counts[provider, facility]["duplicates"] += number
    return dict(counts)
