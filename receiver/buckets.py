"""Token buckets for what is not proven: in Redis, so that all accept processes count together, and in this process
while Redis does not answer.

Nothing here is asked for what is proven. Tokens are fetched several at once, and a bucket that was found empty is not
asked again for a second, so that a flood costs Redis, which has payments to keep, a few commands a second.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

from redis import asyncio as redis_asyncio
from redis.exceptions import RedisError

REMEMBERED = 10_000
"""Buckets that a process knows, the latest ones."""
ASK_AGAIN = 1.0
"""Seconds after which an empty bucket is asked again."""
DEADLINE = 0.1
AWAY_FOR = 1.0
"""Seconds for which a Redis that did not answer is not asked: many may be waiting behind the one that found out."""

# The clock of Redis counts, for all processes alike. Set back, it gives nothing; what it took is not lost.
_TAKE = """
local rate, most, wanted = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local kept = redis.call('HMGET', KEYS[1], 'left', 'at')
local left, at = tonumber(kept[1]) or most, tonumber(kept[2]) or now
left = math.min(most, left + math.max(0, now - at) * rate)
local given = math.min(math.floor(left), wanted)
redis.call('HSET', KEYS[1], 'left', tostring(left - given), 'at', tostring(now))
redis.call('EXPIRE', KEYS[1], math.ceil(most / rate) + 1)
return given
"""


class Limit(NamedTuple):
    most: int
    """Tokens that a bucket holds, and has at first."""
    per_second: float
    """Tokens that come back."""
    at_once: int = 1
    """Tokens that a process fetches together; what it does not use is lost to the others."""


class _Bucket:
    """What this process knows of one: the tokens that it has fetched, and its own count for when Redis is away."""

    __slots__ = ("asking", "at", "fetched", "left", "shut_until")

    def __init__(self, most: int, now: float) -> None:
        self.fetched = 0
        self.shut_until = now
        self.left, self.at = float(most), now
        self.asking = asyncio.Lock()

    def take(self, limit: Limit, now: float) -> int:
        self.left = min(limit.most, self.left + (now - self.at) * limit.per_second)
        self.at = now
        given = min(int(self.left), limit.at_once)
        self.left -= given
        return given


class Buckets:
    def __init__(
        self, redis: redis_asyncio.Redis, up: Callable[[], bool], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`up` tells whether Redis is worth asking."""
        self._redis = redis
        self._up = up
        self._clock = clock
        self._away_until = clock()
        self._known: OrderedDict[str, _Bucket] = OrderedDict()

    def is_shut(self, name: str) -> bool:
        """Whether this bucket was just found empty; asks nobody."""
        bucket = self._known.get(name)
        return bucket is not None and not bucket.fetched and self._clock() < bucket.shut_until

    async def take(self, name: str, limit: Limit) -> bool:
        """One token of the bucket `name`. False when there is none."""
        bucket = self._recalled(name, limit)
        if self._may_ask(bucket):
            # Those that come meanwhile wait for the same answer.
            async with bucket.asking:
                if self._may_ask(bucket):
                    bucket.fetched = await self._fetch(name, bucket, limit)
                    if not bucket.fetched:
                        bucket.shut_until = self._clock() + ASK_AGAIN
        if not bucket.fetched:
            return False
        bucket.fetched -= 1
        return True

    def _may_ask(self, bucket: _Bucket) -> bool:
        return not bucket.fetched and self._clock() >= bucket.shut_until

    def _recalled(self, name: str, limit: Limit) -> _Bucket:
        bucket = self._known.get(name)
        if bucket is None:
            bucket = self._known[name] = _Bucket(limit.most, self._clock())
            if len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        else:
            self._known.move_to_end(name)
        return bucket

    async def _fetch(self, name: str, bucket: _Bucket, limit: Limit) -> int:
        if not limit.most:
            return 0
        if self._clock() >= self._away_until and self._up():
            try:
                async with asyncio.timeout(DEADLINE):
                    given: Any = await self._redis.eval(
                        _TAKE, 1, key(name), str(limit.per_second), str(limit.most), str(limit.at_once)
                    )
                return int(given)
            except (RedisError, OSError):
                self._away_until = self._clock() + AWAY_FOR
        return bucket.take(limit, self._clock())


def key(name: str) -> str:
    return f"postback:bucket:{name}"
