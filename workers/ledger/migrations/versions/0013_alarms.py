"""Alarms, what was said about them, and who looks after them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from workers.ledger.tables import UtcTime, keyed

revision = "0013"
down_revision = "0012"

_WAITING = sa.text("done_at IS NULL")


def upgrade() -> None:
    op.create_table(
        "alarms",
        sa.Column("kind", keyed(40), nullable=False),
        sa.Column("subject", keyed(300), nullable=False),
        sa.Column("sentence", sa.Text, nullable=False),
        sa.Column("level", sa.Integer, nullable=False),
        sa.Column("times", sa.Integer, nullable=False),
        sa.Column("raised_at", UtcTime, nullable=False),
        sa.Column("told_at", UtcTime, nullable=False),
        sa.Column("cleared_at", UtcTime),
        sa.Column("acknowledged_by", sa.String(100)),
        sa.Column("acknowledged_at", UtcTime),
        sa.Column("acknowledged_reason", sa.Text),
        sa.Column("acknowledged_level", sa.Integer),
        sa.PrimaryKeyConstraint("kind", "subject", name="pk_alarms"),
    )
    op.create_table(
        "alarm_messages",
        sa.Column("id", keyed(36), nullable=False),
        sa.Column("channel", sa.String(16), nullable=False),
        sa.Column("content", sa.Text, nullable=False),
        sa.Column("made_at", UtcTime, nullable=False),
        sa.Column("tries", sa.Integer, nullable=False),
        sa.Column("done_at", UtcTime),
        sa.Column("fault", sa.String(200)),
        sa.PrimaryKeyConstraint("id", name="pk_alarm_messages"),
    )
    op.create_index(
        "ix_alarm_messages_waiting", "alarm_messages", ["id"], sqlite_where=_WAITING, postgresql_where=_WAITING
    )
    op.create_table(
        "alarm_watch",
        sa.Column("one", sa.SmallInteger, nullable=False, autoincrement=False),
        sa.Column("holder", sa.String(200), nullable=False),
        sa.Column("beat", sa.BigInteger, nullable=False),
        sa.Column("beaten_at", UtcTime, nullable=False),
        sa.PrimaryKeyConstraint("one", name="pk_alarm_watch"),
    )


def downgrade() -> None:
    for table in ("alarm_watch", "alarm_messages", "alarms"):
        op.drop_table(table)
