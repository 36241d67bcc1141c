"""What the ledger keeps of reconciliations, and what they ask it. Entries themselves go the way of notifications."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime
from typing import Any

import msgspec
from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Connection,
    Engine,
    Text,
    and_,
    any_,
    bindparam,
    cast,
    func,
    insert,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.exc import SQLAlchemyError

from receiver.notification import PaymentEvent
from receiver.providers.base import Endpoint
from receiver.signing import digest
from workers.ledger.database import away_when_it_fails
from workers.ledger.queries import Filter
from workers.ledger.rows import bounded, cut
from workers.ledger.tables import findings, notifications, payments, reconciliations

KEPT_FINDINGS = 10_000
"""Findings kept of one reconciliation; `counts` has all of them."""

# PostgreSQL's advisory locks: their first number, which is ours alone.
_LOCKS = 1_349_481_283
_PAGE = 2000
_FIGURE = 64
_EARLIER = 5
_EVENT = msgspec.json.Decoder(PaymentEvent)

Account = Callable[[Connection], object]
"""Adds to the audit trail, in the transaction that it is given."""


class Reconciliations:
    """The runs over settlement files. Every method that writes is one transaction."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def begin(self, values: dict[str, Any], account: Account) -> None:
        """`values` are those of the row; what is counted starts at nothing."""
        counted = {"rows": 0, "matched": 0, "entered": 0, "findings": 0, "counts": "{}"}
        with away_when_it_fails(), self._engine.begin() as connection:
            connection.execute(insert(reconciliations), values | counted)
            account(connection)

    def add(self, reconciliation_id: str, found: Sequence[dict[str, Any]]) -> None:
        rows = [
            {
                **each,
                "reconciliation_id": reconciliation_id,
                "receipt_number": _key(each["receipt_number"]),
                "payment_id": _key(each["payment_id"]),
                "here": cut(each["here"], _FIGURE),
                "in_file": cut(each["in_file"], _FIGURE),
            }
            for each in found
        ]
        with away_when_it_fails(), self._engine.begin() as connection:
            connection.execute(insert(findings), rows)

    def finish(self, reconciliation_id: str, values: dict[str, Any], account: Account) -> None:
        with away_when_it_fails(), self._engine.begin() as connection:
            connection.execute(
                update(reconciliations)
                .where(reconciliations.c.id == reconciliation_id)
                .values(values | {"finished_at": datetime.now(UTC)})
            )
            account(connection)

    @contextmanager
    def alone(self, provider: str, facility: str) -> Iterator[bool]:
        """Whether nobody else reconciles the endpoint at the moment. Two at once would do no harm to the ledger, but
        each would report what the other has entered."""
        postgresql = self._engine.dialect.name == "postgresql"
        with _advisory_lock(self._engine, provider, facility) if postgresql else _file_lock(self._engine) as taken:
            yield taken


@contextmanager
def _advisory_lock(engine: Engine, provider: str, facility: str) -> Iterator[bool]:
    lock = {"locks": _LOCKS, "number": int(digest(provider.encode(), facility.encode())[:7], 16)}
    taken = False
    with away_when_it_fails():
        # A session's lock, so that no transaction is open meanwhile.
        connection = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
    try:
        with away_when_it_fails():
            taken = bool(connection.scalar(text("SELECT pg_try_advisory_lock(:locks, :number)"), lock))
        yield taken
    finally:
        try:
            if taken:
                connection.execute(text("SELECT pg_advisory_unlock(:locks, :number)"), lock)
        except SQLAlchemyError:
            # The server drops the lock with the session.
            connection.invalidate()
        connection.close()


