"""Step 7, commit: requests that wait at the same moment become one batch, and one batch is one fsynced RQ job.

RQ costs about 27 round trips a job, so a job per notification could never be fast. While commits are in flight the
next requests gather; every request waits for its own commit. What Redis does not take goes to the spool.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Protocol

from redis.exceptions import RedisError
from rq import Queue

from receiver import logs, metrics, replicas
from receiver.connection import (
    DEADLINE,
    PROBE,
    QUEUE,
    Serializer,
    aof_confirms,
    connect,
    connect_async,
    durability,
    replicas_confirm,
)
from receiver.errors import NotStored
from receiver.job import RECORD_BATCH, JobTemplate, enqueue
from receiver.link import Link
from receiver.notification import Envelope, new_id, now_us, seal_batch
from receiver.settings import Settings
from receiver.signing import Seal
from receiver.spool import Spool, Spooled

log = logs.get("receiver.inbox")

MAX_BATCH = 512
IN_FLIGHT = 2
"""Commits under way at once: while Redis writes one to its disk, the next is made ready."""
OVERLAP_FROM = 32
"""Requests that must wait for a second commit to begin beside the first: smaller batches cost more than they save."""
MAX_BATCH_BYTES = 4 << 20
LINGER_FROM = 200
"""Batches in the queue from which a commit waits for more."""
LINGER_SHARE = 20_000
"""A commit waits for the queue's length over this, in seconds: 10 ms behind 200 batches."""
MAX_LINGER = 0.1
LINGER_STEP = 0.001
QUIET_STEPS = 5
"""Steps without a new request that end the wait."""
ENOUGH = 32
"""Notifications in a batch from which a job's own cost does not count any more."""
ALONE_FOR = 50
"""Commits without a wait after one that brought no company."""
DRAIN_EVERY = 0.5
_NOTE = 80
"""Bytes of what stands in the file of the turn."""


class Commits(Protocol):
    """What `Inbox.commit` promises."""

    async def commit(self, envelope: Envelope) -> None: ...


