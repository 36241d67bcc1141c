"""The databases themselves: migrations, what counts as away, and several processes at one file."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, Engine, event, inspect, make_url, text
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from receiver.errors import ConfigurationError, LedgerAway
from tests.servers import eventually, running_postgres
from tests.workers import material
from tests.workers.material import counted, crash, held_up, only_payment, processed, rows, start_again, waits_for_a_lock
from workers.ledger import database, pages, queries
from workers.ledger.ledger import Ledger
from workers.ledger.tables import metadata, notifications

NEWEST = max(path.name[:4] for path in (database.MIGRATIONS / "versions").glob("[0-9]*.py"))

on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
NEWEST = max(path.name for path in (database.MIGRATIONS / "versions").glob("0*.py"))[:4]
on_postgresql = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


def item(key: str = "k1") -> Any:
    return processed(key, material.event(amount=10, currency="EUR", action_id=key))


@pytest.fixture
def empty_url(postgres_url: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """URLs of databases without any table, by dialect."""
    engine = database.open_engine(postgres_url).execution_options(isolation_level="AUTOCOMMIT")
    name = "empty"

    def make(dialect: str) -> str:
        if dialect == "sqlite":
            return f"sqlite:///{tmp_path / 'new.sqlite3'}"
        with engine.connect() as connection:
            connection.execute(text(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))
            connection.execute(text(f"CREATE DATABASE {name}"))
        return make_url(postgres_url).set(database=name).render_as_string(hide_password=False)

    yield make
    engine.dispose()


# -- migrations


def test_the_migrated_schema_is_that_of_the_tables(engine: Engine) -> None:
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, metadata) == []
        primary = {name: inspect(connection).get_pk_constraint(name) for name in metadata.tables}
    for name, table in metadata.tables.items():
        assert primary[name]["constrained_columns"] == [column.name for column in table.primary_key]


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])
def test_migrates_an_empty_database_and_again_without_effect(empty_url: Callable[[str], str], dialect: str) -> None:
    url = empty_url(dialect)
    assert database.schema(url)[:2] == (None, NEWEST)
    database.migrate(url)
    engine = database.open_engine(url)
    Ledger(engine).record([item()])
    database.migrate(url)
    assert database.schema(url)[:2] == (NEWEST, NEWEST)
    assert counted(engine) == [("k1", 1, 0)]
    engine.dispose()


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])
def test_several_processes_migrate_at_once(empty_url: Callable[[str], str], dialect: str) -> None:
    url = empty_url(dialect)
    code = "import sys; from workers.ledger import database; database.migrate(sys.argv[1])"
    processes = [subprocess.Popen([sys.executable, "-c", code, url], stderr=subprocess.PIPE) for _ in range(3)]
    for process in processes:
        errors = process.communicate(timeout=60)[1]
        assert (process.returncode, errors) == (0, b"")
    assert database.schema(url)[:2] == (NEWEST, NEWEST)


def test_one_migration_of_postgresql_waits_for_another(empty_url: Callable[[str], str]) -> None:
    url = empty_url("postgresql")
    engine = database.open_engine(url)
    with ThreadPoolExecutor(1) as threads:
        with engine.begin() as connection:
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": database.MIGRATION_LOCK})
            migrating = threads.submit(database.migrate, url)
            eventually(lambda: waits_for_a_lock(engine) or migrating.done())
            assert not migrating.done()
        migrating.result(30)
    assert database.schema(url)[:2] == (NEWEST, NEWEST)
    engine.dispose()


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])
def test_goes_back_to_nothing(empty_url: Callable[[str], str], dialect: str) -> None:
    url = empty_url(dialect)
    database.migrate(url)
    command.downgrade(database._alembic(url), "base")
    engine = database.open_engine(url)
    with engine.connect() as connection:
        assert inspect(connection).get_table_names() == ["alembic_version"]
    engine.dispose()


# -- URLs


@pytest.mark.parametrize(
    "url",
    [
        "",
        "postgres",
        "mysql://root:hunter2@localhost/x",
        "postgres://root:hunter2@localhost/x",
        "postgresql+asyncpg://root:hunter2@localhost/x",
        "postgresql+psycopg2://root:hunter2@localhost/x",
        "postgresql+psycopg://root:hunter2@localhost:port/x",
        "sqlite://",
        "sqlite:///",
        "sqlite:///:memory:",
        "sqlite+aiosqlite:///x.sqlite3",
        "\x00",
    ],
)
def test_a_url_that_names_no_supported_database_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        database.open_engine(url)
    assert str(caught.value) == "store.database_url: must be sqlite:///... or postgresql+psycopg://...."


def test_a_missing_driver_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigurationError, match="install the extra: pip install 'postback-receiver\\[postgres\\]'"):
        database.open_engine("postgresql+psycopg://localhost/x")


def test_any_postgresql_url_gets_the_one_driver() -> None:
    engine = database.open_engine("postgresql://localhost/x")
    assert engine.url.drivername == "postgresql+psycopg"
    engine.dispose()


# -- away


def impatient(engine: Engine, statement: str) -> None:
    """Every connection of `engine` begins with `statement`."""

    @event.listens_for(engine, "connect")
    def configure(connection: Any, record: Any) -> None:
        cursor = connection.cursor()
        cursor.execute(statement)
        cursor.close()
        if engine.dialect.name == "postgresql":
            connection.commit()


def assert_away(ledger: Ledger, says: str) -> None:
    with pytest.raises(LedgerAway, match=says):
        ledger.record([item()])


@on_postgresql
def test_a_locked_table_is_away(engine: Engine, ledger: Ledger) -> None:
    impatient(engine, "SET lock_timeout = '100ms'")
    with engine.connect() as other:
        other.execute(text("LOCK TABLE notifications"))
        assert_away(ledger, "^LockNotAvailable: canceling statement due to lock timeout$")
        assert ledger.answers()
    assert len(ledger.record([item()]).new) == 1


@on_postgresql
def test_a_statement_that_takes_too_long_is_away(engine: Engine, ledger: Ledger) -> None:
    impatient(engine, "SET statement_timeout = '100ms'")
    with engine.connect() as other:
        other.execute(text("LOCK TABLE notifications"))
        assert_away(ledger, "^QueryCanceled")


@on_postgresql
def test_a_deadlock_is_away_for_one_and_nothing_for_the_other(engine: Engine) -> None:
    both, results = threading.Barrier(2), []
    impatient(engine, "SET deadlock_timeout = '50ms'")

    def lock(first: str, second: str) -> None:
        try:
            with database.away_when_it_fails(), engine.begin() as connection:
                connection.execute(text(f"LOCK TABLE {first}"))
                both.wait(10)
                connection.execute(text(f"LOCK TABLE {second}"))
            results.append("done")
        except LedgerAway as away:
            results.append(str(away))

    with ThreadPoolExecutor(2) as threads:
        threads.submit(lock, "payments", "repeats")
        threads.submit(lock, "repeats", "payments")
    assert sorted(results) == ["DeadlockDetected: deadlock detected", "done"]


@on_postgresql
def test_a_server_that_only_reads_is_away(engine: Engine, ledger: Ledger) -> None:
    impatient(engine, "SET default_transaction_read_only = on")
    assert_away(ledger, "^ReadOnlySqlTransaction")


@on_postgresql
def test_a_user_without_the_right_is_away(engine: Engine, ledger: Ledger) -> None:
    with engine.begin() as connection:
        connection.execute(text("DROP ROLE IF EXISTS nobody_special"))
        connection.execute(text("CREATE ROLE nobody_special"))
    engine.dispose()
    impatient(engine, "SET ROLE nobody_special")
    assert_away(ledger, "^InsufficientPrivilege")


@on_postgresql
def test_a_connection_that_was_cut_is_away_once(database_url: str, engine: Engine, ledger: Ledger) -> None:
    cut = False
    administrator = database.open_engine(database_url)

    @event.listens_for(engine, "before_cursor_execute")
    def cut_once(connection: Connection, cursor: Any, statement: str, *rest: Any) -> None:
        nonlocal cut
        if "INSERT INTO payments" in statement and not cut:
            cut = True
            pid = connection.connection.driver_connection.info.backend_pid  # type: ignore[union-attr]
            with administrator.connect() as other:
                other.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})

    assert_away(ledger, "terminating connection|server closed the connection")
    assert ledger.answers()
    assert len(ledger.record([item()]).new) == 1
    administrator.dispose()


def test_a_stopped_server_is_away_until_it_is_back() -> None:
    with running_postgres() as url:
        database.migrate(url)
        engine = database.open_engine(url)
        ledger = Ledger(engine)
        ledger.record([item()])
        folder = crash(engine)
        assert_away(ledger, "^OperationalError: connection (failed|is bad)")
        assert not ledger.answers()
        with pytest.raises(LedgerAway), queries.reading(engine) as connection:
            queries.count(connection, "failed")
        with pytest.raises(LedgerAway):
            database.schema(url)
        start_again(folder)
        eventually(ledger.answers)
        assert len(ledger.record([item(), item("k2")]).new) == 1
        assert counted(engine) == [("k1", 2, 0), ("k2", 1, 0)]
        engine.dispose()


@on_sqlite
def test_a_locked_file_is_away_for_writers_only(database_url: str, engine: Engine, ledger: Ledger) -> None:
    impatient(engine, "PRAGMA busy_timeout = 50")
    ledger.record([item("k0")])
    with held_up(database_url):
        assert_away(ledger, "^OperationalError: database is locked$")
        assert ledger.answers()
        with queries.reading(engine) as connection:
            assert queries.count(connection, "processed") == 1
    assert len(ledger.record([item()]).new) == 1


@on_sqlite
def test_a_full_disk_is_away(engine: Engine, ledger: Ledger) -> None:
    with engine.connect() as connection:
        pages = connection.scalar(text("PRAGMA page_count"))
    engine.dispose()
    impatient(engine, f"PRAGMA max_page_count = {pages}")
    with pytest.raises(LedgerAway, match="database or disk is full"):
        ledger.record([processed("k1", material.event(), body=b"x" * 100_000)])


@on_sqlite
def test_a_damaged_file_is_away(database_url: str, engine: Engine, ledger: Ledger) -> None:
    engine.dispose()
    Path(make_url(database_url).database or "").write_bytes(b"no database" * 1000)
    assert_away(ledger, "file is not a database")
    assert not ledger.answers()


def test_a_folder_that_is_not_there_is_away(tmp_path: Path) -> None:
    engine = database.open_engine(f"sqlite:///{tmp_path}/missing/ledger.sqlite3")
    assert_away(Ledger(engine), "unable to open database file")
    assert not Ledger(engine).answers()
    engine.dispose()


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])
def test_a_schema_that_is_not_there_is_away(empty_url: Callable[[str], str], dialect: str) -> None:
    engine = database.open_engine(empty_url(dialect))
    ledger = Ledger(engine)
    assert_away(ledger, "notifications")
    assert ledger.answers()
    with pytest.raises(LedgerAway):
        ledger.expect([material.expected()], material.never_judged)
    with pytest.raises(LedgerAway), queries.reading(engine) as connection:
        list(pages.every_payment(connection, queries.Filter()))
    engine.dispose()


def test_all_connections_in_use_is_away(engine: Engine) -> None:
    with pytest.raises(LedgerAway, match="in use"), database.away_when_it_fails():
        raise PoolTimeout


def test_errors_of_the_data_pass(engine: Engine) -> None:
    with pytest.raises(IntegrityError), database.away_when_it_fails(), engine.begin() as connection:
        connection.execute(text("INSERT INTO payments (provider) VALUES (NULL)"))
    with pytest.raises((DataError, OverflowError)), database.away_when_it_fails(), engine.begin() as connection:
        connection.execute(text("SELECT CAST(:big AS bigint)"), {"big": 2**80})
    # A value of a type that no driver knows.
    with pytest.raises(DBAPIError), database.away_when_it_fails(), engine.begin() as connection:
        connection.execute(text("SELECT :odd"), {"odd": object()})


class Interruption(BaseException):
    """As the alarm of a job that takes too long."""


def test_an_interrupted_transaction_is_undone_and_its_connection_given_up(engine: Engine, ledger: Ledger) -> None:
    ledger.record([item("k0")])
    interrupted = False

    @event.listens_for(engine, "after_cursor_execute")
    def interrupt_once(connection: Connection, cursor: Any, statement: str, *rest: Any) -> None:
        nonlocal interrupted
        if "INSERT INTO notifications" in statement and not interrupted:
            interrupted = True
            raise Interruption

    with pytest.raises(Interruption):
        ledger.record([item()])
    assert counted(engine) == [("k0", 1, 0)]
    assert len(ledger.record([item()]).new) == 1
    assert only_payment(engine).amount == 20


# -- two processes


def record_some(url: str, first: int) -> None:
    engine = database.open_engine(url)
    ledger = Ledger(engine)
    for number in range(first, first + 20):
        ledger.record([item(f"k{number}")])
    engine.dispose()


def test_two_processes_write_the_same_ledger(database_url: str, engine: Engine) -> None:
    spawn = multiprocessing.get_context("spawn")
    other = spawn.Process(target=record_some, args=(database_url, 10))
    other.start()
    record_some(database_url, 0)
    other.join(60)
    assert other.exitcode == 0
    assert {row.dedupe_key: row.deliveries for row in rows(engine, notifications)} == {
        f"k{number}": 2 if 10 <= number < 20 else 1 for number in range(30)
    }
    assert only_payment(engine).amount == 300


@on_sqlite
def test_what_is_committed_to_sqlite_is_on_the_disk(engine: Engine) -> None:
    with engine.connect() as connection:
        assert connection.scalar(text("PRAGMA journal_mode")) == "wal"
        assert connection.scalar(text("PRAGMA synchronous")) == 2


def shown(connection: Connection, name: str) -> Any:
    return connection.scalar(text(f"SHOW {name}"))


@on_postgresql
def test_no_connection_to_postgresql_holds_others_up_for_ever(engine: Engine) -> None:
    with engine.connect() as connection:
        assert shown(connection, "lock_timeout") == "5s"
        assert shown(connection, "statement_timeout") == "30s"
        assert shown(connection, "idle_in_transaction_session_timeout") == "10s"
        assert shown(connection, "timezone") == "UTC"
    with queries.reading(engine) as connection:
        assert shown(connection, "idle_in_transaction_session_timeout") == "0"


@on_postgresql
def test_a_worker_that_stands_still_loses_its_locks(database_url: str, engine: Engine, ledger: Ledger) -> None:
    still = database.open_engine(database_url)
    impatient(still, "SET idle_in_transaction_session_timeout = '50ms'")
    connection = still.connect()
    connection.execute(text("LOCK TABLE notifications"))
    assert len(ledger.record([item()]).new) == 1
    with pytest.raises(LedgerAway), database.away_when_it_fails():
        connection.execute(text("SELECT 1"))
    connection.close()
    still.dispose()
