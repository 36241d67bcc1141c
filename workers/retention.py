"""What is kept for a time only: `postback purge` does it at once, and a worker every day by itself, between batches."""

from __future__ import annotations

import getpass
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import NamedTuple

from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy import Connection

from receiver import logs, metrics, refusals
from receiver.errors import LedgerAway
from receiver.settings import Retention, Settings
from workers.audit import Action, Actor, Audit
from workers.ledger import purging
from workers.ledger.database import away_when_it_fails
from workers.ledger.ledger import Ledger

log = logs.get("workers.retention")

REFUSALS = "refusals"
LOCK = "postback:purge"
"""Held by the worker that purges, and then until the next day."""
LEASE = 60
"""Seconds after which a worker that was killed in the middle is taken over from."""
EVERY = 86_400
AFTER_A_FAULT = 600
SLICE = 0.2
"""Seconds between two batches that a worker gives to it."""


class Step(NamedTuple):
    what: str
    before: datetime
    purged: int
    """Of this step."""


def overdue(settings: Settings, ledger: Ledger, redis: Redis) -> Iterator[Step]:
    """How much is over its time. Raises `LedgerAway` and `RedisError`."""
    now = datetime.now(UTC)
    for task in purging.due(settings.retention, now):
        yield Step(task.what, task.before, purging.count(ledger.engine, task))
    if (before := _refusals_before(settings.retention, now)) is not None:
        yield Step(REFUSALS, before, refusals.count(redis, before))


def purge(settings: Settings, ledger: Ledger, redis: Redis, actor: Actor) -> Iterator[Step]:
    """Purges piece by piece; each step is done when it is given, so that it may be stopped or killed anywhere.

    Each piece is in the audit trail, by the transaction that purges it. Redis has none with the ledger: refusals are in
    the trail first, so that none is gone without it. Raises `LedgerAway` and `RedisError`.
    """
    trail = Audit(settings.security.seal_keys)

    def account(what: str, connection: Connection, purged: int) -> None:
        trail.add(connection, actor, Action.PURGED, "retention", facts={what: purged})

    now = datetime.now(UTC)
    for task in purging.due(settings.retention, now):
        while purged := purging.purge_piece(ledger.engine, task, partial(account, task.what)):
            metrics.PURGED.labels(task.what).inc(purged)
            yield Step(task.what, task.before, purged)
    if (before := _refusals_before(settings.retention, now)) is not None and (old := refusals.count(redis, before)):
        with away_when_it_fails(), ledger.engine.begin() as connection:
            account(REFUSALS, connection, old)
        gone = refusals.forget(redis, before)
        metrics.PURGED.labels(REFUSALS).inc(gone)
        yield Step(REFUSALS, before, gone)


def say(actor: Actor, purged: dict[str, int]) -> None:
    """In the log, what a run purged in all; nothing when there was nothing."""
    if purged:
        log.info("purged", operator=actor.name, **purged)


def operator() -> Actor:
    """Whoever runs a command."""
    return Actor(getpass.getuser(), socket.gethostname())


def _refusals_before(retention: Retention, now: datetime) -> datetime | None:
    return now - timedelta(seconds=retention.refusals) if retention.refusals is not None else None


class Daily:
    """The purge of a worker. One worker does it at a time, in slices, so that no batch waits for it."""

    def __init__(self, settings: Settings, ledger: Ledger) -> None:
        self._settings = settings
        self._ledger = ledger
        self._actor = Actor("retention", socket.gethostname())
        self._steps: Iterator[Step] | None = None
        self._purged: dict[str, int] = {}
        self._asked = any(period is not None for period in _periods(settings.retention))
        for task in purging.due(settings.retention, datetime.now(UTC)):
            metrics.PURGED.labels(task.what)

    def __call__(self, redis: Redis, worker: str) -> None:
        """Does a slice, when it is this worker's turn. Raises `RedisError` only."""
        if not self._asked:
            return
        if self._steps is None:
            if not redis.set(LOCK, worker, nx=True, ex=LEASE):
                return
            self._steps, self._purged = purge(self._settings, self._ledger, redis, self._actor), {}
        try:
            ended = self._slice(self._steps)
        except LedgerAway:
            # The worker finds it out itself, and waits.
            self._end(redis, worker, AFTER_A_FAULT)
        except (RedisError, OSError):
            self._steps = None
            raise
        except Exception:
            log.exception("purge_failed")
            self._end(redis, worker, AFTER_A_FAULT)
        else:
            if ended:
                self._end(redis, worker, EVERY)
            else:
                redis.set(LOCK, worker, ex=LEASE)

    def _slice(self, steps: Iterator[Step]) -> bool:
        """Whether all is done."""
        until = time.monotonic() + SLICE
        for step in steps:
            self._purged[step.what] = self._purged.get(step.what, 0) + step.purged
            if time.monotonic() > until:
                return False
        return True

    def _end(self, redis: Redis, worker: str, seconds: int) -> None:
        say(self._actor, self._purged)
        self._steps = None
        redis.set(LOCK, worker, ex=seconds)


def _periods(retention: Retention) -> list[int | None]:
    return [getattr(retention, name) for name in retention.__struct_fields__]
