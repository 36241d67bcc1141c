"""What needs a person: failed, quarantined and held notifications, conflicts, and payments that are not as expected;
what each means, what can be done, and who settled it.

Nothing is marked in the notification or the payment: what needs attention follows from them, unless an operator has
resolved or ignored it with a reason. A further conflict of a notification needs attention again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, and_, delete, exists, func, insert, not_, select

from receiver.errors import NotDone, Reason
from receiver.notification import utc
from workers.audit import Action, Actor, Audit, reason_given
from workers.ledger import pages, queries
from workers.ledger.database import away_when_it_fails
from workers.ledger.pages import NotificationPlace, Page, PaymentPlace
from workers.ledger.rows import cleaned, storable
from workers.ledger.tables import notifications, payments, resolutions


class Kind(StrEnum):
    FAILED = "failed"
    QUARANTINED = "quarantined"
    HELD = "held"
    CONFLICT = "conflict"
    MISMATCH = "mismatch"


class Verdict(StrEnum):
    RESOLVED = "resolved"
    IGNORED = "ignored"


@dataclass(frozen=True, slots=True)
class Meaning:
    """In words for an operator."""

    means: str
    do: str


MEANINGS = {
    Kind.FAILED: Meaning(
        "A fault of ours: the notification is genuine and kept raw, but could not be made into a record.",
        "Read the last line of the detail. When the cause is mended, replay it; a dry run says whether it is.",
    ),
    Kind.QUARANTINED: Meaning(
        "The sender is proven, but what it says is unreadable or contradicts itself. It has no effect on a payment.",
        "Ask the sender. When the configuration was wrong, set it right and replay. Else ignore it with the reason.",
    ),
    Kind.HELD: Meaning(
        "Nobody has registered its token, so that it is not proven. It has no effect on a payment.",
        "Register the payment (postback expect add); it is then released by itself. Else it is a forgery: ignore it.",
    ),
    Kind.CONFLICT: Meaning(
        "The sender sent the same key again with other content. Both are kept; the payment is what the first said.",
        "Compare the two, and ask the sender which is right. Then resolve it with what was said.",
    ),
    Kind.MISMATCH: Meaning(
        "Amount, currency or merchant of the payment is not what was registered before.",
        "Do not deliver before it is clear. Compare with the order, refund or collect the difference, then resolve it.",
    ),
}

MOST_AT_ONCE = 1000


@dataclass(frozen=True, slots=True)
class Subject:
    """A notification by its id, or a payment by its own; a payment's needs its endpoint where several have that id."""

    kind: Kind
    subject: str
    provider: str | None = None
    facility: str | None = None


def counts(connection: Connection) -> dict[str, int]:
    """How many of each kind need attention."""
    found = {}
    for kind in Kind:
        table = payments if kind is Kind.MISMATCH else notifications
        query = select(func.count()).select_from(table).where(_is(kind), not_(_settled(kind)))
        found[kind.value] = connection.scalar(query) or 0
    return found


def page(
    connection: Connection,
    kind: Kind,
    *,
    provider: str | None = None,
    facility: str | None = None,
    settled: bool = False,
    cursor: str | None = None,
    limit: int = pages.PAGE,
) -> Page:
    """What needs attention, newest first; or what was settled. Raises `NotDone` (`cursor_malformed`).

    Items are ``kind, subject, provider, facility, at, reason, resolution``, and the ``notification`` or ``payment``.
    """
    limit = max(1, min(limit, pages.LONGEST_PAGE))
    table = payments if kind is Kind.MISMATCH else notifications
    where = [_is(kind), _settled(kind) if settled else not_(_settled(kind))]
    for name, value in (("provider", provider), ("facility", facility)):
        if value is not None:
            where.append(_at(kind, table.c[name]) == cleaned(value))
    rows = _payments(connection, where, cursor, limit) if table is payments else _told(connection, where, cursor, limit)
    shown = rows[:limit]
    known = _resolutions(connection, kind, shown) if settled else {}
    items = [_item(kind, row, known) for row in shown]
    after = None
    if len(rows) > limit:
        last = rows[limit - 1]
        after = pages.payment_cursor(last) if table is payments else pages.cursor_of(NotificationPlace(last.id))
    return Page(items, after)


