"""deploy/postgresql/partition.sql: a ledger in months is the same ledger. All that `tests/workers/test_ledger.py` says
holds for it, pages and purges too; and a key counts once, whatever month its notifications came in."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, make_url, text
from sqlalchemy.exc import ProgrammingError

from receiver.notification import microseconds, new_id
from tests import ledgers
from tests.live.apart import DEPLOY
from tests.servers import eventually
from tests.workers import material, test_ledger
from tests.workers.conftest import logged as logged
from tests.workers.material import counted, processed, rows, waits_for_a_lock
from tests.workers.test_pages import FILTERS, walk
from tests.workers.test_pages import forty as forty
from tests.workers.test_rebuild import (
    test_right_after_normal_processing_nothing_differs as test_right_after_normal_processing_nothing_differs,
)
from tests.workers.test_retention import (
    test_bodies_go_after_their_time_and_the_record_stays as test_bodies_go_after_their_time_and_the_record_stays,
)
from workers.ledger import database
from workers.ledger.documents import insert_new
from workers.ledger.ledger import Interpreted, Ledger
from workers.ledger.pages import page_notifications
from workers.ledger.queries import Filter
from workers.ledger.revision import Revision
from workers.ledger.rows import notification_row
from workers.ledger.tables import metadata, notifications, repeats

# Each half would make a partitioned ledger of its own.
pytestmark = pytest.mark.xdist_group("partition")

_PLACE = ("provider", "facility", "state")


def of_every_database(test: Any) -> bool:
    return all(mark.args[:2] != ("database_url", ["sqlite"]) for mark in getattr(test, "pytestmark", ()))


globals().update(
    {name: test for name, test in vars(test_ledger).items() if name.startswith("test_") and of_every_database(test)}
)

SCRIPT = (DEPLOY / "postgresql" / "partition.sql").read_text()
# What the tests above record is of March 2025 and of today: a month of its own, and one that nobody has made.
CUT, MARCH, APRIL, UNMADE = (
    datetime(2025, 2, 20, tzinfo=UTC),
    datetime(2025, 3, 1, tzinfo=UTC),
    datetime(2025, 4, 1, tzinfo=UTC),
    datetime(2026, 4, 1, tzinfo=UTC),
)


def at(moment: datetime, statements: str) -> str:
    """`statements` as somebody would have run them then."""
    return statements.replace("now()", f"timestamptz '{moment.isoformat()}'")


def execute(engine: Engine, statements: str) -> list[Any]:
    """As psql does it. Gives what the last one found."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        cursor: Any = connection.connection.cursor()
        cursor.execute(statements)
        while cursor.nextset():
            pass
        return list(cursor.fetchall()) if cursor.description else []


