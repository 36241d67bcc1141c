"""The RQ worker on a real Valkey: no batch is lost, whenever a worker dies, and none is recorded twice."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import zlib
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import ExitStack
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from redis import Redis
from rq import Queue
from rq.executions import Execution
from rq.job import JobStatus
from rq.utils import current_timestamp
from sqlalchemy import Connection, Engine, event, make_url

from receiver import expected, settings
from receiver.connection import QUEUE, Serializer
from receiver.health import queue_state
from receiver.job import (
    JOB_TIMEOUT,
    KEEP_FAILED,
    RECORD_BATCH,
    RECORD_EXPECTATION,
    RECORD_RETURNS,
    RESULT_TTL,
    RETRIES,
    enqueue,
)
from receiver.notification import ENVELOPE_VERSION, BrowserReturn, Envelope, ReturnOutcome, new_id, now_us
from receiver.signing import Seal
from tests.servers import Valkey, eventually, running_postgres, running_valkey
from tests.support import EXPECTED_CASUAL, recorded, secrets
from tests.workers import material
from tests.workers.material import counted, crash, delivered, envelope, held_up, only_payment, rows, sealed, start_again
from workers import jobs, maintenance, runner
from workers.ledger import database
from workers.ledger.ledger import Ledger
from workers.ledger.tables import browser_returns, expectations, notifications

CAPTURED = delivered(recorded("checkout", "payment_captured"))
CASUAL = recorded("debitsuccess", "casual_payment")
SEALS = {
    purpose: Seal(secrets("old-seal-key", "new-seal-key"), purpose) for purpose in ("batch", "expectation", "returns")
}

on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
on_postgresql = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


def came() -> Envelope:
    """One more delivery of the same notification."""
    return msgspec.structs.replace(CAPTURED, id=envelope().id)


# -- workers in processes of their own


def work(document: dict[str, Any], folder: Path) -> None:
    """In the child: what `postback work` runs."""
    runner.work(settings.read(document, folder))


class Workers:
    """Workers on one Valkey and one ledger, each in a process of its own."""

    def __init__(self, redis_url: str, database_url: str, folder: Path) -> None:
        self._document = {
            "data_dir": str(folder),
            "queue": {"redis_url": redis_url},
            "store": {"database_url": database_url},
            "security": {"seal_keys": ["old-seal-key", "new-seal-key"]},
            "endpoint": [
                {"provider": "checkout", "facility": "main", "signature_keys": ["k"]},
                {"provider": "debitsuccess", "facility": "gym"},
            ],
        }
        self._folder = folder
        self._all: list[SpawnProcess] = []

    def start(self) -> SpawnProcess:
        process = multiprocessing.get_context("spawn").Process(target=work, args=(self._document, self._folder))
        process.start()
        self._all.append(process)
        return process

    def kill_all(self) -> None:
        for process in self._all:
            process.kill()
            process.join(10)


@pytest.fixture
def workers(redis: Redis, valkey_server: Valkey, database_url: str, tmp_path: Path) -> Iterator[Workers]:
    started = Workers(valkey_server.url, database_url, tmp_path)
    yield started
    started.kill_all()


def queue_of(redis: Redis) -> Queue:
    serializer: Any = Serializer
    return Queue(QUEUE, connection=redis, serializer=serializer, job_class=runner.BatchJob)


@pytest.fixture
def queue(redis: Redis) -> Queue:
    return queue_of(redis)


def put(queue: Queue, message: bytes, func: str = RECORD_BATCH) -> str:
    """Enqueues as the accept side does."""
    job_id = new_id(now_us())
    pipeline = queue.connection.pipeline()
    enqueue(queue, pipeline, func, job_id, message, "a test's batch")
    pipeline.execute()
    return job_id


def status(queue: Queue, job_id: str) -> JobStatus | None:
    job = queue.fetch_job(job_id)
    return job.get_status(refresh=False) if job else None


def assert_gone(queue: Queue, job_id: str) -> None:
    """The job ended well: nothing of it is left, in no registry."""
    eventually(lambda: status(queue, job_id) in (None, JobStatus.FINISHED), what="the end of the job")
    eventually(lambda: queue.fetch_job(job_id) is None, what="the removal of the job")
    registries = (queue.failed_job_registry, queue.started_job_registry, queue.scheduled_job_registry)
    eventually(lambda: all(registry.get_job_count(cleanup=False) == 0 for registry in registries))
    # Every try that found the ledger away left a result, which RQ keeps as long as a failure.
    eventually(lambda: not queue.connection.exists(f"rq:results:{job_id}"), what="the end of its results")
    assert queue.get_job_ids() == queue.intermediate_queue.get_job_ids() == []


def test_records_a_batch_and_leaves_nothing_behind(
    workers: Workers, redis: Redis, queue: Queue, engine: Engine
) -> None:
    worker = workers.start()
    for job_id in [put(queue, sealed(came(), came())) for _ in range(3)]:
        assert_gone(queue, job_id)
    assert counted(engine) == [(CAPTURED.dedupe_key, 6, 0)]
    assert only_payment(engine).state == "captured"
    # Finished jobs are forgotten; RQ alone would keep their names for ever.
    eventually(lambda: not redis.zcard(queue.finished_job_registry.key), what="the end of what is finished")
    assert list(redis.scan_iter("rq:job:*")) == list(redis.scan_iter("rq:results:*")) == []
    worker.terminate()
    worker.join(10)
    assert worker.exitcode == 0


def test_the_batches_of_a_killed_worker_are_recorded_once_by_another(
    workers: Workers, queue: Queue, engine: Engine, database_url: str
) -> None:
    first = workers.start()
    assert first.pid is not None
    assert_gone(queue, put(queue, sealed(came())))
    # Two that are there when it looks are one turn of it.
    os.kill(first.pid, signal.SIGSTOP)
    both = [put(queue, sealed(came(), came())) for _ in range(2)]
    with held_up(database_url):
        os.kill(first.pid, signal.SIGCONT)
        for job_id in both:
            eventually(lambda job_id=job_id: status(queue, job_id) == JobStatus.STARTED, what="the start of the job")  # type: ignore[misc]
        first.kill()
        first.join(10)
    killed_at = time.monotonic()
    workers.start()
    eventually(lambda: counted(engine) == [(CAPTURED.dedupe_key, 5, 0)], what="both batches")
    assert time.monotonic() - killed_at < 15
    for job_id in both:
        assert_gone(queue, job_id)
    assert counted(engine) == [(CAPTURED.dedupe_key, 5, 0)]


@on_sqlite
def test_a_worker_that_was_only_slow_does_no_harm(
    workers: Workers, queue: Queue, engine: Engine, redis: Redis, database_url: str
) -> None:
    """It stands still in the middle of a batch, is taken for dead, and ends the batch when another has done so."""
    slow = workers.start()
    assert slow.pid is not None
    with held_up(database_url):
        job_id = put(queue, sealed(came()))
        eventually(lambda: status(queue, job_id) == JobStatus.STARTED, what="the start of the job")
        os.kill(slow.pid, signal.SIGSTOP)
    workers.start()
    eventually(lambda: rows(engine, notifications), what="the batch")
    assert_gone(queue, job_id)
    os.kill(slow.pid, signal.SIGCONT)
    eventually(lambda: batches_done_by(redis, slow.pid) == 1, what="the end of the slow worker's batch")
    assert_gone(queue, job_id)
    assert counted(engine) == [(CAPTURED.dedupe_key, 1, 0)]


def batches_done_by(redis: Redis, pid: int | None) -> int:
    keys = [key for key in redis.scan_iter("rq:worker:*") if redis.type(key) == b"hash"]
    (key,) = (key for key in keys if redis.hget(key, "pid") == str(pid).encode())
    return int(redis.hget(key, "successful_job_count") or 0)


# What RQ leaves behind when a worker is killed between two of its steps.


def popped(queue: Queue, job_id: str) -> None:
    """Taken from the queue, not registered yet."""
    queue.connection.lmove(queue.key, queue.intermediate_queue.key)


def popped_and_registered(queue: Queue, job_id: str) -> None:
    """Registered as an execution, not marked as started yet: RQ's own cleanup forgets it."""
    popped(queue, job_id)
    job = queue.fetch_job(job_id)
    assert job is not None
    with queue.connection.pipeline() as pipeline:
        Execution.create(job, maintenance.HEARTBEAT, pipeline=pipeline, worker_name="dead")
        pipeline.execute()


