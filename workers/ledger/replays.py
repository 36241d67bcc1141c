"""Reading replays: what was asked for, how far it is, and what it did to each notification."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from enum import StrEnum
from typing import Any

import msgspec
from sqlalchemy import Connection, select

from receiver.errors import NotDone, Reason
from workers.ledger.rows import storable
from workers.ledger.tables import replay_items, replays

_PAGE = 1000
_DONE = replay_items.c.outcome.is_not(None)


class State(StrEnum):
    WAITING = "waiting"
    """For the approval of a second operator."""
    RUNNING = "running"
    PAUSED = "paused"
    DONE = "done"
    CANCELLED = "cancelled"


def locked(connection: Connection, replay_id: str) -> Any:
    """The row of a replay, behind a lock: who holds it is the only one who goes on with it, or changes its state."""
    if not storable(replay_id):
        return None
    return connection.execute(select(replays).where(replays.c.id == replay_id).with_for_update()).first()


def replay(connection: Connection, replay_id: str) -> dict[str, Any] | None:
    if not storable(replay_id):
        return None
    row = connection.execute(select(replays).where(replays.c.id == replay_id)).first()
    return shown(row) if row is not None else None


def listed(
    connection: Connection, state: str | None = None, before: str | None = None, limit: int = 50
) -> list[dict[str, Any]]:
    """Newest first, those with an id below `before`. Raises `NotDone` (`cursor_malformed`)."""
    _refuse_unstorable(before or "")
    query = select(replays)
    if state is not None:
        query = query.where(replays.c.state == state)
    if before is not None:
        query = query.where(replays.c.id < before)
    return [shown(row) for row in connection.execute(query.order_by(replays.c.id.desc()).limit(limit))]


def results(
    connection: Connection, replay_id: str, outcome: str | None = None, after: str = "", limit: int = 50
) -> list[dict[str, Any]]:
    """What was done so far, in the order of arrival, of notifications with an id above `after`. Raises `NotDone`
    (`cursor_malformed`)."""
    _refuse_unstorable(after)
    columns = replay_items.c
    of = columns.outcome == outcome if outcome is not None else _DONE
    rows = connection.execute(
        select(replay_items)
        .where(columns.replay_id == replay_id, of, columns.notification_id > after)
        .order_by(columns.notification_id)
        .limit(limit)
    )
    return [result(row) for row in rows]


def _refuse_unstorable(place: str) -> None:
    # PostgreSQL cannot even be asked for it.
    if not storable(place):
        raise NotDone(Reason.CURSOR_MALFORMED, "The cursor is none of this list; start again without one.")


def every_result(connection: Connection, replay_id: str, outcome: str | None = None) -> Iterator[dict[str, Any]]:
    after = ""
    while found := results(connection, replay_id, outcome, after, _PAGE):
        yield from found
        after = found[-1]["notification_id"]


def of_notification(connection: Connection, notification_id: str) -> list[dict[str, Any]]:
    """Every replay of one notification, oldest first: who, why, and what it did, or nothing of that yet."""
    rows = connection.execute(
        select(replay_items, replays.c.created_by, replays.c.created_at, replays.c.reason)
        .join(replays, replays.c.id == replay_items.c.replay_id)
        .where(replay_items.c.notification_id == notification_id)
        .order_by(replay_items.c.replay_id)
    )
    return [
        {"created_at": row.created_at, "created_by": row.created_by, "reason": row.reason, **result(row)}
        for row in rows
    ]


def stalled(connection: Connection, before: datetime) -> list[str]:
    """Running replays in which nothing was done since `before`."""
    query = select(replays.c.id).where(replays.c.state == "running", replays.c.changed_at < before)
    return list(connection.scalars(query.order_by(replays.c.id)))


def shown(row: Any) -> dict[str, Any]:
    """The replay object. `state` is ``waiting`` (for approval), ``running``, ``paused``, ``done`` or ``cancelled``."""
    return {
        "id": row.id,
        "state": row.state,
        "created_at": row.created_at,
        "created_by": row.created_by,
        "origin": row.origin,
        "reason": row.reason,
        "chosen": msgspec.json.decode(row.chosen),
        "total": row.total,
        "done": row.done,
        "outcomes": msgspec.json.decode(row.outcomes),
        "approved_by": row.approved_by,
        "approved_at": row.approved_at,
        "started_at": row.started_at,
        "changed_at": row.changed_at,
        "ended_at": row.ended_at,
    }


def result(row: Any) -> dict[str, Any]:
    """What a replay did to one notification."""
    said = msgspec.json.decode(row.result) if row.result else {"notification_id": row.notification_id}
    return {"replay_id": row.replay_id, "outcome": row.outcome, "done_at": row.done_at, **said}
