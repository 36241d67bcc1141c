"""The refusals that are kept, remembered between looks: ten thousand are too many to fetch for every page."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable
from itertools import dropwhile
from typing import Any

from redis import Redis

from receiver.refusals import STREAM, Place, Refusal, read

Counted = Counter[tuple[str, str, str]]
"""How many were refused, by reason, provider and facility."""


def counted(refusals: Iterable[Refusal]) -> Counted:
    return Counter((each.reason, each.provider, each.facility) for each in refusals)


class Refusals:
    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._lock = threading.Lock()
        self._known: list[tuple[Place, Refusal]] = []

    def newest_first(self, before: Place | None = None) -> list[tuple[Place, Refusal]]:
        """All that are kept, each with its place; with `before` those that came before it. Raises `RedisError`."""
        with self._lock:
            self._known = self._following() or self._following(anew=True) or []
            known = self._known
        return [each for each in reversed(known) if before is None or each[0] < before]

    def _following(self, anew: bool = False) -> list[tuple[Place, Refusal]] | None:
        """What is known, without what is kept no more and with what came since. None when that is not what is kept:
        another server, or one that lost its last second."""
        known = [] if anew else self._known
        after = "({}-{}".format(*known[-1][0]) if known else "-"
        pipeline = self._redis.pipeline(transaction=True)
        pipeline.xrange(STREAM, count=1)
        pipeline.xrevrange(STREAM, count=1)
        pipeline.xrange(STREAM, after)
        answers: list[Any] = pipeline.execute()
        oldest, newest, came = map(read, answers)
        if not oldest:
            return []
        found = [*dropwhile(lambda each: each[0] < oldest[0][0], known), *came]
        return found if found and (found[0], found[-1]) == (oldest[0], newest[0]) else None
