"""How long a pause is usual for an endpoint at this hour of this weekday, learned from what is in the ledger.

At the same local time of each like day of the last weeks, and up to half an hour around it, it is asked how long
nothing had come by then. Of each day the longest pause counts, and of the days all but the one with the longest: an
outage of last month is not usual. An alarm comes after `FACTOR` times that.

So a sender that is busy by day and asleep by night is missed soon by day and late by night; one that sends a file at
two in the morning is missed soon after two. Like days are the same weekday; a public holiday is like Sundays and other
holidays, and no measure for its weekday.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy import Connection, select

from receiver.notification import utc
from receiver.providers.base import Endpoint
from receiver.providers.quickstream_settlement import EVENT_TYPE as SETTLEMENT_FILE
from workers.alarms.kinds import AlarmKind, Problem
from workers.ledger.pages import first_id
from workers.ledger.tables import notifications, repeats

WEEKS = 8
LEAST_DAYS = 3
"""Like days without which nothing is usual yet."""
AROUND = tuple(timedelta(minutes=minutes) for minutes in (-30, -15, 0, 15, 30))
FACTOR = 4
SHORTEST = timedelta(minutes=15)
"""No pause that is shorter is an alarm, however busy the endpoint."""
_SUNDAY = 6
_DAY = timedelta(days=1)

Holiday = Callable[[date], bool]


def like_moments(now: datetime, zone: ZoneInfo, holiday: Holiday) -> list[list[datetime]]:
    """The moments to compare `now` with, of each like day, the latest day first; aware UTC."""
    here = now.astimezone(zone)
    today = here.date()
    days = (today - _DAY * number for number in range(1, WEEKS * 7 + 1))
    return [_around(day, here, zone) for day in days if _kind(day, holiday) == _kind(today, holiday)]


def _kind(day: date, holiday: Holiday) -> int:
    return _SUNDAY if holiday(day) else day.weekday()


def _around(day: date, here: datetime, zone: ZoneInfo) -> list[datetime]:
    """Around the same time of the clock on the wall, whether or not it was changed since."""
    then = datetime.combine(day, here.time(), zone).astimezone(UTC)
    return [then + away for away in AROUND]


def usual_pause(pauses: Iterable[Sequence[timedelta]]) -> timedelta | None:
    """What is usual, of the pauses that there were on each like day; None when that is not known yet."""
    longest = sorted(max(day) for day in pauses if day)
    if len(longest) < LEAST_DAYS:
        return None
    return longest[-2] if len(longest) > LEAST_DAYS else longest[-1]


def too_long(usual: timedelta) -> timedelta:
    """The pause that is an alarm."""
    return max(SHORTEST, usual * FACTOR)


class Silence:
    """Of the endpoints in production. What is usual is asked for four times an hour, and only of one that is silent."""

    def __init__(self, endpoints: Iterable[Endpoint], zone: ZoneInfo, holiday: Holiday) -> None:
        self._endpoints = [endpoint for endpoint in endpoints if endpoint.environment == "production"]
        self._zone, self._holiday = zone, holiday
        self._known: dict[str, tuple[datetime, timedelta | None]] = {}

    def problems(self, connection: Connection, now: datetime) -> list[Problem]:
        found = (self._of(connection, endpoint, now) for endpoint in self._endpoints)
        return [problem for problem in found if problem is not None]

    def _of(self, connection: Connection, endpoint: Endpoint, now: datetime) -> Problem | None:
        last = last_heard(connection, endpoint)
        if last is None or now - last <= SHORTEST:
            return None
        usual = self._usual(connection, endpoint, now)
        if usual is None or now - last <= too_long(usual):
            return None
        minutes = max(1, round(usual / timedelta(minutes=1)))
        said = (
            f"Nothing came from {endpoint.path} since {last:%Y-%m-%d %H:%M} UTC. At this time of the week pauses of up"
            f" to {minutes} minutes are usual."
        )
        return Problem(AlarmKind.ENDPOINT_SILENT, said, endpoint.path)

    def _usual(self, connection: Connection, endpoint: Endpoint, now: datetime) -> timedelta | None:
        quarter = now.replace(minute=now.minute // 15 * 15, second=0, microsecond=0)
        known = self._known.get(endpoint.path)
        if known is None or known[0] != quarter:
            days = like_moments(quarter, self._zone, self._holiday)
            known = self._known[endpoint.path] = (quarter, usual_pause(pauses(connection, endpoint, days)))
        return known[1]


def last_heard(connection: Connection, endpoint: Endpoint) -> datetime | None:
    """When the newest delivery of `endpoint` came, one that said the same again included."""
    r = repeats.c
    newest = [connection.scalar(_notifications(endpoint).order_by(notifications.c.id.desc()).limit(1))]
    for conflict in (False, True):
        here = (r.provider == endpoint.provider, r.facility == endpoint.facility, r.conflict.is_(conflict))
        newest.append(connection.scalar(select(r.id).where(*here).order_by(r.id.desc()).limit(1)))
    found = [came(each) for each in newest if each is not None]
    return max(found, default=None)


def pauses(connection: Connection, endpoint: Endpoint, days: Sequence[Sequence[datetime]]) -> list[list[timedelta]]:
    """How long nothing had come by each of the moments; those before the first notification tell nothing."""
    first = connection.scalar(_notifications(endpoint).order_by(notifications.c.id).limit(1))
    if first is None:
        return []
    began = came(first)
    asked = [[moment for moment in day if moment > began] for day in days]
    moments = [moment for day in asked for moment in day]
    if not moments:
        return []
    before = [
        _notifications(endpoint)
        .where(notifications.c.id < first_id(moment))
        .order_by(notifications.c.id.desc())
        .limit(1)
        .scalar_subquery()
        .label(f"before{number}")
        for number, moment in enumerate(moments)
    ]
    row = connection.execute(select(*before)).one()
    last = {moment: came(id_) for moment, id_ in zip(moments, row, strict=True) if id_ is not None}
    # A day that is known in part would seem livelier than it was.
    whole = [day for day, all_of_it in zip(asked, days, strict=True) if len(day) == len(all_of_it)]
    return [[moment - last[moment] for moment in day if moment in last] for day in whole]


def came(id_: str) -> datetime:
    """Ids begin with the millisecond in which they came."""
    return utc(int(id_.replace("-", "")[:12], 16) * 1000)


def _notifications(endpoint: Endpoint) -> Any:
    n = notifications.c
    query = select(n.id).where(n.provider == endpoint.provider, n.facility == endpoint.facility)
    # The rows of a settlement file came with it, and not from the sender.
    return query.where(n.event_type != SETTLEMENT_FILE) if hasattr(endpoint, "settlement_folder") else query
