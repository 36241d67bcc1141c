"""What people do with alarms: look at them, and say that they know."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Engine, select, update

from receiver.errors import NotDone, Reason
from workers.alarms import kinds, store
from workers.alarms.board import Alarm
from workers.alarms.kinds import MEANINGS
from workers.audit import Action, Actor, Audit, reason_given
from workers.ledger.database import away_when_it_fails
from workers.ledger.rows import cleaned
from workers.ledger.tables import alarms

WATCHED_WITHIN = timedelta(minutes=5)
"""When nobody looked for longer, nobody looks after the alarms."""


def listed(connection: Connection, *, cleared: bool = False) -> list[dict[str, Any]]:
    """The alarms now, the oldest first; or the last one of each kind and subject that was cleared, the latest first."""
    if not cleared:
        return [shown(alarm) for alarm in store.open_alarms(connection)]
    found = [alarm for alarm in store.every_alarm(connection).values() if alarm.cleared_at is not None]
    return [shown(alarm) for alarm in sorted(found, key=lambda each: each.cleared_at or each.raised_at, reverse=True)]


def shown(alarm: Alarm) -> dict[str, Any]:
    """The alarm object of the contract."""
    meaning = MEANINGS[alarm.kind]
    return {
        "alarm": alarm.name,
        "kind": alarm.kind.value,
        "subject": alarm.subject or None,
        "sentence": alarm.sentence,
        "means": meaning.means,
        "do": meaning.do,
        "raised_at": alarm.raised_at,
        "told_at": alarm.told_at,
        "cleared_at": alarm.cleared_at,
        "times": alarm.times,
        "acknowledged_by": alarm.acknowledged_by,
        "acknowledged_at": alarm.acknowledged_at,
        "acknowledged_reason": alarm.acknowledged_reason,
    }


def unwatched(connection: Connection, now: datetime) -> datetime | None:
    """Since when nobody looks after the alarms; None when somebody does, or when nobody ever did."""
    last = store.watched(connection)
    return last if last is not None and now - last > WATCHED_WITHIN else None


class Desk:
    """Acknowledges alarms: kept with who, when and why, and in the audit trail."""

    def __init__(self, engine: Engine, audit: Audit) -> None:
        self._engine = engine
        self._audit = audit

    def acknowledge(self, actor: Actor, name: str, reason: str) -> dict[str, Any]:
        """It is not said again before it is cleared, or grows worse. Raises `NotDone`: `reason_missing`, `unknown_id`
        for what is no alarm now, `state_changed` for one that is acknowledged already."""
        reason = reason_given(reason)
        key = kinds.named(name)
        with away_when_it_fails(), self._engine.begin() as connection:
            alarm = store.every_alarm(connection, lock=True).get(key) if key is not None else None
            if alarm is None or not alarm.open:
                raise NotDone(Reason.UNKNOWN_ID, f"There is no alarm {cleaned(name)[:100]} now.")
            if alarm.acknowledged:
                raise NotDone(Reason.STATE_CHANGED, f"{alarm.acknowledged_by} has acknowledged it already.")
            here = (alarms.c.kind == alarm.kind.value, alarms.c.subject == alarm.subject)
            values = {
                "acknowledged_by": cleaned(actor.name)[:100],
                "acknowledged_at": datetime.now(UTC),
                "acknowledged_reason": reason,
                "acknowledged_level": alarm.level,
            }
            connection.execute(update(alarms).where(*here).values(values))
            row = connection.execute(select(alarms).where(*here)).one()
            self._audit.add(connection, actor, Action.ACKNOWLEDGED, alarm.name, reason, {"sentence": alarm.sentence})
        return shown(store.alarm_of(row))
