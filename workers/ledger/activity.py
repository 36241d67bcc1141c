"""How many notifications each endpoint got in each hour, counted along the primary keys, which are times."""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime, timedelta

from sqlalchemy import Connection, func, select

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
    by_state = select(c.provider, c.facility, c.state, func.count()).where(c.id >= first, c.id < after)
    for provider, facility, state, number in connection.execute(by_state.group_by(c.provider, c.facility, c.state)):
        kind = "failed" if state in ("failed", "quarantined") else "accepted"
        counts[provider, facility][kind] += number
    r = repeats.c
    again = select(r.provider, r.facility, func.count()).where(r.id >= first, r.id < after)
    for provider, facility, number in connection.execute(again.group_by(r.provider, r.facility)):
        counts[provider, facility]["duplicates"] += number
    return dict(counts)
