"""A whole ledger into another database: from the SQLite of one machine to the PostgreSQL of many."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from sqlalchemy import Connection, Table, func, insert, select

from receiver.errors import ConfigurationError
from workers.ledger.database import away_when_it_fails, open_engine, schema
from workers.ledger.tables import alarm_watch, compatibility, metadata

AT_ONCE = 500
"""Rows; a body has up to 4 MiB, most have less than one KiB."""

_NOT_MOVED = (compatibility, alarm_watch)
"""The target has its own mark, and a watch belongs to a process that runs."""
TABLES = [table for table in metadata.sorted_tables if table not in _NOT_MOVED]


def move(source: Path, target_url: str, told: Callable[[int], None]) -> int:
    """Copies the SQLite ledger in `source` into the migrated, empty ledger at `target_url`, in one transaction; gives
    how many rows that are. `told` hears how many are done. The source is only read.

    Raises `ConfigurationError` for a source that is none or of another revision and for a target that is not empty,
    `LedgerAway` when either does not answer; nothing was written then.
    """
    old, new = open_engine(_url_of(source)), open_engine(target_url)
    try:
        with (
            away_when_it_fails(),
            old.connect().execution_options(reading=True) as reading,
            new.begin() as writing,
        ):
            if any(writing.scalar(select(select(table).exists())) for table in TABLES):
                raise ConfigurationError("store.database_url: the ledger there is not empty; nothing was moved.")
            done = 0
            for table in TABLES:
                for copied in _copy(table, reading, writing):
                    done += copied
                    told(done)
            return done
    finally:
        old.dispose()
        new.dispose()


def size(source: Path) -> int:
    """How many rows `move` would copy. Raises as it does."""
    engine = open_engine(_url_of(source))
    try:
        with away_when_it_fails(), engine.connect().execution_options(reading=True) as reading:
            return sum(reading.scalar(select(func.count()).select_from(table)) or 0 for table in TABLES)
    finally:
        engine.dispose()


def _url_of(source: Path) -> str:
    if not source.is_file():
        raise ConfigurationError(f"--from: {source} is no file.")
    found = schema(url := f"sqlite:///{source}")
    if found.current != found.newest:
        raise ConfigurationError(f"--from: the ledger is at revision {found.current or 'none'}, not {found.newest}.")
    return url


def _copy(table: Table, reading: Connection, writing: Connection) -> Iterator[int]:
    # In the order of the key, as a page is written once then.
    for part in reading.execute(select(table).order_by(*table.primary_key)).partitions(AT_ONCE):
        writing.execute(insert(table), [row._asdict() for row in part])
        yield len(part)
