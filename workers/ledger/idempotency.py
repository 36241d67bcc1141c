"""Which replay an ``Idempotency-Key`` of a client asked for, for ever: the same key never makes a second one."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, insert, select

from receiver.errors import NotDone, Reason
from workers.ledger.replays import replay
from workers.ledger.rows import cleaned
from workers.ledger.tables import idempotency_keys

LONGEST = 200
"""Characters of a key."""


def used(connection: Connection, client: str, key: str, digest: str) -> dict[str, Any] | None:
    """The replay that `client` asked for with `key`, as it is now; None when there is none.

    Raises `NotDone` (`idempotency_key_reused`) when something else was asked for, of which `digest` differs.
    """
    columns = idempotency_keys.c
    row = connection.execute(
        select(idempotency_keys).where(columns.client == cleaned(client)[:100], columns.key == key)
    ).first()
    if row is None:
        return None
    if row.digest != digest:
        sentence = "Another replay was asked for with this Idempotency-Key; nothing was done."
        raise NotDone(Reason.IDEMPOTENCY_KEY_REUSED, sentence)
    return replay(connection, row.replay_id)


def use(connection: Connection, client: str, key: str, digest: str, replay_id: str) -> None:
    """In the transaction that makes the replay. Raises `IntegrityError` when somebody was quicker."""
    connection.execute(
        insert(idempotency_keys).values(
            client=cleaned(client)[:100], key=key, digest=digest, replay_id=replay_id, used_at=datetime.now(UTC)
        )
    )