class Inbox:
    """Takes envelopes; `commit` returns when the envelope is on a disk.

    While Redis is well the event loop itself commits, at most `IN_FLIGHT` batches at once. Two threads do what may
    block: the writer takes over when Redis is unfit, the drainer looks at it every `DRAIN_EVERY` seconds and empties
    the spool. All three find Redis unfit (`fault`), only the drainer finds it well again.
    """

    def __init__(self, settings: Settings, seal: Seal) -> None:
        self._seal = seal
        self._strict = settings.queue.durability == "strict"
        self._replicas = settings.queue.replicas
        self._redis = connect(settings)
        pool = connect_async(settings, DEADLINE, IN_FLIGHT).connection_pool
        self._links = [Link(pool, DEADLINE) for _ in range(IN_FLIGHT)]
        self._queue = Queue(QUEUE, connection=self._redis, serializer=Serializer)
        self._template: JobTemplate | None = None
        path = settings.data_dir / "spool" / "spool.sqlite3"
        self._spool = Spool(path, settings.receive.max_spool)
        self._spool_lock = threading.Lock()
        self._turn = Turn(path.with_suffix(".lock"))
        self._pending: deque[tuple[Envelope, asyncio.Future[None]]] = deque()
        self._committing: set[asyncio.Task[None]] = set()
        self._draining: asyncio.Task[None] | None = None
        self._stopping = False
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="commit")
        self._drainer = ThreadPoolExecutor(1, thread_name_prefix="drain")
        self._queue_length = 0
        self._alone = 0
        self._moved_up_to = 0
        self.fault: str | None = "Redis has not been asked yet."
        """Why batches go to the spool at the moment; None when Redis takes them."""
        self.not_durable = False
        """Redis answers, but what it answers is not on a disk, and `strict` was asked for."""
        self.replicas_away = False
        """The master takes batches, and fewer replicas than asked for have them: the spool keeps a second copy."""
        self.confirm_each = False
        """Whether only WAITAOF tells that a write is on the disk."""
        self.spool_fault: str | None = None
        """Why the spool would take nothing either."""
        self.spooled = 0
        """Batches in the spool."""

    def use(self, seal: Seal) -> None:
        """From now on batches are sealed so."""
        self._seal = seal

    @property
    def redis_up(self) -> bool:
        return self.fault is None

    @property
    def redis_answers(self) -> bool:
        """Whether Redis is worth asking: also where batches need the spool as their second place."""
        return self.fault is None or self.replicas_away

    async def start(self) -> None:
        """Looks at Redis once and begins to drain the spool. A Redis that is away is no reason not to start."""
        await asyncio.get_running_loop().run_in_executor(self._drainer, self._look)
        self._draining = asyncio.create_task(self._drain_for_ever())

    async def stop(self) -> None:
        """Waits for what is being committed, then lets go of Redis and the spool."""
        self._stopping = True
        await asyncio.gather(*self._committing)
        if self._draining:
            self._draining.cancel()
            await asyncio.gather(self._draining, return_exceptions=True)
        for link in self._links:
            await link.close()
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._writer.shutdown()
        self._drainer.shutdown()
        self._spool.close()
        self._turn.close()
        self._redis.close()

    async def commit(self, envelope: Envelope) -> None:
        """Returns when `envelope` is durable; raises `NotStored` when neither Redis nor the spool took it."""
        if self._stopping:
            raise NotStored("The receiver stops.")
        committed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pending.append((envelope, committed))
        if len(self._links) == IN_FLIGHT or (self._links and len(self._pending) >= OVERLAP_FROM):
            link = self._links.pop()
            task = asyncio.create_task(self._commit_pending(link))
            self._committing.add(task)
            task.add_done_callback(self._committing.discard)
        await committed

    async def _commit_pending(self, link: Link) -> None:
        try:
            while self._pending:
                await self._linger()
                # What came in this turn of the loop is company for nothing.
                await asyncio.sleep(0)
                if self._pending:
                    await self._commit(*self._take(), link)
        finally:
            self._links.append(link)
            # Only where this task was cancelled is anybody left.
            while self._pending and len(self._links) == IN_FLIGHT:
                _settle([self._pending.popleft()[1]], NotStored("The commit was cancelled."))

    async def _linger(self) -> None:
        """While the workers are behind, waits for company as long as it keeps coming: a job costs a worker more than
        the notifications in it. A sender that was alone the last time waits again only now and then."""
        if self._queue_length <= LINGER_FROM:
            return
        if self._alone:
            self._alone -= 1
            return
        first, quiet = len(self._pending), 0
        until = time.monotonic() + min(MAX_LINGER, self._queue_length / LINGER_SHARE)
        while len(self._pending) < ENOUGH and quiet < QUIET_STEPS and time.monotonic() < until:
            seen = len(self._pending)
            await asyncio.sleep(LINGER_STEP)
            quiet = quiet + 1 if len(self._pending) == seen else 0
        if len(self._pending) == first:
            self._alone = ALONE_FOR

    def _take(self) -> tuple[list[Envelope], list[asyncio.Future[None]]]:
        batch: list[Envelope] = []
        waiting: list[asyncio.Future[None]] = []
        size = 0
        while self._pending and len(batch) < MAX_BATCH:
            envelope, future = self._pending[0]
            size += len(envelope.body)
            if batch and size > MAX_BATCH_BYTES:
                break
            self._pending.popleft()
            batch.append(envelope)
            waiting.append(future)
        return batch, waiting

    async def _commit(self, batch: list[Envelope], waiting: list[asyncio.Future[None]], link: Link) -> None:
        """Commits `batch` and tells who waits for it, whatever happens."""
        lost: NotStored | None = NotStored("The commit was cancelled.")
        try:
            sealed = self._sealed(batch)
            if not await self._enqueued(sealed, link):
                await asyncio.get_running_loop().run_in_executor(self._writer, self._write, sealed)
            lost = None
        except NotStored as error:
            lost = error
        except Exception as error:
            log.error("commit_failed", notifications=len(batch), exc_info=error)
            lost = NotStored("The commit failed.")
            if len(batch) > 1:
                # Something in it cannot be written, which is no reason to lose the others.
                for envelope, future in zip(batch, waiting, strict=True):
                    await self._commit([envelope], [future], link)
        finally:
            _settle(waiting, lost)

    def _sealed(self, envelopes: list[Envelope]) -> Batch:
        metrics.BATCH_SIZE.observe(len(envelopes))
        return Batch(new_id(now_us()), seal_batch(envelopes, self._seal), _describe(envelopes))

    async def _enqueued(self, batch: Batch, link: Link) -> bool:
        """The quick way, without a thread, while all is well: whether the batch is on Redis's disk."""
        if self.fault is not None or self.confirm_each:
            return False
        began = time.perf_counter()
        try:
            if self._template is None:
                self._template = JobTemplate(self._queue, RECORD_BATCH)
            commands = [*self._template.commands(*batch), ("LLEN", self._queue.key)]
            self._queue_length = (await link.transaction(commands, self._replicas))[-1]
        except Exception as error:
            # It may be there all the same. Then the spool brings the same job again, which has no second effect.
            self._unfit("does not take batches", error)
            return False
        metrics.COMMIT_SECONDS.labels("redis").observe(time.perf_counter() - began)
        return True

    def _write(self, batch: Batch) -> None:
        """In the writer thread: the batch is on a disk when this returns, Redis's or our own."""
        began = time.perf_counter()
        if self.fault is None:
            try:
                self._enqueue([batch])
                metrics.COMMIT_SECONDS.labels("redis").observe(time.perf_counter() - began)
                return
            except Exception as error:
                # From here on everything is spooled until the drainer has found Redis well again, so that nobody
                # waits for the deadline twice and the order is kept.
                self._unfit("does not take batches", error)
        try:
            with self._spool_lock:
                self._spool.add(*batch)
                self.spooled += 1
                self._queue_length = self.spooled
        except NotStored as lost:
            self._spool_unfit(lost.detail)
            raise
        metrics.COMMIT_SECONDS.labels("spool").observe(time.perf_counter() - began)

    def _enqueue(self, batches: Sequence[Batch], wait_for: int | None = None) -> None:
        """One round trip. A batch that is enqueued twice has no second effect. Waits for as many replicas as the
        configuration asks for, or for `wait_for`."""
        pipeline = self._redis.pipeline(transaction=True)
        for batch in batches:
            enqueue(self._queue, pipeline, RECORD_BATCH, *batch)
        pipeline.llen(self._queue.key)
        if copies := self._replicas if wait_for is None else wait_for:
            done = replicas.execute(self._redis, replicas.commands_of(pipeline), copies, DEADLINE)
        else:
            done = pipeline.execute()
        self._queue_length = done[-1]
        if self.confirm_each and not aof_confirms(self._redis):
            raise RedisError("The append-only file was not confirmed.")

    def _unfit(self, what: str, error: Exception) -> None:
        name = type(error).__name__
        first = self.fault is None or name not in self.fault
        self.fault = f"Redis {what}: {name}."
        if isinstance(error, replicas.TooFewReplicas):
            if first:
                log.warning("replicas_away", detail=str(error))
            return
        if first:
            known = isinstance(error, RedisError | OSError)
            log.warning("redis_away", error=name, exc_info=None if known else error)

    async def _drain_for_ever(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(DRAIN_EVERY)
            await loop.run_in_executor(self._drainer, self._look)

    def _look(self) -> None:
        """In the drainer thread: asks Redis how it is, and moves the spool's batches to it when it is well."""
        was_up = self.redis_up
        try:
            self.not_durable = (fault := self._examine(was_up)) is not None
            if fault is None:
                self._drain()
                if not was_up:
                    log.info("redis_up")
            # What the writer found meanwhile stands until the next look.
            if fault is not None or not was_up:
                self.fault = fault
            self.replicas_away = False
        except replicas.TooFewReplicas as error:
            self.not_durable, self.replicas_away = False, True
            self._unfit("has too few replicas", error)
            self._offer()
        except Exception as error:
            self._unfit("does not answer as it should", error)
            self.not_durable = self.replicas_away = False
        metrics.REDIS_UP.set(int(self.redis_answers))
        metrics.REPLICAS_AWAY.set(int(self.replicas_away))
        self._look_at_spool()

    def _examine(self, was_up: bool) -> str | None:
        """What is wrong with a Redis that answers; None when nothing is. Raises whatever Redis and RQ raise."""
        fault, self.confirm_each = durability(self._redis)
        if fault and self._strict:
            return f"Redis is not durable: {fault}."
        if not was_up:
            if fault:
                log.warning("redis_not_durable", fault=fault)
            # A replica and a server without memory answer, but take nothing.
            self._redis.set(PROBE, b"1")
            if self._replicas:
                replicas_confirm(self._redis, self._replicas)
            # RQ asks for this before its first job; now nobody waits for it.
            self._queue.get_redis_server_version()
        return None

    def _drain(self) -> None:
        """Moves spooled batches, oldest first. One process of this machine does it at a time. Raises what `_enqueue`
        raises; a fault of the spool is none of Redis's."""
        moved = 0
        with self._turn as mine:
            try:
                while mine and not self._stopping and (batches := self._oldest()):
                    # What could not be removed after it was moved, on a full disk, is not moved again.
                    if batches := [batch for batch in batches if batch.position > self._moved_up_to]:
                        self._enqueue([Batch(*batch[1:]) for batch in batches])
                        self._moved_up_to = batches[-1].position
                        moved += len(batches)
                    with self._spool_lock:
                        self._spool.remove(self._moved_up_to)
            except sqlite3.Error as error:
                self._spool_unfit(str(error))
        if moved:
            log.info("spool_drained", batches=moved)

    def _offer(self) -> None:
        """Gives spooled batches to a master without its replicas, so that payments are not late, and keeps them: it may
        fail and be replaced by a replica that has none of them. Each server is given each batch once, whichever of the
        accept processes has the turn."""
        with self._turn as mine:
            try:
                server = str(self._redis.info("server").get("run_id")) if mine else ""
                offered = self._turn.offered(server)
                while mine and not self._stopping and (batches := self._oldest(after=offered)):
                    self._enqueue([Batch(*batch[1:]) for batch in batches], wait_for=0)
                    offered = batches[-1].position
                    self._turn.note_offered(server, offered)
            except sqlite3.Error as error:
                self._spool_unfit(str(error))
            except Exception as error:
                self._unfit("does not answer as it should", error)

    def _oldest(self, after: int = 0) -> list[Spooled]:
        with self._spool_lock:
            return self._spool.oldest(MAX_BATCH_BYTES, after=after)

    def _look_at_spool(self) -> None:
        try:
            with self._spool_lock:
                self.spooled = self._spool.count()
                if self.spool_fault or not self.redis_up:
                    self._spool.try_out()
            self.spool_fault = None
        except sqlite3.Error as error:
            self._spool_unfit(str(error))
        except NotStored as lost:
            self._spool_unfit(lost.detail)
        metrics.SPOOL_BATCHES.set(self.spooled)

    def _spool_unfit(self, fault: str) -> None:
        if self.spool_fault is None:
            log.error("spool_unfit", fault=fault)
        self.spool_fault = fault


class Batch(NamedTuple):
    job_id: str
    sealed: bytes
    description: str


class Turn:
    """A file lock that ends with the process, so that a killed drainer never blocks the next one. In the file stands
    which server was offered the spool's batches, and up to which position."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)

    def __enter__(self) -> bool:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            # On a file system without locks two drain at once: better twice than never.
            return True
        return True

    def __exit__(self, *exc: object) -> None:
        with suppress(OSError):
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def offered(self, server: str) -> int:
        """Up to where `server` was offered the batches; 0 for another server, which has none of them."""
        with suppress(ValueError, OSError):
            known, position = os.pread(self._file, _NOTE, 0).decode().split()
            if known == server:
                return int(position)
        return 0

    def note_offered(self, server: str, position: int) -> None:
        # On a full disk it is not noted, and all is offered again.
        with suppress(OSError):
            os.pwrite(self._file, f"{server} {position}".ljust(_NOTE).encode(), 0)

    def close(self) -> None:
        os.close(self._file)


def _settle(waiting: Sequence[asyncio.Future[None]], lost: NotStored | None) -> None:
    for future in waiting:
        if future.done():
            continue
        if lost is None:
            future.set_result(None)
        else:
            future.set_exception(lost)


def _describe(batch: list[Envelope]) -> str:
    """What `rq` shows: ``12 notifications: quickstream/acme 10, checkout/main 2``."""
    counts: dict[str, int] = {}
    for envelope in batch:
        path = f"{envelope.provider}/{envelope.facility}"
        counts[path] = counts.get(path, 0) + 1
    parts = ", ".join(f"{path} {count}" for path, count in sorted(counts.items()))
    return f"{len(batch)} notification{'s' if len(batch) > 1 else ''}: {parts}"
