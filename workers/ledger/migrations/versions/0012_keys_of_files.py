"""Keys with which clients of the API gave settlement files, beside those of replays."""

from __future__ import annotations

from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    op.execute("ALTER TABLE idempotency_keys RENAME COLUMN replay_id TO made_id")


def downgrade() -> None:
    op.execute("ALTER TABLE idempotency_keys RENAME COLUMN made_id TO replay_id")
