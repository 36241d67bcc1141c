"""Fixtures that several rings of tests use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from redis import Redis
from sqlalchemy import Engine, text

from tests.servers import Valkey, running_postgres, running_valkey
from workers.ledger import database
from workers.ledger.ledger import Ledger
from workers.ledger.tables import metadata

# A busy machine is no finding: no test asserts a time.
hypothesis.settings.register_profile("postback", deadline=None)
hypothesis.settings.load_profile("postback")


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[Valkey]:
    """One Valkey for all tests that do not stop it."""
    with running_valkey() as server:
        yield server


@pytest.fixture
def redis(valkey_server: Valkey) -> Iterator[Redis]:
    """A client of an empty Valkey."""
    client = valkey_server.client()
    client.flushall()
    yield client
    client.close()


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    with running_postgres() as url:
        database.migrate(url)
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty ledger's URL: every test that takes it runs on both databases."""
    if request.param == "postgresql":
        url: str = request.getfixturevalue("postgres_url")
        engine = database.open_engine(url)
        with engine.begin() as connection:
            connection.execute(text("TRUNCATE " + ", ".join(metadata.tables)))
        engine.dispose()
        return url
    url = f"sqlite:///{tmp_path / 'ledger.sqlite3'}"
    database.migrate(url)
    return url


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = database.open_engine(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def ledger(engine: Engine) -> Ledger:
    return Ledger(engine)
