"""Payments that are not as expected, in the order in which they are listed: SQLite read the whole list for them."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"

_NAME = "ix_payments_mismatch"
_WHERE: dict[str, Any] = {"postgresql_where": sa.text("mismatch"), "sqlite_where": sa.text("mismatch = 1")}


def upgrade() -> None:
    op.drop_index(_NAME, "payments")
    op.create_index(_NAME, "payments", ["updated_at", "provider", "facility", "payment_id"], **_WHERE)


def downgrade() -> None:
    op.drop_index(_NAME, "payments")
    op.create_index(_NAME, "payments", ["updated_at"], **_WHERE)
