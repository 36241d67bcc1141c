"""The accept side's own state: is the process up, can it do its job, and what do its metrics say."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from math import nan
from typing import Any

from redis import Redis
from redis.exceptions import RedisError
from rq import Queue
from rq.utils import now, utcparse
from rq.worker_registration import get_keys
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from receiver import metrics
from receiver.connection import QUEUE, Serializer
from receiver.inbox import Inbox
from receiver.notification import now_us

WORKER_ALIVE = 30
"""Seconds since its last heartbeat for which a worker counts as alive; it gives one every second or after a batch."""


async def livez(request: Request) -> Response:
    return JSONResponse({"status": "ok"})


async def readyz(request: Request) -> Response:
    """200 while notifications can be kept; ``degraded`` while only one of Redis and the spool can keep them.

    A queue that is reachable but does not fsync is no place for a payment: 503 in strict durability.
    """
    inbox: Inbox = request.app.state.inbox
    fault, spool_fault = inbox.fault, inbox.spool_fault
    body: dict[str, Any] = {
        "status": "ready",
        "redis": "up" if fault is None else "unreplicated" if inbox.replicas_away else "away",
        "spool_batches": inbox.spooled,
    }
    if fault is not None:
        body["fault"] = fault
    if spool_fault is not None:
        body["spool_fault"] = spool_fault
    if inbox.not_durable or (fault is not None and spool_fault is not None):
        body["status"] = "not ready"
        return JSONResponse(body, 503)
    if fault is not None or spool_fault is not None or inbox.spooled:
        body["status"] = "degraded"
    return JSONResponse(body)


async def metrics_page(request: Request) -> Response:
    if not await asyncio.to_thread(measure_queue, request.app.state.redis):
        metrics.REDIS_UP.set(0)
    request.app.state.accept.tally.hand_on()
    # Beside the event loop: it reads files, and may wait for a process that gathers them.
    page = await asyncio.to_thread(metrics.expose)
    return Response(page, media_type="text/plain; version=0.0.4; charset=utf-8")


def measure_queue(redis: Redis) -> bool:
    """Figures that nobody counts while they happen; without Redis nobody knows them. Whether it answered."""
    state: dict[str, Any] = {}
    with suppress(RedisError, OSError):
        state = queue_state(redis)
    metrics.QUEUE_ANSWERS.set(int(bool(state)))
    metrics.QUEUE_BATCHES.set(state.get("batches", nan))
    metrics.QUEUE_SET_ASIDE.set(state.get("set_aside", nan))
    metrics.QUEUE_OLDEST_SECONDS.set(state.get("oldest_seconds", nan))
    metrics.WORKERS.set(state.get("workers", nan))
    return bool(state)


def queue_state(redis: Redis) -> dict[str, Any]:
    """Batches waiting, the age of the oldest in seconds, live workers, batches set aside. Raises `RedisError`."""
    queue = Queue(QUEUE, connection=redis, serializer=Serializer)
    pipeline = redis.pipeline(transaction=False)
    pipeline.llen(queue.key)
    pipeline.lindex(queue.key, 0)
    pipeline.zcard(queue.failed_job_registry.key)
    pipeline.zrange(queue.scheduled_job_registry.key, 0, -1)
    pipeline.zrange(queue.started_job_registry.key, 0, -1)
    length, oldest, failed, waiting, started = pipeline.execute()
    beats: list[Any] = [redis.hget(key, "last_heartbeat") for key in get_keys(queue=queue, connection=redis)]
    # A beat from the future is one from before the clock was set back.
    workers = [beat for beat in beats if beat and abs((now() - utcparse(beat.decode())).total_seconds()) < WORKER_ALIVE]
    return {
        "batches": length + len(waiting),
        # What waits for the ledger, or lies with a worker, is not in the queue.
        "oldest_seconds": max(_age(job_id) for job_id in (oldest, *waiting, *started)),
        "set_aside": failed,
        "workers": len(workers),
    }


def _age(job_id: bytes | None) -> float:
    """Our job ids are UUIDv7: their first 48 bits are the time."""
    if not job_id:
        return 0.0
    try:
        made_at_ms = int(job_id.replace(b"-", b"")[:12], 16)
    except ValueError:
        return 0.0
    return max(0.0, now_us() / 1_000_000 - made_at_ms / 1000)