@contextmanager
def _file_lock(engine: Engine) -> Iterator[bool]:
    file = os.open(f"{engine.url.database}-reconciling", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            taken = True
        except BlockingIOError:
            taken = False
        yield taken
    finally:
        os.close(file)


def list_reconciliations(connection: Connection, wanted: Filter, before: str | None = None) -> Iterator[dict[str, Any]]:
    """The runs, newest first; those before the run with the id `before`."""
    columns = reconciliations.c
    query = select(reconciliations).order_by(columns.id.desc())
    if before is not None:
        query = query.where(columns.id < before)
    if wanted.provider is not None:
        query = query.where(columns.provider == wanted.provider)
    if wanted.facility is not None:
        query = query.where(columns.facility == wanted.facility)
    if wanted.since is not None:
        query = query.where(columns.began_at >= wanted.since)
    if wanted.until is not None:
        query = query.where(columns.began_at < wanted.until)
    for row in connection.execute(query.limit(wanted.limit)):
        yield reconciliation(row)


def show_reconciliation(connection: Connection, reconciliation_id: str) -> dict[str, Any] | None:
    """One run with its findings in their order."""
    row = connection.execute(select(reconciliations).where(reconciliations.c.id == reconciliation_id)).first()
    if row is None:
        return None
    found = connection.execute(
        select(findings).where(findings.c.reconciliation_id == reconciliation_id).order_by(findings.c.number)
    )
    return reconciliation(row) | {"found": [finding(each) for each in found]}


def of_same_file(connection: Connection, run: dict[str, Any]) -> list[dict[str, Any]]:
    """Earlier runs of the endpoint over a file with the same bytes that came to their end, newest first; a few."""
    columns = reconciliations.c
    rows = connection.execute(
        select(reconciliations)
        .where(
            columns.provider == run["provider"],
            columns.facility == run["facility"],
            columns.id < run["id"],
            columns.digest == run["digest"],
            columns.finished_at.is_not(None),
        )
        .order_by(columns.id.desc())
        .limit(_EARLIER)
    )
    return [reconciliation(row) for row in rows]


def reconciled_days(connection: Connection, provider: str, facility: str, since: date) -> set[date]:
    """First and last days, from `since` on, of the files that were reconciled to the end."""
    rows = connection.execute(
        select(reconciliations.c.first_day, reconciliations.c.last_day).where(
            reconciliations.c.provider == provider,
            reconciliations.c.facility == facility,
            reconciliations.c.finished_at.is_not(None),
            reconciliations.c.last_day >= since,
        )
    )
    return {date.fromordinal(day) for first, last in rows for day in range(first.toordinal(), last.toordinal() + 1)}


def empty_files(connection: Connection, provider: str, facility: str, since: datetime) -> list[datetime]:
    """When files without rows, which cover no day, were reconciled from `since` on."""
    rows = connection.scalars(
        select(reconciliations.c.began_at).where(
            reconciliations.c.provider == provider,
            reconciliations.c.facility == facility,
            reconciliations.c.finished_at.is_not(None),
            reconciliations.c.rows == 0,
            reconciliations.c.began_at >= since,
        )
    )
    return list(rows)


def settled_on_another_day(
    connection: Connection, endpoint: Endpoint, payment_ids: Sequence[str], since: date
) -> set[str]:
    """Those of the payments that an earlier file, of a day from `since` on, had with another date than the ledger."""
    if not payment_ids:
        return set()
    earlier = select(reconciliations.c.id).where(
        reconciliations.c.provider == endpoint.provider,
        reconciliations.c.facility == endpoint.facility,
        reconciliations.c.last_day >= since,
    )
    found = connection.scalars(
        select(findings.c.payment_id).where(
            findings.c.reconciliation_id.in_(earlier),
            findings.c.kind == "settlement_date_differs",
            _among(connection, findings.c.payment_id),
        ),
        {"values": _values(connection, payment_ids)},
    )
    return set(found)


def first_reconciled(connection: Connection, provider: str, facility: str) -> date | None:
    """The first day of which any file was reconciled."""
    first: date | None = connection.scalar(
        select(func.min(reconciliations.c.first_day)).where(
            reconciliations.c.provider == provider, reconciliations.c.facility == facility
        )
    )
    return first


def reconciliation(row: Any) -> dict[str, Any]:
    """The reconciliation object; `finished_at` is null for one that runs or was interrupted."""
    return {
        "id": row.id,
        "provider": row.provider,
        "facility": row.facility,
        "file_name": row.file_name,
        "digest": row.digest,
        "first_day": row.first_day,
        "last_day": row.last_day,
        "rows": row.rows,
        "matched": row.matched,
        "entered": row.entered,
        "findings": row.findings,
        "counts": msgspec.json.decode(row.counts),
        "began_at": row.began_at,
        "finished_at": row.finished_at,
    }


def finding(row: Any) -> dict[str, Any]:
    names = ("kind", "line", "receipt_number", "payment_id", "here", "in_file", "entered", "detail")
    return {name: getattr(row, name) for name in names}


# -- what a reconciliation asks the ledger


def payments_by_receipt(connection: Connection, provider: str, facility: str, receipts: Sequence[str]) -> Sequence[Any]:
    """The payments with one of `receipts`: a few columns of each."""
    columns = payments.c
    shown = select(
        columns.provider,
        columns.facility,
        columns.receipt_number,
        columns.payment_id,
        columns.state,
        columns.amount,
        columns.surcharge,
        columns.settlement_date,
    )
    # By the receipt alone: with the endpoint beside it, SQLite prefers an index of the endpoint and reads all of it.
    found = connection.execute(
        shown.where(_among(connection, columns.receipt_number)), {"values": _values(connection, receipts)}
    ).all()
    return [row for row in found if row[0] == provider and row[1] == facility]


def known_keys(connection: Connection, provider: str, facility: str, keys: Sequence[str]) -> set[str]:
    """Those of the duplicate keys whose notification is in the ledger already."""
    by_stored = {bounded(key): key for key in keys}
    if not by_stored:
        return set()
    found = connection.scalars(
        select(notifications.c.dedupe_key).where(
            notifications.c.provider == provider,
            notifications.c.facility == facility,
            _among(connection, notifications.c.dedupe_key),
        ),
        {"values": _values(connection, list(by_stored))},
    )
    return {by_stored[key] for key in found}


def paid_between(
    connection: Connection, provider: str, facility: str, states: frozenset[str], first: date, last: date, after: Any
) -> Iterator[Sequence[Any]]:
    """Payments in one of `states` that settle from `first` to `last`, or that settle before but were made `after` the
    cut-off, or that have no settlement date; in pages. What is known only by its refund has no amount, and is not
    among them."""
    columns = payments.c
    here = and_(
        columns.provider == provider,
        columns.facility == facility,
        columns.state.in_(sorted(states)),
        columns.amount.is_not(None),
    )
    late = and_(columns.settlement_date < first, columns.occurred_at >= after)
    dated = and_(
        columns.settlement_date >= after.date(),
        columns.settlement_date <= last,
        or_(columns.settlement_date >= first, late),
    )
    undated = and_(columns.settlement_date.is_(None), columns.occurred_at >= after)
    shown = select(
        columns.payment_id,
        columns.receipt_number,
        columns.state,
        columns.amount,
        columns.exponent,
        columns.card_scheme,
        columns.settlement_date,
        columns.occurred_at,
    )
    for condition in (dated, undated):
        query = shown.where(here, columns.receipt_number.is_not(None), condition).execution_options(yield_per=_PAGE)
        with connection.execute(query) as found:
            yield from found.partitions()


def merchants(connection: Connection, endpoint: Endpoint, payment_ids: Sequence[str]) -> dict[str, str | None]:
    """The business that each payment was made to, where a notification says so."""
    if not payment_ids:
        return {}
    rows = connection.execute(
        select(notifications.c.payment_id, notifications.c.event).where(
            notifications.c.provider == endpoint.provider,
            notifications.c.facility == endpoint.facility,
            notifications.c.event.is_not(None),
            _among(connection, notifications.c.payment_id),
        ),
        {"values": _values(connection, payment_ids)},
    )
    return {row.payment_id: _EVENT.decode(row.event).merchant for row in rows}


def only_community(connection: Connection, provider: str, facility: str) -> str | None:
    """The community of all payments of the endpoint, as their ids have it; None when they have none or several."""
    here = and_(payments.c.provider == provider, payments.c.facility == facility)
    # Keys are in the order of their bytes: what the first and the last begin with, all begin with.
    first, last = connection.execute(
        select(func.min(payments.c.payment_id), func.max(payments.c.payment_id)).where(here)
    ).one()
    if first is None or ":" not in first:
        return None
    community: str = first.partition(":")[0]
    return community if last.startswith(f"{community}:") else None


def _among(connection: Connection, column: Any) -> ColumnElement[bool]:
    """Whether `column` has one of the parameter `values`. One parameter: a statement with one for each value is as
    long as the list."""
    if connection.dialect.name == "postgresql":
        return column == any_(cast(bindparam("values"), ARRAY(Text)))  # type: ignore[no-any-return]
    each = func.json_each(bindparam("values", type_=Text)).table_valued("value")
    return column.in_(select(each.c.value))  # type: ignore[no-any-return]


def _values(connection: Connection, values: Sequence[str]) -> Any:
    return list(values) if connection.dialect.name == "postgresql" else msgspec.json.encode(values).decode()


def _key(text: str | None) -> str | None:
    return None if text is None else bounded(text)
