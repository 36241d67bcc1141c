"""Expected payments name their merchant; indexes for what is asked by id, by silence and by mismatch."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_INDEXES = {
    "ix_notifications_provider_facility_id": ("notifications", ["provider", "facility", "id"]),
    "ix_payments_payment_id": ("payments", ["payment_id"]),
    "ix_payments_receipt_number": ("payments", ["receipt_number"]),
    "ix_expectations_registered_at": ("expectations", ["registered_at"]),
}


def upgrade() -> None:
    op.add_column("expectations", sa.Column("merchant", sa.String(100)))
    for name, (table, columns) in _INDEXES.items():
        op.create_index(name, table, columns)
    op.create_index(
        "ix_payments_mismatch",
        "payments",
        ["updated_at"],
        postgresql_where=sa.text("mismatch"),
        sqlite_where=sa.text("mismatch = 1"),
    )


def downgrade() -> None:
    op.drop_index("ix_payments_mismatch", "payments")
    for name, (table, _) in _INDEXES.items():
        op.drop_index(name, table)
    op.drop_column("expectations", "merchant")
