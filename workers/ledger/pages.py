"""Lists page by page, newest first. However long the list is, each page is found by an index (migration `search`).

A page is asked for by the cursor of the page before it, which says where that one ended (keyset paging); so nothing is
shown twice or left out while new notifications come.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as NotBase64
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, TypeVar

import msgspec
from sqlalchemy import ColumnElement, Connection, Row, Table, and_, or_, select, tuple_

from receiver.errors import NotDone, Reason
from receiver.notification import microseconds, utc
from workers.ledger import queries
from workers.ledger.loose import combinations
from workers.ledger.queries import Filter
from workers.ledger.rows import storable
from workers.ledger.search import PaymentKey, notification_ids, payment_keys
from workers.ledger.tables import notifications, payments

PAGE = 50
LONGEST_PAGE = 1000
SEARCHED = 1000
"""Matches that a page of a search looks at. What begins with a single digit may be everything."""
SEARCHED_BY_ALL = 100_000
"""Matches that a complete list (an export, a replay) looks at; with more it is refused rather than cut."""

Place = TypeVar("Place", bound=msgspec.Struct)
Connect = Callable[[], AbstractContextManager[Connection]]
Endpoint = tuple[str, str, str]
"""Provider, facility and a state that occurs there."""

LISTED = [
    notifications.c[name]
    for name in (
        *("id", "provider", "facility", "event_type", "dedupe_key", "state", "reason", "received_at", "processed_at"),
        *("source", "deliveries", "conflicts"),
    )
]
"""What a list shows of a notification; its body may be long."""
_PLACE = ("provider", "facility", "state")
PAYMENT_ORDER = (payments.c.updated_at, payments.c.provider, payments.c.facility, payments.c.payment_id)


@dataclass(frozen=True, slots=True)
class Page:
    """Some objects of the contract, newest first."""

    items: list[dict[str, Any]]
    next: str | None
    """The cursor of the next page; None when this is the last one."""
    cut: bool = False
    """The search matched more than `SEARCHED`, and newer ones may be among the others: write more of what is sought."""


class NotificationPlace(msgspec.Struct, frozen=True, array_like=True, tag="n", forbid_unknown_fields=True):
    id: str


class PaymentPlace(msgspec.Struct, frozen=True, array_like=True, tag="p", forbid_unknown_fields=True):
    updated_at: int
    """Microseconds since 1970 in UTC."""
    provider: str
    facility: str
    payment_id: str


def page_notifications(connection: Connection, wanted: Filter, cursor: str | None = None) -> Page:
    """The page after `cursor`, of `wanted.limit` notifications (at most `LONGEST_PAGE`; `PAGE` without one).

    Raises `NotDone`: `cursor_malformed`.
    """
    place = place_of(cursor, NotificationPlace)
    size = _size(wanted)
    if wanted.search:
        ids, cut = notification_ids(connection, wanted.search, SEARCHED)
        rows = _notifications_among(connection, wanted, ids, place.id if place else None, size + 1)
    else:
        cut = False
        rows = _notifications_after(connection, wanted, place.id if place else None, size + 1)
    last = rows[size - 1] if len(rows) > size else None
    return Page(
        [queries.notification(row) for row in rows[:size]],
        cursor_of(NotificationPlace(last.id)) if last is not None else None,
        cut,
    )


def page_payments(connection: Connection, wanted: Filter, cursor: str | None = None) -> Page:
    """The same for payments, last changed first."""
    place = place_of(cursor, PaymentPlace)
    size = _size(wanted)
    after = (utc(place.updated_at), place.provider, place.facility, place.payment_id) if place else None
    if wanted.search:
        keys, cut = payment_keys(connection, wanted.search, SEARCHED)
        rows: Sequence[Row[Any]] = _payments_among(connection, wanted, keys, after)[: size + 1]
    else:
        cut = False
        rows = _payments_after(connection, wanted, after, size + 1)
    last = rows[size - 1] if len(rows) > size else None
    return Page([queries.payment(row) for row in rows[:size]], payment_cursor(last) if last is not None else None, cut)


def every_notification(connection: Connection, wanted: Filter) -> Iterator[dict[str, Any]]:
    """All of them, newest first, `wanted.limit` at most, a page at a time: it may take as long as the reader likes.

    Raises `NotDone` (`too_many_found`) for a search that matches more than `SEARCHED_BY_ALL`.
    """
    for row in notification_rows(connection, wanted):
        yield queries.notification(row)


def every_payment(connection: Connection, wanted: Filter) -> Iterator[dict[str, Any]]:
    """The same for payments, last changed first."""
    if wanted.search:
        keys, cut = payment_keys(connection, wanted.search, SEARCHED_BY_ALL)
        _refuse(cut)
        found = iter(_payments_among(connection, wanted, keys, None)[: wanted.limit])
    else:
        found = _each(partial(_payments_after, connection, wanted), _key_of, wanted.limit)
    for row in found:
        yield queries.payment(row)


def notification_rows(connection: Connection, wanted: Filter, columns: Sequence[Any] = LISTED) -> Iterator[Row[Any]]:
    """The rows of `every_notification`, of which only `columns` are read; `LISTED` must be among them."""
    for rows in notification_pages(lambda: nullcontext(connection), wanted, columns):
        yield from rows


def notification_pages(
    connect: Connect, wanted: Filter, columns: Sequence[Any] = LISTED
) -> Iterator[Sequence[Row[Any]]]:
    """The same, each page with a connection of its own: nothing waits for whoever reads slowly."""
    page: Any = partial(_notifications_after, wanted=wanted, columns=columns)
    if wanted.search:
        with connect() as connection:
            ids, cut = notification_ids(connection, wanted.search, SEARCHED_BY_ALL)
        _refuse(cut)
        page = partial(_notifications_among, wanted=wanted, ids=ids, columns=columns)

    def next_(after: str | None, size: int) -> Sequence[Row[Any]]:
        with connect() as connection:
            found: Sequence[Row[Any]] = page(connection, after=after, size=size)
            return found

    yield from _pages(next_, lambda row: row.id, wanted.limit)


def endpoints(connection: Connection, table: Table, wanted: Filter) -> list[Endpoint]:
    """Every (provider, facility, state) of the wanted rows."""
    columns = (table.c.provider, table.c.facility, table.c.state)
    here = [table.c.provider == wanted.provider] if wanted.provider is not None else []
    return [
        (provider, facility, state)
        for provider, facility, state in combinations(connection, columns, *here)
        if wanted.facility in (None, facility) and wanted.state in (None, state)
    ]


def _notifications_after(
    connection: Connection, wanted: Filter, after: str | None, size: int, columns: Sequence[Any] = LISTED
) -> Sequence[Row[Any]]:
    """Where one index has them in their order: a walk along it. Else one for each endpoint, and the newest of all."""
    c = notifications.c
    span = _in_time(wanted)
    if after is not None:
        span.append(c.id < after)
    newest = select(*columns).order_by(c.id.desc()).limit(size)
    if not _storable(wanted):
        return []
    if (wanted.provider is None) == (wanted.facility is None) and (wanted.provider is None or wanted.state is None):
        here = [c[name] == getattr(wanted, name) for name in _PLACE if getattr(wanted, name) is not None]
        return connection.execute(newest.where(*here, *span)).all()
    ids = [
        found
        for provider, facility, state in endpoints(connection, notifications, wanted)
        for found in connection.scalars(
            select(c.id)
            .where(c.provider == provider, c.facility == facility, c.state == state, *span)
            .order_by(c.id.desc())
            .limit(size)
        )
    ]
    return connection.execute(newest.where(c.id.in_(sorted(ids, reverse=True)[:size]))).all() if ids else []


def _notifications_among(
    connection: Connection,
    wanted: Filter,
    ids: set[str],
    after: str | None,
    size: int,
    columns: Sequence[Any] = LISTED,
) -> Sequence[Row[Any]]:
    """The newest of `ids` that are wanted."""
    c = notifications.c
    conditions = queries.conditions(notifications, wanted, c.received_at)
    left = sorted((found for found in ids if after is None or found < after), reverse=True)
    rows: list[Row[Any]] = []
    for start in range(0, len(left), LONGEST_PAGE):
        some = select(*columns).where(c.id.in_(left[start : start + LONGEST_PAGE]), *conditions)
        rows += connection.execute(some.order_by(c.id.desc()).limit(size - len(rows))).all()
        if len(rows) >= size:
            break
    return rows


def _payments_after(connection: Connection, wanted: Filter, after: Any, size: int) -> Sequence[Row[Any]]:
    c = payments.c
    newest_first = [column.desc() for column in PAYMENT_ORDER]
    span: list[ColumnElement[bool]] = []
    if wanted.since is not None:
        span.append(c.updated_at >= wanted.since)
    if wanted.until is not None:
        span.append(c.updated_at < wanted.until)
    if after is not None:
        span.append(before(after))
    if not _storable(wanted):
        return []
    if wanted.mismatch or all(getattr(wanted, name) is None for name in _PLACE):
        here = queries.conditions(payments, wanted, c.updated_at)
        return connection.execute(select(payments).where(*here, *span).order_by(*newest_first).limit(size)).all()
    keys: list[Any] = []
    for provider, facility, state in endpoints(connection, payments, wanted):
        keys += connection.execute(
            select(*PAYMENT_ORDER)
            .where(c.provider == provider, c.facility == facility, c.state == state, *span)
            .order_by(c.updated_at.desc(), c.payment_id.desc())
            .limit(size)
        ).all()
    newest = sorted(keys, reverse=True)[:size]
    return _payments(connection, [(key.provider, key.facility, key.payment_id) for key in newest], [])


def _payments_among(connection: Connection, wanted: Filter, keys: set[PaymentKey], after: Any) -> list[Row[Any]]:
    rows = _payments(connection, sorted(keys), queries.conditions(payments, wanted, payments.c.updated_at))
    return [row for row in rows if after is None or _key_of(row) < after]


def _payments(connection: Connection, keys: Sequence[PaymentKey], conditions: list[Any]) -> list[Row[Any]]:
    """The rows of `keys` that fulfil `conditions`, last changed first."""
    c = payments.c
    by_endpoint: dict[tuple[str, str], list[str]] = {}
    for provider, facility, payment_id in keys:
        by_endpoint.setdefault((provider, facility), []).append(payment_id)
    rows: list[Row[Any]] = []
    for (provider, facility), ids in by_endpoint.items():
        here = and_(c.provider == provider, c.facility == facility, *conditions)
        for start in range(0, len(ids), LONGEST_PAGE):
            some = c.payment_id.in_(ids[start : start + LONGEST_PAGE])
            rows += connection.execute(select(payments).where(here, some)).all()
    return sorted(rows, key=_key_of, reverse=True)


def before(after: tuple[datetime, str, str, str]) -> ColumnElement[bool]:
    """Before this place in the list. The first condition alone is what an index can use on every database."""
    updated_at, *rest = after
    c = payments.c
    same = tuple_(c.provider, c.facility, c.payment_id) < tuple_(*rest)
    return and_(c.updated_at <= updated_at, or_(c.updated_at < updated_at, same))


def _key_of(row: Any) -> tuple[datetime, str, str, str]:
    return (row.updated_at, row.provider, row.facility, row.payment_id)


def _in_time(wanted: Filter) -> list[ColumnElement[bool]]:
    """A span of ids for the index, which know the millisecond, and the exact time."""
    conditions: list[ColumnElement[bool]] = []
    if wanted.since is not None:
        conditions += [notifications.c.id >= first_id(wanted.since), notifications.c.received_at >= wanted.since]
    if wanted.until is not None:
        after = first_id(wanted.until + timedelta(milliseconds=1)) if wanted.until < _LAST else _AFTER_ALL
        conditions += [notifications.c.id < after, notifications.c.received_at < wanted.until]
    return conditions


_LAST = datetime(9999, 12, 31, tzinfo=UTC)
_AFTER_ALL = "g"


def first_id(moment: datetime) -> str:
    """Where the ids of what arrived in the millisecond of `moment`, or later, begin."""
    ms = f"{max(0, microseconds(moment) // 1000):012x}"
    return f"{ms[:8]}-{ms[8:]}"


def _each(
    page: Callable[[Any, int], Sequence[Row[Any]]], place: Callable[[Any], Any], limit: int | None
) -> Iterator[Row[Any]]:
    for rows in _pages(page, place, limit):
        yield from rows


def _pages(
    page: Callable[[Any, int], Sequence[Row[Any]]], place: Callable[[Any], Any], limit: int | None
) -> Iterator[Sequence[Row[Any]]]:
    after, left = None, limit
    while left is None or left > 0:
        size = LONGEST_PAGE if left is None else min(LONGEST_PAGE, left)
        rows = page(after, size)
        yield rows
        if len(rows) < size:
            return
        after = place(rows[-1])
        left = None if left is None else left - len(rows)


def _size(wanted: Filter) -> int:
    return max(1, min(wanted.limit or PAGE, LONGEST_PAGE))


def _storable(wanted: Filter) -> bool:
    return all(value is None or storable(value) for value in (wanted.provider, wanted.facility, wanted.state))


def _refuse(cut: bool) -> None:
    if cut:
        sentence = f"The search matches more than {SEARCHED_BY_ALL}; write more of it, or choose by time and state."
        raise NotDone(Reason.TOO_MANY_FOUND, sentence)


def cursor_of(place: msgspec.Struct) -> str:
    return urlsafe_b64encode(msgspec.msgpack.encode(place)).decode().rstrip("=")


def payment_cursor(row: Any) -> str:
    updated_at, *rest = _key_of(row)
    return cursor_of(PaymentPlace(microseconds(updated_at), *rest))


def place_of(cursor: str | None, kind: type[Place]) -> Place | None:
    if cursor is None:
        return None
    try:
        place = msgspec.msgpack.decode(urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)), type=kind)
        if not all(storable(text) for text in msgspec.structs.astuple(place) if isinstance(text, str)):
            raise ValueError
        if isinstance(place, PaymentPlace):
            utc(place.updated_at)
    except (msgspec.DecodeError, NotBase64, ValueError, OverflowError, OSError):
        raise NotDone(Reason.CURSOR_MALFORMED, "The cursor is none of this list; start again without one.") from None
    return place
