"""The RQ worker: takes batches until it is told to stop, and gives back what a killed worker left behind.

RQ's own intervals are minutes and its maintenance lock 15 of them; a payment that waits so long is a customer who is
told that they did not pay. All of it is set to seconds here, by overriding what RQ calls.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import time
from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from redis import Redis
from redis.exceptions import RedisError
from rq import Queue, SimpleWorker
from rq.exceptions import StopRequested
from rq.executions import Execution
from rq.job import Job, JobStatus
from rq.registry import StartedJobRegistry
from rq.results import Result
from rq.timeouts import JobTimeoutException, UnixSignalDeathPenalty
from rq.utils import now
from rq.worker import WorkerStatus
from rq.worker_registration import clean_worker_registry, register

from receiver import logs, metrics
from receiver.connection import QUEUE, Serializer, connect
from receiver.job import JOB_TIMEOUT, RECORD_BATCH, RECORD_EXPECTATION, RECORD_RETURNS, RESULT_TTL
from receiver.settings import Settings
from receiver.signing import Seal
from workers import jobs
from workers.alarms.watch import Watch
from workers.audit import Audit
from workers.exposition import show_figures
from workers.ledger.ledger import Ledger
from workers.ledger.revision import open_revision
from workers.maintenance import (
    HEARTBEAT,
    MAINTENANCE_EVERY,
    enqueue_due,
    locked,
    put_back_abandoned,
    put_back_stuck,
)
from workers.pipeline import Pipeline
from workers.replay_runner import RUN_REPLAY, ReplayRunner, wake_stalled
from workers.retention import Daily

if TYPE_CHECKING:
    from receiver.tracing import Tracing

log = logs.get("workers.runner")

SIGN_EVERY = 1.0
TURN_JOBS = 16
TURN_BYTES = 256 << 10
"""At most so many batches and expectations, and about so many bytes in them, are recorded in one transaction."""
LOOK_FOR_STALLED_EVERY = 5.0
WAIT_FOR_REDIS = 1.0

_FUNCTIONS = {
    RECORD_BATCH: jobs.record_batch,
    RECORD_EXPECTATION: jobs.record_expectation,
    RECORD_RETURNS: jobs.record_returns,
    RUN_REPLAY: jobs.run_replay,
}
_TOGETHER = frozenset({RECORD_BATCH, RECORD_EXPECTATION})
# What RQ would import and run, or send somewhere, when a job ends.
_ENDINGS = (b"success_callback_name", b"failure_callback_name", b"stopped_callback_name", b"webhooks")


class BatchTooSlow(BaseException):
    """The time of a job is over. It interrupts whatever runs, so it is no `Exception`: nothing may take it for a fault
    of a notification, and SQLAlchemy drops a connection that it interrupts."""


class Alarm(UnixSignalDeathPenalty):
    def handle_death_penalty(self, signum: int, frame: Any) -> None:
        raise BatchTooSlow(f"The job took longer than {self._timeout} s.")


class BatchJob(Job):
    """A job that can do nothing but what `workers.jobs` offers. RQ imports and calls whatever a job names, so whoever
    may write into Redis could run anything in the process that writes the ledger; the seal protects its argument only.
    """

    @property
    def func(self) -> Any:
        return _FUNCTIONS.get(self.func_name or "")

    def restore(self, raw_data: Any) -> Any:
        return super().restore({name: value for name, value in raw_data.items() if name not in _ENDINGS})


class BatchWorker(SimpleWorker):
    """A worker without forks: a fork per job costs more than the job."""

    job_class = BatchJob
    death_penalty_class = Alarm
    log_result_lifespan = False
    exponential_backoff_factor = 1.0
    # The blocking dequeue lasts worker_ttl - 15 s, and nothing else happens in it.
    worker_ttl = 16

    def __init__(self, redis: Redis, ledger: Ledger, upkeep: Callable[[Redis, str], None] | None = None) -> None:
        """`upkeep` is called every few seconds between two batches, with the worker's name."""
        serializer: Any = Serializer
        super().__init__(
            [QUEUE],
            # `rq info` and the heartbeats show it. A pid alone comes again, in a container always.
            name=f"work-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}",
            connection=redis,
            serializer=serializer,
            worker_ttl=self.worker_ttl,
            maintenance_interval=MAINTENANCE_EVERY,
            default_result_ttl=1,
            log_job_description=False,
        )
        self._ledger = ledger
        self._upkeep = upkeep
        self._next_sign = 0.0
        self._next_look = 0.0
        self._next_maintenance = 0.0

    def stop(self) -> None:
        """Asks to stop when the batch in hand is done; may be called by a signal."""
        self._stop_requested = True

    @property
    def should_run_maintenance_tasks(self) -> bool:
        """RQ asks before each wait for a batch, when there is none in hand: the moment to stop."""
        self._stop_if_asked()
        # RQ asks the clock, which may have been set back since.
        return time.monotonic() >= self._next_maintenance

    def heartbeat(self, timeout: int | None = None, pipeline: Any = None) -> None:
        """At most one a second by itself: each is an fsync, and RQ gives three for a job. RQ would also let the worker
        expire with the job's heartbeat, and be counted as dead in a longer job."""
        if pipeline is not None:
            super().heartbeat(None, pipeline)
            return
        if time.monotonic() < self._next_sign:
            return
        try:
            with self.connection.pipeline() as signs:
                super().heartbeat(None, signs)
                signs.hset(self.key, "state", self.get_state())
                signs.execute()
        except (RedisError, OSError):
            self._stop_if_asked()
            raise
        self._next_sign = time.monotonic() + SIGN_EVERY

    def set_state(self, state: str, pipeline: Any = None) -> None:
        """Told with the next heartbeat: it changes twice for each job."""
        self._state = state

    def check_for_suspension(self, burst: bool) -> None:
        if time.monotonic() >= self._next_sign:
            super().check_for_suspension(burst)

    def execute_job(self, job: Job, queue: Queue) -> None:
        """Behind a queue, several jobs in one turn: a transaction and RQ's books cost as much for few notifications
        as for many. What fails together is tried one by one, as RQ does it."""
        turn = [job, *self._company(job, queue)]
        executions = self._prepare(turn)
        if len(turn) == 1 or not self._perform_together(turn, executions):
            self._perform_each(turn, executions, queue)
        self.set_state(WorkerStatus.IDLE)

    def _company(self, first: Job, queue: Queue) -> list[Job]:
        """The jobs behind `first` that fit into its turn, which are moved as RQ moves a job that it takes: one that
        is lost in between is found by the maintenance."""
        room = min(TURN_JOBS, TURN_BYTES // max(len(first.data), 1)) if _has_company(first) else 0
        if room < 2:
            return []
        with self.connection.pipeline(transaction=False) as pipeline:
            for _ in range(room - 1):
                pipeline.lmove(queue.key, queue.intermediate_queue_key)
            ids = [moved.decode() for moved in pipeline.execute() if moved]
        company = [job for job in takewhile(_has_company, self._readable(ids)) if job is not None]
        if left := ids[len(company) :]:
            with self.connection.pipeline() as pipeline:
                for job_id in reversed(left):
                    pipeline.lpush(queue.key, job_id)
                    pipeline.lrem(queue.intermediate_queue_key, 1, job_id)
                pipeline.execute()
        return company

    def _readable(self, ids: Sequence[str]) -> Sequence[Job | None]:
        """None of them when one cannot be read: taken alone, it comes to the one who looks after such jobs."""
        try:
            return self.job_class.fetch_many(ids, self.connection, self.serializer) if ids else []
        except (RedisError, OSError):
            raise
        except Exception:
            return []

    def _perform_together(self, turn: Sequence[Job], executions: Sequence[Execution]) -> bool:
        started_at = now()
        try:
            with Alarm(JOB_TIMEOUT, JobTimeoutException):  # type: ignore[no-untyped-call]
                jobs.record_together(_of(turn, RECORD_BATCH), _of(turn, RECORD_EXPECTATION), self.connection)
        except (Exception, BatchTooSlow) as error:
            log.warning("turn_split", jobs=len(turn), error=type(error).__name__)
            return False
        ended_at = now()
        with self.connection.pipeline() as pipeline:
            for job, execution in zip(turn, executions, strict=True):
                job.started_at, job.ended_at = started_at, ended_at
                self._finish(job, execution, pipeline)
            pipeline.execute()
        return True

    def _perform_each(self, turn: Sequence[Job], executions: Sequence[Execution], queue: Queue) -> None:
        for position, (job, execution) in enumerate(zip(turn, executions, strict=True)):
            if position and jobs.context is not None and jobs.context.ledger_away:
                # Those behind it would find the ledger away as well: they wait where they were.
                self._put_back(turn[position:], executions[position:], queue)
                break
            self.perform_job(job, queue, execution)

    def _put_back(self, turn: Sequence[Job], executions: Sequence[Execution], queue: Queue) -> None:
        with self.connection.pipeline() as pipeline:
            for job, execution in reversed(list(zip(turn, executions, strict=True))):
                self.cleanup_execution(job, pipeline=pipeline, execution=execution)
                queue._enqueue_job(job, pipeline=pipeline, at_front=True)
            pipeline.execute()

    def _prepare(self, turn: Sequence[Job]) -> list[Execution]:
        """All that is written before the work, in one round trip; RQ makes two of it for each job."""
        executions = []
        with self.connection.pipeline() as pipeline:
            for job in turn:
                execution = Execution.create(job, HEARTBEAT, pipeline, worker_name=self.name)
                executions.append(execution)
                self.executions[execution.id] = execution
                job.heartbeat(now(), HEARTBEAT, pipeline=pipeline)
                job.prepare_for_execution(self.name, pipeline=pipeline)
                pipeline.persist(job.key)
                pipeline.lrem(self.queues[0].intermediate_queue_key, 1, job.id)
            pipeline.execute()
        self.set_state(WorkerStatus.BUSY)
        return executions

    def prepare_job_execution(self, job: Job, remove_from_intermediate_queue: bool = False) -> None:
        """Done with `_prepare`."""

    def handle_execution_ended(self, job: Job, queue: Queue, heartbeat_ttl: int) -> None:
        job.ended_at = now()

    def handle_job_success(
        self, job: Job, queue: Queue, started_job_registry: StartedJobRegistry, execution: Execution
    ) -> None:
        with self.connection.pipeline() as pipeline:
            self._finish(job, execution, pipeline)
            pipeline.execute()

    def _finish(self, job: Job, execution: Execution, pipeline: Any) -> None:
        """All that is written after the work, for one round trip. No job of ours has dependents or repeats."""
        assert job.started_at is not None
        assert job.ended_at is not None
        self.increment_successful_job_count(pipeline=pipeline)
        self.increment_total_working_time(job.ended_at - job.started_at, pipeline)
        pipeline.hset(job.key, "status", JobStatus.FINISHED)
        # Not 0: RQ would then look for the executions of the job, and stumble over those of a killed worker.
        job.cleanup(RESULT_TTL, pipeline=pipeline, remove_from_queue=False)
        # Of earlier tries that found the ledger away: RQ would keep it as long as a failure, which is for ever.
        pipeline.delete(Result.get_key(job.id))  # type: ignore[no-untyped-call]
        self.cleanup_execution(job, pipeline=pipeline, execution=execution)

    def get_heartbeat_ttl(self, job: Any, working_time: float = 0.0) -> int:
        return HEARTBEAT

    def procline(self, message: str) -> None:
        """RQ renames the process for each job; `ps` shows the command that was started, which says more."""

    def subscribe(self) -> None:
        """No remote commands: they would be a thread and a connection more, that outlive a lost Redis."""

    def _install_signal_handlers(self) -> None:
        """The runner's own handlers stay: RQ's raise out of whatever a signal interrupts."""

    def run_maintenance_tasks(self) -> None:
        """One worker at a time; the lock ends by itself, as its holder may be killed."""
        self._register_again()
        if locked(self.connection, self.name):
            queue = self.queues[0]
            put_back_abandoned(queue)
            put_back_stuck(queue)
            enqueue_due(queue)
            queue.finished_job_registry.cleanup()
            clean_worker_registry(queue)
            self._wake_stalled(queue)
        if self._upkeep is not None:
            self._upkeep(self.connection, self.name)
        self._next_maintenance = time.monotonic() + MAINTENANCE_EVERY

    def _wake_stalled(self, queue: Queue) -> None:
        here = jobs.context
        if here is None or here.ledger_away or here.replays is None or time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + LOOK_FOR_STALLED_EVERY
        assert here.replay_seal is not None
        wake_stalled(queue, here.replays, here.replay_seal)

    def dequeue_job_and_maintain_ttl(self, timeout: int | None, max_idle_time: int | None = None) -> Any:
        """While the ledger is away no further batch is taken: it could only be put back."""
        while jobs.context is not None and jobs.context.ledger_away:
            if self._ledger.answers():
                jobs.context.ledger_away = False
                metrics.LEDGER_UP.set(1)
                log.info("ledger_back")
                break
            self._stop_if_asked()
            self.heartbeat()
            time.sleep(1)
        return super().dequeue_job_and_maintain_ttl(timeout, max_idle_time)

    def _register_again(self) -> None:
        """A worker whose key expired while Redis was away would work on without being counted."""
        pipeline = self.connection.pipeline()
        pipeline.hset(self.key, mapping=self.serialize())
        register(self, pipeline)
        self.heartbeat(pipeline=pipeline)
        pipeline.execute()

    def _stop_if_asked(self) -> None:
        if self._stop_requested:
            raise StopRequested


def _of(turn: Sequence[Job], name: str) -> list[bytes]:
    """The sealed messages of those jobs that are to do this."""
    return [job.args[0] for job in turn if job.func_name == name]


def _has_company(job: Job | None) -> bool:
    """Whether it may be done together with others, in whatever order."""
    try:
        return job is not None and job.func_name in _TOGETHER and len(job.args) == 1
    except Exception:
        # Taken alone, it comes to the one who looks after jobs that cannot be read.
        return False


def work(settings: Settings) -> None:
    """Works until SIGTERM or SIGINT; the batch in hand is finished first."""
    ledger = open_revision(settings)
    keys = settings.security.seal_keys
    tracing, pipeline = _with_traces(settings, ledger, Seal(keys, "batch"))
    replay_seal = Seal(keys, "replay")
    replays = ReplayRunner(ledger, pipeline, Audit(keys), settings.replay.per_second)
    jobs.context = jobs.Context(pipeline, Seal(keys, "expectation"), Seal(keys, "returns"), replays, replay_seal)
    metrics.begin(settings.endpoint)
    metrics.LEDGER_UP.set(1)
    show_figures(settings)
    daily = Daily(settings, ledger)
    watch = Watch(settings) if settings.alarms.workers else None
    stopping = False
    worker: BatchWorker | None = None

    def stop(number: int, frame: Any) -> None:
        nonlocal stopping
        stopping = True
        if worker is not None:
            worker.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    if watch is not None:
        watch.start()
    while not stopping:
        redis = connect(settings, deadline=15)
        try:
            worker = BatchWorker(redis, ledger, daily)
            if stopping:
                break
            log.info("worker_started", worker=worker.name)
            worker.work(logging_level="WARNING")
        except (RedisError, OSError) as error:
            log.warning("redis_away", error=type(error).__name__)
        finally:
            redis.close()
        if not stopping:
            # RQ leaves its loop for a signal, and also for errors that it does not expect.
            time.sleep(WAIT_FOR_REDIS)
    if watch is not None:
        watch.stop()
    log.info("worker_stopped")
    if tracing:
        tracing.stop()
    ledger.engine.dispose()


def _with_traces(settings: Settings, ledger: Ledger, seal: Seal) -> tuple[Tracing | None, Pipeline]:
    """Where spans go, and the pipeline that leaves them. Nothing of the extra is loaded where it is not asked for."""
    if settings.tracing.endpoint is None:
        return None, Pipeline(settings.endpoints, ledger, seal)
    from receiver.tracing import Tracing
    from workers.tracing import TracedPipeline

    tracing = Tracing(settings, "work")
    return tracing, TracedPipeline(settings.endpoints, ledger, seal, tracing)
