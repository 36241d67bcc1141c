"""What the console remembers of refusals is what is kept."""

from __future__ import annotations

from typing import Any

from redis import Redis

from receiver.notification import now_us, utc
from receiver.refusals import STREAM, forget
from tests.console.refusing import refuse
from workers.console.refusals import Refusals


def sizes(refusals: Refusals) -> list[int]:
    return [each.size for _, each in refusals.newest_first()]


def test_only_what_came_is_fetched(redis: Redis) -> None:
    kept = Refusals(redis)
    assert sizes(kept) == []
    refuse(redis, 3)
    assert sizes(kept) == [2, 1, 0]
    assert sizes(kept) == [2, 1, 0]
    calls = redis.info("commandstats")["cmdstat_xrange"]["calls"]
    refuse(redis, 2)
    assert sizes(kept) == [1, 0, 2, 1, 0]
    # The oldest one, and those that came.
    assert redis.info("commandstats")["cmdstat_xrange"]["calls"] == calls + 2
    (place, _), *older = kept.newest_first()
    assert kept.newest_first(place) == older


def test_what_is_kept_no_more_is_forgotten(redis: Redis) -> None:
    kept = Refusals(redis)
    refuse(redis, 5)
    assert sizes(kept) == [4, 3, 2, 1, 0]
    redis.xtrim(STREAM, maxlen=2, approximate=False)
    assert sizes(kept) == [4, 3]
    forget(redis, utc(now_us() + 1_000_000))
    assert sizes(kept) == []
    refuse(redis, 1)
    assert sizes(kept) == [0]


def test_another_server_has_other_refusals(redis: Redis) -> None:
    kept = Refusals(redis)
    refuse(redis, 5)
    assert len(sizes(kept)) == 5
    # One whose clock is behind, and that has one of the places.
    entries: Any = redis.xrange(STREAM)
    first, last = entries[0], entries[-1]
    redis.delete(STREAM)
    for key in ("1-1", first[0].decode()):
        redis.xadd(STREAM, last[1], id=key)
    assert sizes(kept) == [4, 4]
    redis.delete(STREAM)
    redis.xadd(STREAM, first[1], id=last[0])
    assert sizes(kept) == [0]
