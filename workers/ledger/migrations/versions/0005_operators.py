"""What operators do: replays and their results, what was resolved, and the audit trail."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from workers.ledger.tables import UtcTime, keyed

revision = "0005"
down_revision = "0004"

_WAITING = sa.text("outcome IS NULL")
_REFUSE_SQLITE = """
CREATE TRIGGER audit_keeps_{when} BEFORE {when} ON audit
BEGIN SELECT RAISE(ABORT, 'the audit trail is append-only'); END
"""
_REFUSE_POSTGRESQL = """
CREATE FUNCTION audit_is_append_only() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION 'the audit trail is append-only'; END $$
"""
_TRIGGER_POSTGRESQL = """
CREATE TRIGGER audit_keeps_all BEFORE UPDATE OR DELETE ON audit
FOR EACH ROW EXECUTE FUNCTION audit_is_append_only()
"""


def upgrade() -> None:
    _create_replays()
    op.create_table(
        "resolutions",
        sa.Column("kind", keyed(16), nullable=False),
        sa.Column("provider", keyed(32), nullable=False),
        sa.Column("facility", keyed(64), nullable=False),
        sa.Column("subject", keyed(200), nullable=False),
        sa.Column("verdict", sa.String(16), nullable=False),
        sa.Column("seen", sa.Integer, nullable=False),
        sa.Column("operator", sa.String(100), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("at", UtcTime, nullable=False),
        sa.PrimaryKeyConstraint("kind", "provider", "facility", "subject", name="pk_resolutions"),
    )
    _create_audit()


def _create_replays() -> None:
    op.create_table(
        "replays",
        sa.Column("id", keyed(36), nullable=False),
        sa.Column("state", keyed(24), nullable=False),
        sa.Column("created_at", UtcTime, nullable=False),
        sa.Column("created_by", sa.String(100), nullable=False),
        sa.Column("origin", sa.String(200), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("chosen", sa.Text, nullable=False),
        sa.Column("total", sa.Integer, nullable=False),
        sa.Column("done", sa.Integer, nullable=False),
        sa.Column("outcomes", sa.Text, nullable=False),
        sa.Column("approved_by", sa.String(100)),
        sa.Column("approved_at", UtcTime),
        sa.Column("started_at", UtcTime),
        sa.Column("changed_at", UtcTime, nullable=False),
        sa.Column("ended_at", UtcTime),
        sa.PrimaryKeyConstraint("id", name="pk_replays"),
    )
    op.create_index("ix_replays_state_id", "replays", ["state", "id"])
    op.create_table(
        "replay_items",
        sa.Column("replay_id", keyed(36), nullable=False),
        sa.Column("notification_id", keyed(36), nullable=False),
        sa.Column("outcome", keyed(24)),
        sa.Column("result", sa.Text),
        sa.Column("done_at", UtcTime),
        sa.PrimaryKeyConstraint("replay_id", "notification_id", name="pk_replay_items"),
    )
    op.create_index(
        "ix_replay_items_replay_id_outcome_notification_id",
        "replay_items",
        ["replay_id", "outcome", "notification_id"],
    )
    op.create_index("ix_replay_items_notification_id", "replay_items", ["notification_id"])
    op.create_index(
        "uq_replay_items_waiting",
        "replay_items",
        ["notification_id"],
        unique=True,
        sqlite_where=_WAITING,
        postgresql_where=_WAITING,
    )


def _create_audit() -> None:
    op.create_table(
        "audit",
        sa.Column("number", sa.BigInteger().with_variant(sa.Integer, "sqlite"), nullable=False, autoincrement=False),
        sa.Column("at", UtcTime, nullable=False),
        sa.Column("operator", keyed(100), nullable=False),
        sa.Column("origin", sa.String(200), nullable=False),
        sa.Column("action", keyed(40), nullable=False),
        sa.Column("subject", keyed(300), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("facts", sa.Text, nullable=False),
        sa.Column("previous", sa.String(64), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("key", sa.String(16), nullable=False),
        sa.Column("seal", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_audit"),
    )
    op.create_index("ix_audit_operator_number", "audit", ["operator", "number"])
    op.create_index("ix_audit_subject_number", "audit", ["subject", "number"])
    if op.get_bind().dialect.name == "postgresql":
        op.execute(_REFUSE_POSTGRESQL)
        op.execute(_TRIGGER_POSTGRESQL)
    else:
        for when in ("UPDATE", "DELETE"):
            op.execute(_REFUSE_SQLITE.format(when=when))


def downgrade() -> None:
    for table in ("audit", "resolutions", "replay_items", "replays"):
        op.drop_table(table)
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION audit_is_append_only()")
