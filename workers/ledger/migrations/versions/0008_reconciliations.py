"""Reconciliations and their findings; payments found by settlement date."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from workers.ledger.tables import UtcTime, keyed

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.create_table(
        "reconciliations",
        sa.Column("id", keyed(36), nullable=False),
        sa.Column("provider", keyed(32), nullable=False),
        sa.Column("facility", keyed(64), nullable=False),
        sa.Column("file_name", sa.String(255), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("first_day", sa.Date),
        sa.Column("last_day", sa.Date),
        sa.Column("rows", sa.Integer, nullable=False),
        sa.Column("matched", sa.Integer, nullable=False),
        sa.Column("entered", sa.Integer, nullable=False),
        sa.Column("findings", sa.Integer, nullable=False),
        sa.Column("counts", sa.Text, nullable=False),
        sa.Column("began_at", UtcTime, nullable=False),
        sa.Column("finished_at", UtcTime),
        sa.PrimaryKeyConstraint("id", name="pk_reconciliations"),
    )
    op.create_index("ix_reconciliations_provider_facility_id", "reconciliations", ["provider", "facility", "id"])
    op.create_table(
        "findings",
        sa.Column("reconciliation_id", keyed(36), nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("kind", sa.String(40), nullable=False),
        sa.Column("line", sa.Integer),
        sa.Column("receipt_number", sa.String(200)),
        sa.Column("payment_id", sa.String(200)),
        sa.Column("here", sa.String(64)),
        sa.Column("in_file", sa.String(64)),
        sa.Column("entered", sa.Boolean, nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("reconciliation_id", "number", name="pk_findings"),
    )
    op.create_index(
        "ix_payments_provider_facility_settlement_date", "payments", ["provider", "facility", "settlement_date"]
    )


def downgrade() -> None:
    op.drop_index("ix_payments_provider_facility_settlement_date", "payments")
    op.drop_table("findings")
    op.drop_table("reconciliations")
