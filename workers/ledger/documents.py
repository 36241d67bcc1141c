"""Many rows in one statement, whose one parameter is a JSON array of them.

A statement with a parameter for each value is as long as the batch: psycopg took nine times as long to read it as
PostgreSQL takes for an insert. One statement a row costs a round of the server for each, and of Python. SQLite has
neither cost, and no JSON that keeps its types: there the rows are parameters of one statement that runs for each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from operator import itemgetter
from typing import Any

import msgspec
from sqlalchemy import JSON, Connection, LargeBinary, Table, Text, bindparam, cast, column, func, select, update
from sqlalchemy.dialects import postgresql, sqlite

_ENCODER = msgspec.json.Encoder()

Values = dict[str, Any]
"""Values by the names of columns."""


def insert_new(connection: Connection, table: Table, rows: Sequence[Values]) -> Sequence[Any]:
    """Inserts the rows whose keys are not there yet; gives the primary keys of those. All rows name the same columns.

    On SQLite the transaction has to be a writing one, as those of the ledger are: nobody else inserts meanwhile.
    """
    if not rows:
        return []
    if connection.dialect.name == "postgresql":
        return connection.execute(_insert(table), _documents(rows)).all()
    # SQLAlchemy takes longer over a statement with RETURNING for all rows than SQLite over the insert. What is new is
    # at the table's end.
    insert, since, values_of = _insert_one(table, tuple(rows[0]))
    end = connection.exec_driver_sql(f"SELECT coalesce(max(rowid), 0) FROM {table.name}").scalar_one()  # noqa: S608
    connection.exec_driver_sql(insert, [values_of(row) for row in rows])
    return connection.exec_driver_sql(since, (end,)).all()


def update_each(connection: Connection, table: Table, rows: Sequence[Values]) -> None:
    """Gives each row, found by the primary key in it, the other values in it. All rows name the same columns, and no
    column of bytes. In no order: whoever may meet another writer has locked the rows before."""
    if not rows:
        return
    names = tuple(rows[0])
    if connection.dialect.name == "postgresql":
        connection.execute(_update(table, names), _documents(rows))
    else:
        connection.execute(_update_one(table, names), [{f"new_{name}": row[name] for name in names} for row in rows])


def _documents(rows: Sequence[Values]) -> dict[str, str]:
    return {"rows": _ENCODER.encode(rows).decode()}


def _given(table: Table, names: Sequence[str]) -> Any:
    """The parameter `rows` as a table."""
    columns = [table.c[name] for name in names]
    return (
        func.json_to_recordset(cast(bindparam("rows", type_=Text), JSON))
        .table_valued(*(column(c.name, Text if isinstance(c.type, LargeBinary) else c.type) for c in columns))
        .render_derived(name="given", with_types=True)
    )


@cache
def _insert(table: Table) -> Any:
    given = _given(table, table.c.keys())
    values = [
        func.decode(given.c[c.name], "base64") if isinstance(c.type, LargeBinary) else given.c[c.name] for c in table.c
    ]
    return (
        postgresql.insert(table)
        .from_select(table.c.keys(), select(*values))
        .on_conflict_do_nothing()
        .returning(*table.primary_key.columns)
    )


@cache
def _insert_one(table: Table, names: tuple[str, ...]) -> tuple[str, str, Callable[[Values], tuple[Any, ...]]]:
    """For SQLite: the insert of one row, the question for the keys of new ones, and what makes a row its parameters."""
    columns, marks = ", ".join(names), ", ".join("?" * len(names))
    keys = ", ".join(table.primary_key.columns.keys())
    insert = f"INSERT INTO {table.name} ({columns}) VALUES ({marks}) ON CONFLICT DO NOTHING"  # noqa: S608  # our names
    since = f"SELECT {keys} FROM {table.name} WHERE rowid > ?"  # noqa: S608
    take: Callable[[Values], tuple[Any, ...]] = itemgetter(*names)
    dialect = sqlite.dialect()
    processors = [table.c[name].type.dialect_impl(dialect).bind_processor(dialect) for name in names]
    # Rows of one transaction share most of their times and dates. Bytes are taken as they are.
    needed = [
        (at, lru_cache(maxsize=64)(process))
        for at, process in enumerate(processors)
        if process is not None and not isinstance(table.c[names[at]].type, LargeBinary)
    ]

    def values_of(row: Values) -> tuple[Any, ...]:
        values = list(take(row))
        for at, process in needed:
            values[at] = process(values[at])
        return tuple(values)

    return insert, since, values_of


@cache
def _update(table: Table, names: tuple[str, ...]) -> Any:
    given = _given(table, names)
    key = table.primary_key.columns.keys()
    return (
        update(table)
        .where(*(table.c[name] == given.c[name] for name in key))
        .values({name: given.c[name] for name in names if name not in key})
    )


@cache
def _update_one(table: Table, names: tuple[str, ...]) -> Any:
    key = table.primary_key.columns.keys()
    return (
        update(table)
        .where(*(table.c[name] == bindparam(f"new_{name}") for name in key))
        .values({name: bindparam(f"new_{name}") for name in names if name not in key})
    )
