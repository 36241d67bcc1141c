"""Where alarms are kept: in the ledger, which also says which machine looks after them, and beside it in a file of that
machine, for as long as the ledger is away."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import Connection, Table, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from workers.alarms.board import ACKNOWLEDGEMENT, Alarm
from workers.alarms.kinds import AlarmKind, Key
from workers.alarms.messages import Message
from workers.ledger.tables import alarm_messages, alarm_watch, alarms

TAKEN_OVER_AFTER = 60.0
"""Seconds without a beat after which another machine takes over. A look, with all that it waits for, takes less."""
BEAT_EVERY = 10.0
KEPT = timedelta(days=30)
"""How long a message that was sent stays."""
GIVEN_BACK = -1
"""The beat when the holder stopped: its name stays, so that the next one on its machine knows nobody came between."""
_ONE = 1
# A newer version has perhaps more of them.
_KNOWN = alarms.c.kind.in_([kind.value for kind in AlarmKind])


class Lease:
    """Which process looks after the alarms. No clock decides it: the others watch whether the beat changes."""

    def __init__(self, holder: str, before: str | None) -> None:
        """`before` was the holder on this machine, and is gone: whatever was its is ours."""
        self.holder = holder
        self._before = before
        self._beaten: float | None = None
        self.continued = False
        """Whether nobody else had them since this machine did: what it knows is newer than the ledger."""
        self._other: tuple[str, int, float] | None = None
        """The holder and beat that were seen last, and since when."""

    def take(self, connection: Connection, now: datetime, tick: float) -> bool:
        """Whether the alarms are ours, when the transaction is committed."""
        row = connection.execute(select(alarm_watch).with_for_update()).first()
        if row is None:
            self.continued = True
            return self._first(connection, now)
        if not self._may(row, tick):
            return False
        self.continued = row.holder in (self.holder, self._before)
        if row.holder != self.holder or self._beaten is None or tick - self._beaten >= BEAT_EVERY:
            connection.execute(update(alarm_watch).values(holder=self.holder, beat=row.beat + 1, beaten_at=now))
            self._beaten = tick
        return True

    def release(self, connection: Connection) -> None:
        """So that another one need not wait."""
        connection.execute(update(alarm_watch).where(alarm_watch.c.holder == self.holder).values(beat=GIVEN_BACK))

    def known_elsewhere(self, holder: str) -> None:
        """What this machine knew before the ledger was asked."""
        self._other = (holder, -1, 0.0)

    @property
    def elsewhere(self) -> str | None:
        """The holder, when another machine had them when the ledger was asked last."""
        return self._other[0] if self._other is not None else None

    def _first(self, connection: Connection, now: datetime) -> bool:
        values = {"one": _ONE, "holder": self.holder, "beat": 0, "beaten_at": now}
        try:
            with connection.begin_nested():
                connection.execute(insert(alarm_watch).values(values))
        except IntegrityError:
            return False
        return True

    def _may(self, row: Any, tick: float) -> bool:
        if row.beat != GIVEN_BACK and row.holder not in (self.holder, self._before):
            seen = (row.holder, int(row.beat))
            if self._other is None or self._other[:2] != seen:
                self._other = (*seen, tick)
            if tick - self._other[2] < TAKEN_OVER_AFTER:
                return False
        self._other = None
        return True


def open_alarms(connection: Connection) -> list[Alarm]:
    """Those that last, the oldest first."""
    query = select(alarms).where(alarms.c.cleared_at.is_(None), _KNOWN)
    return [alarm_of(row) for row in connection.execute(query.order_by(alarms.c.raised_at, alarms.c.kind))]


def every_alarm(connection: Connection, *, lock: bool = False) -> dict[Key, Alarm]:
    """Also the last one of each kind that was cleared."""
    query = select(alarms).where(_KNOWN).order_by(alarms.c.kind, alarms.c.subject)
    found = [alarm_of(row) for row in connection.execute(query.with_for_update() if lock else query)]
    return {alarm.key: alarm for alarm in found}


def unsent(connection: Connection) -> dict[str, Message]:
    """Messages that are still to be sent, the oldest first."""
    query = select(alarm_messages).where(alarm_messages.c.done_at.is_(None)).order_by(alarm_messages.c.id)
    return {row.id: Message(**row._asdict()) for row in connection.execute(query)}


def write(connection: Connection, changed: Iterable[Alarm], messages: Iterable[Message]) -> None:
    """As they are now, whatever was there before."""
    for alarm in changed:
        _put(connection, alarms, msgspec.structs.asdict(alarm) | {"kind": alarm.kind.value})
    for message in messages:
        _put(connection, alarm_messages, msgspec.structs.asdict(message))


def _put(connection: Connection, table: Table, values: dict[str, Any]) -> None:
    """A row that is there is changed: whoever waits for a lock on it would not find one that was made anew."""
    here = (column == values[column.name] for column in table.primary_key)
    if not connection.execute(update(table).where(*here).values(values)).rowcount:
        connection.execute(insert(table).values(values))


def catch_up(connection: Connection, known: Iterable[Alarm], messages: Iterable[Message]) -> None:
    """Writes what was decided while the ledger was away. What somebody acknowledged just before stays so."""
    before = every_alarm(connection, lock=True)
    for alarm in known:
        stored = before.get(alarm.key)
        if stored is not None and _still_acknowledged(alarm, stored):
            said = {name: getattr(stored, name) for name in ACKNOWLEDGEMENT}
            alarm = msgspec.structs.replace(alarm, **said)
        write(connection, [alarm], ())
    write(connection, (), messages)


def _still_acknowledged(alarm: Alarm, stored: Alarm) -> bool:
    """Unless it has grown worse, and that was said already: it would be said twice."""
    known, since = stored.acknowledged_level, stored.acknowledged_at
    if known is None or since is None or not alarm.open or stored.raised_at != alarm.raised_at:
        return False
    return alarm.level <= known or alarm.told_at <= since


def forget(connection: Connection, now: datetime) -> None:
    """Messages whose time is over."""
    connection.execute(delete(alarm_messages).where(alarm_messages.c.done_at < now - KEPT))


def watched(connection: Connection) -> datetime | None:
    """When somebody looked after the alarms last; None when nobody ever did."""
    return connection.scalar(select(alarm_watch.c.beaten_at))


def alarm_of(row: Any) -> Alarm:
    """The alarm that a row of the ledger is."""
    return Alarm(**row._asdict() | {"kind": AlarmKind(row.kind)})


class Copy(msgspec.Struct, frozen=True, kw_only=True):
    """What this machine knows of the alarms."""

    holder: str
    """The process that looks after them, as far as is known here."""
    here: bool
    """Whether that was a process of this machine."""
    ahead: bool = False
    """Whether the ledger lacks some of it."""
    alarms: list[Alarm] = []
    messages: list[Message] = []


def remembered(data_dir: Path) -> list[Alarm]:
    """While the ledger is away: the open alarms, if this machine looks after them."""
    copy = File(data_dir).read()
    return [alarm for alarm in copy.alarms if alarm.open] if copy is not None and copy.here else []


class File:
    """The copy on this machine's disk. What cannot be written or read is not there: the ledger counts."""

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / "alarms.json"
        self._written: Copy | None = None

    def read(self) -> Copy | None:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Copy)
        except (OSError, msgspec.DecodeError, UnicodeError):
            return None

    def write(self, copy: Copy) -> None:
        if copy == self._written:
            return
        beside = self._path.with_suffix(".new")
        with suppress(OSError):
            file = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with open(file, "wb") as stream:
                stream.write(msgspec.json.encode(copy))
                stream.flush()
                os.fsync(stream.fileno())
            beside.replace(self._path)
            self._written = copy
