"""One answer for monitoring: does everything behind the queue do its work."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple

from redis.exceptions import RedisError
from sqlalchemy import Connection, Engine, select

from receiver.connection import connect, replicas_confirm
from receiver.errors import ConfigurationError, LedgerAway
from receiver.health import queue_state
from receiver.notification import now_us
from receiver.providers.base import Endpoint
from receiver.providers.quickstream_settlement import EVENT_TYPE as SETTLEMENT_FILE
from receiver.replicas import TooFewReplicas
from receiver.settings import Settings
from receiver.spool import Spool
from workers import attention
from workers.alarms import desk
from workers.alarms.board import Alarm
from workers.alarms.kinds import AlarmKind, Problem
from workers.alarms.store import open_alarms, remembered
from workers.ledger import queries
from workers.ledger.database import open_engine, url
from workers.ledger.tables import notifications
from workers.reconcile.overdue import days_without_file

OLDEST_ALLOWED = 60.0
"""Seconds that a batch may wait before the queue counts as stuck."""


class Look(NamedTuple):
    """What was seen at one moment."""

    state: dict[str, Any]
    """The health object without what its problems say."""
    problems: list[Problem]
    unknown: set[AlarmKind]
    """What could not be seen, as what would tell is away."""
    unwatched: datetime | None
    """Since when nobody looks after the alarms."""


def examine(settings: Settings, engine: Engine | None = None) -> dict[str, Any]:
    """The health object: `status` is ``ok`` or ``failing``, `problems` says in words what is wrong now. `alarms` are
    those that were raised; an alarm alone, such as the silence of an endpoint, is no failure of this installation."""
    seen = look(settings, engine)
    problems = [problem.sentence for problem in seen.problems]
    if seen.unwatched is not None:
        problems.append(f"Nobody has looked after the alarms since {seen.unwatched:%Y-%m-%d %H:%M} UTC.")
    return {"status": "failing" if problems else "ok", **seen.state, "problems": problems}


def look(settings: Settings, engine: Engine | None = None) -> Look:
    """`engine` is the ledger's, where the caller has it open."""
    problems: list[Problem] = []
    unknown: set[AlarmKind] = set()
    redis = _redis(settings, problems, unknown)
    database, unwatched = _database(settings, engine, problems, unknown)
    alarms = database.pop("alarms") if "alarms" in database else list(map(_brief, remembered(settings.data_dir)))
    state = {"redis": redis, "database": database, "spool": _spool(settings, problems), "alarms": alarms}
    return Look(state, problems, unknown, unwatched)


_OF_REDIS = {AlarmKind.REPLICAS_AWAY, AlarmKind.NO_WORKER, AlarmKind.QUEUE_STUCK, AlarmKind.BATCHES_SET_ASIDE}
_OF_THE_LEDGER = {AlarmKind.NOTIFICATIONS_FAILED, AlarmKind.SETTLEMENT_FILE_MISSING}


def _redis(settings: Settings, problems: list[Problem], unknown: set[AlarmKind]) -> dict[str, Any]:
    redis, copies = connect(settings), settings.queue.replicas
    try:
        queue = queue_state(redis)
        if copies:
            replicas_confirm(redis, copies)
    except TooFewReplicas as error:
        problems.append(Problem(AlarmKind.REPLICAS_AWAY, f"Too few replicas of Redis: {error}"))
        queue = {**queue, "replicas": "away"}
    except (RedisError, OSError) as error:
        problems.append(Problem(AlarmKind.REDIS_AWAY, "Redis does not answer."))
        unknown |= _OF_REDIS
        return {"status": "away", "error": type(error).__name__}
    finally:
        redis.close()
    if not queue["workers"]:
        problems.append(Problem(AlarmKind.NO_WORKER, "No worker is alive."))
    if queue["oldest_seconds"] > OLDEST_ALLOWED:
        problems.append(Problem(AlarmKind.QUEUE_STUCK, "The oldest batch in the queue is too old."))
    if aside := queue["set_aside"]:
        said = "Batches were set aside because they could not be opened."
        problems.append(Problem(AlarmKind.BATCHES_SET_ASIDE, said, level=aside))
    return {"status": "up", **queue}


