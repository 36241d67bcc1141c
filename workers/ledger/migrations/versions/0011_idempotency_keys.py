"""Keys with which clients of the API asked for replays."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from workers.ledger.tables import UtcTime, keyed

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    op.create_table(
        "idempotency_keys",
        sa.Column("client", keyed(100), nullable=False),
        sa.Column("key", keyed(200), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("replay_id", keyed(36), nullable=False),
        sa.Column("used_at", UtcTime, nullable=False),
        sa.PrimaryKeyConstraint("client", "key", name="pk_idempotency_keys"),
    )


def downgrade() -> None:
    op.drop_table("idempotency_keys")
