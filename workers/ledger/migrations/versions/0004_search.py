"""An index for each list and each search, and keys that both databases compare by their bytes.

| list or search | index |
|---|---|
| notifications, newest first; a span of time; by the beginning of an id | the primary key |
| notifications of an endpoint | ix_notifications_provider_facility_id |
| notifications of an endpoint and a state; counts by the hour | ix_notifications_provider_facility_state_id |
| notifications of a state | ix_notifications_state_id |
| notifications by duplicate key | uq_notifications |
| notifications by payment id | ix_notifications_provider_facility_payment_id |
| notifications in conflict | ix_notifications_in_conflict |
| repeats of an endpoint by the hour | ix_repeats_provider_facility_conflict_id |
| payments, last changed first | ix_payments_updated_at_provider_facility_payment_id |
| payments of an endpoint, of a state, of both | ix_payments_provider_facility_state_updated_at_payment_id |
| payments by payment id | ix_payments_payment_id |
| payments by receipt number | ix_payments_receipt_number |
| payments by reference | ix_payments_reference_updated_at |
| payments by customer reference | ix_payments_customer_reference_updated_at |
| payments by amount | ix_payments_amount_updated_at |
| payments that differ from what was expected | ix_payments_mismatch |
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from workers.ledger.tables import keyed

revision = "0004"
down_revision = "0003"

_KEYS = {
    "notifications": {"id": 36, "provider": 32, "facility": 64, "dedupe_key": 200, "state": 16, "payment_id": 200},
    "repeats": {"id": 36, "notification_id": 36},
    "payments": {
        "provider": 32,
        "facility": 64,
        "payment_id": 200,
        "state": 20,
        "receipt_number": 200,
        "reference": 255,
        "customer_reference": 255,
    },
    "expectations": {"provider": 32, "facility": 64, "key": 300, "reference": 255},
}
_INDEXES: dict[str, list[tuple[str, ...]]] = {
    "notifications": [("provider", "facility", "state", "id")],
    "repeats": [("provider", "facility", "conflict", "id")],
    "payments": [
        ("updated_at", "provider", "facility", "payment_id"),
        ("provider", "facility", "state", "updated_at", "payment_id"),
        ("reference", "updated_at"),
        ("customer_reference", "updated_at"),
        ("amount", "updated_at"),
    ],
}
_IN_CONFLICT = sa.text("conflicts > 0")


def upgrade() -> None:
    _compare_keys('COLLATE "C"')
    with op.batch_alter_table("repeats") as repeats:
        repeats.add_column(sa.Column("provider", keyed(32)))
        repeats.add_column(sa.Column("facility", keyed(64)))
    op.execute(
        "UPDATE repeats SET"
        " provider = (SELECT provider FROM notifications WHERE id = notification_id),"
        " facility = (SELECT facility FROM notifications WHERE id = notification_id)"
    )
    with op.batch_alter_table("repeats") as repeats:
        repeats.alter_column("provider", existing_type=keyed(32), nullable=False)
        repeats.alter_column("facility", existing_type=keyed(64), nullable=False)
    op.drop_index("ix_payments_updated_at", "payments")
    for table, indexes in _INDEXES.items():
        for columns in indexes:
            op.create_index(f"ix_{table}_{'_'.join(columns)}", table, list(columns))
    op.create_index(
        "ix_notifications_in_conflict",
        "notifications",
        ["id"],
        sqlite_where=_IN_CONFLICT,
        postgresql_where=_IN_CONFLICT,
    )


def downgrade() -> None:
    op.drop_index("ix_notifications_in_conflict", "notifications")
    for table, indexes in _INDEXES.items():
        for columns in indexes:
            op.drop_index(f"ix_{table}_{'_'.join(columns)}", table)
    op.create_index("ix_payments_updated_at", "payments", ["updated_at"])
    with op.batch_alter_table("repeats") as repeats:
        repeats.drop_column("provider")
        repeats.drop_column("facility")
    _compare_keys('COLLATE "default"')


def _compare_keys(collation: str) -> None:
    """SQLite compares bytes anyway."""
    if op.get_bind().dialect.name != "postgresql":
        return
    for table, columns in _KEYS.items():
        changes = ", ".join(f"ALTER {name} TYPE varchar({size}) {collation}" for name, size in columns.items())
        op.execute(f"ALTER TABLE {table} {changes}")
