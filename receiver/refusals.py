"""Refusal records: what was refused and why, kept in one capped Redis stream that operators read.

A record is time, endpoint, address, reason, size and content type; never a body, never a header's value. Records are
gathered and written together, at most every `FLUSH_EVERY` seconds, so that a flood of bad requests costs a few fsyncs.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any

import msgspec
from redis import Redis
from redis.exceptions import RedisError

from receiver import logs
from receiver.notification import microseconds, utc

log = logs.get("receiver.refusals")

STREAM = "postback:refusals"
KEEP = 10_000
FLUSH_EVERY = 0.1
RETRY_EVERY = 1.0
MOST_AT_ONCE = 1000


class Refusal(msgspec.Struct, frozen=True):
    at: int
    """Microseconds since 1970 in UTC."""
    provider: str
    facility: str
    source: str
    reason: str
    detail: str
    status: int
    size: int
    content_type: str


_REFUSAL = msgspec.msgpack.Decoder(Refusal)
Place = tuple[int, int]
"""Where a record stands in the stream: the millisecond in which it came, and its number there."""


class RefusalLog:
    """Gathers records; what cannot be written while Redis is away waits here, the oldest dropped over the cap."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._waiting: deque[Refusal] = deque(maxlen=KEEP)
        self._wake = asyncio.Event()
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._flush_for_ever())

    async def stop(self) -> None:
        """Writes what waits, unless Redis is away."""
        self._stopping.set()
        self._wake.set()
        if self._task:
            await self._task
        while self._waiting and await self._flush():
            pass

    def add(self, refusal: Refusal) -> None:
        self._waiting.append(refusal)
        self._wake.set()

    async def _flush_for_ever(self) -> None:
        while not self._stopping.is_set():
            await self._wake.wait()
            self._wake.clear()
            written = await self._flush()
            if self._waiting:
                self._wake.set()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), FLUSH_EVERY if written else RETRY_EVERY)

    async def _flush(self) -> bool:
        taken = [self._waiting.popleft() for _ in range(min(len(self._waiting), MOST_AT_ONCE))]
        if not taken:
            return True
        try:
            await asyncio.to_thread(self._write, taken)
        except (RedisError, OSError):
            # Those that came meanwhile are newer, and the newest count.
            room = KEEP - len(self._waiting)
            self._waiting.extendleft(reversed(taken[-room:] if room else []))
            return False
        except Exception:
            log.exception("refusals_dropped", records=len(taken))
        return True

    def _write(self, refusals: list[Refusal]) -> None:
        pipeline = self._redis.pipeline(transaction=False)
        for refusal in refusals:
            pipeline.xadd(STREAM, {"r": msgspec.msgpack.encode(refusal)}, maxlen=KEEP, approximate=True)
        pipeline.execute()


def count(redis: Redis, before: datetime) -> int:
    """How many were kept before this moment. Raises `RedisError`."""
    rows: Any = redis.xrange(STREAM, "-", f"({_first(before)}")
    return len(rows)


def forget(redis: Redis, before: datetime) -> int:
    """Takes those out; gives how many. Raises `RedisError`."""
    gone: Any = redis.xtrim(STREAM, minid=_first(before), approximate=False)
    return int(gone)


def _first(moment: datetime) -> str:
    """Redis numbers the records by the millisecond in which they came."""
    return f"{microseconds(moment) // 1000}-0"


def listed(redis: Redis, limit: int = KEEP) -> list[dict[str, Any]]:
    """The newest refusals first, as JSON objects. Raises `RedisError`."""
    rows: Any = redis.xrevrange(STREAM, count=limit)
    return [shown(refusal) for _, refusal in read(rows)]


def read(rows: Iterable[tuple[bytes, Mapping[bytes, bytes]]]) -> list[tuple[Place, Refusal]]:
    """Entries of the stream, each with its place in it."""
    return [(place(key.decode()), _REFUSAL.decode(fields[b"r"])) for key, fields in rows]


def place(text: str) -> Place:
    """Raises `ValueError` for what is none."""
    millisecond, number = text.split("-")
    return int(millisecond), int(number)


def shown(refusal: Refusal) -> dict[str, Any]:
    """The refusal object of the contract."""
    return msgspec.structs.asdict(refusal) | {"at": utc(refusal.at)}
