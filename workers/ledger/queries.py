"""Reading the ledger: the objects of the contract, one of them, and what may be shown. `pages` lists them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Connection, Engine, Select, and_, case, false, func, literal, or_, select, text

from receiver.codes import explain
from receiver.errors import BodyError
from receiver.money import text_from_minor
from receiver.notification import PaymentEvent, PaymentState
from receiver.providers import PROVIDERS
from workers.ledger.bodies import Bodies
from workers.ledger.database import away_when_it_fails
from workers.ledger.payments import expectation_key, fold
from workers.ledger.rows import expectation_from, storable
from workers.ledger.tables import browser_returns, expectations, notifications, payments, repeats

NOTIFICATION_STATES = ["processed", "failed", "quarantined", "held"]
PAYMENT_STATES = [state.value for state in PaymentState]

_PAGE = 1000


@dataclass(frozen=True, slots=True)
class Filter:
    """What to list; None means everything. `search` is what `workers.ledger.search` finds."""

    state: str | None = None
    provider: str | None = None
    facility: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    search: str | None = None
    limit: int | None = None
    mismatch: bool = False
    """Of payments: only those that are not as expected."""


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A connection that only reads. Raises `LedgerAway`."""
    with away_when_it_fails(), engine.connect() as connection:
        reader = connection.execution_options(reading=True)
        if engine.dialect.name == "postgresql":
            # Who reads a long list may take the time; nobody waits for it.
            reader.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        yield reader


def list_expectations(
    connection: Connection, wanted: Filter, overdue_at: datetime | None = None
) -> Iterator[dict[str, Any]]:
    """With `overdue_at`: those without a payment whose time was over at that moment."""
    columns = expectations.c
    query = select(expectations, _answered().label("answered"))
    query = query.where(*conditions(expectations, wanted, columns.registered_at))
    if overdue_at is not None:
        query = query.where(~_answered(), _due_before(overdue_at))
    order = (columns.registered_at.desc(), columns.key)
    for row in _rows(connection, query.order_by(*order), wanted.limit):
        yield expectation(row) | {"answered": row.answered}


def show_notification(connection: Connection, notification_id: str, bodies: Bodies) -> dict[str, Any] | None:
    """One notification with its raw body and all its deliveries, found by the id of any of them. The body is None, and
    `body_note` says why, when it was purged or cannot be opened."""
    if not storable(notification_id):
        return None
    original = select(repeats.c.notification_id).where(repeats.c.id == notification_id).scalar_subquery()
    row = connection.execute(
        select(notifications).where(or_(notifications.c.id == notification_id, notifications.c.id == original))
    ).first()
    if row is None:
        return None
    again = connection.execute(select(repeats).where(repeats.c.notification_id == row.id).order_by(repeats.c.id))
    return notification(row) | {
        "verified": row.verified,
        "detail": row.detail or None,
        "content_type": row.content_type,
        "headers": msgspec.json.decode(row.headers),
        **_body(row, row, bodies),
        "payment_id": row.payment_id,
        "event": msgspec.json.decode(row.event) if row.event else None,
        "repeats": [
            {
                "id": repeat.id,
                "kind": "conflict" if repeat.conflict else "duplicate",
                "received_at": repeat.received_at,
                "source": repeat.source,
                **_body(repeat, row, bodies),
            }
            for repeat in again
        ],
    }


def show_payment(connection: Connection, payment_id: str) -> list[dict[str, Any]]:
    """Every payment with this id or receipt number, each with its response code explained, with its notifications in
    their order, with what was `expected`, with what `differs` from it, and what the customer saw."""
    if not storable(payment_id):
        return []
    found = connection.execute(
        select(payments)
        .where(or_(payments.c.payment_id == payment_id, payments.c.receipt_number == payment_id))
        .order_by(payments.c.provider, payments.c.facility, payments.c.payment_id)
    ).all()
    return [
        payment(row)
        | {"response": msgspec.to_builtins(explain(payment(row)))}
        | expected_of(connection, row)
        | {
            "returns": returns_of_payment(connection, row.provider, row.facility, row.payment_id, row.reference),
            "notifications": _of_payment(connection, row),
        }
        for row in found
    ]