def every(
    connection: Connection,
    kind: Kind,
    provider: str | None = None,
    facility: str | None = None,
    settled: bool = False,
    limit: int | None = None,
) -> Iterator[dict[str, Any]]:
    """All of one kind, `limit` at most."""
    cursor, left = None, limit
    while left is None or left > 0:
        size = pages.LONGEST_PAGE if left is None else min(left, pages.LONGEST_PAGE)
        found = page(connection, kind, provider=provider, facility=facility, settled=settled, cursor=cursor, limit=size)
        yield from found.items
        left = None if left is None else left - len(found.items)
        if (cursor := found.next) is None:
            return


class Attention:
    """Settles what needs attention: kept with who, when and why, and in the audit trail."""

    def __init__(self, engine: Engine, audit: Audit) -> None:
        self._engine = engine
        self._audit = audit

    def settle(self, actor: Actor, subjects: Sequence[Subject], verdict: Verdict, reason: str) -> None:
        """All of them or none. Raises `NotDone`: `reason_missing`, `unknown_id`, `state_changed` for what does not need
        attention (any more), `too_many_found`."""
        reason = reason_given(reason)
        action = Action.RESOLVED if verdict is Verdict.RESOLVED else Action.IGNORED
        with away_when_it_fails(), self._engine.begin() as connection:
            for subject in _checked(subjects):
                row = _open(connection, subject)
                key = _key(subject.kind, row)
                values = {
                    **key,
                    "verdict": verdict.value,
                    "seen": getattr(row, "conflicts", 0),
                    "operator": cleaned(actor.name)[:100],
                    "reason": reason,
                    "at": datetime.now(UTC),
                }
                # An earlier one, of fewer conflicts, is over; the audit trail has it.
                connection.execute(delete(resolutions).where(_same(key)))
                connection.execute(insert(resolutions).values(values))
                facts = {"kind": subject.kind.value, "endpoint": f"{row.provider}/{row.facility}"}
                self._audit.add(connection, actor, action, key["subject"], reason, facts)

    def reopen(self, actor: Actor, subjects: Sequence[Subject], reason: str) -> None:
        """They need attention again. Raises `NotDone`: `reason_missing`, `unknown_id`, `state_changed` for what was not
        settled, `too_many_found`."""
        reason = reason_given(reason)
        with away_when_it_fails(), self._engine.begin() as connection:
            for subject in _checked(subjects):
                row = _found(connection, subject)
                key = _key(subject.kind, row)
                if connection.execute(delete(resolutions).where(_same(key))).rowcount != 1:
                    raise NotDone(Reason.STATE_CHANGED, f"{subject.subject} was not settled.")
                facts = {"kind": subject.kind.value, "endpoint": f"{row.provider}/{row.facility}"}
                self._audit.add(connection, actor, Action.REOPENED, key["subject"], reason, facts)


def _is(kind: Kind) -> ColumnElement[bool]:
    if kind is Kind.MISMATCH:
        return payments.c.mismatch
    return notifications.c.conflicts > 0 if kind is Kind.CONFLICT else notifications.c.state == kind.value


def _at(kind: Kind, column: ColumnElement[str]) -> ColumnElement[str]:
    """Conflicts and mismatches have an index of their own; states are in that of the endpoint."""
    return column if kind in (Kind.FAILED, Kind.QUARANTINED, Kind.HELD) else queries.not_by_index(column)


def _settled(kind: Kind) -> ColumnElement[bool]:
    table = payments if kind is Kind.MISMATCH else notifications
    r = resolutions.c
    same = [r.kind == kind.value, r.provider == table.c.provider, r.facility == table.c.facility]
    same.append(r.subject == (payments.c.payment_id if kind is Kind.MISMATCH else notifications.c.id))
    if kind is Kind.CONFLICT:
        same.append(r.seen >= notifications.c.conflicts)
    return exists(select(1).select_from(resolutions).where(*same).correlate(table))


def _told(connection: Connection, where: list[Any], cursor: str | None, limit: int) -> Sequence[Any]:
    place = pages.place_of(cursor, NotificationPlace)
    if place is not None:
        where = [*where, notifications.c.id < place.id]
    query = select(*pages.LISTED).where(*where).order_by(notifications.c.id.desc())
    return connection.execute(query.limit(limit + 1)).all()


