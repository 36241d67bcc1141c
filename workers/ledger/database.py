"""The ledger's database: SQLite under `data_dir`, or PostgreSQL by URL; the rest of the code does not know which."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, select
from sqlalchemy.exc import ArgumentError, DatabaseError, DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from receiver.errors import ConfigurationError, LedgerAway
from receiver.settings import Settings
from workers.ledger.tables import compatibility

MIGRATIONS = Path(__file__).parent / "migrations"
MIGRATION_LOCK = 5_076_782_273_300
"""Of PostgreSQL's advisory locks: any number that nothing else takes in this database."""

# PostgreSQL says these as errors of the statement, yet another try may mend them: a table or column that is not there
# (not migrated), a missing right, a server that only reads (a standby, after a switch).
_NOT_OF_THE_DATA = frozenset({"42P01", "42703", "42501", "25006"})
# A transaction that waits for a lock, runs for ever, or whose machine is gone would hold up everything behind it.
_SETTINGS = {
    "lock_timeout": "5s",
    "statement_timeout": "30s",
    "idle_in_transaction_session_timeout": "10s",
    # In any other zone the last hours of the year 9999 could be stored and not be read.
    "timezone": "UTC",
}


def url(settings: Settings) -> str:
    configured = settings.store.database_url
    return configured.reveal().decode() if configured else f"sqlite:///{settings.data_dir / 'ledger.sqlite3'}"


def open_engine(database_url: str) -> Engine:
    """Raises `ConfigurationError` for a URL that names no supported database. Connects only when it is used."""
    hint = ""
    try:
        parsed = make_url(database_url)
        # A SQLite without a file would forget all payments with the process.
        if parsed.drivername in ("sqlite", "sqlite+pysqlite") and parsed.database not in (None, "", ":memory:"):
            return _sqlite(parsed)
        if parsed.drivername in ("postgresql", "postgresql+psycopg"):
            return _postgresql(parsed.set(drivername="postgresql+psycopg"))
    except ImportError:
        hint = " (install the extra: pip install 'postback-receiver[postgres]')"
    except (ArgumentError, ValueError):
        pass
    raise ConfigurationError(f"store.database_url: must be sqlite:///... or postgresql+psycopg://...{hint}.") from None


def _sqlite(database_url: URL) -> Engine:
    engine = create_engine(database_url, connect_args={"timeout": 5}, hide_parameters=True)

    @event.listens_for(engine, "connect")
    def configure(connection: sqlite3.Connection, record: Any) -> None:
        # Transactions are begun below: Python's own would begin late, and two writers could then deadlock.
        connection.isolation_level = None
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")

    @event.listens_for(engine, "invalidate")
    def undo(connection: sqlite3.Connection, record: Any, error: Any) -> None:
        # Closed alone, it would keep its lock for as long as the interrupted statement is held anywhere.
        connection.rollback()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        reading = connection.get_execution_options().get("reading")
        connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")

    return engine


def _postgresql(database_url: URL) -> Engine:
    return create_engine(
        database_url,
        # One worker is one thread; the second connection is for its health check.
        pool_size=2,
        pool_pre_ping=True,
        # Parameters are bodies and customers' names: they belong into no traceback and no log.
        hide_parameters=True,
        connect_args={
            "connect_timeout": 5,
            "application_name": "postback",
            "options": " ".join(f"-c {name}={value}" for name, value in _SETTINGS.items()),
        },
    )


@contextmanager
def away_when_it_fails() -> Iterator[None]:
    """Turns errors that another try may mend into `LedgerAway`: the database does not answer, is locked, full, not
    migrated, or broke a deadlock. Errors of the data itself pass."""
    try:
        yield
    except DBAPIError as error:
        if not _may_pass(error):
            raise
        said = str(error.orig).splitlines()
        raise LedgerAway(f"{type(error.orig).__name__}: {said[0] if said else ''}") from error
    except PoolTimeout as error:
        raise LedgerAway("All connections of this process are in use.") from error


def _may_pass(error: DBAPIError) -> bool:
    if error.connection_invalidated or isinstance(error, OperationalError):
        return True
    # SQLite has no word of its own for a damaged file.
    return type(error) is DatabaseError or getattr(error.orig, "sqlstate", None) in _NOT_OF_THE_DATA


class Schema(NamedTuple):
    """What a ledger's schema is to this version. Migrations run while older versions still work, so a ledger may be
    newer; it says itself since which revision that does no harm (`compatibility`)."""

    current: str | None
    """The revision of the database."""
    newest: str
    """That this version knows."""
    works: bool
    """Whether this version can work on it."""

    @property
    def fault(self) -> str | None:
        """Why not, in one sentence."""
        if self.works:
            return None
        if self.current is None or self.current <= self.newest:
            return f"the ledger is at revision {self.current or 'none'}, not {self.newest}; run `postback migrate`."
        return f"the ledger belongs to a newer version of Postback (revision {self.current}); upgrade this one."


def migrate(database_url: str) -> None:
    """Brings the schema to the newest revision; one that is newer and does no harm stays as it is. Two processes may
    do it at the same time.

    Raises `ConfigurationError` for a ledger on which this version cannot work, `LedgerAway` when the database does not
    answer.
    """
    from alembic import command
    from alembic.util.exc import CommandError

    try:
        with away_when_it_fails():
            command.upgrade(_alembic(database_url), "head")
    except CommandError:
        if fault := schema(database_url).fault:
            raise ConfigurationError(f"store.database_url: {fault}") from None


def schema(database_url: str) -> Schema:
    """Raises `LedgerAway`, and `ConfigurationError` for a URL that names no database."""
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

    script = ScriptDirectory.from_config(_alembic(database_url))
    newest, known = script.get_current_head() or "", {each.revision for each in script.walk_revisions()}
    engine = open_engine(database_url)
    try:
        with away_when_it_fails(), engine.connect() as connection:
            reading = connection.execution_options(reading=True)
            current = MigrationContext.configure(reading).get_current_revision()
            if current is None or current in known:
                return Schema(current, newest, current == newest)
            return Schema(current, newest, reading.scalar(select(compatibility.c.since)) in known)
    finally:
        engine.dispose()


def _alembic(database_url: str) -> Any:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["database_url"] = database_url
    return config
