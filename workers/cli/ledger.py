"""The ledger, opened for a command that reads it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection

from receiver.errors import LedgerAway
from receiver.settings import Settings
from workers.cli import options
from workers.ledger.database import open_engine, url
from workers.ledger.queries import reading


@contextmanager
def opened(config: Path | None) -> Iterator[Connection]:
    with opened_with(options.settings(config)) as connection:
        yield connection


@contextmanager
def opened_with(settings: Settings) -> Iterator[Connection]:
    """Raises `LedgerAway`, also before the ledger was ever made: reading must not make an empty one."""
    if settings.store.database_url is None and not (settings.data_dir / "ledger.sqlite3").exists():
        raise LedgerAway("it does not exist yet; `postback up` or `postback migrate` makes it.")
    engine = open_engine(url(settings))
    try:
        with reading(engine) as connection:
            yield connection
    finally:
        engine.dispose()
