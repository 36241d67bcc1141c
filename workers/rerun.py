"""What replaying some notifications does: the step of live work again, from the raw bytes, with today's code. One
transaction; a preview rolls it back."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Any

import msgspec
from sqlalchemy import Connection, select

from receiver.errors import BodyLocked
from receiver.money import text_from_minor
from receiver.notification import Expectation
from workers.ledger.ledger import PaymentKey, Recorded, expectations_of
from workers.ledger.payments import token_key
from workers.ledger.revision import PaymentChange, Revision, differs
from workers.ledger.rows import Interpreted, cleaned, purged
from workers.ledger.tables import notifications
from workers.pipeline import Pipeline, takes_back

CHUNK = 250
"""Notifications in one transaction, until it is known how long they take."""
_LONGEST_WHY = 500
_AMOUNTS = frozenset({"amount", "surcharge", "amount_refunded"})
_SHOWN = (
    *("state", "amount", "currency", "surcharge", "amount_refunded", "receipt_number", "reference"),
    *("customer_reference", "response_code", "settlement_date", "mismatch"),
)


class Outcome(StrEnum):
    """What a replay does to one notification; fixed words."""

    UNCHANGED = "unchanged"
    """It says the same as before."""
    NEW_PAYMENT = "new_payment"
    PAYMENT_CHANGED = "payment_changed"
    REINTERPRETED = "reinterpreted"
    """It is read anew, and its payment, if it speaks of one, stays as it was."""
    STILL_FAILS = "still_fails"
    TAKEN_BACK = "taken_back"
    """It was processed, and today's code does not believe it for what it says itself."""
    KEPT = "kept"
    """It was processed, and today's configuration or code cannot read it; what was read once stays."""
    REPEAT = "repeat"
    """Its duplicate key is that of another notification; it stays as it was, as a repeat has no effect."""
    NOT_RECORDED = "not_recorded"
    """What was made of it could not be stored; it stays as it was."""
    MISSING = "missing"
    """It is not in the ledger any more."""
    CANCELLED = "cancelled"
    """The replay was cancelled before its turn."""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What a replay does to one notification, and why."""

    notification_id: str
    outcome: Outcome
    provider: str | None = None
    facility: str | None = None
    was: str | None = None
    """State and, in parentheses, reason."""
    now: str | None = None
    why: str | None = None
    payment_id: str | None = None
    payment_before: dict[str, Any] | None = None
    payment_after: dict[str, Any] | None = None


def rerun(
    connection: Connection, ledger: Revision, pipeline: Pipeline, ids: Sequence[str]
) -> tuple[list[Result], Recorded]:
    """Replays `ids` in the transaction of `connection`: a result for each, in their order, and what to report when it
    is committed. Any error means that something in it cannot be stored."""
    columns = notifications.c
    rows = {row.id: row for row in connection.execute(select(notifications).where(columns.id.in_(ids)))}
    expected = _expected(connection, [row for row in rows.values() if not row.verified])
    results: dict[str, Result] = {}
    items: dict[str, Interpreted] = {}
    for notification_id in ids:
        row = rows.get(notification_id)
        if row is None:
            results[notification_id] = Result(notification_id=notification_id, outcome=Outcome.MISSING)
            continue
        try:
            item = pipeline.interpret_again(row, expected.get((row.provider, row.facility, row.payment_id or "")))
        except BodyLocked as locked:
            results[row.id] = _stays(row, str(locked))
            continue
        if row.state == "processed" and item.state != "processed" and not takes_back(row.state, item):
            results[row.id] = _stays(row, _why(item))
        elif not differs(row, item):
            results[row.id] = _stays(row, "Its raw body was purged." if purged(row) else _why(item))
        else:
            items[row.id] = item
    recorded = Recorded()
    revised = ledger.revise_within(connection, list(items.values()), recorded)
    repeats = {item.envelope.id for item in revised.taken}
    changes = {change.key: change for change in revised.payments}
    for notification_id, item in items.items():
        row = rows[notification_id]
        results[notification_id] = _repeat(row) if notification_id in repeats else _result(row, item, changes)
    return [results[notification_id] for notification_id in ids], recorded


def counted(results: Sequence[Result]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for result in results:
        counts[result.outcome.value] = counts.get(result.outcome.value, 0) + 1
    return counts


def _expected(connection: Connection, rows: Sequence[Any]) -> dict[PaymentKey, Expectation]:
    """Expectations of what is held, by provider, facility and token."""
    found: dict[PaymentKey, Expectation] = {}
    by_endpoint: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.payment_id:
            by_endpoint.setdefault((row.provider, row.facility), []).append(token_key(row.payment_id))
    for (provider, facility), keys in by_endpoint.items():
        for expectation in expectations_of(connection, provider, facility, keys).values():
            found[provider, facility, expectation.token or ""] = expectation
    return found


def _stays(row: Any, why: str | None) -> Result:
    outcome = Outcome.STILL_FAILS
    if row.state == "processed":
        outcome = Outcome.KEPT if why else Outcome.UNCHANGED
    state = _state(row.state, row.reason)
    return _of(row, outcome, now=state, why=why)


def _repeat(row: Any) -> Result:
    why = "Another notification has its duplicate key: the sender's repeat was recorded."
    return _of(row, Outcome.REPEAT, now=_state(row.state, row.reason), why=why)


def _result(row: Any, item: Interpreted, changes: dict[PaymentKey, PaymentChange]) -> Result:
    now = _state(item.state, item.reason)
    payment_id = item.payment_id or row.payment_id
    change = changes.get((row.provider, row.facility, payment_id or ""))
    if item.state != "processed":
        outcome = Outcome.TAKEN_BACK if row.state == "processed" else Outcome.STILL_FAILS
        return _of(row, outcome, now=now, why=_why(item), payment_id=payment_id, **_payment(change))
    outcome = Outcome.REINTERPRETED
    if change is not None:
        outcome = Outcome.NEW_PAYMENT if change.before is None else Outcome.PAYMENT_CHANGED
    return _of(row, outcome, now=now, payment_id=payment_id, **_payment(change))


def _of(row: Any, outcome: Outcome, **values: Any) -> Result:
    values.setdefault("payment_id", row.payment_id)
    was = _state(row.state, row.reason)
    return Result(
        notification_id=row.id, outcome=outcome, provider=row.provider, facility=row.facility, was=was, **values
    )


def _payment(change: PaymentChange | None) -> dict[str, Any]:
    return {"payment_before": _shown(change.before), "payment_after": _shown(change.after)} if change else {}


def _shown(columns: dict[str, Any] | None) -> dict[str, Any] | None:
    """What an operator compares; amounts as decimal text."""
    if columns is None:
        return None
    shown = {name: columns[name] for name in _SHOWN}
    for name in _AMOUNTS & shown.keys():
        if shown[name] is not None:
            shown[name] = text_from_minor(shown[name], columns["exponent"])
    return shown


def _state(state: str, reason: str) -> str:
    return f"{state} ({reason})" if reason else state


def _why(item: Interpreted) -> str | None:
    """One line: the last of a traceback names the fault."""
    return cleaned(item.detail).rstrip().rpartition("\n")[2][:_LONGEST_WHY] or None
