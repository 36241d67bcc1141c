"""What a client asked for with an ``Idempotency-Key``, for ever: the same key never makes a second replay, nor
reconciles a second time."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import Connection, insert, select

from receiver.errors import NotDone, Reason
from workers.ledger.rows import cleaned
from workers.ledger.tables import idempotency_keys

LONGEST = 200
"""Characters of a key."""


def used(connection: Connection, client: str, key: str, digest: str) -> str | None:
    """The id of what `client` made with `key`; None when nothing was made.

    Raises `NotDone` (`idempotency_key_reused`) when something else was asked for, of which `digest` differs.
    """
    columns = idempotency_keys.c
    row = connection.execute(
        select(idempotency_keys).where(columns.client == cleaned(client)[:100], columns.key == key)
    ).first()
    if row is None:
        return None
    if row.digest != digest:
        sentence = "Something else was asked for with this Idempotency-Key; nothing was done."
        raise NotDone(Reason.IDEMPOTENCY_KEY_REUSED, sentence)
    return str(row.made_id)


def use(connection: Connection, client: str, key: str, digest: str, made_id: str) -> None:
    """In the transaction that makes it. Raises `IntegrityError` when somebody was quicker."""
    connection.execute(
        insert(idempotency_keys).values(
            client=cleaned(client)[:100], key=key, digest=digest, made_id=made_id, used_at=datetime.now(UTC)
        )
    )
