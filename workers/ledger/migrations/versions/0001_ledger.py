"""The ledger: notifications, their repeats, payments and expectations."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from workers.ledger.tables import UtcTime

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "notifications",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("provider", sa.String(32), nullable=False),
        sa.Column("facility", sa.String(64), nullable=False),
        sa.Column("dedupe_key", sa.String(200), nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("event_type", sa.String(120), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.String(40), nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("received_at", UtcTime, nullable=False),
        sa.Column("processed_at", UtcTime, nullable=False),
        sa.Column("source", sa.String(45), nullable=False),
        sa.Column("content_type", sa.String(200), nullable=False),
        sa.Column("headers", sa.Text, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("verified", sa.Boolean, nullable=False),
        sa.Column("deliveries", sa.Integer, nullable=False),
        sa.Column("conflicts", sa.Integer, nullable=False),
        sa.Column("payment_id", sa.String(200)),
        sa.Column("event", sa.Text),
        sa.PrimaryKeyConstraint("id", name="pk_notifications"),
        sa.UniqueConstraint("provider", "facility", "dedupe_key", name="uq_notifications"),
    )
    op.create_index(
        "ix_notifications_provider_facility_payment_id", "notifications", ["provider", "facility", "payment_id"]
    )
    op.create_index("ix_notifications_state_id", "notifications", ["state", "id"])

    op.create_table(
        "repeats",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("notification_id", sa.String(36), nullable=False),
        sa.Column("conflict", sa.Boolean, nullable=False),
        sa.Column("received_at", UtcTime, nullable=False),
        sa.Column("source", sa.String(45), nullable=False),
        sa.Column("content_type", sa.String(200), nullable=False),
        sa.Column("headers", sa.Text, nullable=False),
        sa.Column("body", sa.LargeBinary),
        sa.PrimaryKeyConstraint("id", name="pk_repeats"),
    )
    op.create_index("ix_repeats_notification_id", "repeats", ["notification_id"])

    op.create_table(
        "payments",
        sa.Column("provider", sa.String(32), nullable=False),
        sa.Column("facility", sa.String(64), nullable=False),
        sa.Column("payment_id", sa.String(200), nullable=False),
        sa.Column("receipt_number", sa.String(200)),
        sa.Column("state", sa.String(20), nullable=False),
        sa.Column("amount", sa.BigInteger),
        sa.Column("currency", sa.String(3)),
        sa.Column("exponent", sa.SmallInteger, nullable=False),
        sa.Column("surcharge", sa.BigInteger),
        sa.Column("amount_refunded", sa.BigInteger, nullable=False),
        sa.Column("reference", sa.String(255)),
        sa.Column("customer_reference", sa.String(255)),
        sa.Column("card_scheme", sa.String(64)),
        sa.Column("response_code", sa.String(64)),
        sa.Column("response_description", sa.String(255)),
        sa.Column("summary_code", sa.String(16)),
        sa.Column("soft_decline", sa.Boolean, nullable=False),
        sa.Column("settlement_date", sa.Date),
        sa.Column("occurred_at", UtcTime),
        sa.Column("updated_at", UtcTime, nullable=False),
        sa.Column("custom", sa.Text, nullable=False),
        sa.Column("mismatch", sa.Boolean, nullable=False),
        sa.PrimaryKeyConstraint("provider", "facility", "payment_id", name="pk_payments"),
    )
    op.create_index("ix_payments_provider_facility_reference", "payments", ["provider", "facility", "reference"])
    op.create_index("ix_payments_updated_at", "payments", ["updated_at"])

    op.create_table(
        "expectations",
        sa.Column("provider", sa.String(32), nullable=False),
        sa.Column("facility", sa.String(64), nullable=False),
        sa.Column("key", sa.String(300), nullable=False),
        sa.Column("reference", sa.String(255), nullable=False),
        sa.Column("amount", sa.BigInteger, nullable=False),
        sa.Column("currency", sa.String(3), nullable=False),
        sa.Column("exponent", sa.SmallInteger, nullable=False),
        sa.Column("registered_at", UtcTime, nullable=False),
        sa.Column("token", sa.String(255)),
        sa.Column("webhook_token", sa.String(255)),
        sa.Column("valid_to", UtcTime),
        sa.PrimaryKeyConstraint("provider", "facility", "key", name="pk_expectations"),
    )
    op.create_index(
        "ix_expectations_provider_facility_reference", "expectations", ["provider", "facility", "reference"]
    )


def downgrade() -> None:
    for table in ("expectations", "payments", "repeats", "notifications"):
        op.drop_table(table)