def _database(
    settings: Settings, engine: Engine | None, problems: list[Problem], unknown: set[AlarmKind]
) -> tuple[dict[str, Any], datetime | None]:
    if settings.store.database_url is None and not (settings.data_dir / "ledger.sqlite3").exists():
        problems.append(Problem(AlarmKind.LEDGER_AWAY, "The ledger does not exist yet."))
        unknown |= _OF_THE_LEDGER
        return {"status": "away"}, None
    try:
        ledger = engine or open_engine(url(settings))
        try:
            with queries.reading(ledger) as connection:
                open_ = attention.counts(connection)
                silence = _silence(settings, connection)
                missing = list(_settlement(settings, connection))
                alarms = [_brief(alarm) for alarm in open_alarms(connection)]
                unwatched = desk.unwatched(connection, datetime.now(UTC))
        finally:
            if engine is None:
                ledger.dispose()
    except (LedgerAway, ConfigurationError) as error:
        problems.append(Problem(AlarmKind.LEDGER_AWAY, "The ledger does not answer."))
        unknown |= _OF_THE_LEDGER
        return {"status": "away", "error": str(error)}, None
    problems += missing
    if failed := open_["failed"]:
        said = "Notifications failed; `postback attention list --kind failed` shows them."
        problems.append(Problem(AlarmKind.NOTIFICATIONS_FAILED, said, level=failed))
    counts = {kind: open_[kind] for kind in ("failed", "quarantined", "held")}
    others = {"conflicts": open_["conflict"], "mismatches": open_["mismatch"]}
    return {"status": "up", **counts, **others, "endpoints": silence, "alarms": alarms}, unwatched


def _brief(alarm: Alarm) -> dict[str, Any]:
    """Without names of people: monitoring asks for it unsigned."""
    return {
        "alarm": alarm.name,
        "sentence": alarm.sentence,
        "raised_at": alarm.raised_at,
        "acknowledged": alarm.acknowledged,
    }


def _silence(settings: Settings, connection: Any) -> list[dict[str, Any]]:
    """Seconds since the last notification of each endpoint; null when there was none."""
    result = []
    for endpoint in settings.endpoint:
        newest = last_received(connection, endpoint)
        seconds = None if newest is None else round(max(0.0, now_us() / 1_000_000 - newest.timestamp()), 1)
        result.append({"provider": endpoint.provider, "facility": endpoint.facility, "silent_seconds": seconds})
    return result


def _settlement(settings: Settings, connection: Connection) -> Iterator[Problem]:
    """Of endpoints whose files come by themselves; whoever reconciles by hand knows when."""
    for endpoint in settings.endpoint:
        if getattr(endpoint, "settlement_folder", None):
            for number, day in enumerate(days_without_file(connection, endpoint, datetime.now(UTC)), 1):
                said = f"No settlement file of {endpoint.path} for {day}."
                yield Problem(AlarmKind.SETTLEMENT_FILE_MISSING, said, endpoint.path, number)


def last_received(connection: Connection, endpoint: Endpoint) -> datetime | None:
    """When the newest notification of `endpoint` came; rows of settlement files are none."""
    return connection.scalar(
        select(notifications.c.received_at)
        .where(
            notifications.c.provider == endpoint.provider,
            notifications.c.facility == endpoint.facility,
            notifications.c.event_type != SETTLEMENT_FILE,
        )
        # Ids begin with the time of receipt.
        .order_by(notifications.c.id.desc())
        .limit(1)
    )


def _spool(settings: Settings, problems: list[Problem]) -> dict[str, Any]:
    path = settings.data_dir / "spool" / "spool.sqlite3"
    if not path.exists():
        return {"batches": 0}
    try:
        spool = Spool(path, settings.receive.max_spool)
        try:
            batches = spool.count()
        finally:
            spool.close()
    except (ConfigurationError, sqlite3.Error) as error:
        problems.append(Problem(AlarmKind.SPOOL_WAITS, "The spool cannot be read."))
        return {"status": "away", "error": type(error).__name__, "batches": None}
    if batches:
        problems.append(Problem(AlarmKind.SPOOL_WAITS, "Batches wait in the spool for Redis."))
    return {"batches": batches}
