"""Writing stored notifications and their payments anew, as today's code understands them: for a replay and a rebuild.

Each method is one transaction that may run beside the workers: it locks as they do, and folds from what is stored then.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from sqlalchemy import Connection, and_, delete, select

from receiver.notification import PaymentEvent
from receiver.settings import Settings
from workers.ledger.bodies import Bodies
from workers.ledger.database import away_when_it_fails, open_engine, url
from workers.ledger.documents import update_each
from workers.ledger.ledger import (
    LOCK_TO_READ,
    Events,
    Ledger,
    PaymentKey,
    Recorded,
    announced,
    events_of,
    grouped,
)
from workers.ledger.payments import expectation_key
from workers.ledger.rows import Interpreted, bounded, judgement
from workers.ledger.tables import notifications, payments

Columns = dict[str, Any]
"""Columns of a payment; `updated_at` does not count."""


@dataclass(frozen=True, slots=True)
class PaymentChange:
    """A payment before and after; None where there was or is none."""

    key: PaymentKey
    before: Columns | None
    after: Columns | None


@dataclass(slots=True)
class Revised:
    """What one transaction did."""

    changed: list[Interpreted] = field(default_factory=list)
    taken: list[Interpreted] = field(default_factory=list)
    """Left as they were: their duplicate key is that of another notification, of which they are a repeat."""
    payments: list[PaymentChange] = field(default_factory=list)


def open_revision(settings: Settings) -> Revision:
    """The ledger of a configuration, as `open_ledger`. Raises `ConfigurationError`."""
    return Revision(open_engine(url(settings)), Bodies(settings.security.body_keys))


class Revision(Ledger):
    """The ledger, for whoever interprets again what is stored."""

    def revise(self, items: Sequence[Interpreted]) -> Revised:
        """Puts `items` in place of what was made of the same notifications before, and folds the payments that either
        speaks of. What says the same as before is not touched.

        Raises `LedgerAway`; any other error means that something in it cannot be stored, and nothing was written.
        """
        with away_when_it_fails(), self.engine.begin() as connection:
            # A rebuild raises no alarms: what differs from what was expected was told when it came.
            return self.revise_within(connection, items, Recorded())

    def revise_within(self, connection: Connection, items: Sequence[Interpreted], recorded: Recorded) -> Revised:
        """The same in the transaction of `connection`; `recorded` gets what is to be reported once it is committed."""
        revised = Revised()
        ids = [item.envelope.id for item in items]
        old = [_event(row) for row in connection.execute(_stored(ids))]
        self._lock(connection, LOCK_TO_READ, [*announced(items), *_named(old)])
        rows = {row.id: row for row in connection.execute(_stored(ids).with_for_update())}
        keys: set[PaymentKey] = set()
        claimed: set[PaymentKey] = set()
        values = []
        for item in sorted(items, key=lambda item: item.envelope.id):
            row = rows.get(item.envelope.id)
            if row is None or not differs(row, item):
                continue
            key = (row.provider, row.facility, bounded(item.envelope.dedupe_key))
            if key in claimed or _key_is_taken(connection, row, item):
                revised.taken.append(item)
                continue
            claimed.add(key)
            values.append({"id": row.id, **_values(row, item)})
            revised.changed.append(item)
            keys |= {(row.provider, row.facility, key) for key in (row.payment_id, item.payment_id) if key}
        update_each(connection, notifications, values)
        before = _payments(connection, keys)
        self._fold_again(connection, keys, recorded)
        revised.payments = _changes(before, _payments(connection, keys))
        return revised

    def refold(self, keys: Collection[PaymentKey]) -> list[PaymentChange]:
        """Folds payments from their stored events: makes those that are missing, and removes those of which nothing is
        said. Raises `LedgerAway`."""
        with away_when_it_fails(), self.engine.begin() as connection:
            events = events_of(connection, keys)
            named = [(key, event) for key, of_payment in events.items() for event, _ in of_payment]
            self._lock(connection, LOCK_TO_READ, _named([(key[0], key[1], event) for key, event in named]))
            before = _payments(connection, keys)
            self._fold_again(connection, keys, Recorded())
            return _changes(before, _payments(connection, keys))

    def folded(self, connection: Connection, events: Events) -> dict[PaymentKey, Columns]:
        """The payments that `events` describe, as they would be stored; nothing is written."""
        rows, _ = self._payment_rows(connection, events)
        return {(row["provider"], row["facility"], row["payment_id"]): row for row in rows}

    def _fold_again(self, connection: Connection, keys: Collection[PaymentKey], recorded: Recorded) -> None:
        events = events_of(connection, keys)
        self._fold_new(connection, events, recorded)
        for provider, facility, unsaid in grouped(set(keys) - events.keys()):
            here = and_(
                payments.c.provider == provider, payments.c.facility == facility, payments.c.payment_id.in_(unsaid)
            )
            locked = connection.scalars(
                select(payments.c.payment_id).where(here).order_by(payments.c.payment_id).with_for_update()
            ).all()
            # An event that another worker has committed meanwhile is seen only behind the lock.
            still = events_of(connection, [(provider, facility, payment_id) for payment_id in locked])
            gone = [payment_id for payment_id in locked if (provider, facility, payment_id) not in still]
            connection.execute(delete(payments).where(here, payments.c.payment_id.in_(gone)))
            self._refold(connection, still.keys(), recorded)


def differs(row: Any, item: Interpreted) -> bool:
    """Whether `item` says anything else than its stored notification. The words of a traceback do not count."""
    if (row.state, row.reason) != (item.state, item.reason):
        return True
    if (item.payment_id or row.payment_id) != row.payment_id:
        return True
    return _decoded(row.event) != item.event


def _decoded(event: str | None) -> PaymentEvent | None:
    return msgspec.json.decode(event, type=PaymentEvent) if event else None


def _event(row: Any) -> tuple[str, str, PaymentEvent | None]:
    return row.provider, row.facility, _decoded(row.event)


def _named(events: Iterable[tuple[str, str, PaymentEvent | None]]) -> list[PaymentKey]:
    """The keys of the expectations that `events` may belong to."""
    return [
        (provider, facility, key)
        for provider, facility, event in events
        if event is not None and (key := expectation_key([event])) is not None
    ]


def _stored(ids: Sequence[str]) -> Any:
    columns = notifications.c
    return (
        select(
            *(columns.id, columns.provider, columns.facility, columns.state, columns.reason),
            *(columns.payment_id, columns.dedupe_key, columns.fingerprint, columns.event),
        )
        .where(columns.id.in_(ids))
        .order_by(columns.id)
    )


def _values(row: Any, item: Interpreted) -> dict[str, Any]:
    values = judgement(item)
    # A payment is found by the token even when nothing was made of it.
    values["payment_id"] = item.payment_id or row.payment_id
    known = item.state == "processed"
    values["dedupe_key"] = bounded(item.envelope.dedupe_key) if known else row.dedupe_key
    values["fingerprint"] = item.envelope.fingerprint if known else row.fingerprint
    return values


def _key_is_taken(connection: Connection, row: Any, item: Interpreted) -> bool:
    key = bounded(item.envelope.dedupe_key)
    if item.state != "processed" or key == row.dedupe_key:
        return False
    columns = notifications.c
    same = and_(columns.provider == row.provider, columns.facility == row.facility, columns.dedupe_key == key)
    return connection.execute(select(columns.id).where(same, columns.id != row.id)).first() is not None


def _payments(connection: Connection, keys: Iterable[PaymentKey]) -> dict[PaymentKey, Columns]:
    found: dict[PaymentKey, Columns] = {}
    wanted = set(keys)
    ids = sorted({payment_id for _, _, payment_id in wanted})
    # By its id alone: without statistics PostgreSQL may take an index of the endpoints, and read all of one.
    for row in connection.execute(select(payments).where(payments.c.payment_id.in_(ids))) if ids else ():
        key = (row.provider, row.facility, row.payment_id)
        if key in wanted:
            found[key] = row._asdict()
    return found


def _changes(before: dict[PaymentKey, Columns], after: dict[PaymentKey, Columns]) -> list[PaymentChange]:
    return [
        PaymentChange(key, before.get(key), after.get(key))
        for key in sorted(before.keys() | after.keys())
        if changed(before.get(key), after.get(key))
    ]


def changed(before: Columns | None, after: Columns | None) -> dict[str, tuple[Any, Any]]:
    """What differs of a payment: by column, what it was and what it is."""
    if before is None or after is None:
        present = before or after or {}
        return {"state": (present["state"], None) if after is None else (None, present["state"])} if present else {}
    return {
        name: (before[name], after[name])
        for name in before.keys() & after.keys() - {"updated_at"}
        if _comparable(name, before[name]) != _comparable(name, after[name])
    }


def _comparable(name: str, value: Any) -> Any:
    return msgspec.json.decode(value) if name == "custom" else value
