"""Devices with which operators of the console prove themselves beside their password."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from workers.ledger.tables import keyed

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    op.create_table(
        "second_factors",
        sa.Column("name", keyed(64), nullable=False),
        sa.Column("sealed", sa.LargeBinary, nullable=False),
        sa.Column("last_step", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_second_factors"),
    )


def downgrade() -> None:
    op.drop_table("second_factors")
