"""Passwords that operators of the console have chosen themselves."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from workers.ledger.tables import keyed

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    op.create_table(
        "operator_passwords",
        sa.Column("name", keyed(64), nullable=False),
        sa.Column("sealed", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_operator_passwords"),
    )


def downgrade() -> None:
    op.drop_table("operator_passwords")
