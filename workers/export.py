"""Notifications as a file: CSV for a spreadsheet, JSON Lines for a program. Read a page at a time, however many."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from datetime import datetime
from enum import StrEnum
from functools import partial
from itertools import chain
from typing import Any

import msgspec
from sqlalchemy import Engine

from receiver.money import text_from_minor
from receiver.notification import PaymentEvent
from workers.audit import Action, Actor, Audit
from workers.ledger import pages, queries
from workers.ledger.database import away_when_it_fails
from workers.ledger.queries import Filter
from workers.ledger.tables import notifications

COLUMNS = (
    *("id", "provider", "facility", "event_type", "dedupe_key", "state", "reason", "received_at", "processed_at"),
    *("source", "deliveries", "conflicts", "payment_id", "effect", "occurred_at", "receipt_number", "amount"),
    *("currency", "surcharge", "reference", "customer_reference", "card_scheme", "response_code"),
    *("response_description", "settlement_date", "custom"),
)
"""The notification object of the contract, and what it says of its payment; amounts as decimal text."""


class Format(StrEnum):
    CSV = "csv"
    JSONL = "jsonl"


MEDIA_TYPES = {Format.CSV: "text/csv", Format.JSONL: "application/jsonl"}

_EVENT = msgspec.json.Decoder(PaymentEvent)
_JSON = msgspec.json.Encoder()
_ROWS_AT_ONCE = 500
# What makes a spreadsheet take a cell for a formula, in both widths of East Asian writing.
_FORMULA = re.compile(r"[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?", re.ASCII)


def export(
    engine: Engine, trail: Audit, actor: Actor, wanted: Filter, form: Format, reason: str = ""
) -> Iterator[bytes]:
    """Begins an export, which is in the audit trail then; gives its parts, newest first.

    Raises `NotDone` (`too_many_found`) for a search that matches too much, and `LedgerAway`, also on the way.
    """
    lines = (csv_lines if form is Format.CSV else json_lines)(exported(partial(queries.reading, engine), wanted))
    # The first part asks the first question: what cannot be answered is said before anything is written.
    first = next(lines, b"")
    facts = {name: value for name, value in asdict(wanted).items() if value}
    with away_when_it_fails(), engine.begin() as connection:
        trail.add(connection, actor, Action.EXPORTED, "notifications", reason, {"format": form.value, **facts})
    return chain([first], lines)


def exported(connect: pages.Connect, wanted: Filter) -> Iterator[dict[str, Any]]:
    """Objects of `COLUMNS`, newest first. Raises `NotDone` (`too_many_found`) for a search that matches too much."""
    columns = [*pages.LISTED, notifications.c.payment_id, notifications.c.event]
    for rows in pages.notification_pages(connect, wanted, columns):
        for row in rows:
            event = _EVENT.decode(row.event) if row.event else None
            yield queries.notification(row) | {"payment_id": row.payment_id, **_said(event)}


def json_lines(objects: Iterable[dict[str, Any]]) -> Iterator[bytes]:
    """Many lines at once."""
    waiting: list[bytes] = []
    for item in objects:
        waiting.append(_JSON.encode(item) + b"\n")
        if len(waiting) == _ROWS_AT_ONCE:
            yield b"".join(waiting)
            waiting.clear()
    yield b"".join(waiting)


def csv_lines(objects: Iterable[dict[str, Any]], columns: tuple[str, ...] = COLUMNS) -> Iterator[bytes]:
    """RFC 4180, UTF-8, with a heading. A cell that a spreadsheet would run as a formula begins with an apostrophe."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)
    writer.writerow(columns)
    for number, item in enumerate(objects, 1):
        writer.writerow([_cell(item.get(name)) for name in columns])
        if number % _ROWS_AT_ONCE == 0:
            yield _taken(buffer)
    yield _taken(buffer)


def _taken(buffer: io.StringIO) -> bytes:
    text = buffer.getvalue()
    buffer.seek(0)
    buffer.truncate()
    return text.encode("utf-8", "replace")


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    text = _JSON.encode(value).decode() if isinstance(value, dict | list) else str(value)
    if _FORMULA.match(text) and not _NUMBER.fullmatch(text):
        return f"'{text}"
    return text


def _said(event: PaymentEvent | None) -> dict[str, Any]:
    if event is None:
        return dict.fromkeys(COLUMNS[COLUMNS.index("effect") :])

    def money(minor: int | None) -> str | None:
        return None if minor is None else text_from_minor(minor, event.exponent)

    return {
        "effect": event.effect.value,
        "occurred_at": event.occurred_at,
        "receipt_number": event.receipt_number,
        "amount": money(event.amount),
        "currency": event.currency,
        "surcharge": money(event.surcharge),
        "reference": event.reference,
        "customer_reference": event.customer_reference,
        "card_scheme": event.card_scheme,
        "response_code": event.response_code,
        "response_description": event.response_description,
        "settlement_date": event.settlement_date,
        "custom": event.custom,
    }
