"""The last 24 hours of each endpoint. Hours that are over hardly change: they are counted every five minutes beside the
requests, the two latest at every look."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime

from redis.exceptions import RedisError
from sqlalchemy import Engine

from receiver import logs
from receiver.errors import LedgerAway
from receiver.notification import microseconds
from workers.console.charts import Hour
from workers.console.refusals import Refusals
from workers.ledger import activity, queries
from workers.ledger.activity import HOUR, Counts, Endpoint

log = logs.get("workers.console.activity")

HOURS = 24
_HOUR = 3_600_000_000
"""Microseconds."""
_REFRESHED = 300.0
_TRIED_AGAIN = 15.0
"""Seconds after which the ledger, which was away, is asked again."""
_WAITED = 1.0
"""Seconds."""
_COUNTED_AGAIN = 600.0
"""Replays and corrections change what an earlier hour was counted as. A look counts itself what is older."""


Refused = Counter[tuple[str, str, int]]
"""How many were refused, by provider, facility and hour."""


class Activity:
    def __init__(self, engine: Engine, refusals: Refusals, endpoints: Sequence[Endpoint]) -> None:
        self._engine, self._refusals, self._endpoints = engine, refusals, endpoints
        self._lock = threading.Lock()
        self._refreshing = threading.Lock()
        self._hours: dict[datetime, tuple[float, Counts]] = {}

    def charts(self) -> dict[Endpoint, list[Hour]]:
        """The hours of each endpoint of the configuration, the oldest first. Raises `LedgerAway` and `RedisError`."""
        refused = self._refused()
        starts = _starts()
        if not self._hours:
            # The console has just started, and counts them.
            self._refreshing.acquire()
            self._refreshing.release()
        with self._lock:
            counts = self._counted(starts)
        return {
            endpoint: [_hour(endpoint, start, counts[start], refused) for start in starts]
            for endpoint in self._endpoints
        }

    def refresh(self) -> None:
        """Counts the hours that are over, while looks go on with what is known. Raises `LedgerAway`."""
        now = time.monotonic()
        with self._refreshing, queries.reading(self._engine) as connection:
            with suppress(RedisError):
                self._refused()  # Ten thousand are fetched now, and not by the first who looks.
            counted = activity.of_hours(connection, _starts()[:-2])
        with self._lock:
            self._hours |= {start: (now, counts) for start, counts in counted.items()}

    def wait(self) -> None:
        """Until nothing is counted beside the requests, for a little while: so its connection is closed as well."""
        if self._refreshing.acquire(timeout=_WAITED):
            self._refreshing.release()

    async def keep(self) -> None:
        """Refreshes until it is cancelled: no look has to wait for a whole day."""
        while True:
            try:
                await asyncio.to_thread(self.refresh)
                wait = _REFRESHED
            except LedgerAway:
                wait = _TRIED_AGAIN
            except Exception:
                log.exception("activity_not_counted")
                wait = _REFRESHED
            await asyncio.sleep(wait)

    def _counted(self, starts: Sequence[datetime]) -> dict[datetime, Counts]:
        now = time.monotonic()
        kept: dict[datetime, tuple[float, Counts]] = {}
        for start in starts[:-2]:
            known = self._hours.get(start)
            if known is not None and now - known[0] <= _COUNTED_AGAIN:
                kept[start] = known
        with queries.reading(self._engine) as connection:
            counted = activity.of_hours(connection, [start for start in starts if start not in kept])
        kept |= {start: (now, counts) for start, counts in counted.items()}
        self._hours = kept
        return {start: counts for start, (_, counts) in kept.items()}

    def _refused(self) -> Refused:
        """Of the last 10,000 refusals: with more, the oldest hours show fewer than there were."""
        return Counter((each.provider, each.facility, each.at // _HOUR) for _, each in self._refusals.newest_first())


def _starts() -> list[datetime]:
    """When each of the hours begins, the oldest first; the last is the current one."""
    latest = _hour_of(datetime.now(UTC))
    return [latest - HOUR * (HOURS - 1 - number) for number in range(HOURS)]


def _hour(endpoint: Endpoint, start: datetime, counts: Counts, refused: Refused) -> Hour:
    return Hour(start, refused=refused[(*endpoint, _number(start))], **counts.get(endpoint, {}))


def _number(start: datetime) -> int:
    """The hour that begins then, counted from 1970."""
    return microseconds(start) // _HOUR


def _hour_of(moment: datetime) -> datetime:
    return moment.replace(minute=0, second=0, microsecond=0)
