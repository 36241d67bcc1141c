"""Fixtures that several rings of tests use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from redis import Redis
from sqlalchemy import Engine

from tests import ledgers, secrecy
from tests.servers import Valkey, running_postgres, running_valkey
from workers.ledger import database
from workers.ledger.ledger import Ledger

# A busy machine is no finding: no test asserts a time.
hypothesis.settings.register_profile("postback", deadline=None)
hypothesis.settings.load_profile("postback")

pytest_plugins = ["pytester"]
secrecy.watch()
pytest_runtest_makereport = secrecy.pytest_runtest_makereport

_WHOLE = {"test_browser", "test_install", "test_systemd", "test_kubernetes", "test_container", "test_documents"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What two workers share out. Whatever breaks a whole installation, or looks how soon it answers, stays on one: two
    of those at the same moment would only wait for each other. Modules with a server of their own stay whole as well.

    With pytest 9.2 and pytest-xdist 3.8 the marks come to nothing (pytest-xdist#1386): each test goes to whichever
    worker is free, so no test may rely on them.
    """
    for item in items:
        folder, module = item.path.parent.name, item.path.stem
        if module in _WHOLE:
            item.add_marker(pytest.mark.xdist_group(module))
        elif folder in ("live", "contract", "deploy"):
            item.add_marker(pytest.mark.xdist_group("installations"))


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
    """One PostgreSQL for all tests that do not stop it. No test of it is about a machine that loses its power."""
    with running_postgres(fsync=False) as url:
        database.migrate(url)
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty ledger's URL: every test that takes it runs on both databases."""
    if request.param == "postgresql":
        url: str = request.getfixturevalue("postgres_url")
        ledgers.empty(url)
        return url
    return ledgers.new_file(tmp_path / "ledger.sqlite3")


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = database.open_engine(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def ledger(engine: Engine) -> Ledger:
    return Ledger(engine)
