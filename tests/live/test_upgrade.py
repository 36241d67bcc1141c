"""An upgrade as `deploy/UPGRADE.md` has it, under traffic: the ledger first, then workers, then the accept side."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from redis import Redis
from sqlalchemy import make_url, select, text

from tests import ledgers
from tests.live.installation import installed
from tests.live.parts import ROOT, Traffic, Version, all_in_ledger, before_newest_migration, in_ledger, stop
from tests.live.test_installation import ACME, FORM, quickstream
from tests.servers import Valkey, eventually
from tests.workers.test_compatibility import AHEAD
from workers.ledger import database
from workers.ledger.tables import compatibility


@pytest.fixture
def ledger_url(postgres_url: str) -> Iterator[str]:
    """A PostgreSQL database of its own, without a table."""
    engine = database.open_engine(postgres_url).execution_options(isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text("CREATE DATABASE upgraded"))
    yield make_url(postgres_url).set(database="upgraded").render_as_string(hide_password=False)
    with engine.connect() as connection:
        connection.execute(text("DROP DATABASE upgraded WITH (FORCE)"))
    engine.dispose()


def test_the_version_before_runs_on_while_the_ledger_is_migrated(
    tmp_path: Path, valkey_server: Valkey, redis: Redis, ledger_url: str
) -> None:
    """What the version before the newest migration really was, from the history."""
    places = {"queue": valkey_server.url, "store": ledger_url}
    code_before = before_newest_migration(tmp_path / "code")
    with (
        closing(Version(tmp_path / "old", code_before, **places)) as old,
        closing(Version(tmp_path / "new", ROOT, **places)) as new,
        ExitStack() as sending,
    ):
        assert old.run("migrate").returncode == 0
        before = database.schema(ledger_url)
        assert before.current != before.newest
        old.start("serve", "/readyz")
        old_worker = old.start("work", "worker_started")
        traffic = Traffic(old)
        sending.callback(traffic.stop)
        traffic.flows()
        # The new worker does not start on the old ledger: the order is not to be got wrong.
        refused = new.run("work")
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
        assert refused.stderr.endswith("run `postback migrate`.\n")
        assert new.run("migrate").returncode == 0
        assert database.schema(ledger_url).works
        traffic.flows()
        # The old worker records what was accepted after the migration, by the new accept side as well.
        traffic.stop()
        answered = traffic.answered
        new.start("serve", "/readyz")
        traffic = Traffic(old, new)
        sending.callback(traffic.stop)
        traffic.flows()
        all_in_ledger(ledger_url, [*answered, *traffic.answered])
        # Both workers, then the new one alone, with what both accept sides take.
        new_worker = new.start("work", "worker_started")
        traffic.flows()
        stop(old_worker)
        traffic.flows()
        traffic.stop()
        answered += traffic.answered
        all_in_ledger(ledger_url, answered)
        assert sorted(in_ledger(ledger_url)) == sorted(answered)
        check = new.run("payments", "rebuild", "--check")
        assert check.returncode == 0, check.stdout
        # Back again, where the newest migration lets the version before go on.
        stop(new_worker)
        if since(ledger_url) == before.newest:
            refused = old.run("work")
            assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
        else:
            assert old.run("migrate").returncode == 0
            old.start("work", "worker_started")
            all_in_ledger(ledger_url, [new.post()])


def since(url: str) -> str | None:
    engine = database.open_engine(url)
    try:
        with engine.connect() as connection:
            return connection.scalar(select(compatibility.c.since))
    finally:
        engine.dispose()


def ahead(url: str, *statements: str) -> None:
    """What a later version would do to the ledger."""
    engine = database.open_engine(url)
    with engine.begin() as connection:
        for statement in statements or AHEAD:
            connection.execute(text(statement))
    engine.dispose()


def test_this_version_comes_back_after_a_later_one(tmp_path: Path) -> None:
    """Rolled back: all parts start on a ledger that a later version expanded, and not on one that it changed so that
    they cannot work with it."""
    (tmp_path / "var").mkdir()
    ahead(ledgers.new_file(tmp_path / "var" / "ledger.sqlite3"))
    with installed(tmp_path) as running:
        head = {"Content-Type": FORM, "Authorization": ACME}
        assert running.post("/notify/quickstream/acme", quickstream("1000"), head).status_code == 200
        eventually(lambda: running.json("payments", "list"))
        doctor = running.run("doctor")
        assert "at revision 9999 of a newer version; this one works on it as well" in doctor.stdout
        assert running.stop() == 0
        ahead(f"sqlite:///{running.data_dir / 'ledger.sqlite3'}", "UPDATE compatibility SET since = '9998'")
        sentence = (
            "store.database_url: the ledger belongs to a newer version of Postback (revision 9999); upgrade this one."
        )
        done = running.run("work")
        assert (done.returncode, done.stderr) == (2, f"postback: {sentence}\n")