def put_back_halfway(queue: Queue, job_id: str) -> None:
    """Marked as scheduled for another try, which RQ does before it schedules it: its own cleanup forgets it."""
    popped_and_registered(queue, job_id)
    job = queue.fetch_job(job_id)
    assert job is not None
    queue.intermediate_queue.remove(job_id)
    job.set_status(JobStatus.SCHEDULED)


@on_sqlite
@pytest.mark.parametrize("died", [popped, popped_and_registered, put_back_halfway])
def test_a_job_is_found_wherever_its_worker_died(
    workers: Workers, queue: Queue, redis: Redis, engine: Engine, died: Callable[[Queue, str], None]
) -> None:
    # The dead one also held the lock of the maintenance, and RQ's own, which lasts a quarter of an hour.
    redis.set(maintenance.MAINTENANCE_LOCK, "dead", ex=maintenance.MAINTENANCE_EVERY)
    assert queue.acquire_maintenance_lock()
    job_id = put(queue, sealed(came()))
    died(queue, job_id)
    since = time.monotonic()
    workers.start()
    eventually(lambda: rows(engine, notifications), what="the batch")
    assert time.monotonic() - since < 15
    assert_gone(queue, job_id)
    assert counted(engine) == [(CAPTURED.dedupe_key, 1, 0)]


