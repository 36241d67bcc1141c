"""The last 24 hours of each endpoint. Hours that are over hardly change: they are counted once in ten minutes, the two
latest at every look."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime

from redis import Redis
from sqlalchemy import Engine

from receiver import refusals
from workers.console.charts import Hour
from workers.ledger import activity, queries
from workers.ledger.activity import HOUR, Counts, Endpoint

HOURS = 24
_COUNTED_AGAIN = 600.0
"""Replays and corrections change what an earlier hour was counted as."""


class Activity:
    def __init__(self, engine: Engine, redis: Redis, endpoints: Sequence[Endpoint]) -> None:
        self._engine, self._redis, self._endpoints = engine, redis, endpoints
        self._lock = threading.Lock()
        self._hours: dict[datetime, tuple[float, Counts]] = {}

    def charts(self) -> dict[Endpoint, list[Hour]]:
        """The hours of each endpoint of the configuration, the oldest first. Raises `LedgerAway` and `RedisError`."""
        refused = self._refused()
        latest = _hour_of(datetime.now(UTC))
        starts = [latest - HOUR * (HOURS - 1 - number) for number in range(HOURS)]
        with self._lock:
            counts = self._counted(starts)
        return {
            endpoint: [
                Hour(start, refused=refused[endpoint, start], **counts[start].get(endpoint, {})) for start in starts
            ]
            for endpoint in self._endpoints
        }

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

    def _refused(self) -> Counter[tuple[Endpoint, datetime]]:
        """Of the last 10,000 refusals: with more, the oldest hours show fewer than there were."""
        counter: Counter[tuple[Endpoint, datetime]] = Counter()
        for refusal in refusals.listed(self._redis):
            counter[(refusal["provider"], refusal["facility"]), _hour_of(refusal["at"])] += 1
        return counter


def _hour_of(moment: datetime) -> datetime:
    return moment.replace(minute=0, second=0, microsecond=0)
