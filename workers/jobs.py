"""What RQ calls, by name. A job either succeeds, asks for another try, or is set aside for a person."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
from redis import Redis
from rq import Queue, Retry, get_current_job
from rq.job import Job

from receiver import expected, logs, metrics
from receiver.connection import QUEUE, Serializer
from receiver.errors import BatchError, LedgerAway, NewerEnvelope, SealBroken
from receiver.notification import BrowserReturn, Expectation
from receiver.signing import Seal
from workers.ledger.ledger import Recorded
from workers.pipeline import Pipeline
from workers.replay_runner import ReplayRunner

log = logs.get("workers.jobs")

_FOR_EVER = 1_000_000
_BACK_OFF = (1, 2, 4, 8, 15, 30)
"""Seconds between tries while the ledger is away; the last one repeats."""
_NEWER_WAITS = 60
LONGEST_WAIT = max(*_BACK_OFF, _NEWER_WAITS)
"""Seconds for which a job of ours is ever put off."""


class Context:
    """What the jobs of this process work with; the runner sets it once."""

    def __init__(
        self,
        pipeline: Pipeline,
        expectation_seal: Seal,
        return_seal: Seal,
        replays: ReplayRunner | None = None,
        replay_seal: Seal | None = None,
    ) -> None:
        self.pipeline = pipeline
        self.expectation_seal = expectation_seal
        self.return_seal = return_seal
        self.replays = replays
        self.replay_seal = replay_seal
        self.ledger_away = False
        """Set by a job that found the ledger away, so that the runner waits for it before it takes the next."""


context: Context | None = None


def record_batch(sealed: bytes) -> Retry | None:
    return _run(lambda here: here.pipeline.process(sealed))


def record_together(batches: Sequence[bytes], expectations: Sequence[bytes], redis: Redis) -> None:
    """Several batches in one transaction, and several expectations in another. Raises what a single one would have been
    judged by: each is then to be tried alone, which has no second effect on what was recorded."""
    here = context
    assert here is not None
    if batches:
        _forget_released(here.pipeline.process(*batches), redis)
    if expectations:
        _forget_released(here.pipeline.expect(*(_expectation(here, sealed) for sealed in expectations)), redis)


def record_expectation(sealed: bytes) -> Retry | None:
    return _run(lambda here: here.pipeline.expect(_expectation(here, sealed)))


def _expectation(here: Context, sealed: bytes) -> Expectation:
    message = here.expectation_seal.open(sealed)
    try:
        return msgspec.msgpack.decode(message, type=Expectation)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        # Sealed, yet nothing that we wrote.
        raise SealBroken("The sealed message is not an expectation.") from error


def record_returns(sealed: bytes) -> Retry | None:
    def record(here: Context) -> Recorded:
        message = here.return_seal.open(sealed)
        try:
            returns = msgspec.msgpack.decode(message, type=list[BrowserReturn])
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise SealBroken("The sealed message has no browser returns.") from error
        here.pipeline.note_returns(returns)
        return Recorded()

    return _run(record)


def run_replay(sealed: bytes) -> Retry | None:
    """Does some of a replay. When there is more, the job goes behind what came meanwhile."""
    assert context is not None
    replays, seal = context.replays, context.replay_seal
    assert replays is not None
    assert seal is not None
    job = get_current_job()
    assert job is not None
    queue_key = Queue(QUEUE, connection=job.connection, serializer=Serializer).key
    more = False

    def go_on(here: Context) -> Recorded:
        nonlocal more
        more = replays.run(seal.open(sealed).decode(), lambda: bool(job.connection.llen(queue_key)))
        return Recorded()

    again = _run(go_on)
    return again or (Retry(max=_FOR_EVER, interval=0) if more else None)


def _run(work: Callable[[Context], Recorded]) -> Retry | None:
    assert context is not None, "the runner sets the context before it takes a job"
    job = get_current_job()
    assert job is not None, "jobs run in a worker only"
    try:
        recorded = work(context)
    except LedgerAway as away:
        context.ledger_away = True
        metrics.LEDGER_UP.set(0)
        tries = job.number_of_retries or 0
        log.warning("ledger_away", error=str(away), tries=tries)
        return Retry(max=_FOR_EVER, interval=_BACK_OFF[min(tries, len(_BACK_OFF) - 1)])
    except NewerEnvelope as newer:
        log.warning("envelope_newer", detail=str(newer))
        metrics.SET_ASIDE.labels("newer_envelope").inc()
        return Retry(max=_FOR_EVER, interval=_NEWER_WAITS)
    except SealBroken as broken:
        raise _set_aside(job) from broken
    _forget_released(recorded, job.connection)
    return None


def _forget_released(recorded: Recorded, redis: Redis) -> None:
    for provider, facility, notification_id in recorded.released:
        expected.forget_held(redis, provider, facility, [notification_id])


def _set_aside(job: Job) -> BatchError:
    """No further try can mend it: straight to the failed registry, which keeps it for ever."""
    job.retries_left = 0
    log.error("seal_broken", job=job.id)
    metrics.SET_ASIDE.labels("seal_broken").inc()
    return BatchError("The message was not sealed by this installation.")
