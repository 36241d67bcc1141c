"""Retention in the ledger: what is over its time, how much of it there is, and how it goes, a bounded piece at a time.

A purged body is gone from its row; the record of it stays: event, keys, fingerprint, deliveries. So a repeat is told
from a conflict for ever, and a payment is folded as before. Each piece is one short transaction that passes over what a
worker holds at that moment: a purge may be stopped anywhere, run again, and run beside workers and another purge.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Executable,
    Select,
    Table,
    and_,
    delete,
    func,
    or_,
    select,
    update,
)

from receiver.settings import Retention
from workers.ledger.database import away_when_it_fails
from workers.ledger.pages import first_id
from workers.ledger.queries import reading
from workers.ledger.tables import browser_returns, notifications, repeats, resolutions

PIECE = 500
"""Rows of one transaction: few enough that a worker notices nothing."""

_ID_OLDER_BY = timedelta(days=1)
"""The id of what was held is made a moment before its time of arrival; a day is more than any."""


class What(StrEnum):
    BODIES = "bodies"
    CONFLICTS = "conflicts"
    """Bodies of repeats that said something else; they go with the bodies."""
    UNRESOLVED = "unresolved"
    REPEATS = "repeats"
    RETURNS = "returns"


@dataclass(frozen=True, slots=True)
class Task:
    what: What
    before: datetime
    """Aware UTC: what came before this moment goes."""


def due(retention: Retention, now: datetime) -> list[Task]:
    """What the settings ask for at `now`."""
    periods = {
        What.BODIES: retention.bodies,
        What.CONFLICTS: retention.bodies,
        What.UNRESOLVED: retention.unresolved,
        What.REPEATS: retention.repeats,
        What.RETURNS: retention.returns,
    }
    return [Task(what, now - timedelta(seconds=period)) for what, period in periods.items() if period is not None]


def count(engine: Engine, task: Task) -> int:
    """How many rows `task` would purge. Raises `LedgerAway`."""
    with reading(engine) as connection:
        return connection.scalar(select(func.count()).select_from(_overdue(task).subquery())) or 0


def purge_piece(engine: Engine, task: Task, account: Callable[[Connection, int], object], most: int = PIECE) -> int:
    """Purges the oldest `most` rows of `task`; gives how many they were, 0 when all is done. `account` is called with
    their number at the end of the same transaction: both are done, or neither. Raises `LedgerAway`."""
    with away_when_it_fails(), engine.begin() as connection:
        if engine.dialect.name == "sqlite":
            # What is taken out is overwritten too, or it would lie in the file until its page is used again.
            connection.exec_driver_sql("PRAGMA secure_delete = ON")
        oldest = _overdue(task).order_by("returned_at" if task.what is What.RETURNS else "id").limit(most)
        ids = connection.scalars(oldest.with_for_update(skip_locked=True, of=_table(task))).all()
        if ids:
            connection.execute(_ENDS[task.what](list(ids)))
            account(connection, len(ids))
    return len(ids)


def _overdue(task: Task) -> Select[Any]:
    """Ids of the rows that `task` is about. An id tells the time, so that the index finds them."""
    if task.what is What.RETURNS:
        return select(browser_returns.c.id).where(browser_returns.c.returned_at < task.before)
    table = _table(task)
    span = and_(table.c.id < first_id(task.before + _ID_OLDER_BY), table.c.received_at < task.before)
    return select(table.c.id).where(span, _CONDITIONS[task.what]())


def _table(task: Task) -> Table:
    if task.what is What.RETURNS:
        return browser_returns
    return repeats if task.what in (What.CONFLICTS, What.REPEATS) else notifications


def _resolved(table: Table) -> ColumnElement[bool]:
    """Whether nobody has to look at the notification any more: it was processed, or a person has decided."""
    of, decided = notifications.c, resolutions.c
    decision = select(decided.subject).where(
        decided.kind == "notification",
        decided.provider == of.provider,
        decided.facility == of.facility,
        decided.subject == of.id,
    )
    settled = or_(of.state == "processed", decision.correlate(notifications).exists())
    if table is notifications:
        return settled
    return select(of.id).where(of.id == table.c.notification_id, settled).correlate(table).exists()


_CONDITIONS: dict[What, Callable[[], ColumnElement[bool]]] = {
    What.BODIES: lambda: and_(notifications.c.purged_at.is_(None), _resolved(notifications)),
    What.CONFLICTS: lambda: and_(repeats.c.body.is_not(None), _resolved(repeats)),
    What.UNRESOLVED: lambda: and_(notifications.c.purged_at.is_(None), ~_resolved(notifications)),
    What.REPEATS: lambda: ~repeats.c.conflict,
}


def _without_bodies(ids: list[str]) -> Executable:
    return (
        update(notifications)
        .where(notifications.c.id.in_(ids))
        .values(body=b"", body_key=None, purged_at=datetime.now(UTC))
    )


def _without_conflicting_bodies(ids: list[str]) -> Executable:
    return update(repeats).where(repeats.c.id.in_(ids)).values(body=None, body_key=None, purged_at=datetime.now(UTC))


_ENDS: dict[What, Callable[[list[str]], Executable]] = {
    What.BODIES: _without_bodies,
    What.CONFLICTS: _without_conflicting_bodies,
    What.UNRESOLVED: _without_bodies,
    What.REPEATS: lambda ids: delete(repeats).where(repeats.c.id.in_(ids)),
    What.RETURNS: lambda ids: delete(browser_returns).where(browser_returns.c.id.in_(ids)),
}
