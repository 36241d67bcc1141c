"""Indexes for what is purged, and for the keys of encrypted bodies: each has only the rows that it is asked for."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"

_INDEXES = (
    ("ix_notifications_unpurged", "notifications", "id", "purged_at IS NULL"),
    ("ix_notifications_body_key", "notifications", "body_key", "body_key IS NOT NULL"),
    ("ix_repeats_with_body", "repeats", "id", "body IS NOT NULL"),
    ("ix_repeats_body_key", "repeats", "body_key", "body_key IS NOT NULL"),
)


def upgrade() -> None:
    for name, table, column, rows in _INDEXES:
        op.create_index(name, table, [column], sqlite_where=sa.text(rows), postgresql_where=sa.text(rows))


def downgrade() -> None:
    for name, table, _, _ in _INDEXES:
        op.drop_index(name, table)
