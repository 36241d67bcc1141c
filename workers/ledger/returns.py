"""What customers saw, on its way into the ledger: proven returns all, others only where they name something known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Connection, func, or_, select

from receiver.notification import BrowserReturn, utc
from workers.ledger.payments import reference_key, token_key
from workers.ledger.rows import bounded, cut
from workers.ledger.tables import KEY, browser_returns, expectations, notifications, payments

MOST_UNPROVEN = 10
"""Of one payment or reference: anybody who knows it could write more."""

_JSON = msgspec.json.Encoder()


def rows_to_note(connection: Connection, returns: Sequence[BrowserReturn]) -> list[dict[str, Any]]:
    """The rows of what is to be kept. A return that is there already has the same `digest`."""
    rows, unproven = [], dict[tuple[str, str, str | None, str | None], int]()
    for returned in returns:
        row = _row(returned)
        if not returned.verified:
            name = (returned.provider, returned.facility, row["payment_id"], row["reference"])
            if name not in unproven:
                unproven[name] = _room(connection, *name)
            if unproven[name] <= 0:
                continue
            unproven[name] -= 1
        rows.append(row)
    return sorted(rows, key=lambda row: (row["provider"], row["facility"], row["digest"]))


def _room(connection: Connection, provider: str, facility: str, payment_id: str | None, reference: str | None) -> int:
    """How many more unproven returns may be kept of what these name; none of what nobody ever heard of."""
    if not _known(connection, provider, facility, payment_id, reference):
        return 0
    columns = browser_returns.c
    kept = connection.scalar(
        select(func.count()).where(
            columns.provider == provider,
            columns.facility == facility,
            columns.payment_id == payment_id if payment_id is not None else columns.reference == reference,
            ~columns.verified,
        )
    )
    return MOST_UNPROVEN - (kept or 0)


def _known(connection: Connection, provider: str, facility: str, payment_id: str | None, reference: str | None) -> bool:
    def found(table: Any, condition: ColumnElement[bool]) -> ColumnElement[bool]:
        return select(1).where(table.c.provider == provider, table.c.facility == facility, condition).exists()

    anywhere: list[ColumnElement[bool]] = []
    if payment_id is not None:
        anywhere.append(found(expectations, expectations.c.key == token_key(payment_id)))
        anywhere.append(found(notifications, notifications.c.payment_id == payment_id))
    elif reference is not None:
        anywhere.append(found(expectations, expectations.c.key == reference_key(reference)))
        anywhere.append(found(payments, payments.c.reference == reference))
    return bool(anywhere) and bool(connection.scalar(select(or_(*anywhere))))


def _row(returned: BrowserReturn) -> dict[str, Any]:
    return {
        "id": returned.id,
        "provider": returned.provider,
        "facility": returned.facility,
        "digest": returned.digest,
        "returned_at": utc(returned.returned_at),
        "verified": returned.verified,
        "outcome": returned.outcome.value,
        "payment_id": bounded(returned.payment_id) if returned.payment_id is not None else None,
        "reference": cut(returned.reference, 255),
        "receipt_number": cut(returned.receipt_number, KEY),
        "amount": returned.amount,
        "surcharge": returned.surcharge,
        "currency": cut(returned.currency, 3),
        "response_code": cut(returned.response_code, 64),
        "summary_code": cut(returned.summary_code, 16),
        "reported": cut(returned.reported, 40),
        "error_fields": _JSON.encode(returned.error_fields).decode(),
    }