def new_database(postgres_url: str, name: str) -> str:
    """The URL of a database of its own in the tests' server."""
    server = database.open_engine(postgres_url)
    execute(server, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
    execute(server, f"CREATE DATABASE {name}")
    server.dispose()
    return make_url(postgres_url).set(database=name).render_as_string(hide_password=False)


@pytest.fixture(scope="module")
def partitioned_url(postgres_url: str) -> str:
    url = new_database(postgres_url, "partitioned")
    database.migrate(url)
    engine = database.open_engine(url)
    execute(engine, at(CUT, SCRIPT))
    engine.dispose()
    return url


@pytest.fixture(params=["postgresql"])
def database_url(request: pytest.FixtureRequest, partitioned_url: str) -> str:
    """In the place of the fixture that the imported tests know."""
    ledgers.empty(partitioned_url)
    engine = database.open_engine(partitioned_url)
    execute(engine, "DELETE FROM notification_keys")
    engine.dispose()
    return partitioned_url


def came(key: str, moment: datetime, **fields: Any) -> Interpreted:
    received_at = microseconds(moment)
    said = material.event(payment_id=key, amount=10, currency="EUR")
    return processed(key, said, id=new_id(received_at), received_at=received_at, **fields)


def parts(engine: Engine, table: str = "notifications") -> dict[str, str]:
    """By key, or by id of a repeat, the part that it is in."""
    name = "dedupe_key" if table == "notifications" else "id"
    return dict(execute(engine, f"SELECT {name}, tableoid::regclass::text FROM {table}"))  # noqa: S608


def keys(engine: Engine) -> set[str]:
    return {key for (key,) in execute(engine, "SELECT dedupe_key FROM notification_keys")}


@pytest.fixture
def whole(postgres_url: str) -> Iterator[Engine]:
    """A ledger that is not partitioned yet."""
    url = new_database(postgres_url, "whole")
    database.migrate(url)
    engine = database.open_engine(url)
    yield engine
    engine.dispose()


# -- a key counts once, whatever the month


def test_a_notification_that_comes_again_in_other_months(ledger: Ledger, engine: Engine) -> None:
    first = came("k1", CUT)
    ledger.record([first])
    for number, moment in enumerate((MARCH, APRIL, UNMADE)):
        again, other = came("k1", moment), came("k1", moment, fingerprint="f2")
        done = ledger.record([again, other, came(f"m{number}", moment)])
        assert (done.duplicates, done.conflicts) == ([again.envelope], [other.envelope])
        assert len(done.new) == 1
    assert counted(engine) == [("k1", 7, 3), ("m0", 1, 0), ("m1", 1, 0), ("m2", 1, 0)]
    assert parts(engine)["k1"] == "notifications_before_2025_03"
    assert set(parts(engine, "repeats").values()) == {"repeats_2025_03", "repeats_2025_04", "repeats_other"}


@pytest.mark.parametrize("ends", ["commit", "rollback"])
def test_two_months_at_the_same_moment(ledger: Ledger, engine: Engine, ends: str) -> None:
    """The one that comes second waits for what becomes of the first."""
    with ThreadPoolExecutor(1) as threads:
        with engine.connect() as connection:
            row = notification_row(came("k1", MARCH), ledger.bodies)
            assert len(insert_new(connection, notifications, [row])) == 1
            second = came("k1", APRIL)
            recording = threads.submit(ledger.record, [second])
            eventually(lambda: waits_for_a_lock(engine) or recording.done())
            assert not recording.done()
            getattr(connection, ends)()
        done = recording.result(30)
    assert (done.new, done.duplicates) == (([], [second.envelope]) if ends == "commit" else ([second], []))
    assert keys(engine) == {"k1"}


def test_a_key_that_a_replay_changes(ledger: Ledger, engine: Engine) -> None:
    taken, changing = came("taken", MARCH), came("body:1", APRIL)
    ledger.record([taken, changing])
    revision = Revision(engine)

    def revised(key: str) -> Interpreted:
        anew = msgspec.structs.replace(changing.envelope, dedupe_key=key)
        return msgspec.structs.replace(changing, envelope=anew, reason=f"for {key}")

    assert revision.revise([revised("taken")]).taken == [revised("taken")]
    revision.revise([revised("free")])
    assert keys(engine) == {"taken", "free"}
    # The old key is anybody's again, the new one nobody's.
    assert [len(ledger.record([came(key, MARCH)]).new) for key in ("body:1", "free")] == [1, 0]


@pytest.mark.usefixtures("forty")
def test_pages_go_through_the_months(ledger: Ledger, engine: Engine) -> None:
    ledger.record([came(f"k{number}", moment) for number, moment in enumerate((CUT, APRIL, UNMADE), 90)])
    every = {row.id: row for row in rows(engine, notifications)}
    for wanted in FILTERS:
        found = [
            item["id"] for page in walk(engine, page_notifications, Filter(**wanted, limit=7)) for item in page.items
        ]
        assert found == sorted(set(found), reverse=True)
        if "search" not in wanted and "mismatch" not in wanted:
            assert set(found) == {of for of, row in every.items() if fits(row, wanted)}


def fits(row: Any, wanted: dict[str, Any]) -> bool:
    in_time = wanted.get("since", CUT) <= row.received_at < wanted.get("until", datetime(2027, 1, 1, tzinfo=UTC))
    return in_time and all(
        getattr(row, name) == wanted[name] for name in ("provider", "facility", "state") if name in wanted
    )


# -- from one table to months, and on


def test_what_was_there_stays_as_it_was(whole: Engine) -> None:
    ledger = Ledger(whole)
    ledger.record([came("k1", CUT), came("k2", MARCH), came("k2", MARCH), came("k1", MARCH, fingerprint="f2")])
    # From a clock that was a year ahead, and from one that was ahead for ever.
    ledger.record([came("ahead", UNMADE), came("far", datetime(2300, 1, 1, tzinfo=UTC))])
    before = [rows(whole, table) for table in (notifications, repeats)]
    execute(whole, at(MARCH, SCRIPT))
    assert [rows(whole, table) for table in (notifications, repeats)] == before
    assert keys(whole) == {"k1", "k2", "ahead", "far"}
    cut = "notifications_before_2025_04"
    assert parts(whole) == {"k1": cut, "k2": cut, "ahead": "notifications_other", "far": "notifications_other"}
    assert ledger.record([came(key, APRIL) for key in ("k1", "k2", "ahead", "far")]).new == []
    # A second time nothing happens.
    execute(whole, at(MARCH, SCRIPT))
    assert counted(whole) == [("ahead", 2, 0), ("far", 2, 0), ("k1", 3, 1), ("k2", 3, 0)]


def test_a_month_that_is_made_late_gets_what_came_for_it(whole: Engine) -> None:
    execute(whole, at(CUT, SCRIPT))
    ledger = Ledger(whole)
    ledger.record([came("k1", UNMADE), came("k2", datetime(2026, 5, 31, 23, 59, 59, 999_999, tzinfo=UTC))])
    again = came("k1", UNMADE)
    ledger.record([again])
    before = [rows(whole, table) for table in (notifications, repeats)]
    assert execute(whole, at(UNMADE, "SELECT postback_add_months(1)")) == [(0,)]
    add_months = re.search(r"CREATE OR REPLACE FUNCTION postback_add_months.*?END \$\$;", SCRIPT, re.DOTALL)
    assert add_months is not None
    execute(whole, at(UNMADE, add_months[0]))
    assert execute(whole, "SELECT postback_add_months(1)") == [(4,)]
    assert parts(whole) == {"k1": "notifications_2026_04", "k2": "notifications_2026_05"}
    assert parts(whole, "repeats") == {again.envelope.id: "repeats_2026_04"}
    assert [rows(whole, table) for table in (notifications, repeats)] == before
    assert ledger.record([came(key, MARCH) for key in ("k1", "k2")]).new == []
    assert execute(whole, "SELECT postback_add_months(1)") == [(0,)]


def known(name: str | None, kind: str, parents: Any) -> bool:
    """Parts, and the keys, are no tables of ours."""
    return kind != "table" or name in metadata.tables


def test_migrations_know_the_tables(whole: Engine) -> None:
    """The next one is made for this schema: all names and types are there, and the newest goes back and forth."""
    execute(whole, SCRIPT)
    with whole.connect() as connection:
        options = {"compare_type": True, "include_name": known}
        context = MigrationContext.configure(connection, opts=options)
        differences = [(what, of.name) for what, of in compare_metadata(context, metadata)]
    assert differences == [("add_constraint", "uq_notifications")]
    url = whole.url.render_as_string(hide_password=False)
    command.downgrade(database._alembic(url), "-1")
    database.migrate(url)


def test_the_roles(postgres_url: str) -> None:
    """The owner makes the months, and the worker records in them with the rights that it had."""
    server = database.open_engine(postgres_url)
    url = new_database(postgres_url, "apart")

    def acting(role: str) -> Engine:
        # Whoever connects is somebody else at once.
        execute(server, f"ALTER DATABASE apart SET role = postback_{role}")
        return database.open_engine(url)

    superuser = database.open_engine(url)
    execute(superuser, (DEPLOY / "postgresql" / "roles.sql").read_text())
    try:
        owner = acting("owner")
        database.migrate(url)
        execute(owner, SCRIPT)
        execute(owner, (DEPLOY / "postgresql" / "grants.sql").read_text())
        worker = acting("worker")
        ledger = Ledger(worker)
        ledger.record([came("k1", MARCH)])
        assert len(ledger.record([came("k1", APRIL)]).duplicates) == 1
        for statement in (
            "DELETE FROM notification_keys",
            "INSERT INTO notification_keys VALUES ('a', 'b', 'c')",
            "DELETE FROM notifications",
            "SELECT postback_add_months(40)",
        ):
            with pytest.raises(ProgrammingError, match=r"denied|must be owner"), worker.begin() as connection:
                connection.execute(text(statement))
        for engine in (owner, worker, superuser):
            engine.dispose()
    finally:
        execute(server, "DROP DATABASE apart WITH (FORCE)")
        execute(server, "DROP ROLE postback_owner, postback_worker, postback_console")
        server.dispose()
