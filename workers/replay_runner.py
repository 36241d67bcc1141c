"""The worker's side of a replay: a chunk at a time, and live notifications first.

Everything that matters is in the ledger. The job in the queue is only the word to go on, so that it does no harm to
lose it (a worker enqueues it again) or to have it twice: the notifications of a chunk are marked as done in the
transaction that does them, behind a lock on their replay. After a chunk the job ends when anything live waits, and goes
behind it.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from redis import Redis
from rq import Queue
from sqlalchemy import Connection, select, update

from receiver import logs, metrics
from receiver.connection import QUEUE, Serializer
from receiver.errors import LedgerAway
from receiver.job import enqueue
from receiver.notification import new_id, now_us
from receiver.signing import Seal
from workers.audit import Action, Actor, Audit
from workers.ledger import queries
from workers.ledger.database import away_when_it_fails
from workers.ledger.documents import update_each
from workers.ledger.ledger import Recorded
from workers.ledger.replays import State, locked, stalled
from workers.ledger.revision import Revision
from workers.ledger.rows import cleaned
from workers.ledger.tables import replay_items, replays
from workers.pipeline import Pipeline, report
from workers.rerun import CHUNK, Outcome, Result, counted, rerun

log = logs.get("workers.replay_runner")

RUN_REPLAY = "workers.jobs.run_replay"
SMALLEST_CHUNK = 50
LARGEST_CHUNK = 1000
CHUNK_SECONDS = 0.2
"""What a chunk should take at most: live notifications wait so long."""
SLICE_SECONDS = 1.0
"""How long a job goes on while nothing live waits."""
STALLED_AFTER = 15.0

_POSTBACK = Actor("postback", "worker")
_JSON = msgspec.json.Encoder()


class ReplayRunner:
    """Does replays with `pipeline`, `per_second` notifications at most."""

    def __init__(
        self,
        ledger: Revision,
        pipeline: Pipeline,
        audit: Audit,
        per_second: int,
    ) -> None:
        self._ledger = ledger
        self._pipeline = pipeline
        self._audit = audit
        self._per_second = per_second
        self._largest = max(1, min(LARGEST_CHUNK, per_second // 4))
        self._size = min(CHUNK, self._largest)
        self._next = 0.0

    def run(self, replay_id: str, live_waits: Callable[[], bool]) -> bool:
        """Goes on with a replay until something live waits, at most for `SLICE_SECONDS`; whether there is more to do.

        Raises `LedgerAway`.
        """
        ends = time.monotonic() + SLICE_SECONDS
        while self._allowed(ends, live_waits):
            began = time.monotonic()
            count = self._do_chunk(replay_id, self._size)
            if not count:
                return False
            now = time.monotonic()
            self._next = max(self._next, began) + count / self._per_second
            if now - began > CHUNK_SECONDS:
                # What a chunk costs by itself would count too much in smaller ones.
                self._size = max(min(SMALLEST_CHUNK, self._largest), self._size // 2)
            elif now - began < CHUNK_SECONDS / 4:
                self._size = min(self._size * 2, self._largest)
            if now > ends or live_waits():
                break
        return True

    def _allowed(self, ends: float, live_waits: Callable[[], bool]) -> bool:
        """Waits for the rate; False when something live, or the end of the slice, comes before that."""
        while (early := self._next - time.monotonic()) > 0:
            if live_waits() or time.monotonic() > ends:
                return False
            time.sleep(min(early, 0.02))
        return True

    def _do_chunk(self, replay_id: str, size: int) -> int:
        """How many were done; 0 when there is nothing more to do, or not at the moment."""
        ids, failed = self._try_chunk(replay_id, size, None)
        if failed is not None:
            log.error("replay_split", replay=replay_id, notifications=len(ids), exc_info=failed)
            # One that cannot be stored does not hold up the others.
            for each in ids:
                _, alone = self._try_chunk(replay_id, 1, [each])
                if alone is not None:
                    self._give_up(replay_id, each, alone)
        return len(ids)

    def _try_chunk(
        self, replay_id: str, size: int, only: Sequence[str] | None
    ) -> tuple[Sequence[str], BaseException | None]:
        ids: Sequence[str] = []
        recorded, results = Recorded(), list[Result]()
        try:
            with away_when_it_fails(), self._ledger.engine.begin() as connection:
                row = locked(connection, replay_id)
                if row is None or row.state != State.RUNNING:
                    return [], None
                ids = _waiting(connection, replay_id, size, only)
                if not ids:
                    if only is None:
                        self._end(connection, row)
                    return [], None
                results, recorded = rerun(connection, self._ledger, self._pipeline, ids)
                _note(connection, row, results)
        except LedgerAway:
            raise
        except Exception as error:
            return ids, error
        report(recorded)
        for result in results:
            metrics.REPLAYED.labels(result.provider or "", result.facility or "", result.outcome).inc()
        return ids, None

    def _give_up(self, replay_id: str, notification_id: str, error: BaseException) -> None:
        why = "".join(traceback.format_exception_only(error)).strip()[:500]
        result = Result(notification_id=notification_id, outcome=Outcome.NOT_RECORDED, why=cleaned(why))
        log.error("replay_not_recorded", replay=replay_id, id=notification_id, exc_info=error)
        with away_when_it_fails(), self._ledger.engine.begin() as connection:
            row = locked(connection, replay_id)
            if row is not None and _waiting(connection, replay_id, 1, [notification_id]):
                _note(connection, row, [result])

    def _end(self, connection: Connection, row: Any) -> None:
        now = datetime.now(UTC)
        values = {"state": State.DONE, "ended_at": now, "changed_at": now}
        connection.execute(update(replays).where(replays.c.id == row.id).values(values))
        outcomes = msgspec.json.decode(row.outcomes)
        self._audit.add(connection, _POSTBACK, Action.REPLAY_ENDED, row.id, row.reason, outcomes)

    def stalled(self) -> list[str]:
        """Running replays that nobody works at: the word to go on was lost, or waits. Raises `LedgerAway`."""
        with queries.reading(self._ledger.engine) as connection:
            return stalled(connection, datetime.now(UTC) - timedelta(seconds=STALLED_AFTER))


def waker(redis: Redis, seal: Seal) -> Callable[[str], None]:
    """Puts the sealed word to go on with a replay into the queue; `seal` is that of the purpose ``replay``."""
    queue = Queue(QUEUE, connection=redis, serializer=Serializer)

    def wake(replay_id: str) -> None:
        pipeline = redis.pipeline()
        enqueue(queue, pipeline, RUN_REPLAY, job_id(replay_id), seal.seal(replay_id.encode()), f"replay {replay_id}")
        pipeline.execute()

    return wake


def wake_stalled(queue: Queue, runner: ReplayRunner, seal: Seal) -> None:
    """Puts replays back into the queue that run by the ledger, and that no job speaks of."""
    try:
        found = runner.stalled()
    except LedgerAway:
        return
    if not found:
        return
    jobs = [*queue.get_job_ids(), *queue.intermediate_queue.get_job_ids()]
    jobs += [*queue.started_job_registry.get_job_ids(), *queue.scheduled_job_registry.get_job_ids()]
    for replay_id in sorted(set(found) - {replay_of(job) for job in jobs}):
        log.warning("replay_woken", replay=replay_id)
        waker(queue.connection, seal)(replay_id)


def job_id(replay_id: str) -> str:
    return f"replay_{replay_id}_{new_id(now_us())}"


def replay_of(job: str) -> str | None:
    """The replay that a job is for; the inverse of `job_id`."""
    kind, _, rest = job.partition("_")
    return rest.partition("_")[0] if kind == "replay" else None


def _waiting(connection: Connection, replay_id: str, size: int, only: Sequence[str] | None) -> Sequence[str]:
    columns = replay_items.c
    query = select(columns.notification_id).where(columns.replay_id == replay_id, columns.outcome.is_(None))
    if only is not None:
        query = query.where(columns.notification_id.in_(only))
    return connection.scalars(query.order_by(columns.notification_id).limit(size)).all()


def _note(connection: Connection, row: Any, results: Sequence[Result]) -> None:
    """Marks what was done, in the same transaction that did it."""
    now = datetime.now(UTC)
    done = [
        {
            "replay_id": row.id,
            "notification_id": each.notification_id,
            "outcome": each.outcome.value,
            "result": _encoded(each),
            "done_at": now,
        }
        for each in results
    ]
    update_each(connection, replay_items, done)
    outcomes = msgspec.json.decode(row.outcomes, type=dict[str, int])
    for outcome, count in counted(results).items():
        outcomes[outcome] = outcomes.get(outcome, 0) + count
    values = {"done": row.done + len(results), "outcomes": _JSON.encode(outcomes).decode(), "changed_at": now}
    connection.execute(update(replays).where(replays.c.id == row.id).values(values))


def _encoded(result: Result) -> str:
    return _JSON.encode(
        {name: value for name, value in msgspec.structs.asdict(result).items() if name != "outcome"}
    ).decode()