def _payments(connection: Connection, where: list[Any], cursor: str | None, limit: int) -> Sequence[Any]:
    place = pages.place_of(cursor, PaymentPlace)
    if place is not None:
        where = [*where, pages.before((utc(place.updated_at), place.provider, place.facility, place.payment_id))]
    query = select(payments).where(*where).order_by(*(column.desc() for column in pages.PAYMENT_ORDER))
    return connection.execute(query.limit(limit + 1)).all()


def _item(kind: Kind, row: Any, known: dict[tuple[str, str, str], Any]) -> dict[str, Any]:
    key = _key(kind, row)
    resolution = known.get((key["provider"], key["facility"], key["subject"]))
    of_payment = kind is Kind.MISMATCH
    return {
        **key,
        "at": row.updated_at if of_payment else row.received_at,
        "reason": None if of_payment else row.reason or None,
        "resolution": resolution and {name: resolution[name] for name in ("verdict", "operator", "reason", "at")},
        ("payment" if of_payment else "notification"): (queries.payment if of_payment else queries.notification)(row),
    }


def _resolutions(connection: Connection, kind: Kind, rows: Sequence[Any]) -> dict[tuple[str, str, str], Any]:
    subjects = [_key(kind, row)["subject"] for row in rows]
    query = select(resolutions).where(resolutions.c.kind == kind.value, resolutions.c.subject.in_(subjects))
    return {(row.provider, row.facility, row.subject): row._asdict() for row in connection.execute(query)}


def of(connection: Connection, kind: Kind, provider: str, facility: str, subject: str) -> dict[str, Any] | None:
    """How one was settled: ``verdict, operator, reason, at``, or None."""
    key = {"kind": kind.value, "provider": provider, "facility": facility, "subject": cleaned(subject)}
    row = connection.execute(select(resolutions).where(_same(key))).first()
    if row is None:
        return None
    return {"verdict": row.verdict, "operator": row.operator, "reason": row.reason, "at": row.at}


def _checked(subjects: Sequence[Subject]) -> Sequence[Subject]:
    if len(subjects) > MOST_AT_ONCE:
        raise NotDone(Reason.TOO_MANY_FOUND, f"At most {MOST_AT_ONCE} can be settled at once.")
    if not subjects:
        raise NotDone(Reason.NOTHING_CHOSEN, "Nothing was chosen.")
    return list(dict.fromkeys(subjects))


def _open(connection: Connection, subject: Subject) -> Any:
    row = _found(connection, subject)
    table = payments if subject.kind is Kind.MISMATCH else notifications
    here = _row_of(subject.kind, row)
    if connection.execute(
        select(1).select_from(table).where(here, _is(subject.kind), not_(_settled(subject.kind)))
    ).first():
        return row
    raise NotDone(Reason.STATE_CHANGED, f"{subject.subject} does not need attention as {subject.kind.value} any more.")


def _found(connection: Connection, subject: Subject) -> Any:
    """The row, behind a lock."""
    table = payments if subject.kind is Kind.MISMATCH else notifications
    key = table.c.payment_id if table is payments else table.c.id
    where = [key == subject.subject]
    where += [table.c[name] == getattr(subject, name) for name in ("provider", "facility") if getattr(subject, name)]
    rows: Sequence[Any] = []
    if all(storable(text) for text in (subject.subject, subject.provider or "", subject.facility or "")):
        rows = connection.execute(select(table).where(*where).limit(2).with_for_update()).all()
    if not rows:
        what = "payment" if table is payments else "notification"
        raise NotDone(Reason.UNKNOWN_ID, f"There is no {what} {cleaned(subject.subject)[:60]}.")
    if len(rows) > 1:
        raise NotDone(Reason.UNKNOWN_ID, f"Several endpoints have a payment {subject.subject}: say which.")
    return rows[0]


def _key(kind: Kind, row: Any) -> dict[str, str]:
    subject = row.payment_id if kind is Kind.MISMATCH else row.id
    return {"kind": kind.value, "provider": row.provider, "facility": row.facility, "subject": subject}


def _row_of(kind: Kind, row: Any) -> ColumnElement[bool]:
    if kind is Kind.MISMATCH:
        c = payments.c
        return and_(c.provider == row.provider, c.facility == row.facility, c.payment_id == row.payment_id)
    return and_(notifications.c.id == row.id)


def _same(key: dict[str, str]) -> ColumnElement[bool]:
    return and_(*(resolutions.c[name] == value for name, value in key.items()))
