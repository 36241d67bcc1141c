"""Raw bodies may be encrypted, and are purged after their time."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from workers.ledger.tables import UtcTime

revision = "0002"
down_revision = "0001"

_TABLES = ("notifications", "repeats")


def upgrade() -> None:
    for table in _TABLES:
        op.add_column(table, sa.Column("body_key", sa.String(16)))
        op.add_column(table, sa.Column("purged_at", UtcTime))


def downgrade() -> None:
    for table in _TABLES:
        op.drop_column(table, "purged_at")
        op.drop_column(table, "body_key")
