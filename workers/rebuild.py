"""Rebuilding the payments: every stored notification is interpreted with today's code, and every payment folded again.

What is found different is told, and written unless this is a check. Pages are small, each its own transaction, and what
has to be remembered between them lies in a temporary file: a ledger of any size takes the same memory, and the workers
go on beside it. What was interrupted is run again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, ParamSpec, TypeVar

import msgspec
from sqlalchemy import ColumnElement, Connection, and_, func, select

from receiver import logs
from receiver.errors import BodyLocked, LedgerAway, Reason
from receiver.money import text_from_minor
from receiver.notification import Effect, PaymentEvent
from workers.ledger.database import away_when_it_fails
from workers.ledger.ledger import Events, PaymentKey, events_of, grouped
from workers.ledger.revision import Columns, PaymentChange, Revision, changed, differs
from workers.ledger.rows import Interpreted, bounded, purged
from workers.ledger.tables import notifications, payments
from workers.pipeline import Pipeline, takes_back
from workers.scratch import Scratch

log = logs.get("workers.rebuild")

PAGE = 250
"""Rows of one transaction: with bodies of the largest size that is accepted, 64 MiB."""
_WAITS = (1, 2, 4, 8, 15, 30)
"""Seconds to wait for a database that is away, or locked by the workers for long."""

_AMOUNTS = ("amount", "surcharge", "amount_refunded")

T = TypeVar("T")
P = ParamSpec("P")


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as today's code makes it."""

    kind: Literal["notification", "payment"]
    verdict: str
    """``changed``; of payments also ``missing`` and ``surplus``. Of notifications also what is left as it is: ``kept``
    was believed once and could not be proven today, ``failed`` meets a fault of ours, ``repeat`` has the duplicate key
    of another, ``locked`` has a body that no key opens, ``unstored`` is not taken by the database."""
    provider: str
    facility: str
    id: str
    """Of the notification, or of the payment."""
    changes: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    """By name, what it was and what it is."""
    detail: str = ""

    @property
    def differs(self) -> bool:
        """Whether a payment may be wrong for it: not for what merely could not be proven a second time."""
        return self.verdict != "kept"

    @property
    def settled(self) -> bool:
        """Whether a run that writes puts it right."""
        return self.verdict in ("changed", "missing", "surplus")


