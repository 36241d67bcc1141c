"""What a killed worker leaves behind in RQ's books, given back to the queue. One worker at a time does it.

RQ's own maintenance takes minutes, holds a lock of a quarter of an hour, and believes the clock.
"""

from __future__ import annotations

from typing import Any

from redis import Redis
from redis.exceptions import RedisError
from rq import Queue
from rq.job import Job, JobStatus
from rq.job_lifecycle import record_job_failure
from rq.utils import current_timestamp, now

from receiver import logs
from receiver.job import KEEP_FAILED
from workers.jobs import LONGEST_WAIT

log = logs.get("workers.maintenance")

HEARTBEAT = 6
"""Seconds after which a worker that gave no sign has lost its batch. Two workers on one batch do no harm: the ledger
counts each delivery once."""
MAINTENANCE_EVERY = 2
MAINTENANCE_LOCK = "postback:maintenance"
STUCK_AFTER = 5
"""Seconds after which a job between queue and worker is put back: its worker died in that moment."""
CLOCKS_DIFFER = HEARTBEAT
"""Seconds that the clocks of two machines may be apart. Where they are further, a batch may run on both, which does no
harm."""
MOST_AT_ONCE = 1000

_OVER = frozenset({JobStatus.FINISHED, JobStatus.FAILED, JobStatus.STOPPED, JobStatus.CANCELED})


def _fetch(queue: Queue, job_id: str) -> Job | None:
    """None also for a job that cannot be read: it waits for a person, as it would stop each worker that looks at it."""
    try:
        return queue.fetch_job(job_id)
    except (RedisError, OSError):
        raise
    except Exception:
        log.exception("job_unreadable", job=job_id)
        queue.connection.zadd(queue.failed_job_registry.key, {job_id: KEEP_FAILED})
        return None


def locked(redis: Redis, name: str) -> bool:
    if redis.set(MAINTENANCE_LOCK, name, nx=True, ex=MAINTENANCE_EVERY):
        return True
    if int(redis.pttl(MAINTENANCE_LOCK)) > MAINTENANCE_EVERY * 1000:
        # Made before the server's clock was set back: it would last until the clock is there again.
        redis.delete(MAINTENANCE_LOCK)
    return False


def _over(queue: Queue, key: str, longest: int) -> list[bytes]:
    """Entries of a registry whose time is over. RQ writes the end of that time by the clock, and `longest` is how far
    away it can be, in seconds: what is further away was written before the clock was set back."""
    at = current_timestamp()
    pipeline = queue.connection.pipeline(transaction=False)
    pipeline.zrangebyscore(key, 0, at, start=0, num=MOST_AT_ONCE)
    pipeline.zrangebyscore(key, f"({at + longest + CLOCKS_DIFFER}", "+inf", start=0, num=MOST_AT_ONCE)
    over, before = pipeline.execute()
    return [*over, *before]


def put_back_abandoned(queue: Queue) -> None:
    """Jobs whose worker gave no sign any more. RQ's own cleanup drops a job whose worker died between two of its steps,
    when the job says that it is queued or scheduled and is neither."""
    registry = queue.started_job_registry
    entries: Any = _over(queue, registry.key, HEARTBEAT)
    for entry in entries:
        job_id = registry.parse_job_id(entry)
        job = _fetch(queue, job_id)
        pipeline = queue.connection.pipeline()
        if job is not None and job.get_status(refresh=False) not in _OVER:
            if job.retries_left:
                job.retries_left -= 1
                queue._enqueue_job(job, pipeline=pipeline, at_front=True)
            else:
                record_job_failure(job, "Its worker was lost too often.", pipeline)
            log.warning("batch_put_back", job=job_id, left=job.retries_left)
        pipeline.zrem(registry.key, entry)
        pipeline.lrem(queue.intermediate_queue.key, 1, job_id)
        pipeline.execute()


def put_back_stuck(queue: Queue) -> None:
    """Jobs that were taken from the queue by a worker that died before it registered them."""
    between = queue.intermediate_queue
    for job_id in between.get_job_ids():
        seen = between.get_first_seen(job_id)
        if seen is None:
            between.set_first_seen(job_id)
        elif abs((now() - seen).total_seconds()) > STUCK_AFTER:
            job = _fetch(queue, job_id)
            pipeline = queue.connection.pipeline()
            pipeline.lrem(between.key, 1, job_id)
            pipeline.delete(between.get_first_seen_key(job_id))
            if job is not None and job_id not in queue.started_job_registry:
                queue._enqueue_job(job, pipeline=pipeline, at_front=True)
                log.warning("batch_put_back", job=job_id)
            pipeline.execute()


def enqueue_due(queue: Queue) -> None:
    """Batches whose waiting time is over. RQ's scheduler would be a child process that survives a killed worker."""
    registry = queue.scheduled_job_registry
    for entry in _over(queue, registry.key, LONGEST_WAIT):
        job_id = entry.decode()
        job = _fetch(queue, job_id)
        pipeline = queue.connection.pipeline()
        registry.remove(job_id, pipeline=pipeline)
        if job is not None:
            queue._enqueue_job(job, pipeline=pipeline, at_front=True)
        pipeline.execute()