@on_sqlite
def test_nothing_waits_until_a_clock_that_was_set_back_has_caught_up(
    workers: Workers, queue: Queue, redis: Redis, engine: Engine
) -> None:
    """What was written by the clock that was hours ahead: the maintenance's lock, when a stuck job was seen, when an
    execution ends, and when a batch that was put off is due."""
    ahead = 3 * 3600
    redis.set(maintenance.MAINTENANCE_LOCK, "dead", ex=ahead)
    stuck, started, put_off = (put(queue, sealed(came())) for _ in range(3))
    popped(queue, stuck)
    redis.set(queue.intermediate_queue.get_first_seen_key(stuck), time.time() + ahead)
    popped_and_registered(queue, started)
    queue.intermediate_queue.remove(started)
    registry = queue.started_job_registry
    entries: Any = redis.zrange(registry.key, 0, -1)
    redis.zadd(registry.key, dict.fromkeys(entries, time.time() + ahead))
    redis.lrem(queue.key, 1, put_off)
    redis.zadd(queue.scheduled_job_registry.key, {put_off: time.time() + ahead})
    workers.start()
    eventually(lambda: counted(engine) == [(CAPTURED.dedupe_key, 3, 0)], what="all three")
    for job_id in (stuck, started, put_off):
        assert_gone(queue, job_id)


def test_batches_wait_for_a_ledger_that_is_away(redis: Redis, valkey_server: Valkey, tmp_path: Path) -> None:
    queue = queue_of(redis)
    with ExitStack() as stack:
        url = stack.enter_context(running_postgres())
        database.migrate(url)
        engine = database.open_engine(url)
        stack.callback(engine.dispose)
        started = Workers(valkey_server.url, url, tmp_path)
        stack.callback(started.kill_all)
        worker = started.start()
        assert_gone(queue, put(queue, sealed(came())))
        folder = crash(engine)
        first, second = (put(queue, sealed(came())) for _ in range(2))
        eventually(lambda: status(queue, first) == JobStatus.SCHEDULED, what="another try")
        # The worker waits for the ledger before it takes the next: it could only be put back.
        eventually(lambda: status(queue, second) == JobStatus.QUEUED, what="the second batch back in the queue")
        tried = queue.fetch_job(first)
        assert tried is not None
        assert (tried.number_of_retries, tried.retries_left) == (1, RETRIES.max)
        start_again(folder)
        assert_gone(queue, first)
        assert_gone(queue, second)
        assert counted(engine) == [(CAPTURED.dedupe_key, 3, 0)]
        crash(engine)
        third = put(queue, sealed(came()))
        eventually(lambda: status(queue, third) == JobStatus.SCHEDULED, what="another try")
        worker.terminate()
        worker.join(10)
        assert worker.exitcode == 0