def returns_of_payment(
    connection: Connection, provider: str, facility: str, payment_id: str, reference: str | None = None
) -> list[dict[str, Any]]:
    """What the customer of a payment was told on coming back, in order: by the payment's id; and by its reference what
    came before there was a payment, as an error or a question."""
    columns = browser_returns.c
    here = select(browser_returns).where(columns.provider == provider, columns.facility == facility)
    # Two questions, each with its index: SQLite has none for both in one.
    found = connection.execute(here.where(columns.payment_id == payment_id)).all()
    if reference is not None:
        before = here.where(columns.payment_id.is_(None), columns.reference == reference)
        found = [*found, *connection.execute(before)]
    return [browser_return(row) for row in sorted(found, key=lambda row: (row.returned_at, row.id))]


def browser_return(row: Any) -> dict[str, Any]:
    """What a customer was told. Where `verified` is false anybody may have written it."""

    def money(minor: int | None) -> str | None:
        return None if minor is None else text_from_minor(minor, 2)

    return {
        "returned_at": row.returned_at,
        "verified": row.verified,
        "outcome": row.outcome,
        "amount": money(row.amount),
        "surcharge": money(row.surcharge),
        "currency": row.currency,
        "reference": row.reference,
        "receipt_number": row.receipt_number,
        "response_code": row.response_code,
        "summary_code": row.summary_code,
        "reported": row.reported,
        "error_fields": msgspec.json.decode(row.error_fields),
    }


def count(connection: Connection, state: str) -> int:
    """Notifications in `state`."""
    return connection.scalar(select(func.count()).select_from(notifications).where(notifications.c.state == state)) or 0


def count_mismatches(connection: Connection) -> int:
    """Payments that are not as expected."""
    return connection.scalar(select(func.count()).select_from(payments).where(payments.c.mismatch)) or 0


def expectation(row: Any) -> dict[str, Any]:
    """What the merchant announced, without its secret. `due_at` is when its notification becomes overdue."""
    return {
        "provider": row.provider,
        "facility": row.facility,
        "reference": row.reference,
        "amount": text_from_minor(row.amount, row.exponent),
        "currency": row.currency,
        "merchant": row.merchant,
        "token": row.token,
        "valid_to": row.valid_to,
        "registered_at": row.registered_at,
        "due_at": row.valid_to or row.registered_at + PROVIDERS[row.provider].answer_within,
    }


def notification(row: Any) -> dict[str, Any]:
    """The notification object of the contract."""
    return {
        "id": row.id,
        "provider": row.provider,
        "facility": row.facility,
        "event_type": row.event_type,
        "dedupe_key": row.dedupe_key,
        "state": row.state,
        "reason": row.reason or None,
        "received_at": row.received_at,
        "processed_at": row.processed_at,
        "source": row.source,
        "deliveries": row.deliveries,
        "conflicts": row.conflicts,
    }


def payment(row: Any) -> dict[str, Any]:
    """The payment object of the contract; amounts as decimal text."""

    def money(minor: int | None) -> str | None:
        return None if minor is None else text_from_minor(minor, row.exponent)

    return {
        "provider": row.provider,
        "facility": row.facility,
        "payment_id": row.payment_id,
        "receipt_number": row.receipt_number,
        "state": row.state,
        "amount": money(row.amount),
        "currency": row.currency,
        "surcharge": money(row.surcharge),
        "amount_refunded": money(row.amount_refunded),
        "reference": row.reference,
        "customer_reference": row.customer_reference,
        "card_scheme": row.card_scheme,
        "response_code": row.response_code,
        "response_description": row.response_description,
        "summary_code": row.summary_code,
        "soft_decline": row.soft_decline,
        "settlement_date": row.settlement_date,
        "occurred_at": row.occurred_at,
        "updated_at": row.updated_at,
        "custom": msgspec.json.decode(row.custom),
        "mismatch": row.mismatch,
    }


def shown_body(provider: str, body: bytes) -> str:
    """A raw body as text, with the values of the provider's secret fields blanked."""
    shown = body.decode("utf-8", "replace")
    secret = PROVIDERS[provider].secret_fields if provider in PROVIDERS else ()
    for name in map(re.escape, sorted(secret)):
        if shown.lstrip("\ufeff \t\r\n").startswith("{"):
            shown = re.sub(rf'("{name}"\s*:\s*)("(?:[^"\\]|\\.)*"?|[^,}}\s]+)', r'\1"***"', shown, flags=re.IGNORECASE)
        else:
            shown = re.sub(rf"(?:(?<=&)|^)({name}=)[^&]*", r"\1***", shown, flags=re.IGNORECASE)
    return shown


