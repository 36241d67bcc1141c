"""A ledger that moves from one database to another is the same ledger."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from alembic import command
from sqlalchemy import Engine, insert

from receiver.errors import ConfigurationError
from tests import ledgers
from tests.live import installation
from tests.support import EXPECTED_CASUAL, recorded
from tests.workers.material import ENDPOINTS, SEAL, delivered, repeated, rows
from tests.workers.test_audit import KEYS, add
from tests.workers.test_database import NEWEST
from tests.workers.test_database import empty_url as empty_url
from tests.workers.test_rebuild import contents, everything, run
from workers.audit import Audit
from workers.ledger import database, moving, queries
from workers.ledger.ledger import Ledger
from workers.ledger.tables import alarm_watch, metadata, notifications
from workers.pipeline import Pipeline

AT = datetime(2026, 11, 28, tzinfo=UTC)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A ledger with all that the senders' fixtures make, repeats of all, and a trail."""
    file = tmp_path / "ledger.sqlite3"
    engine = database.open_engine(ledgers.new_file(file))
    pipeline = Pipeline(ENDPOINTS, Ledger(engine), SEAL)
    for _ in range(2):
        pipeline.record(everything())
    pipeline.record([delivered(recorded("debitsuccess", "casual_payment"), verified=False, dedupe_key="held")])
    pipeline.expect(EXPECTED_CASUAL)
    add(engine, Audit(KEYS), "first", "second")
    with engine.begin() as connection:
        connection.execute(insert(alarm_watch), [{"one": 1, "holder": "here", "beat": 1, "beaten_at": AT}])
    engine.dispose()
    return file


@pytest.fixture
def new(empty_url: Callable[[str], str]) -> str:
    url = empty_url("postgresql")
    database.migrate(url)
    return url


def move(old: Path, url: str) -> list[int]:
    told: list[int] = []
    assert moving.size(old) == moving.move(old, url, told.append)
    return told


def contents_of(engine: Engine) -> dict[str, list[object]]:
    return {name: found for name, found in contents(engine).items() if name != "alarm_watch"}


def test_it_is_the_same_ledger_and_goes_on(old: Path, new: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moving, "AT_ONCE", 7)  # so that parts have edges
    told = move(old, new)
    assert told == sorted(told)
    before, after = database.open_engine(f"sqlite:///{old}"), database.open_engine(new)
    assert contents_of(after) == contents_of(before)
    assert sum(map(len, contents_of(after).values())) == told[-1] + len(rows(after, metadata.tables["compatibility"]))
    assert rows(after, alarm_watch) == []
    assert run(after) == []
    with queries.reading(after) as connection:
        assert Audit(KEYS).verify(connection).faults == []
    # Repeats are told from what is new, and the trail goes on.
    count = len(repeated(after))
    Pipeline(ENDPOINTS, Ledger(after), SEAL).record(everything())
    assert len(rows(after, notifications)) == len(rows(before, notifications))
    assert len(repeated(after)) > count
    add(after, Audit(KEYS), "third")
    with queries.reading(after) as connection:
        assert Audit(KEYS).verify(connection).faults == []
    before.dispose()
    after.dispose()


def test_only_into_an_empty_one(old: Path, new: str) -> None:
    move(old, new)
    with pytest.raises(
        ConfigurationError, match=r"^store.database_url: the ledger there is not empty; nothing was moved"
    ):
        move(old, new)


def test_nothing_of_it_stays_when_it_fails(old: Path, new: str) -> None:
    def fails(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        moving.move(old, new, fails)
    engine = database.open_engine(new)
    assert [name for name, found in contents_of(engine).items() if found] == ["compatibility"]
    engine.dispose()
    move(old, new)


def test_only_from_a_ledger_of_this_revision(old: Path, new: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"^--from: .*none is no file\.$"):
        move(tmp_path / "none", new)
    command.downgrade(database._alembic(f"sqlite:///{old}"), "-1")
    with pytest.raises(ConfigurationError, match=rf"^--from: the ledger is at revision \d+, not {NEWEST}\.$"):
        move(old, new)


def test_the_command(old: Path, tmp_path: Path) -> None:
    config = tmp_path / "postback.toml"
    config.write_text('data_dir = "new"\n[security]\nseal_keys = ["moved-seal-key"]\n')
    given = [*installation.command(), "migrate", "--config", str(config), "--from", str(old)]
    done = subprocess.run(given, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(rf"The ledger is at revision {NEWEST}\.\n\d+ rows were moved; .*\n", done.stdout)
    again = subprocess.run(given, capture_output=True, text=True, timeout=60)
    sentence = "postback: store.database_url: the ledger there is not empty; nothing was moved.\n"
    assert (again.returncode, again.stderr) == (2, sentence)