class Rebuild:
    """One run. `write` puts right what is found; without it nothing is written."""

    def __init__(
        self,
        ledger: Revision,
        pipeline: Pipeline,
        *,
        write: bool,
        provider: str | None = None,
        facility: str | None = None,
        page: int = PAGE,
    ) -> None:
        self._ledger = ledger
        self._pipeline = pipeline
        self._write = write
        self._scope = {"provider": provider, "facility": facility}
        self._page = page

    def counts(self) -> tuple[int, int]:
        """How many notifications and payments there are to look at."""
        with self._reading() as connection:
            found = [
                connection.scalar(select(func.count()).select_from(table).where(*self._within(table)))
                for table in (notifications, payments)
            ]
        return found[0] or 0, found[1] or 0

    def purged(self) -> int:
        """Of how many notifications the raw body is gone, so that what was read of it counts."""
        with self._reading() as connection:
            gone = select(func.count()).select_from(notifications).where(notifications.c.purged_at.is_not(None))
            return connection.scalar(gone.where(*self._within(notifications))) or 0

    def findings(self, progress: Callable[[str, int], None] = lambda kind, count: None) -> Iterator[Finding]:
        """All that is different, as it is found; `progress` is told how many more of each kind were looked at.

        Raises `LedgerAway` when the database stays away.
        """
        with closing(Scratch()) as scratch:
            yield from self._interpret_all(scratch, progress)
            yield from self._fold_all(scratch, progress)
            yield from self._make_missing(scratch)

    # -- notifications

    def _interpret_all(self, scratch: Scratch, progress: Callable[[str, int], None]) -> Iterator[Finding]:
        columns = notifications.c
        for provider, facility in self._endpoints(notifications):
            here = and_(columns.provider == provider, columns.facility == facility)
            # What comes from now on is interpreted by today's workers anyway.
            (end,) = self._patiently(self._read, select(func.max(columns.id)).where(here))[0]
            last = ""
            while last < end:
                page = select(notifications).where(here, columns.id > last, columns.id <= end).order_by(columns.id)
                rows = self._patiently(self._read, page.limit(self._page))
                if not rows:
                    break
                last = rows[-1].id
                yield from self._interpret(rows, scratch)
                progress("notification", len(rows))

    def _interpret(self, rows: Sequence[Any], scratch: Scratch) -> Iterator[Finding]:
        items: list[tuple[Any, Interpreted]] = []
        speaking: set[PaymentKey] = set()
        for row in rows:
            item, finding = self._examine(row)
            if finding is not None:
                yield finding
            if item is not None:
                items.append((row, item))
            event = item.event if item is not None else _event(row)
            if event is not None and event.payment_id is not None and event.effect is not Effect.NONE:
                speaking.add((row.provider, row.facility, bounded(event.payment_id)))
        scratch.add_missing(self._patiently(self._without_payment, speaking))
        if self._write:
            yield from self._revise([item for _, item in items], {row.id: row for row, _ in items})
            return
        for row, item in items:
            scratch.add_changed(row, item)
            yield _changed_notification(row, item)

    def _examine(self, row: Any) -> tuple[Interpreted | None, Finding | None]:
        """What is to be made of `row` instead of what was, if anything; and what speaks against it, if anything."""
        if purged(row) or not row.verified:
            # Nothing to read, or nothing to believe: what was never proven is judged by its expectation alone.
            return None, None
        try:
            item = self._pipeline.interpret_again(row)
        except BodyLocked as locked:
            return None, _left(row, "locked", str(locked))
        if not differs(row, item):
            return None, None
        if row.state == "processed" and item.state != "processed" and not takes_back(row.state, item):
            verdict = "failed" if item.reason == Reason.INTERPRETATION_FAILED else "kept"
            return None, _left(row, verdict, f"{item.reason}: {item.detail.rstrip().rpartition(chr(10))[2]}")
        return item, None

    def _revise(self, items: Sequence[Interpreted], rows: dict[str, Any]) -> Iterator[Finding]:
        if not items:
            return
        try:
            revised = self._patiently(self._ledger.revise, items)
        except LedgerAway:
            raise
        except Exception as error:
            if len(items) > 1:
                # One that cannot be stored does not hold up the others.
                for item in items:
                    yield from self._revise([item], rows)
                return
            log.exception("rebuild_unstored", id=items[0].envelope.id, provider=items[0].envelope.provider)
            yield _left(rows[items[0].envelope.id], "unstored", type(error).__name__)
            return
        for item in revised.taken:
            yield _left(rows[item.envelope.id], "repeat", "Its duplicate key is that of another notification.")
        for item in revised.changed:
            yield _changed_notification(rows[item.envelope.id], item)
        yield from map(_changed_payment, revised.payments)

    def _without_payment(self, keys: set[PaymentKey]) -> set[PaymentKey]:
        with self._reading() as connection:
            return keys - _present(connection, keys)

    # -- payments

    def _fold_all(self, scratch: Scratch, progress: Callable[[str, int], None]) -> Iterator[Finding]:
        columns = payments.c
        for provider, facility in self._endpoints(payments):
            here = and_(columns.provider == provider, columns.facility == facility)
            last = ""
            while True:
                page = select(payments).where(here, columns.payment_id > last).order_by(columns.payment_id)
                keys, changes = self._patiently(self._compare, page.limit(self._page), scratch)
                if not keys:
                    break
                last = keys[-1][2]
                yield from self._settled(changes)
                progress("payment", len(keys))

    def _compare(self, query: Any, scratch: Scratch) -> tuple[list[PaymentKey], list[PaymentChange]]:
        """A page of payments, and those of them that differ from what their events say: all of one moment."""
        with self._reading() as connection:
            rows = {(row.provider, row.facility, row.payment_id): row._asdict() for row in connection.execute(query)}
            folded = self._ledger.folded(connection, self._events(connection, rows.keys(), scratch))
        found = [PaymentChange(key, rows[key], folded.get(key)) for key in rows]
        return list(rows), [change for change in found if changed(change.before, change.after)]

    def _make_missing(self, scratch: Scratch) -> Iterator[Finding]:
        """Payments of which something is said, and that are not there."""
        for keys in scratch.missing(self._page):
            if self._write:
                made = self._patiently(self._ledger.refold, keys)
            else:
                made = self._patiently(self._look_for, keys, scratch)
            yield from map(_changed_payment, made)

    def _look_for(self, keys: Sequence[PaymentKey], scratch: Scratch) -> list[PaymentChange]:
        with self._reading() as connection:
            absent = set(keys) - _present(connection, keys)
            folded = self._ledger.folded(connection, self._events(connection, absent, scratch))
        return [PaymentChange(key, None, columns) for key, columns in folded.items()]

    def _settled(self, changes: Sequence[PaymentChange]) -> Iterator[Finding]:
        if self._write and changes:
            keys = [change.key for change in changes]
            changes = self._patiently(self._ledger.refold, keys)
        yield from map(_changed_payment, changes)

    def _events(self, connection: Connection, keys: Collection[PaymentKey], scratch: Scratch) -> Events:
        """What is stored of the payments; in a check, what would be stored."""
        return events_of(connection, keys) if self._write else scratch.instead(connection, keys)

    # -- reading

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        """A connection on which all statements see the ledger of one moment."""
        engine = self._ledger.engine
        options: dict[str, Any] = {"reading": True}
        if engine.dialect.name == "postgresql":
            options["isolation_level"] = "REPEATABLE READ"
        with away_when_it_fails(), engine.connect().execution_options(**options) as connection:
            yield connection

    def _endpoints(self, table: Any) -> list[tuple[str, str]]:
        """Where there is anything: one after the other, as an index gives the order only within each."""
        endpoint = (table.c.provider, table.c.facility)
        found = self._patiently(
            self._read, select(*endpoint).distinct().where(*self._within(table)).order_by(*endpoint)
        )
        return [(row.provider, row.facility) for row in found]

    def _read(self, query: Any) -> Sequence[Any]:
        with self._reading() as connection:
            return connection.execute(query).all()

    def _within(self, table: Any) -> list[ColumnElement[bool]]:
        return [table.c[name] == value for name, value in self._scope.items() if value is not None]

    def _patiently(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`work`, tried again while the database is away or its workers hold it for long."""
        for seconds in _WAITS:
            try:
                return work(*args, **kwargs)
            except LedgerAway:
                time.sleep(seconds)
        return work(*args, **kwargs)


def _event(row: Any) -> PaymentEvent | None:
    """The stored event that counts."""
    return msgspec.json.decode(row.event, type=PaymentEvent) if row.event and row.state == "processed" else None


def _present(connection: Connection, keys: Iterable[PaymentKey]) -> set[PaymentKey]:
    """Which of the payments there are."""
    found: set[PaymentKey] = set()
    columns = payments.c
    for provider, facility, payment_ids in grouped(keys):
        here = and_(columns.provider == provider, columns.facility == facility, columns.payment_id.in_(payment_ids))
        found |= {(provider, facility, each) for each in connection.scalars(select(columns.payment_id).where(here))}
    return found


def _left(row: Any, verdict: str, detail: str) -> Finding:
    return Finding("notification", verdict, row.provider, row.facility, row.id, detail=detail)


def _changed_notification(row: Any, item: Interpreted) -> Finding:
    changes: dict[str, tuple[Any, Any]] = {}
    if (row.state, row.reason) != (item.state, item.reason):
        changes["state"] = (_named(row.state, row.reason), _named(item.state, item.reason))
    before = msgspec.json.decode(row.event) if row.event else {}
    after = msgspec.to_builtins(item.event) if item.event is not None else {}
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name):
            changes[name] = (before.get(name), after.get(name))
    return Finding("notification", "changed", row.provider, row.facility, row.id, changes)


def _named(state: str, reason: str) -> str:
    return f"{state} ({reason})" if reason else state


def _changed_payment(change: PaymentChange) -> Finding:
    verdict = "missing" if change.before is None else "surplus" if change.after is None else "changed"
    return Finding("payment", verdict, *change.key, changes=_readable(change))


def _readable(change: PaymentChange) -> dict[str, tuple[Any, Any]]:
    """Amounts as decimal text, each with the decimals of its own side."""

    def shown(name: str, value: Any, columns: Columns | None) -> Any:
        known = name in _AMOUNTS and value is not None and columns is not None
        return text_from_minor(value, columns["exponent"]) if known and columns else value

    return {
        name: (shown(name, before, change.before), shown(name, after, change.after))
        for name, (before, after) in sorted(changed(change.before, change.after).items())
    }