@on_sqlite
def test_a_worker_outlives_a_valkey_that_is_killed(database_url: str, engine: Engine, tmp_path: Path) -> None:
    with running_valkey() as server, ExitStack() as stack:
        client = server.client()
        stack.callback(client.close)
        queue = queue_of(client)
        started = Workers(server.url, database_url, tmp_path)
        stack.callback(started.kill_all)
        worker = started.start()
        assert_gone(queue, put(queue, sealed(came())))
        server.kill()
        server.start()
        assert_gone(queue, put(queue, sealed(came())))
        assert counted(engine) == [(CAPTURED.dedupe_key, 2, 0)]
        eventually(lambda: queue_state(client)["workers"] == 1)
        server.kill()
        worker.terminate()
        worker.join(10)
        assert worker.exitcode == 0


@on_sqlite
def test_sigterm_finishes_the_batch_in_hand(workers: Workers, queue: Queue, engine: Engine, database_url: str) -> None:
    worker = workers.start()
    with held_up(database_url):
        job_id = put(queue, sealed(came()))
        eventually(lambda: status(queue, job_id) == JobStatus.STARTED, what="the start of the job")
        left = put(queue, sealed(came()))
        worker.terminate()
    worker.join(10)
    assert worker.exitcode == 0
    assert counted(engine) == [(CAPTURED.dedupe_key, 1, 0)]
    assert queue.get_job_ids() == [left]
    assert queue_state(queue.connection)["workers"] == 0


# -- the same worker in this process


