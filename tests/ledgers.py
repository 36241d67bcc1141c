"""Ledgers for the tests: up to date and empty, without Alembic's way for each. That way itself is what
`tests/workers/test_database.py` is about."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

from sqlalchemy import delete, text

from receiver.settings import Settings
from workers.ledger import database
from workers.ledger.tables import compatibility, metadata


def new_file(file: Path) -> str:
    """The URL of an empty SQLite ledger; one that is there already is left as it is."""
    if not file.exists():
        file.write_bytes(_migrated())
    return f"sqlite:///{file}"


def new(settings: Settings) -> str:
    """The URL of the ledger of these settings, which is up to date."""
    url = database.url(settings)
    if url.startswith("sqlite:///"):
        return new_file(Path(url.removeprefix("sqlite:///")))
    database.migrate(url)
    return url


def empty(url: str) -> None:
    """Takes everything out of a PostgreSQL. TRUNCATE would make some sixty new files for each test, which the server
    then needs minutes to write and to remove."""
    tables = [table for table in reversed(metadata.sorted_tables) if table is not compatibility]
    deletes = "; ".join(str(delete(table)) for table in tables)
    engine = database.open_engine(url)
    with engine.begin() as connection:
        # The audit trail lets nobody take anything out.
        connection.execute(text(f"SET LOCAL session_replication_role = replica; {deletes}"))
    engine.dispose()


@cache
def _migrated() -> bytes:
    with tempfile.TemporaryDirectory(prefix="postback-") as folder:
        file = Path(folder) / "ledger.sqlite3"
        database.migrate(f"sqlite:///{file}")
        assert [each.name for each in file.parent.iterdir()] == [file.name], "all of it is in the one file"
        return file.read_bytes()
