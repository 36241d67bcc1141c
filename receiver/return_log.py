"""What customers saw, on its way to the ledger: best effort, gathered, and never in anybody's way.

A job a second at most, whatever comes: the queue belongs to notifications. While Redis is away what was seen waits
here, and over the cap the newest is dropped.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress

import msgspec
from redis import Redis
from redis.exceptions import RedisError
from rq import Queue

from receiver import logs, metrics
from receiver.connection import QUEUE, Serializer
from receiver.job import RECORD_RETURNS, enqueue
from receiver.notification import BrowserReturn, new_id, now_us
from receiver.signing import Seal

log = logs.get("receiver.return_log")

KEEP = 1000
FLUSH_EVERY = 1.0
MOST_AT_ONCE = 500

_ENCODER = msgspec.msgpack.Encoder()


class ReturnLog:
    def __init__(self, redis: Redis, seal: Seal, up: Callable[[], bool]) -> None:
        """`up` tells whether Redis is worth asking."""
        self._redis = redis
        self._queue = Queue(QUEUE, connection=redis, serializer=Serializer)
        self._seal = seal
        self._up = up
        self._waiting: deque[BrowserReturn] = deque()
        self._wake = asyncio.Event()
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def use(self, seal: Seal) -> None:
        self._seal = seal

    def start(self) -> None:
        self._task = asyncio.create_task(self._flush_for_ever())

    async def stop(self) -> None:
        self._stopping.set()
        self._wake.set()
        if self._task:
            await self._task
        while self._waiting and await self._flush():
            pass

    def add(self, returned: BrowserReturn) -> None:
        if len(self._waiting) >= KEEP:
            metrics.RETURNS_DROPPED.inc()
            return
        self._waiting.append(returned)
        self._wake.set()

    async def _flush_for_ever(self) -> None:
        while not self._stopping.is_set():
            await self._wake.wait()
            self._wake.clear()
            await self._flush()
            if self._waiting:
                self._wake.set()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), FLUSH_EVERY)

    async def _flush(self) -> bool:
        if not self._up():
            return False
        taken = [self._waiting.popleft() for _ in range(min(len(self._waiting), MOST_AT_ONCE))]
        if not taken:
            return True
        try:
            await asyncio.to_thread(self._write, taken)
        except (RedisError, OSError):
            self._waiting.extendleft(reversed(taken))
            return False
        except Exception:
            log.exception("returns_dropped", returns=len(taken))
            metrics.RETURNS_DROPPED.inc(len(taken))
        return True

    def _write(self, returns: list[BrowserReturn]) -> None:
        pipeline = self._redis.pipeline(transaction=True)
        sealed = self._seal.seal(_ENCODER.encode(returns))
        description = f"{len(returns)} browser return{'s' if len(returns) > 1 else ''}"
        enqueue(self._queue, pipeline, RECORD_RETURNS, new_id(now_us()), sealed, description)
        pipeline.execute()
