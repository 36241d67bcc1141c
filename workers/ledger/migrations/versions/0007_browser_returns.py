"""What customers were told when they came back from the payment page."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from workers.ledger.tables import UtcTime, keyed

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.create_table(
        "browser_returns",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("provider", keyed(32), nullable=False),
        sa.Column("facility", keyed(64), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("returned_at", UtcTime, nullable=False),
        sa.Column("verified", sa.Boolean, nullable=False),
        sa.Column("outcome", sa.String(16), nullable=False),
        sa.Column("payment_id", keyed(200)),
        sa.Column("reference", keyed(255)),
        sa.Column("receipt_number", sa.String(200)),
        sa.Column("amount", sa.BigInteger),
        sa.Column("surcharge", sa.BigInteger),
        sa.Column("currency", sa.String(3)),
        sa.Column("response_code", sa.String(64)),
        sa.Column("summary_code", sa.String(16)),
        sa.Column("reported", sa.String(40)),
        sa.Column("error_fields", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_browser_returns"),
        sa.UniqueConstraint("provider", "facility", "digest", name="uq_browser_returns"),
    )
    for columns in (("provider", "facility", "payment_id"), ("provider", "facility", "reference"), ("returned_at",)):
        op.create_index(f"ix_browser_returns_{'_'.join(columns)}", "browser_returns", list(columns))


def downgrade() -> None:
    op.drop_table("browser_returns")
