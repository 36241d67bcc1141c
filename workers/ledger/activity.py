"""How many notifications an endpoint got in an hour, counted along indexes that end with the id, which is a time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import cache
from typing import Any

from sqlalchemy import Column, Connection, Select, bindparam, func, select

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
    if not starts:
        return {}
    n, r = notifications.c, repeats.c
    told, repeated = _question(n.id, len(starts)), _question(r.id, len(starts))
    for provider, facility, state in combinations(connection, (n.provider, n.facility, n.state)):
        kind = "failed" if state in ("failed", "quarantined") else "accepted"
        here = {"provider": provider, "facility": facility, "state": state}
        for start, number in _counted(connection, told, here, starts):
            found[start][provider, facility][kind] += number
    for provider, facility in combinations(connection, (r.provider, r.facility)):
        here = {"provider": provider, "facility": facility}
        for start, number in _counted(connection, repeated, here, starts):
            found[start][provider, facility]["duplicates"] += number
    return {start: dict(counts) for start, counts in found.items()}


def _counted(
    connection: Connection, question: Select[Any], here: dict[str, str], starts: Sequence[datetime]
) -> list[tuple[datetime, int]]:
    """The hours that have any."""
    spans = {f"from{number}": first_id(start) for number, start in enumerate(starts)}
    spans |= {f"until{number}": first_id(start + HOUR) for number, start in enumerate(starts)}
    row = connection.execute(question, here | spans).one()
    return [(start, number) for start, number in zip(starts, row, strict=True) if number]


@cache
def _question(key: Column[str], hours: int) -> Select[Any]:
    """How many of one endpoint and state came in each of so many hours. Put together once: that takes as long as to
    answer it."""
    columns = key.table.c
    where = [columns.provider == bindparam("provider"), columns.facility == bindparam("facility")]
    if key.table is notifications:
        where.append(columns.state == bindparam("state"))
    else:
        # Both kinds are named for the index, which has them before the id.
        where.append(columns.conflict.in_((False, True)))
    counts = [
        select(func.count())
        .select_from(key.table)
        .where(*where, key >= bindparam(f"from{number}"), key < bindparam(f"until{number}"))
        .scalar_subquery()
        .label(f"hour{number}")
        for number in range(hours)
    ]
    return select(*counts)
