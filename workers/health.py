"""One answer for monitoring: does everything behind the queue do its work."""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime
from typing import Any

from redis.exceptions import RedisError
from sqlalchemy import Connection, select

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
from workers.ledger import queries
from workers.ledger.database import open_engine, url
from workers.ledger.tables import notifications
from workers.reconcile.overdue import days_without_file

OLDEST_ALLOWED = 60.0
"""Seconds that a batch may wait before the queue counts as stuck."""


def examine(settings: Settings) -> dict[str, Any]:
    """The health object: `status` is ``ok`` or ``failing``, `problems` says in words what is wrong."""
    problems: list[str] = []
    state: dict[str, Any] = {
        "status": "ok",
        "redis": _redis(settings, problems),
        "database": _database(settings, problems),
        "spool": _spool(settings, problems),
        "problems": problems,
    }
    if problems:
        state["status"] = "failing"
    return state


def _redis(settings: Settings, problems: list[str]) -> dict[str, Any]:
    redis, copies = connect(settings), settings.queue.replicas
    try:
        queue = queue_state(redis)
        if copies:
            replicas_confirm(redis, copies)
    except TooFewReplicas as error:
        problems.append(f"Too few replicas of Redis: {error}")
        queue = {**queue, "replicas": "away"}
    except (RedisError, OSError) as error:
        problems.append("Redis does not answer.")
        return {"status": "away", "error": type(error).__name__}
    finally:
        redis.close()
    if not queue["workers"]:
        problems.append("No worker is alive.")
    if queue["oldest_seconds"] > OLDEST_ALLOWED:
        problems.append("The oldest batch in the queue is too old.")
    if queue["set_aside"]:
        problems.append("Batches were set aside because they could not be opened.")
    return {"status": "up", **queue}


def _database(settings: Settings, problems: list[str]) -> dict[str, Any]:
    if settings.store.database_url is None and not (settings.data_dir / "ledger.sqlite3").exists():
        problems.append("The ledger does not exist yet.")
        return {"status": "away"}
    try:
        engine = open_engine(url(settings))
        try:
            with queries.reading(engine) as connection:
                open_ = attention.counts(connection)
                silence = _silence(settings, connection)
                _settlement(settings, connection, problems)
        finally:
            engine.dispose()
    except (LedgerAway, ConfigurationError) as error:
        problems.append("The ledger does not answer.")
        return {"status": "away", "error": str(error)}
    if open_["failed"]:
        problems.append("Notifications failed; `postback attention list --kind failed` shows them.")
    counts = {kind: open_[kind] for kind in ("failed", "quarantined", "held")}
    others = {"conflicts": open_["conflict"], "mismatches": open_["mismatch"]}
    return {"status": "up", **counts, **others, "endpoints": silence}


def _silence(settings: Settings, connection: Any) -> list[dict[str, Any]]:
    """Seconds since the last notification of each endpoint; null when there was none."""
    result = []
    for endpoint in settings.endpoint:
        newest = last_received(connection, endpoint)
        seconds = None if newest is None else round(max(0.0, now_us() / 1_000_000 - newest.timestamp()), 1)
        result.append({"provider": endpoint.provider, "facility": endpoint.facility, "silent_seconds": seconds})
    return result


def _settlement(settings: Settings, connection: Connection, problems: list[str]) -> None:
    """Of endpoints whose files come by themselves; whoever reconciles by hand knows when."""
    for endpoint in settings.endpoint:
        if getattr(endpoint, "settlement_folder", None):
            problems.extend(
                f"No settlement file of {endpoint.path} for {day}."
                for day in days_without_file(connection, endpoint, datetime.now(UTC))
            )


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


def _spool(settings: Settings, problems: list[str]) -> dict[str, Any]:
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
        problems.append("The spool cannot be read.")
        return {"status": "away", "error": type(error).__name__, "batches": None}
    if batches:
        problems.append("Batches wait in the spool for Redis.")
    return {"batches": batches}
