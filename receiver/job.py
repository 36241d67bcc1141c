"""How a sealed message becomes an RQ job: what jobs there are, and the rules that each of them has."""

from __future__ import annotations

import zlib
from typing import Any

from rq import Queue, Retry
from rq.utils import now, utcformat

from receiver.connection import Serializer
from receiver.replicas import Command

RECORD_BATCH = "workers.jobs.record_batch"
RECORD_EXPECTATION = "workers.jobs.record_expectation"
RECORD_RETURNS = "workers.jobs.record_returns"

# A worker that was killed gives its batch to the next one; each job therefore needs retries left, always.
RETRIES = Retry(max=10_000, interval=1)
JOB_TIMEOUT = 60
# 0 would delete the job on success, and the second run of an abandoned job would then count as failed (RQ 3.0.0).
RESULT_TTL = 1
KEEP_FAILED = -1

_ID = "template"
_DESCRIPTION = "a template"


def enqueue(queue: Queue, pipeline: Any, func: str, job_id: str, sealed: bytes, description: str) -> None:
    """Adds a job to `pipeline` as RQ itself would, with the rules that every job of ours has."""
    job = Queue.prepare_data(
        func,
        args=(sealed,),
        timeout=JOB_TIMEOUT,
        result_ttl=RESULT_TTL,
        failure_ttl=KEEP_FAILED,
        description=description,
        job_id=job_id,
        retry=RETRIES,
    )
    queue.enqueue_many([job], pipeline=pipeline)


class JobTemplate:
    """RQ builds a job anew for each batch and compresses it thoroughly, which is a quarter of what a commit costs. All
    of its jobs that call `func` with one argument are alike but for id, argument, description and times; so the
    commands of one are kept, and these put in. A test holds the two against each other.
    """

    def __init__(self, queue: Queue, func: str) -> None:
        said = queue.connection.pipeline(transaction=True)
        enqueue(queue, said, func, _ID, b"", _DESCRIPTION)
        self._func = func
        self._commands: list[list[Any]] = [list(command) for command, _ in said.command_stack]
        key = queue.job_class.key_for(_ID)
        self._places: list[tuple[list[Any], int, str]] = []
        for command in self._commands:
            for position, part in enumerate(command):
                what = {_ID: "id", key: "key", _DESCRIPTION: "description"}.get(part) if isinstance(part, str) else None
                if position and command[position - 1] in ("data", "created_at", "enqueued_at"):
                    what = command[position - 1]
                if what is not None:
                    self._places.append((command, position, what))
        self._key_for = queue.job_class.key_for

    def commands(self, job_id: str, argument: bytes, description: str) -> list[Command]:
        at = utcformat(now())
        values = {
            "id": job_id,
            "key": self._key_for(job_id),
            "description": description,
            "data": zlib.compress(Serializer.dumps((self._func, None, (argument,), {})), 1),
            "created_at": at,
            "enqueued_at": at,
        }
        for command, position, what in self._places:
            command[position] = values[what]
        return [tuple(command) for command in self._commands]
