"""The one place that writes the ledger. Every public method is one transaction, and may be run again without effect.

One notification has one effect: the unique key (provider, facility, dedupe_key) decides, not a look before a write.
A further delivery becomes a row in `repeats`, whose own key keeps a batch that runs twice from counting twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import msgspec
from sqlalchemy import Connection, Engine, TextClause, and_, bindparam, or_, select, text, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError

from receiver import logs, metrics
from receiver.errors import BodyLocked, LedgerAway
from receiver.notification import BrowserReturn, Effect, Envelope, Expectation, PaymentEvent, microseconds, utc
from receiver.settings import Settings
from receiver.signing import digest
from workers.ledger.bodies import Bodies
from workers.ledger.database import away_when_it_fails, open_engine, url
from workers.ledger.documents import insert_new
from workers.ledger.payments import expectation_key, fold, token_key
from workers.ledger.returns import rows_to_note
from workers.ledger.rows import Interpreted as Interpreted
from workers.ledger.rows import (
    bounded,
    expectation_from,
    expectation_row,
    judgement,
    key_bytes,
    notification_row,
    payment_row,
    purged,
    repeat_row,
    storable,
    stored_envelope,
)
from workers.ledger.tables import browser_returns, expectations, notifications, payments, repeats

log = logs.get("workers.ledger")

PaymentKey = tuple[str, str, str]
"""Provider, facility, and the payment's id."""
Judge = Callable[[Envelope, Expectation], Interpreted]
"""Says what a held envelope is, now that its proof can be checked."""
Events = dict[PaymentKey, list[tuple[PaymentEvent, int]]]
"""Events of each payment, with the time of their receipt in microseconds since 1970."""

# PostgreSQL's advisory locks: their first number, which is ours alone, and how many there are. One transaction may take
# all of them, and the server has room for some thousands together.
_LOCKS = 1_349_481_282
_LOCK_COUNT = 256
LOCK_TO_READ = text(
    "SELECT pg_advisory_xact_lock_shared(:locks, number) FROM unnest(CAST(:numbers AS int[])) AS number"
)
_LOCK_TO_WRITE = text("SELECT pg_advisory_xact_lock(:locks, number) FROM unnest(CAST(:numbers AS int[])) AS number")

