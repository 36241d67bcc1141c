"""The oldest version that still works on this ledger, so that others may run on while it is migrated."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    table = op.create_table(
        "compatibility",
        sa.Column("since", sa.String(32), nullable=False),
        sa.PrimaryKeyConstraint("since", name="pk_compatibility"),
    )
    op.bulk_insert(table, [{"since": revision}])


def downgrade() -> None:
    op.drop_table("compatibility")
