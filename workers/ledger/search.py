"""What a search finds: keys and references that begin with the text, or an amount that equals it.

Every look is a short walk along an index, of at most so many matches: an exact match first, then what begins with the
text. It is compared as written, in capitals and in small letters; the middle of a text is not sought.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from sqlalchemy import Column, ColumnElement, Connection, and_, or_, select

from workers.ledger.loose import combinations
from workers.ledger.rows import storable
from workers.ledger.tables import notifications, payments, repeats

PaymentKey = tuple[str, str, str]
"""Provider, facility, payment id."""

SHORTEST_ID = 8
"""Characters. Every id of the same minute begins with the same eight."""

_LAST_CHARACTER = "\U0010ffff"
_AMOUNT = re.compile(r"\d{1,15}(?:\.\d{1,4})?", re.ASCII)
_EXPONENTS = range(5)
_ID = re.compile(r"[0-9a-f-]{8,36}", re.ASCII)
_AT_ONCE = 500

_PAYMENT_KEY = (payments.c.provider, payments.c.facility, payments.c.payment_id)


def notification_ids(connection: Connection, sought: str, most: int) -> tuple[set[str], bool]:
    """Ids of notifications whose own id, duplicate key or payment id begins with `sought`, or whose payment is found by
    it; and whether there are more than `most`."""
    ids: set[str] = set()
    for found in _notification_ids(connection, sought, most):
        ids.add(found)
        if len(ids) > most:
            return ids, True
    return ids, False


def payment_keys(connection: Connection, sought: str, most: int) -> tuple[set[PaymentKey], bool]:
    """Payments whose id, receipt number, reference or customer reference begins with `sought`, or whose amount it is;
    and whether there are more than `most`."""
    keys: set[PaymentKey] = set()
    for found in _payment_keys(connection, sought, most):
        keys.add(found)
        if len(keys) > most:
            return keys, True
    return keys, False


def _notification_ids(connection: Connection, sought: str, most: int) -> Iterator[str]:
    c = notifications.c
    if not storable(sought):
        return
    lower = sought.lower()
    if _ID.fullmatch(lower):
        yield from connection.scalars(select(c.id).where(_begins(c.id, lower)).order_by(c.id.desc()).limit(most + 1))
        yield from connection.scalars(select(repeats.c.notification_id).where(repeats.c.id == lower))
    for provider, facility in combinations(connection, (c.provider, c.facility)):
        here = and_(c.provider == provider, c.facility == facility)
        for column in (c.dedupe_key, c.payment_id):
            for text in _spellings(sought):
                begins = select(c.id).where(here, _begins(column, text))
                yield from connection.scalars(begins.order_by(column).limit(most + 1))
    keys, _ = payment_keys(connection, sought, most)
    by_endpoint: dict[tuple[str, str], list[str]] = {}
    for provider, facility, payment_id in sorted(keys):
        by_endpoint.setdefault((provider, facility), []).append(payment_id)
    for (provider, facility), payment_ids in by_endpoint.items():
        here = and_(c.provider == provider, c.facility == facility)
        for start in range(0, len(payment_ids), _AT_ONCE):
            some = c.payment_id.in_(payment_ids[start : start + _AT_ONCE])
            yield from connection.scalars(select(c.id).where(here, some).limit(most + 1))


def _payment_keys(connection: Connection, sought: str, most: int) -> Iterator[PaymentKey]:
    c = payments.c
    if not storable(sought):
        return
    if _AMOUNT.fullmatch(sought):
        yield from _keys(connection, _is_amount(Decimal(sought)), c.updated_at.desc(), most)
    for text in _spellings(sought):
        for column in (c.payment_id, c.receipt_number, c.reference, c.customer_reference):
            if column.name.endswith("reference"):
                # Some use one reference for all payments of a customer: of those, the last changed.
                yield from _keys(connection, column == text, c.updated_at.desc(), most)
            yield from _keys(connection, _begins(column, text), column, most)


def _keys(connection: Connection, where: ColumnElement[bool], order: Any, most: int) -> Iterator[PaymentKey]:
    for row in connection.execute(select(*_PAYMENT_KEY).where(where).order_by(order).limit(most + 1)):
        yield row.provider, row.facility, row.payment_id


def _spellings(text: str) -> list[str]:
    return list(dict.fromkeys((text, text.upper(), text.lower())))


def _begins(column: Column[Any], text: str) -> ColumnElement[bool]:
    return and_(column >= text, column < text + _LAST_CHARACTER)


def _is_amount(amount: Decimal) -> ColumnElement[bool]:
    """Whatever the currency's decimals: 12 is 12.00 dollars and 12 yen."""
    c = payments.c
    minor = {exponent: amount.scaleb(exponent) for exponent in _EXPONENTS}
    whole = {exponent: int(value) for exponent, value in minor.items() if value == int(value) and value < 2**63}
    exact = or_(*(and_(c.exponent == exponent, c.amount == value) for exponent, value in whole.items()))
    # The second condition is for the index.
    return and_(exact, c.amount.in_(sorted(set(whole.values()))))
