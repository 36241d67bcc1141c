"""What goes wrong, each by a name. A fault takes some seconds, and puts right itself what nobody else would."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random

from redis.exceptions import RedisError
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError

from tests.chaos.link import Link, Mode
from tests.chaos.place import Place

# What a fault touches: two faults that touch the same do not overlap.
UP, SERVE, WORK, VALKEY, STORE, SENDERS, DISK = "up", "serve", "work", "valkey", "store", "senders", "disk"
EVERYTHING = frozenset({UP, SERVE, WORK, VALKEY, STORE, SENDERS, DISK})


@dataclass(frozen=True, slots=True)
class Fault:
    name: str
    touches: frozenset[str]
    happen: Callable[[float], Awaitable[None]]
    """Takes so many seconds, where it lasts."""
    longest: float = 5.0


class NotNow(Exception):
    """What the fault should hit is not there at the moment."""


class Faults:
    def __init__(self, place: Place, random: Random) -> None:
        self._place = place
        self._random = random
        self.counts: Counter[str] = Counter()
        self.skipped: list[str] = []
        """Names of faults that this machine does not allow, with the reason."""
        self._busy: set[str] = set()
        self._under_way: set[asyncio.Task[None]] = set()
        self.failure: BaseException | None = None

    async def run(self, seconds: float, every: float) -> None:
        """A fault about `every` seconds, none begun in the last moments, so that all are over at the end."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        deck: list[Fault] = []
        while (now := loop.time()) < until and self.failure is None:
            await asyncio.sleep(min(self._random.uniform(0.3, 1.7) * every, until - now))
            # Each kind once before any comes again.
            deck = deck or self._shuffled()
            fault = next((fault for fault in deck if not fault.touches & self._busy), None)
            lasts = self._random.uniform(1.0, fault.longest) if fault else 0.0
            if fault is None or loop.time() + lasts > until:
                continue
            deck.remove(fault)
            task = asyncio.create_task(self._happen(fault, lasts))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)
        if self._under_way:
            await asyncio.wait(self._under_way)
        if self.failure is not None:
            raise self.failure

    async def _happen(self, fault: Fault, seconds: float) -> None:
        self._busy |= fault.touches
        try:
            await fault.happen(seconds)
            self.counts[fault.name] += 1
        except (NotNow, ProcessLookupError):
            pass
        except BaseException as error:
            self.failure = error
            raise
        finally:
            self._busy -= fault.touches

    def _shuffled(self) -> list[Fault]:
        deck = self._all()
        self._random.shuffle(deck)
        return deck

    def _all(self) -> list[Fault]:
        def fault(name: str, touches: str, happen: Callable[[float], Awaitable[None]], longest: float = 5.0) -> Fault:
            return Fault(name, frozenset(touches.split()), happen, longest)

        deck = [
            fault("serve_killed", SERVE, lambda _: self._kill("serve")),
            fault("serve_stopped", SERVE, lambda seconds: self._stop("serve", seconds)),
            fault("serve_restarted", SERVE, lambda _: self._kill("serve", signal.SIGTERM)),
            fault("work_killed", WORK, lambda _: self._kill("work")),
            fault("work_stopped", WORK, lambda seconds: self._stop("work", seconds), 9.0),
            fault("work_restarted", WORK, lambda _: self._kill("work", signal.SIGTERM)),
            fault("valkey_killed", VALKEY, lambda _: self._kill("valkey")),
            fault("valkey_restarted", VALKEY, lambda _: self._kill("valkey", signal.SIGTERM)),
            fault("valkey_stopped", VALKEY, lambda seconds: self._stop("valkey", seconds)),
            fault("valkey_full", VALKEY, self._fill_valkey),
            fault("up_stopped", UP, lambda seconds: self._stop("up", seconds)),
            Fault("up_killed", EVERYTHING, lambda _: self._end_up(signal.SIGKILL)),
            Fault("up_restarted", EVERYTHING, lambda _: self._end_up(signal.SIGTERM)),
        ]
        for mode in (Mode.CUT, Mode.DELAY, Mode.HALVE):
            deck.append(fault(f"senders_{mode}", SENDERS, self._link_fault(self._place.sender_link, mode)))
            deck.append(fault(f"queue_{mode}", f"{VALKEY} {UP}", self._queue_fault(mode)))
        if self._place.small_disk:
            deck.append(fault("disk_full", f"{DISK} {VALKEY}", self._fill_disk, 3.0))
        elif "disk_full (no mount)" not in self.skipped:
            self.skipped.append("disk_full (no mount)")
        if self._place.postgres is None:
            deck.append(fault("sqlite_locked", STORE, self._lock_sqlite, 12.0))
            return deck
        deck += [
            fault("postgres_backend_killed", STORE, lambda _: self._kill_backend()),
            fault("postgres_locked", STORE, self._lock_postgres, 12.0),
            fault("postgres_killed", STORE, self._kill_postgres),
            fault("postgres_restarted", STORE, self._restart_postgres, 12.0),
            fault("postgres_stopped", STORE, lambda seconds: self._stop("postgres", seconds)),
        ]
        assert self._place.store_link is not None
        for mode in (Mode.CUT, Mode.DELAY, Mode.HALVE):
            deck.append(fault(f"store_{mode}", STORE, self._link_fault(self._place.store_link, mode)))
        return deck

    async def _kill(self, role: str, how: signal.Signals = signal.SIGKILL) -> None:
        os.kill(self._one_of(role), how)
        # Nothing else hits it before it can have been started again.
        await asyncio.sleep(1.0)

    def _one_of(self, role: str) -> int:
        pids = self._place.pids(role)
        if not pids:
            raise NotNow
        return self._random.choice(pids)

    async def _stop(self, role: str, seconds: float) -> None:
        pids = self._place.pids(role) if role == "postgres" else [self._one_of(role)]
        with _stopped(pids):
            await asyncio.sleep(seconds)

    async def _end_up(self, how: signal.Signals) -> None:
        process = self._place.installation.process
        assert process is not None
        process.send_signal(how)
        await asyncio.to_thread(process.wait)
        await self._place.start_again()

    async def _fill_valkey(self, seconds: float) -> None:
        def set_limit(limit: str) -> None:
            redis = self._place.redis()
            try:
                redis.config_set("maxmemory", limit)
            finally:
                redis.close()

        try:
            await asyncio.to_thread(set_limit, "1mb")
        except (RedisError, OSError):
            raise NotNow from None
        await asyncio.sleep(seconds)
        await self._insist(lambda: set_limit("0"))

    def _link_fault(self, link: Link, mode: Mode) -> Callable[[float], Awaitable[None]]:
        async def happen(seconds: float) -> None:
            link.mode = mode
            if mode is Mode.CUT:
                link.cut()
            await asyncio.sleep(seconds)
            link.mode = Mode.PASS

        return happen

    def _queue_fault(self, mode: Mode) -> Callable[[float], Awaitable[None]]:
        """For so long a link of ours stands in the place of Valkey's socket."""

        async def happen(seconds: float) -> None:
            socket = self._place.valkey_socket
            real = socket.with_name("valkey.real")
            if not socket.exists() or not self._place.pids("valkey"):
                raise NotNow
            socket.rename(real)
            link = Link(socket, real, self._random)
            await link.start()
            link.mode = mode
            try:
                with suppress(RedisError, OSError):
                    await asyncio.to_thread(self._break_connections, real)
                await asyncio.sleep(seconds)
            finally:
                await link.stop()
                if real.exists():
                    real.replace(socket)

        return happen

    def _break_connections(self, socket: Path) -> None:
        redis = self._place.redis(socket)
        try:
            redis.client_kill_filter(_type="normal", skipme=True)
        finally:
            redis.close()

    async def _fill_disk(self, seconds: float) -> None:
        """While Valkey does not answer, so that the disk is needed."""
        ballast = self._place.installation.data_dir / "spool" / "ballast"
        with _stopped([self._one_of("valkey")]):
            try:
                with suppress(OSError), ballast.open("wb", buffering=0) as file:
                    while file.write(bytes(1 << 16)):
                        pass
                await asyncio.sleep(seconds)
            finally:
                ballast.unlink(missing_ok=True)

    async def _lock_sqlite(self, seconds: float) -> None:
        def lock() -> None:
            other = sqlite3.connect(self._place.ledger_file, timeout=10, isolation_level=None)
            try:
                other.execute("BEGIN IMMEDIATE")
                time.sleep(seconds)
                other.execute("ROLLBACK")
            except sqlite3.OperationalError:
                raise NotNow from None
            finally:
                other.close()

        await asyncio.to_thread(lock)

    async def _lock_postgres(self, seconds: float) -> None:
        """As long as a careless migration or a dump would."""

        def lock() -> None:
            assert self._place.postgres is not None
            engine = create_engine(self._place.postgres.url)
            try:
                with engine.begin() as other:
                    other.execute(text("SET LOCAL lock_timeout = '10s'"))
                    other.execute(text("LOCK TABLE notifications, payments IN ACCESS EXCLUSIVE MODE"))
                    time.sleep(seconds)
            except DBAPIError:
                raise NotNow from None
            finally:
                engine.dispose()

        await asyncio.to_thread(lock)

    async def _kill_backend(self) -> None:
        assert self._place.postgres is not None
        backends = self._place.postgres.backends()
        if not backends:
            raise NotNow
        os.kill(self._random.choice(backends), signal.SIGKILL)
        # The server throws out everybody and recovers.
        await asyncio.sleep(2.0)

    async def _kill_postgres(self, seconds: float) -> None:
        assert self._place.postgres is not None
        self._place.postgres.kill()
        await asyncio.sleep(seconds)
        await asyncio.to_thread(self._place.postgres.start)

    async def _restart_postgres(self, seconds: float) -> None:
        assert self._place.postgres is not None
        await asyncio.to_thread(self._place.postgres.stop, self._random.choice(("fast", "immediate")))
        await asyncio.sleep(seconds)
        await asyncio.to_thread(self._place.postgres.start)

    async def _insist(self, work: Callable[[], None]) -> None:
        for _ in range(100):
            try:
                await asyncio.to_thread(work)
                return
            except (RedisError, OSError):
                await asyncio.sleep(0.2)
        raise AssertionError("a fault could not be taken back")


@contextmanager
def _stopped(pids: list[int]) -> Iterator[None]:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
