"""Which values occur: a loose index scan, which neither database does by itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import Connection, select


def combinations(connection: Connection, columns: Sequence[Any], *where: Any) -> Iterator[tuple[str, ...]]:
    """Every combination of values of `columns`, the first ones of an index, in their order: by a look or two into the
    index for each, however many rows have it."""
    last: tuple[str, ...] | None = None
    while (last := _next(connection, columns, where, last)) is not None:
        yield last


def _next(
    connection: Connection, columns: Sequence[Any], where: Sequence[Any], last: tuple[str, ...] | None
) -> tuple[str, ...] | None:
    query = select(*columns).where(*where).order_by(*columns).limit(1)
    if last is None:
        row = connection.execute(query).first()
        return tuple(row) if row is not None else None
    # One comparison of all columns together would do, but SQLite uses only the first of them for its index.
    for depth in reversed(range(len(columns))):
        same = [column == value for column, value in zip(columns[:depth], last[:depth], strict=True)]
        row = connection.execute(query.where(*same, columns[depth] > last[depth])).first()
        if row is not None:
            return tuple(row)
    return None
