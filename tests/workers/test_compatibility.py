"""Versions beside each other on one ledger: this one on a ledger that a later one has migrated, and what a migration
may do while the version before it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from sqlalchemy import Connection, Engine, inspect, select, text

from receiver.errors import ConfigurationError
from tests.support import EXPECTED_CASUAL
from tests.workers.material import ENDPOINTS, SEAL, rows
from tests.workers.test_database import NEWEST
from tests.workers.test_database import empty_url as empty_url
from tests.workers.test_rebuild import everything, run, told
from workers.ledger import database
from workers.ledger.ledger import Ledger
from workers.ledger.tables import compatibility, notifications, payments
from workers.pipeline import Pipeline

FIRST_WITH_A_MARK = "0014"

AHEAD = (
    "ALTER TABLE notifications ADD COLUMN region varchar(8)",
    "ALTER TABLE notifications ADD COLUMN weight integer NOT NULL DEFAULT 1",
    "ALTER TABLE payments ADD COLUMN region varchar(8)",
    "CREATE INDEX ix_payments_region ON payments (region)",
    "CREATE TABLE regions (name varchar(8) PRIMARY KEY)",
    "UPDATE alembic_version SET version_num = '9999'",
)
"""What a later version might do that expands only."""


def executed(engine: Engine, *statements: str) -> None:
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, empty_url: Callable[[str], str]) -> str:
    made = empty_url(request.param)
    database.migrate(made)
    return made


def test_works_on_a_ledger_that_a_later_version_expanded(url: str) -> None:
    engine = database.open_engine(url)
    envelopes = everything()
    first, second = envelopes[: len(envelopes) // 2], envelopes[len(envelopes) // 2 :]
    pipeline = Pipeline(ENDPOINTS, Ledger(engine), SEAL)
    pipeline.expect(EXPECTED_CASUAL)
    pipeline.record(first)
    # It runs while that happens: its connections, and whatever it has prepared on them, are those of before.
    executed(engine, *AHEAD)
    assert database.schema(url) == ("9999", NEWEST, True)
    pipeline.record([*first, *second])
    # One that starts now reads and folds the same.
    assert told(run(engine)) == []
    with engine.connect() as connection:
        assert {weight for (weight,) in connection.execute(text("SELECT weight FROM notifications"))} == {1}
    assert len(rows(engine, notifications)) > 50
    assert len(rows(engine, payments)) > 10
    database.migrate(url)  # as `postback up` does at each start: nothing is to be done
    assert database.schema(url).current == "9999"
    engine.dispose()


def test_leaves_a_ledger_alone_with_which_it_cannot_work(url: str) -> None:
    engine = database.open_engine(url)
    executed(engine, *AHEAD, "UPDATE compatibility SET since = '9998'")
    sentence = "the ledger belongs to a newer version of Postback (revision 9999); upgrade this one."
    assert database.schema(url).fault == sentence
    with pytest.raises(ConfigurationError) as caught:
        database.migrate(url)
    assert str(caught.value) == f"store.database_url: {sentence}"
    engine.dispose()


def test_an_older_ledger_is_to_be_migrated(url: str) -> None:
    command.downgrade(database._alembic(url), "-1")
    older = database.schema(url)
    assert older.fault == f"the ledger is at revision {older.current}, not {NEWEST}; run `postback migrate`."


# -- what migrations may do


@dataclass
class Shape:
    """What an older version may rely on."""

    required: Mapping[str, set[str]]
    """Columns by table that a row cannot be written without."""
    columns: Mapping[str, set[str]]
    unique: set[tuple[str, ...]] = field(default_factory=set)
    """Table and columns."""


def shape(connection: Connection) -> Shape:
    look = inspect(connection)
    tables = [name for name in look.get_table_names() if name != "alembic_version"]
    columns = {name: look.get_columns(name) for name in tables}
    unique = {
        (name, *(index["column_names"] or ())) for name in tables for index in look.get_indexes(name) if index["unique"]
    } | {(name, *each["column_names"]) for name in tables for each in look.get_unique_constraints(name)}
    return Shape(
        {
            name: {each["name"] for each in of if not each["nullable"] and each["default"] is None}
            for name, of in columns.items()
        },
        {name: {each["name"] for each in of} for name, of in columns.items()},
        unique,
    )


def breaks(before: Shape, after: Shape) -> list[str]:
    """In what a version that knows `before` would fail on `after`."""
    found = []
    for name in sorted(before.columns):
        if name not in after.columns:
            found.append(f"{name} is gone")
            continue
        found += [f"{name}.{column} is gone" for column in sorted(before.columns[name] - after.columns[name])]
        found += [f"{name}.{column} is required" for column in sorted(after.required[name] - before.required[name])]
    new = {each for each in after.unique - before.unique if each[0] in before.columns}
    return found + [f"{'.'.join(each)} is unique" for each in sorted(new)]


def steps(url: str, since: str) -> dict[str, tuple[list[str], Any]]:
    """What each migration from `since` on breaks, and the mark that it leaves."""
    found = {}
    engine = database.open_engine(url)
    names = sorted(path.name[:4] for path in (database.MIGRATIONS / "versions").glob("0*.py"))
    command.upgrade(database._alembic(url), names[names.index(since) - 1])
    with engine.connect() as connection:
        before = shape(connection)
    for name in names[names.index(since) :]:
        command.upgrade(database._alembic(url), name)
        with engine.connect() as connection:
            after = shape(connection)
            mark = connection.scalar(select(compatibility.c.since)) if "compatibility" in after.columns else None
        found[name], before = (breaks(before, after), mark), after
    engine.dispose()
    return found


def test_a_migration_that_breaks_the_version_before_it_says_so(empty_url: Callable[[str], str]) -> None:
    found = steps(empty_url("sqlite"), "0011")
    # Of the time before the mark: one that only adds, and one that renames.
    assert found["0011"] == ([], None)
    assert found["0012"] == (["idempotency_keys.replay_id is gone", "idempotency_keys.made_id is required"], None)
    assert found[FIRST_WITH_A_MARK] == ([], FIRST_WITH_A_MARK)
    for name, (broken, mark) in found.items():
        if name > FIRST_WITH_A_MARK:
            assert not broken or mark == name, f"{name} breaks older versions, and must say so in `compatibility`"
            assert mark in found, f"{name} names no revision"


def test_every_kind_of_break_is_found(tmp_path: Path) -> None:
    engine = database.open_engine(f"sqlite:///{tmp_path / 'small.sqlite3'}")
    executed(engine, "CREATE TABLE a (x int NOT NULL, y int)", "CREATE TABLE b (x int)")
    with engine.connect() as connection:
        before = shape(connection)
    executed(
        engine,
        *("DROP TABLE b", "ALTER TABLE a DROP COLUMN y", "CREATE UNIQUE INDEX u ON a (x)"),
        *("ALTER TABLE a ADD COLUMN later int", "ALTER TABLE a ADD COLUMN given int NOT NULL DEFAULT 1"),
        *("CREATE TABLE c (x int NOT NULL UNIQUE)", "CREATE INDEX i ON a (later)"),
    )
    with engine.connect() as connection:
        after = shape(connection)
    assert breaks(before, after) == ["a.y is gone", "b is gone", "a.x is unique"]
    assert breaks(before, Shape({"a": {"x", "z"}, "b": set()}, {"a": {"x", "y", "z"}, "b": {"x"}})) == [
        "a.z is required"
    ]
    engine.dispose()
