"""Looking at a running installation from outside, and holding parts of it still."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from redis import Redis
from redis.exceptions import RedisError
from rq import Queue
from sqlalchemy import Row, select

from receiver import settings as configuration
from receiver.connection import QUEUE, Serializer, connect, url
from receiver.errors import LedgerAway
from receiver.job import enqueue
from receiver.signing import Seal
from tests.live.installation import Installation
from tests.servers import eventually
from workers.ledger import queries
from workers.ledger.database import open_engine
from workers.ledger.tables import notifications


class State:
    """The queue and the ledger of an installation. Uses connections of its own."""

    def __init__(self, running: Installation, database_url: str | None = None) -> None:
        self.running = running
        self.settings = configuration.load(running.config)
        self.redis = connect(self.settings, deadline=5)
        self.ledger_file = running.data_dir / "ledger.sqlite3"
        self._engine = open_engine(database_url or f"sqlite:///{self.ledger_file}")

    def close(self) -> None:
        self.redis.close()
        self._engine.dispose()

    def rows(self, receipts: list[str]) -> list[Row[Any]]:
        """Of QuickStream notifications, in the order in which they were received."""
        wanted = notifications.c.dedupe_key.in_([f"LIVE:{receipt}" for receipt in receipts])
        with queries.reading(self._engine) as connection:
            return list(connection.execute(select(notifications).where(wanted).order_by(notifications.c.id)))

    def once(self, receipts: list[str], repeated: tuple[int, ...] = (1,)) -> bool:
        """Whether each of them is there once, delivered so often, and its payment as well. Asserts what is not so."""
        try:
            return self._once(receipts, repeated)
        except LedgerAway as away:
            raise AssertionError("the ledger does not answer") from away

    def _once(self, receipts: list[str], repeated: tuple[int, ...]) -> bool:
        rows = self.rows(receipts)
        assert len(rows) == len(receipts)
        assert {row.dedupe_key for row in rows} == {f"LIVE:{receipt}" for receipt in receipts}
        assert {row.state for row in rows} == {"processed"}
        assert {row.deliveries for row in rows} <= set(repeated)
        with queries.reading(self._engine) as connection:
            for receipt in receipts:
                (payment,) = queries.show_payment(connection, receipt)
                assert (payment["state"], payment["amount"]) == ("captured", "624.00")
        return True

    @property
    def queue(self) -> Queue:
        return Queue(QUEUE, connection=self.redis, serializer=Serializer)

    def started(self) -> int:
        return int(self.redis.zcard(self.queue.started_job_registry.key))

    def failed(self) -> int:
        return int(self.redis.zcard(self.queue.failed_job_registry.key))

    def scheduled(self) -> int:
        return int(self.redis.zcard(self.queue.scheduled_job_registry.key))

    def idle(self) -> bool:
        """Whether there is no batch anywhere but among those set aside. Asserts that Redis answers."""
        queue = self.queue
        try:
            waiting = self.redis.llen(queue.key) or self.redis.llen(queue.intermediate_queue_key)
            return not (waiting or self.started() or self.scheduled())
        except (RedisError, OSError) as error:
            raise AssertionError("Redis does not answer") from error

    def push(self, func: str, job_id: str, sealed: bytes) -> None:
        """A job as an accept process makes it."""
        pipeline = self.redis.pipeline(transaction=True)
        enqueue(self.queue, pipeline, func, job_id, sealed, "pushed by hand")
        pipeline.execute()

    def forget(self, job_id: str) -> None:
        """Removes a job that would stay. RQ itself cannot delete one whose worker was killed."""
        queue = self.queue
        pipeline = self.redis.pipeline(transaction=True)
        pipeline.lrem(queue.key, 0, job_id)
        for registry in (queue.scheduled_job_registry, queue.failed_job_registry):
            pipeline.zrem(registry.key, job_id)
        pipeline.delete(f"rq:job:{job_id}", f"rq:executions:{job_id}", f"rq:results:{job_id}")
        pipeline.execute()

    def seal(self) -> Seal:
        return Seal(self.settings.security.seal_keys, "batch")

    def separate(self) -> Redis:
        """A connection that keeps what it is, whatever the server does to new ones."""
        return Redis.from_url(url(self.settings), socket_timeout=5, single_connection_client=True)

    def logged(self, event: str, **fields: Any) -> list[dict[str, Any]]:
        found = []
        for line in self.running.log.read_text().splitlines():
            if event not in line:
                continue
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if entry.get("event") == event and all(entry.get(name) == value for name, value in fields.items()):
                found.append(entry)
        return found

    def metric(self, name: str) -> float:
        """The first figure of this name and labels, as the page has it; 0 where there is none yet."""
        for line in self.running.client.get("/metrics").text.splitlines():
            if line.startswith(name + " "):
                return float(line.rpartition(" ")[2])
        return 0.0


@contextmanager
def stopped(*pids: int) -> Iterator[None]:
    """Processes that stand still, as on a machine that swaps or a disk that hangs."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        # The signal is on its way only: a thread that runs, or waits for the disk, goes on for a while.
        eventually(lambda: not any(_moves(pid) for pid in pids), what="the stop")
        yield
    finally:
        for pid in pids:
            try:
                os.kill(pid, signal.SIGCONT)
            except ProcessLookupError:
                continue


def _moves(pid: int) -> bool:
    """Whether a thread of this process is neither stopped nor at its end."""
    return any(_state(thread) not in "TtZX" for thread in Path(f"/proc/{pid}/task").glob("*/stat"))


def _state(stat: Path) -> str:
    """One letter, as proc(5) has them; X for what is gone."""
    try:
        return stat.read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


@contextmanager
def locked(ledger: Path) -> Iterator[sqlite3.Connection]:
    """A SQLite ledger into which another writer writes, for as long as it likes."""
    writer = sqlite3.connect(ledger, timeout=0, isolation_level=None)
    try:
        take(writer)
        yield writer
    finally:
        writer.close()


def take(writer: sqlite3.Connection) -> None:
    """Begins to write in the first gap that the others leave."""
    while True:
        try:
            writer.execute("BEGIN IMMEDIATE")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                raise
