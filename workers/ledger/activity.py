"""How many notifications an endpoint got in an hour, counted along indexes that end with the id, which is a time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import Column, ColumnElement, Connection, func, select

from workers.ledger.loose import combinations
from workers.ledger.pages import first_id
from workers.ledger.tables import notifications, repeats

Endpoint = tuple[str, str]
Counts = dict[Endpoint, dict[str, int]]
"""By endpoint: ``accepted``, ``failed`` (of which nothing came) and ``duplicates`` (conflicts included)."""

KINDS = ("accepted", "failed", "duplicates")
HOUR = timedelta(hours=1)


def of_hours(connection: Connection, starts: Sequence[datetime]) -> dict[datetime, Counts]:
    """What came in each hour that begins at one of `starts`: one question for each endpoint and state."""
    found: dict[datetime, Counts] = {start: defaultdict(lambda: dict.fromkeys(KINDS, 0)) for start in starts}
    n, r = notifications.c, repeats.c
    for provider, facility, state in combinations(connection, (n.provider, n.facility, n.state)):
        kind = "failed" if state in ("failed", "quarantined") else "accepted"
        here = (n.provider == provider, n.facility == facility, n.state == state)
        for start, number in _counted(connection, n.id, here, starts):
            found[start][provider, facility][kind] += number
    for provider, facility in combinations(connection, (r.provider, r.facility)):
        # Both kinds are named for the index, which has them before the id.
        here = (r.provider == provider, r.facility == facility, r.conflict.in_((False, True)))
        for start, number in _counted(connection, r.id, here, starts):
            found[start][provider, facility]["duplicates"] += number
    return {start: dict(counts) for start, counts in found.items()}


def _counted(
    connection: Connection, key: Column[str], here: Sequence[ColumnElement[bool]], starts: Sequence[datetime]
) -> list[tuple[datetime, int]]:
    """The hours that have any."""
    if not starts:
        return []
    hours = [
        select(func.count())
        .select_from(key.table)
        .where(*here, key >= first_id(start), key < first_id(start + HOUR))
        .scalar_subquery()
        .label(f"hour{number}")
        for number, start in enumerate(starts)
    ]
    row = connection.execute(select(*hours)).one()
    return [(start, number) for start, number in zip(starts, row, strict=True) if number]
