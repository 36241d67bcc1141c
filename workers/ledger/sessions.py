"""Sessions of the console that an operator ended, until the cookie would have expired anyway."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import Connection, Engine, delete, select

from receiver.notification import utc
from workers.ledger.database import away_when_it_fails
from workers.ledger.tables import ended_sessions


def end(engine: Engine, session_id: str, expires: int) -> None:
    """Records the end of a session; `expires` in seconds since 1970. Raises `LedgerAway`."""
    with away_when_it_fails(), engine.begin() as connection:
        connection.execute(delete(ended_sessions).where(ended_sessions.c.expires_at < datetime.now(UTC)))
        if not has_ended(connection, session_id):
            connection.execute(ended_sessions.insert(), {"id": session_id, "expires_at": utc(expires * 1_000_000)})


def has_ended(connection: Connection, session_id: str) -> bool:
    return connection.scalar(select(ended_sessions.c.id).where(ended_sessions.c.id == session_id)) is not None
