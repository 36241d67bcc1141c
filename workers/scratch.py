"""What a rebuild remembers between its pages, in a temporary file: a ledger of any size takes the same memory."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection, select

from receiver.notification import Effect, PaymentEvent, microseconds
from workers.ledger.ledger import Events, PaymentKey, events_of, grouped
from workers.ledger.rows import Interpreted
from workers.ledger.tables import notifications


class Scratch:
    """Ends with the process, or with `close`."""

    def __init__(self) -> None:
        self._file = sqlite3.connect("", isolation_level=None)
        self._file.executescript(
            """
            CREATE TABLE missing (provider, facility, payment_id, PRIMARY KEY (provider, facility, payment_id));
            CREATE TABLE changed (id PRIMARY KEY, provider, facility, payment_id, event, received_at);
            CREATE INDEX changed_payment ON changed (provider, facility, payment_id);
            """
        )
        self._changed = 0

    def close(self) -> None:
        self._file.close()

    def add_missing(self, keys: set[PaymentKey]) -> None:
        self._file.executemany("INSERT OR IGNORE INTO missing VALUES (?, ?, ?)", keys)

    def missing(self, page: int) -> Iterator[list[PaymentKey]]:
        rows = self._file.execute("SELECT provider, facility, payment_id FROM missing")
        while found := rows.fetchmany(page):
            yield found

    def add_changed(self, row: Any, item: Interpreted) -> None:
        event = item.event if item.state == "processed" else None
        says = event is not None and event.effect is not Effect.NONE and item.payment_id is not None
        stored = (
            *(row.id, row.provider, row.facility, item.payment_id if says else None),
            *(msgspec.json.encode(event) if says else None, microseconds(row.received_at)),
        )
        self._file.execute("INSERT INTO changed VALUES (?, ?, ?, ?, ?, ?)", stored)
        self._changed += 1

    def instead(self, connection: Connection, keys: Collection[PaymentKey]) -> Events:
        """As `events_of`, with what was found changed in place of what is stored."""
        if not self._changed:
            return events_of(connection, keys)
        events: Events = {}
        columns = notifications.c
        for provider, facility, payment_ids in grouped(keys):
            stored = connection.execute(
                select(columns.id, columns.payment_id, columns.state, columns.event, columns.received_at).where(
                    columns.provider == provider,
                    columns.facility == facility,
                    columns.payment_id.in_(payment_ids),
                )
            ).all()
            stored = [row for row in stored if row.state == "processed"]
            other = self._among("SELECT id FROM changed WHERE id IN", [row.id for row in stored])
            replaced = {found[0] for found in other}
            said = [
                (row.payment_id, row.event, microseconds(row.received_at)) for row in stored if row.id not in replaced
            ]
            here = "FROM changed WHERE provider = ? AND facility = ? AND payment_id IN"
            said += self._among(f"SELECT payment_id, event, received_at {here}", payment_ids, provider, facility)
            for payment_id, event, received_at in said:
                decoded = msgspec.json.decode(event, type=PaymentEvent)
                if decoded.effect is not Effect.NONE:
                    events.setdefault((provider, facility, payment_id), []).append((decoded, received_at))
        return events

    def _among(self, query: str, values: Sequence[str], *before: str) -> list[Any]:
        found: list[Any] = []
        for start in range(0, len(values), 500):
            part = values[start : start + 500]
            marks = ", ".join("?" * len(part))
            found += self._file.execute(f"{query} ({marks})", (*before, *part)).fetchall()
        return found