@pytest.fixture
def burst(redis: Redis, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> Callable[[], runner.BatchWorker]:
    """Works until the queue is empty."""
    monkeypatch.setattr(
        jobs, "context", jobs.Context(material.pipeline(ledger), SEALS["expectation"], SEALS["returns"])
    )

    def run() -> runner.BatchWorker:
        worker = runner.BatchWorker(redis, ledger)
        worker.work(burst=True, logging_level="CRITICAL")
        return worker

    return run


Burst = Callable[[], runner.BatchWorker]


@pytest.fixture
def transactions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Notifications in each transaction of the ledger."""
    seen: list[int] = []
    record = Ledger.record

    def counting(self: Ledger, batch: Any, judge: Any = None) -> Any:
        seen.append(len(batch))
        return record(self, batch, judge)

    monkeypatch.setattr(Ledger, "record", counting)
    return seen


@on_sqlite
def test_batches_that_wait_together_are_recorded_together(
    queue: Queue, engine: Engine, burst: Burst, transactions: list[int]
) -> None:
    all_jobs = [put(queue, sealed(came(), came())) for _ in range(runner.TURN_JOBS + 3)]
    worker = burst()
    assert transactions == [2 * runner.TURN_JOBS, 6]
    assert counted(engine) == [(CAPTURED.dedupe_key, 2 * len(all_jobs), 0)]
    assert int(queue.connection.hget(worker.key, "successful_job_count") or 0) in (0, len(all_jobs))
    for job_id in all_jobs:
        assert_gone(queue, job_id)


@on_sqlite
def test_expectations_share_a_turn_with_batches(
    queue: Queue, engine: Engine, burst: Burst, transactions: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    announced: list[int] = []
    expect = Ledger.expect

    def counting(self: Ledger, several: Any, judge: Any) -> Any:
        announced.append(len(several))
        return expect(self, several, judge)

    monkeypatch.setattr(Ledger, "expect", counting)
    all_jobs = []
    for number in range(4):
        all_jobs.append(put(queue, sealed(came())))
        message = msgspec.msgpack.encode(material.expected(f"R{number}"))
        all_jobs.append(put(queue, SEALS["expectation"].seal(message), RECORD_EXPECTATION))
    burst()
    assert (transactions, announced) == ([4], [4])
    assert [row.reference for row in rows(engine, expectations)] == ["R0", "R1", "R2", "R3"]

    for job_id in all_jobs:
        assert_gone(queue, job_id)


@on_sqlite
def test_one_expectation_that_cannot_be_read_does_not_hold_up_its_turn(
    queue: Queue, engine: Engine, burst: Burst
) -> None:
    message = SEALS["expectation"].seal(msgspec.msgpack.encode(material.expected("R1")))
    broken = put(queue, b"not sealed by anybody", RECORD_EXPECTATION)
    good = [put(queue, sealed(came())), put(queue, message, RECORD_EXPECTATION)]
    burst()
    assert counted(engine) == [(CAPTURED.dedupe_key, 1, 0)]
    assert [row.reference for row in rows(engine, expectations)] == ["R1"]
    assert queue.failed_job_registry.get_job_ids() == [broken]
    eventually(lambda: all(queue.fetch_job(job_id) is None for job_id in good), what="the removal of the others")


@on_sqlite
def test_a_full_batch_is_recorded_alone(queue: Queue, burst: Burst, transactions: list[int]) -> None:
    large = envelope("large", body=b"x" * runner.TURN_BYTES)
    jobs_of_both = [put(queue, sealed(large)), put(queue, sealed(came()))]
    burst()
    assert transactions == [1, 1]
    for job_id in jobs_of_both:
        assert_gone(queue, job_id)


@on_sqlite
def test_other_jobs_keep_their_place_behind_a_turn(
    queue: Queue, engine: Engine, burst: Burst, transactions: list[int]
) -> None:
    seen = BrowserReturn(
        id=new_id(now_us()),
        provider="quickstream",
        facility="acme",
        returned_at=now_us(),
        digest="a digest",
        outcome=ReturnOutcome.APPROVED,
        verified=True,
    )
    message = SEALS["returns"].seal(msgspec.msgpack.encode([seen]))
    order = [
        put(queue, sealed(came())),
        put(queue, sealed(came())),
        put(queue, message, RECORD_RETURNS),
        put(queue, sealed(came())),
    ]
    burst()
    assert transactions == [2, 1]
    assert len(rows(engine, browser_returns)) == 1
    for job_id in order:
        assert_gone(queue, job_id)


@on_sqlite
def test_one_batch_that_cannot_be_opened_does_not_hold_up_its_turn(queue: Queue, engine: Engine, burst: Burst) -> None:
    good = [put(queue, sealed(came())) for _ in range(2)]
    broken = put(queue, b"not sealed by anybody")
    good += [put(queue, sealed(came())) for _ in range(2)]
    burst()
    assert counted(engine) == [(CAPTURED.dedupe_key, 4, 0)]
    assert queue.failed_job_registry.get_job_ids() == [broken]
    assert queue.get_job_ids() == queue.intermediate_queue.get_job_ids() == []
    eventually(lambda: all(queue.fetch_job(job_id) is None for job_id in good), what="the removal of the others")


@on_sqlite
def test_a_broken_seal_is_set_aside_for_ever(queue: Queue, redis: Redis, engine: Engine, burst: Burst) -> None:
    broken = put(queue, Seal(secrets("other"), "batch").seal(SEALS["batch"].open(sealed(came()))))
    good = put(queue, sealed(came()))
    burst()
    burst()
    job = queue.fetch_job(broken)
    assert job is not None
    assert (job.get_status(refresh=False), job.retries_left, job.number_of_retries) == (JobStatus.FAILED, 0, None)
    assert queue.failed_job_registry.get_job_ids() == [broken]
    assert redis.zscore(queue.failed_job_registry.key, broken) == KEEP_FAILED == -1
    assert redis.ttl(job.key) == -1
    result = job.latest_result()
    assert result is not None
    assert "BatchError: The message was not sealed by this installation." in (result.exc_string or "")
    assert redis.ttl(f"rq:results:{broken}") == -1
    assert counted(engine) == [(CAPTURED.dedupe_key, 1, 0)]
    eventually(lambda: queue.fetch_job(good) is None)


@on_sqlite
@pytest.mark.parametrize("message", [b"", b"x", SEALS["expectation"].seal(b"\xc1"), sealed(came())])
def test_an_expectation_that_is_none_is_set_aside(queue: Queue, burst: Burst, message: bytes) -> None:
    job_id = put(queue, message, "workers.jobs.record_expectation")
    burst()
    assert status(queue, job_id) == JobStatus.FAILED


@on_sqlite
def test_what_customers_saw_is_noted_and_what_is_no_return_is_set_aside(
    queue: Queue, engine: Engine, burst: Burst
) -> None:
    saw = BrowserReturn(
        id=envelope().id,
        provider="quickstream",
        facility="acme",
        returned_at=now_us(),
        digest="d",
        verified=True,
        outcome=ReturnOutcome.APPROVED,
    )
    broken = [put(queue, message, RECORD_RETURNS) for message in (SEALS["returns"].seal(b"\xc1"), sealed(came()))]
    good = put(queue, SEALS["returns"].seal(msgspec.msgpack.encode([saw])), RECORD_RETURNS)
    burst()
    assert [row.outcome for row in rows(engine, browser_returns)] == ["approved"]
    assert [status(queue, job_id) for job_id in broken] == [JobStatus.FAILED] * 2
    eventually(lambda: queue.fetch_job(good) is None)


@on_sqlite
def test_a_newer_envelope_waits(queue: Queue, redis: Redis, engine: Engine, burst: Burst) -> None:
    newer = SEALS["batch"].seal(msgspec.msgpack.encode((ENVELOPE_VERSION + 1, "?")))
    job_id = put(queue, newer)
    burst()
    assert status(queue, job_id) == JobStatus.SCHEDULED
    due = redis.zscore(queue.scheduled_job_registry.key, job_id)
    assert isinstance(due, float)
    assert 55 < due - time.time() <= 60
    assert rows(engine, notifications) == []


@on_sqlite
def test_waits_longer_each_time_that_the_ledger_is_away(
    queue: Queue, redis: Redis, ledger: Ledger, burst: Burst, database_url: str
) -> None:
    ledger.engine.dispose()
    Path(make_url(database_url).database or "").unlink()
    job_id = put(queue, sealed(came()))
    for pause in (1, 2, 4, 8, 15, 30, 30, 30):
        burst()
        due = redis.zscore(queue.scheduled_job_registry.key, job_id)
        assert isinstance(due, float)
        assert abs(due - current_timestamp() - pause) <= 1
        redis.zadd(queue.scheduled_job_registry.key, {job_id: 1})
        redis.delete(maintenance.MAINTENANCE_LOCK)
    database.migrate(database_url)
    burst()
    assert_gone(queue, job_id)


@on_postgresql
@pytest.mark.parametrize(("code", "name"), [("40P01", "DeadlockDetected"), ("40001", "SerializationFailure")])
def test_a_transaction_that_the_database_breaks_off_is_done_again(
    queue: Queue, redis: Redis, ledger: Ledger, burst: Burst, monkeypatch: pytest.MonkeyPatch, code: str, name: str
) -> None:
    """PostgreSQL itself says so, once, in the middle of the batch."""
    engine, broken = ledger.engine, 0
    said: list[str] = []
    monkeypatch.setattr(jobs.log, "warning", lambda event, **fields: said.append(f"{event} {fields.get('error')}"))

    @event.listens_for(engine, "before_cursor_execute")
    def break_off(connection: Connection, cursor: Any, statement: str, *rest: Any) -> None:
        nonlocal broken
        if "INSERT INTO payments" in statement and not broken:
            broken += 1
            cursor.execute(f"DO $$ BEGIN RAISE EXCEPTION 'broken off' USING ERRCODE = '{code}'; END $$")

    job_id = put(queue, sealed(came(), came()))
    burst()
    assert (broken, rows(engine, notifications)) == (1, []), "nothing of it was written"
    assert said == [f"ledger_away {name}: broken off"]
    assert queue.scheduled_job_registry.get_job_ids() == [job_id]
    redis.zadd(queue.scheduled_job_registry.key, {job_id: 1})
    redis.delete(maintenance.MAINTENANCE_LOCK)
    burst()
    assert_gone(queue, job_id)
    assert counted(engine) == [(CAPTURED.dedupe_key, 2, 0)]
    assert queue.failed_job_registry.get_job_ids() == []


@on_sqlite
def test_a_fault_of_ours_is_tried_again_by_rq(queue: Queue, engine: Engine, burst: Burst) -> None:
    """Nothing of a notification can be stored, not even that it failed: the others are, and the batch stays."""
    job_id = put(queue, sealed(msgspec.structs.replace(came(), dedupe_key="x", received_at=2**62), came()))
    burst()
    job = queue.fetch_job(job_id)
    assert job is not None
    assert (job.get_status(refresh=False), job.retries_left) == (JobStatus.SCHEDULED, RETRIES.max - 1)
    assert counted(engine) == [(CAPTURED.dedupe_key, 1, 0)]


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_batch_that_takes_too_long_is_interrupted_and_tried_again(
    queue: Queue, engine: Engine, burst: Burst, database_url: str, logged: list[MutableMapping[str, Any]]
) -> None:
    """In the middle of a statement: neither a fault of a notification, nor a ledger that is away."""
    message = sealed(came(), came())
    data = Queue.prepare_data(RECORD_BATCH, (message,), timeout=1, result_ttl=RESULT_TTL, retry=RETRIES, job_id="slow")
    queue.enqueue_many([data])
    with held_up(database_url):
        burst()
    assert status(queue, "slow") == JobStatus.SCHEDULED
    assert jobs.context is not None
    assert not jobs.context.ledger_away
    assert logged == []
    assert rows(engine, notifications) == []
    queue.connection.zadd(queue.scheduled_job_registry.key, {"slow": 1})
    queue.connection.delete(maintenance.MAINTENANCE_LOCK)
    burst()
    assert_gone(queue, "slow")
    assert counted(engine) == [(CAPTURED.dedupe_key, 2, 0)]


@on_sqlite
def test_a_batch_lost_too_often_is_set_aside(queue: Queue, redis: Redis, burst: Burst) -> None:
    job_id = put(queue, sealed(came()))
    popped(queue, job_id)
    redis.hset(f"rq:job:{job_id}", "retries_left", 0)
    redis.zadd(queue.started_job_registry.key, {f"{job_id}:dead": 1})
    burst()
    assert status(queue, job_id) == JobStatus.FAILED
    assert queue.failed_job_registry.get_job_ids() == [job_id]
    assert redis.zcard(queue.started_job_registry.key) == 0


@on_sqlite
def test_nothing_is_put_back_that_is_over_or_gone(queue: Queue, redis: Redis, burst: Burst) -> None:
    job_id = put(queue, b"broken")
    burst()
    redis.zadd(queue.started_job_registry.key, {f"{job_id}:dead": 1, "gone:dead": 1})
    redis.rpush(queue.intermediate_queue.key, "gone")
    redis.set(queue.intermediate_queue.get_first_seen_key("gone"), 1.0)
    redis.zadd(queue.scheduled_job_registry.key, {"gone": 1})
    redis.delete(maintenance.MAINTENANCE_LOCK)
    burst()
    assert status(queue, job_id) == JobStatus.FAILED
    for key in (queue.started_job_registry.key, queue.scheduled_job_registry.key, queue.intermediate_queue.key):
        assert not redis.exists(key)


@on_sqlite
def test_a_job_that_cannot_be_read_stops_nobody(queue: Queue, redis: Redis, engine: Engine, burst: Burst) -> None:
    unreadable = [put(queue, sealed(came())) for _ in range(3)]
    for job_id in unreadable:
        redis.hset(f"rq:job:{job_id}", "status", "of another version")
    redis.delete(queue.key)
    redis.rpush(queue.key, unreadable[0])
    redis.zadd(queue.started_job_registry.key, {f"{unreadable[1]}:dead": 1})
    redis.zadd(queue.scheduled_job_registry.key, {unreadable[2]: 1})
    burst()
    redis.set(queue.intermediate_queue.get_first_seen_key(unreadable[0]), 1.0)
    redis.delete(maintenance.MAINTENANCE_LOCK)
    good = put(queue, sealed(came()))
    burst()
    assert counted(engine) == [(CAPTURED.dedupe_key, 1, 0)]
    assert sorted(queue.failed_job_registry.get_job_ids()) == sorted(unreadable)
    eventually(lambda: queue.fetch_job(good) is None)
    for key in (queue.started_job_registry.key, queue.scheduled_job_registry.key, queue.intermediate_queue.key):
        assert not redis.exists(key)


@on_sqlite
def test_an_expectation_gives_its_held_notification_free(
    queue: Queue, redis: Redis, engine: Engine, burst: Burst
) -> None:
    held = delivered(CASUAL, verified=False)
    redis.zadd(expected.held_key("debitsuccess", "gym"), {held.id: time.time(), "other": time.time()})
    put(queue, sealed(held))
    burst()
    assert redis.zcard(expected.held_key("debitsuccess", "gym")) == 2
    expected.register(redis, SEALS["expectation"], EXPECTED_CASUAL)
    burst()
    assert (only_payment(engine).amount, only_payment(engine).reference) == (1250, "MEMBER-1001")
    assert redis.zrange(expected.held_key("debitsuccess", "gym"), 0, -1) == [b"other"]


@on_sqlite
def test_runs_nothing_but_its_own_functions(
    queue: Queue, redis: Redis, burst: Burst, tmp_path: Path, engine: Engine
) -> None:
    """Whoever may write into Redis could otherwise run anything."""
    mark = tmp_path / "mark"
    data = Queue.prepare_data("os.mkdir", (str(mark),), timeout=JOB_TIMEOUT, job_id="foreign")
    queue.enqueue_many([data])
    job_id = put(queue, sealed(came()))
    for ending in ("success", "failure", "stopped"):
        redis.hset(f"rq:job:{job_id}", f"{ending}_callback_name", "os.mkdir")
    redis.hset(f"rq:job:{job_id}", "webhooks", '[{"url": "http://127.0.0.1:1/", "job_status": "finished"}]')
    job = queue.fetch_job(job_id)
    assert job is not None
    assert (job.success_callback, job.failure_callback, job.stopped_callback, job.webhooks) == (None, None, None, [])
    burst()
    assert not mark.exists()
    assert status(queue, "foreign") == JobStatus.FAILED
    assert counted(engine) == [(CAPTURED.dedupe_key, 1, 0)]


class MakesFolder:
    """Makes one when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)

    def __reduce__(self) -> Any:
        return os.mkdir, (self._path,)