def _body(row: Any, of: Any, bodies: Bodies) -> dict[str, str | None]:
    """The body of a notification or a repeat of the notification `of`."""
    if row.body is None and row.purged_at is None:
        return {"body": None, "body_note": None}
    try:
        return {"body": shown_body(of.provider, bodies.opened(row, of.provider, of.facility)), "body_note": None}
    except BodyError as error:
        return {"body": None, "body_note": str(error)}


def _of_payment(connection: Connection, row: Any) -> list[dict[str, Any]]:
    rows = connection.execute(
        select(notifications)
        .where(
            notifications.c.provider == row.provider,
            notifications.c.facility == row.facility,
            notifications.c.payment_id == row.payment_id,
        )
        .order_by(notifications.c.id)
    )
    return [notification(found) for found in rows]


def _answered() -> ColumnElement[bool]:
    """Whether an expectation has a payment, by its token or by its reference."""
    mine = and_(payments.c.provider == expectations.c.provider, payments.c.facility == expectations.c.facility)
    by_token = select(1).where(mine, payments.c.payment_id == expectations.c.token).exists()
    by_reference = select(1).where(mine, payments.c.reference == expectations.c.reference).exists()
    return case((expectations.c.token.is_not(None), by_token), else_=by_reference)


def _due_before(moment: datetime) -> ColumnElement[bool]:
    columns = expectations.c
    without = [
        and_(columns.provider == name, columns.registered_at < moment - provider.answer_within)
        for name, provider in PROVIDERS.items()
    ]
    return or_(columns.valid_to < moment, and_(columns.valid_to.is_(None), or_(*without)))


def expected_of(connection: Connection, row: Any) -> dict[str, Any]:
    """What was announced of a payment, and what differs, by the same fold that set `mismatch`."""
    columns = notifications.c
    said = connection.execute(
        select(columns.state, columns.event).where(
            columns.provider == row.provider,
            columns.facility == row.facility,
            columns.payment_id == row.payment_id,
        )
    )
    # The state is not asked for above: SQLite would take its index, and read all that was ever processed.
    events = [msgspec.json.decode(each.event, type=PaymentEvent) for each in said if each.state == "processed"]
    key = expectation_key(events)
    found = None
    if key is not None and storable(key):
        found = connection.execute(
            select(expectations).where(
                expectations.c.provider == row.provider,
                expectations.c.facility == row.facility,
                expectations.c.key == key,
            )
        ).first()
    folded = fold(events, expectation_from(found) if found else None)
    return {"expected": expectation(found) if found else None, "differs": list(folded.differs) if folded else []}


def not_by_index(column: ColumnElement[str]) -> ColumnElement[str]:
    """The column, to be compared row by row where another index finds few: named as it is, SQLite prefers the index of
    the endpoint and reads all of it."""
    return literal("").concat(column)


def conditions(table: Any, wanted: Filter, time_column: Any) -> list[ColumnElement[bool]]:
    """What `wanted` says of the rows of `table`, but for the search."""
    conditions: list[ColumnElement[bool]] = []
    unexpected = wanted.mismatch and table is payments
    for name in ("state", "provider", "facility"):
        value = getattr(wanted, name)
        if value is not None:
            # Those that are not as expected have an index of their own, in the order of the list.
            column = not_by_index(table.c[name]) if unexpected else table.c[name]
            conditions.append(column == value if storable(value) else false())
    if unexpected:
        conditions.append(payments.c.mismatch)
    if wanted.since is not None:
        conditions.append(time_column >= wanted.since)
    if wanted.until is not None:
        conditions.append(time_column < wanted.until)
    return conditions


def _rows(connection: Connection, query: Select[Any], limit: int | None) -> Iterator[Any]:
    if limit is not None:
        query = query.limit(limit)
    # Closed also when the caller has seen enough: it is a cursor on the server.
    with connection.execute(query.execution_options(yield_per=_PAGE)) as found:
        yield from found