_EVENT = msgspec.json.Decoder(PaymentEvent)


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A payment that is not, or not any more, what the merchant expects."""

    provider: str
    facility: str
    reference: str | None
    differs: tuple[str, ...]
    """As in `Payment.differs`."""


@dataclass(slots=True)
class Recorded:
    """What one transaction did."""

    new: list[Interpreted] = field(default_factory=list)
    duplicates: list[Envelope] = field(default_factory=list)
    conflicts: list[Envelope] = field(default_factory=list)
    released: list[tuple[str, str, str]] = field(default_factory=list)
    """(provider, facility, notification id) of what was held and is not any more."""
    mismatches: list[Mismatch] = field(default_factory=list)
    """Payments that were as expected, or not there, before this transaction."""

    def add(self, other: Recorded) -> None:
        self.new += other.new
        self.duplicates += other.duplicates
        self.conflicts += other.conflicts
        self.released += other.released
        self.mismatches += other.mismatches


def open_ledger(settings: Settings) -> Ledger:
    """The ledger of a configuration. Connects only when it is used. Raises `ConfigurationError`."""
    return Ledger(open_engine(url(settings)), Bodies(settings.security.body_keys))


class Ledger:
    def __init__(self, engine: Engine, bodies: Bodies | None = None) -> None:
        """`open_ledger` makes the one of a configuration; without `bodies` raw bodies are stored plain."""
        self.engine = engine
        self.bodies = bodies or Bodies()
        inserts: dict[str, Callable[..., Any]] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
        self._insert = inserts[engine.dialect.name]

    def answers(self) -> bool:
        """Whether the database can be asked at the moment."""
        try:
            with away_when_it_fails(), self.engine.connect() as connection:
                connection.execution_options(reading=True).execute(text("SELECT 1"))
        except (LedgerAway, SQLAlchemyError):
            return False
        return True

    def record(self, batch: Sequence[Interpreted], judge: Judge | None = None) -> Recorded:
        """Puts a batch into the ledger and folds the payments that it speaks of. What is held in it, and whose token is
        registered by now, goes to `judge` at once.

        Raises `LedgerAway` when the database does not answer; any other error means that something in the batch cannot
        be stored. In both cases nothing of the batch was written.
        """
        if not batch:
            return Recorded()
        began = time.perf_counter()
        with away_when_it_fails(), self.engine.begin() as connection:
            recorded = Recorded()
            self._lock(connection, LOCK_TO_READ, announced(batch))
            now = datetime.now(UTC)
            # Always in the same order, so that two workers never wait for each other's rows crosswise.
            rows = sorted((notification_row(item, self.bodies, now) for item in batch), key=_in_order_of("dedupe_key"))
            inserted = {row.id for row in insert_new(connection, notifications, rows)}
            recorded.new = [item for item in batch if item.envelope.id in inserted]
            if len(inserted) < len(batch):
                again = [item.envelope for item in batch if item.envelope.id not in inserted]
                self._record_repeats(connection, again, recorded)
            if judge is not None:
                self._release_known(connection, judge, recorded)
            self._fold_new(connection, _events(recorded.new), recorded)
        metrics.RECORD_SECONDS.observe(time.perf_counter() - began)
        return recorded

    def expect(self, announced: Sequence[Expectation], judge: Judge) -> Recorded:
        """Records expectations, judges what was held for their tokens, and folds the payments that they belong to.

        Of two expectations with one key the later registered counts, in whatever order they come here.
        """
        with away_when_it_fails(), self.engine.begin() as connection:
            recorded = Recorded()
            rows = [expectation_row(expectation) for expectation in announced]
            keys = [(row["provider"], row["facility"], row["key"]) for row in rows]
            self._lock(connection, _LOCK_TO_WRITE, keys)
            insert = self._insert(expectations)
            index = ["provider", "facility", "key"]
            connection.execute(
                insert.on_conflict_do_update(
                    index_elements=index,
                    set_={c.name: insert.excluded[c.name] for c in expectations.c if c.name not in index},
                    where=expectations.c.registered_at < insert.excluded.registered_at,
                ),
                # Always in the same order, as two workers lock the rows.
                sorted(rows, key=_in_order_of("key")),
            )
            belonging: set[PaymentKey] = set()
            for provider, facility, names in grouped(keys):
                for _, current in sorted(expectations_of(connection, provider, facility, names).items()):
                    if current.token is not None:
                        self._release(connection, current, judge, recorded)
                    belonging.update(self._payments_of(connection, current))
            self._fold_new(connection, _events(recorded.new), recorded)
            self._refold(connection, belonging, recorded)
        return recorded

    def note_returns(self, returns: Sequence[BrowserReturn]) -> None:
        """Notes what customers saw. No payment is touched."""
        with away_when_it_fails(), self.engine.begin() as connection:
            rows = rows_to_note(connection, returns)
            if rows:
                connection.execute(self._insert(browser_returns).on_conflict_do_nothing(), rows)

    def _lock(self, connection: Connection, statement: TextClause, keys: Iterable[PaymentKey]) -> None:
        """An expectation and what it belongs to may come at the same time, each in a transaction that does not see the
        other's: so both lock the expectation's key first. SQLite has one writer at a time anyway."""
        numbers = sorted({int(digest(*map(key_bytes, key))[:8], 16) % _LOCK_COUNT for key in keys})
        if numbers and connection.dialect.name == "postgresql":
            connection.execute(statement, {"locks": _LOCKS, "numbers": numbers})

    def _record_repeats(self, connection: Connection, again: Sequence[Envelope], recorded: Recorded) -> None:
        """Tells duplicates from conflicts; what is already there under its own id is this very batch, run again."""
        first: dict[PaymentKey, Any] = {}
        for provider, facility, keys in grouped((e.provider, e.facility, bounded(e.dedupe_key)) for e in again):
            for row in connection.execute(
                select(notifications.c.id, notifications.c.dedupe_key, notifications.c.fingerprint)
                .where(
                    notifications.c.provider == provider,
                    notifications.c.facility == facility,
                    notifications.c.dedupe_key.in_(keys),
                )
                # In the order in which everybody locks; the id alone, and SQLite would read an endpoint along it.
                .order_by(notifications.c.id + "")
                .with_for_update()
            ):
                first[provider, facility, row.dedupe_key] = row
        rows, conflicting = [], set()
        for envelope in again:
            original = first[envelope.provider, envelope.facility, bounded(envelope.dedupe_key)]
            if original.id == envelope.id:
                continue
            conflict = original.fingerprint != envelope.fingerprint
            if conflict:
                conflicting.add(envelope.id)
            rows.append(repeat_row(envelope, original.id, conflict, self.bodies))
        if not rows:
            return
        counted = connection.execute(
            self._insert(repeats).on_conflict_do_nothing().returning(repeats.c.id, repeats.c.notification_id), rows
        ).all()
        deliveries: dict[str, int] = {}
        conflicts: dict[str, int] = {}
        by_id = {envelope.id: envelope for envelope in again}
        for repeat_id, notification_id in counted:
            deliveries[notification_id] = deliveries.get(notification_id, 0) + 1
            if repeat_id in conflicting:
                conflicts[notification_id] = conflicts.get(notification_id, 0) + 1
            (recorded.conflicts if repeat_id in conflicting else recorded.duplicates).append(by_id[repeat_id])
        if deliveries:
            connection.execute(
                update(notifications)
                .where(notifications.c.id == bindparam("of"))
                .values(
                    deliveries=notifications.c.deliveries + bindparam("more"),
                    conflicts=notifications.c.conflicts + bindparam("differing"),
                ),
                [
                    {"of": key, "more": count, "differing": conflicts.get(key, 0)}
                    for key, count in sorted(deliveries.items())
                ],
            )

    def _release_known(self, connection: Connection, judge: Judge, recorded: Recorded) -> None:
        """What is held although its token is registered: that happened while the notification was on its way."""
        held = [(item.envelope.provider, item.envelope.facility, item.token) for item in recorded.new if item.token]
        for provider, facility, tokens in grouped(held):
            known = expectations_of(connection, provider, facility, [token_key(token) for token in tokens])
            for _, expectation in sorted(known.items()):
                self._release(connection, expectation, judge, recorded)

    def _release(self, connection: Connection, expectation: Expectation, judge: Judge, recorded: Recorded) -> None:
        held = connection.execute(
            select(notifications)
            .where(
                notifications.c.provider == expectation.provider,
                notifications.c.facility == expectation.facility,
                notifications.c.payment_id == bounded(expectation.token or ""),
                notifications.c.state == "held",
            )
            .order_by(notifications.c.id)
            .with_for_update()
        ).all()
        for row in held:
            try:
                envelope = stored_envelope(row, self.bodies)
            except BodyLocked as error:
                # Nothing can be proven without it. The others, and the expectation, do not wait for it.
                log.error("held_body_missing", id=row.id, provider=row.provider, detail=str(error))
                continue
            if purged(row):
                continue
            item = judge(envelope, expectation)
            changed = judgement(item)
            # A payment is found by the token even when nothing was made of it.
            changed["payment_id"] = item.payment_id or row.payment_id
            connection.execute(update(notifications).where(notifications.c.id == row.id).values(changed))
            recorded.new = [each for each in recorded.new if each.envelope.id != row.id] + [item]
            recorded.released.append((row.provider, row.facility, row.id))

    def _payments_of(self, connection: Connection, expectation: Expectation) -> list[PaymentKey]:
        """Payments that `expectation` speaks of: by its token, or by its reference."""
        if expectation.token is not None:
            return [(expectation.provider, expectation.facility, bounded(expectation.token))]
        rows = connection.execute(
            select(payments.c.provider, payments.c.facility, payments.c.payment_id).where(
                payments.c.provider == expectation.provider,
                payments.c.facility == expectation.facility,
                payments.c.reference == expectation.reference,
            )
        )
        return [(row.provider, row.facility, row.payment_id) for row in rows]

    def _fold_new(self, connection: Connection, events: Events, recorded: Recorded) -> None:
        """A payment that is new here is folded from the events at hand, which are all that there are: its row is made
        with its first event. Of one that exists all events are read again."""
        waiting = events
        while waiting:
            rows, mismatches = self._payment_rows(connection, waiting)
            new = insert_new(connection, payments, rows)
            inserted = {(row.provider, row.facility, row.payment_id) for row in new}
            recorded.mismatches += [mismatch for key, mismatch in mismatches.items() if key in inserted]
            there = self._refold(connection, waiting.keys() - inserted, recorded)
            # One that a rebuild has removed between the two statements is new again.
            waiting = {key: waiting[key] for key in waiting.keys() - inserted - there}

    def _refold(self, connection: Connection, keys: Iterable[PaymentKey], recorded: Recorded) -> set[PaymentKey]:
        """Folds the payments among `keys` that exist from all their events, behind a lock on their rows. Gives the keys
        of those."""
        there: set[PaymentKey] = set()
        differed: set[PaymentKey] = set()
        for provider, facility, payment_ids in grouped(keys):
            here = and_(payments.c.provider == provider, payments.c.facility == facility)
            # The lock comes first: what another worker committed before it is then seen below.
            locked = connection.execute(
                select(payments.c.payment_id, payments.c.mismatch)
                .where(here, payments.c.payment_id.in_(payment_ids))
                .order_by(payments.c.payment_id)
                .with_for_update()
            ).all()
            there |= {(provider, facility, row.payment_id) for row in locked}
            differed |= {(provider, facility, row.payment_id) for row in locked if row.mismatch}
        rows, mismatches = self._payment_rows(connection, events_of(connection, there))
        recorded.mismatches += [mismatch for key, mismatch in mismatches.items() if key not in differed]
        if rows:
            insert = self._insert(payments)
            index = ["provider", "facility", "payment_id"]
            changed = {column.name: insert.excluded[column.name] for column in payments.c if column.name not in index}
            differs = [payments.c[name].is_distinct_from(changed[name]) for name in changed if name != "updated_at"]
            connection.execute(
                insert.on_conflict_do_update(index_elements=index, set_=changed, where=or_(*differs)), rows
            )
        return there

    def _payment_rows(
        self, connection: Connection, events: Events
    ) -> tuple[list[dict[str, Any]], dict[PaymentKey, Mismatch]]:
        """Rows of the payments, always in the same order, and those of them that are not as expected."""
        expected = _expected(connection, events)
        now = datetime.now(UTC)
        rows, mismatches = [], {}
        for key, of_payment in events.items():
            payment = fold([event for event, _ in of_payment], expected.get(key))
            if payment is not None:
                first_received = utc(min(received_at for _, received_at in of_payment))
                rows.append(payment_row(key, payment, first_received, now))
                if payment.mismatch:
                    mismatches[key] = Mismatch(key[0], key[1], payment.reference, payment.differs)
        return sorted(rows, key=_in_order_of("payment_id")), mismatches


def _in_order_of(name: str) -> Callable[[Mapping[str, Any]], tuple[str, str, str]]:
    return lambda row: (row["provider"], row["facility"], row[name])


def _events(new: Iterable[Interpreted]) -> Events:
    """What `new` says of payments."""
    events: Events = {}
    for item in new:
        event, envelope = item.event, item.envelope
        if item.state == "processed" and event is not None and event.payment_id and event.effect is not Effect.NONE:
            key = (envelope.provider, envelope.facility, bounded(event.payment_id))
            events.setdefault(key, []).append((event, envelope.received_at))
    return events


def events_of(connection: Connection, keys: Iterable[PaymentKey]) -> Events:
    """All stored events of the payments that say something of them."""
    events: Events = {}
    for provider, facility, payment_ids in grouped(keys):
        columns = notifications.c
        for row in connection.execute(
            select(columns.payment_id, columns.state, columns.event, columns.received_at).where(
                columns.provider == provider,
                columns.facility == facility,
                columns.payment_id.in_(payment_ids),
            )
        ):
            # Not asked for above: SQLite would take the index of the states, and read all that was ever processed.
            if row.state != "processed":
                continue
            event = _EVENT.decode(row.event)
            if event.effect is not Effect.NONE:
                key = (provider, facility, row.payment_id)
                events.setdefault(key, []).append((event, microseconds(row.received_at)))
    return events


def announced(batch: Iterable[Interpreted]) -> list[PaymentKey]:
    """The keys of the expectations that `batch` may belong to."""
    found = []
    for item in batch:
        key = token_key(item.token) if item.token else expectation_key([item.event]) if item.event else None
        if key is not None:
            found.append((item.envelope.provider, item.envelope.facility, key))
    return found


def grouped(keys: Iterable[PaymentKey]) -> list[tuple[str, str, list[str]]]:
    groups: dict[tuple[str, str], set[str]] = {}
    for provider, facility, key in keys:
        groups.setdefault((provider, facility), set()).add(key)
    return [(provider, facility, sorted(found)) for (provider, facility), found in sorted(groups.items())]


def _expected(connection: Connection, events: Events) -> dict[PaymentKey, Expectation]:
    """The expectation of each payment, where there is one."""
    wanted: dict[PaymentKey, str] = {}
    for key, of_payment in events.items():
        name = expectation_key(event for event, _ in of_payment)
        if name is not None:
            wanted[key] = name
    found: dict[PaymentKey, Expectation] = {}
    for provider, facility, names in grouped((key[0], key[1], name) for key, name in wanted.items()):
        for name, expectation in expectations_of(connection, provider, facility, names).items():
            found[provider, facility, name] = expectation
    return {key: found[key[0], key[1], name] for key, name in wanted.items() if (key[0], key[1], name) in found}


def expectations_of(
    connection: Connection, provider: str, facility: str, keys: Sequence[str]
) -> dict[str, Expectation]:
    """The expectations of an endpoint by their keys."""
    askable = [key for key in keys if storable(key)]
    if not askable:
        return {}
    rows = connection.execute(
        select(expectations).where(
            expectations.c.provider == provider,
            expectations.c.facility == facility,
            expectations.c.key.in_(askable),
        )
    )
    return {row.key: expectation_from(row) for row in rows}
