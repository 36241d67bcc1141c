"""One payment with all that led to it."""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import Connection, select

from receiver.codes import explain
from receiver.money import text_from_minor
from receiver.notification import PaymentEvent
from workers.ledger import queries
from workers.ledger.rows import storable
from workers.ledger.tables import notifications, payments

_EVENT = msgspec.json.Decoder(PaymentEvent)


def payment(connection: Connection, provider: str, facility: str, payment_id: str) -> dict[str, Any] | None:
    """The payment object of the contract with its `response` explained, what was `expected` and `differs`, and its
    `events`: its notifications by the sender's time, each with the `event` that was made of it."""
    row = _row(connection, provider, facility, payment_id)
    if row is None:
        return None
    c = notifications.c
    of_payment = (c.provider == provider, c.facility == facility, c.payment_id == payment_id)
    # Sorted below: asked for an order, SQLite would read all of the endpoint in it.
    found = connection.execute(select(notifications).where(*of_payment)).all()
    events = [queries.notification(each) | {"event": _event(each.event)} for each in found]
    payment = queries.payment(row)
    return (
        payment
        | {"response": msgspec.to_builtins(explain(payment))}
        | queries.expected_of(connection, row)
        | {"returns": queries.returns_of_payment(connection, provider, facility, payment_id, row.reference)}
        | {"events": sorted(events, key=lambda each: (each["event"]["occurred_at"] or each["received_at"], each["id"]))}
    )


def payment_alone(
    connection: Connection, provider: str, facility: str, payment_id: str | None
) -> dict[str, Any] | None:
    """The payment object of the contract."""
    row = _row(connection, provider, facility, payment_id) if payment_id is not None else None
    return queries.payment(row) if row is not None else None


def _row(connection: Connection, provider: str, facility: str, payment_id: str) -> Any:
    if not all(map(storable, (provider, facility, payment_id))):
        return None
    c = payments.c
    key = (c.provider == provider, c.facility == facility, c.payment_id == payment_id)
    return connection.execute(select(payments).where(*key)).first()


def _event(text: str | None) -> dict[str, Any]:
    """What a person wants to know of an event, with amounts as decimal text."""
    event = _EVENT.decode(text) if text else PaymentEvent(event_type="")
    return {
        "effect": event.effect.value,
        "occurred_at": event.occurred_at,
        "amount": None if event.amount is None else text_from_minor(event.amount, event.exponent),
        "currency": event.currency,
        "response_code": event.response_code,
        "response_description": event.response_description,
        "flags": list(event.flags),
    }