@on_sqlite
def test_a_pickled_job_is_not_unpickled(queue: Queue, redis: Redis, burst: Burst, tmp_path: Path) -> None:
    """RQ's own way to write a job, which runs whatever it is given."""
    mark = tmp_path / "mark"
    rqs_own = Queue(QUEUE, connection=redis)
    rqs_own.enqueue_many([Queue.prepare_data(RECORD_BATCH, (MakesFolder(mark),), job_id="pickled")])
    assert b"mkdir" in zlib.decompress(cast(bytes, redis.hget("rq:job:pickled", "data")))
    burst()
    assert not mark.exists()
    assert status(queue, "pickled") == JobStatus.FAILED


# -- being seen


@on_sqlite
def test_a_worker_is_counted_while_it_works_and_when_its_key_was_lost(redis: Redis, ledger: Ledger) -> None:
    worker = runner.BatchWorker(redis, ledger)
    worker.register_birth()  # type: ignore[no-untyped-call]
    with redis.pipeline() as pipeline:
        # As before each job, whose own sign of life lasts seconds.
        worker.heartbeat(maintenance.HEARTBEAT, pipeline=pipeline)
        pipeline.execute()
    assert isinstance(remaining := redis.ttl(worker.key), int)
    assert remaining > JOB_TIMEOUT
    redis.delete(worker.key, "rq:workers", f"rq:workers:{QUEUE}")
    assert queue_state(redis)["workers"] == 0
    worker.run_maintenance_tasks()
    assert queue_state(redis)["workers"] == 1
    assert redis.hget(worker.key, "pid") == str(os.getpid()).encode()
    assert isinstance(remaining := redis.ttl(worker.key), int)
    assert remaining > JOB_TIMEOUT
    worker.register_death()  # type: ignore[no-untyped-call]
    assert queue_state(redis)["workers"] == 0


@on_sqlite
def test_the_maintenance_lock_ends_by_itself(redis: Redis, ledger: Ledger) -> None:
    worker = runner.BatchWorker(redis, ledger)
    worker.register_birth()  # type: ignore[no-untyped-call]
    worker.run_maintenance_tasks()
    assert isinstance(remaining := redis.pttl(maintenance.MAINTENANCE_LOCK), int)
    assert 0 < remaining <= maintenance.MAINTENANCE_EVERY * 1000


@on_sqlite
def test_listens_to_no_remote_command(redis: Redis, burst: Burst) -> None:
    before = set(threading.enumerate())
    worker = burst()
    assert worker.pubsub is None
    assert redis.pubsub_channels() == []
    assert set(threading.enumerate()) <= before


def test_the_names_in_the_queue_are_those_of_the_functions() -> None:
    assert {
        f"{function.__module__}.{function.__name__}": function
        for function in (jobs.record_batch, jobs.record_expectation, jobs.record_returns, jobs.run_replay)
    } == runner._FUNCTIONS
