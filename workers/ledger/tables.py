"""The ledger's tables. Migrations create them; a test holds the two against each other."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Date,
    DateTime,
    Dialect,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.types import TypeDecorator, TypeEngine

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s",
    }
)


def _without_zone(value: datetime | None) -> str | None:
    return value.astimezone(UTC).replace(tzinfo=None).isoformat(" ", "microseconds") if value is not None else None


class UtcTime(TypeDecorator[datetime]):
    """An aware time in UTC. SQLite has no zones: there it is stored as UTC without one."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], Any] | None:
        return _without_zone if dialect.name == "sqlite" else super().bind_processor(dialect)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        aware: datetime = value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
        return aware


KEY = 200
"""Longest key; longer ones are replaced by their digest before they come here."""


def keyed(length: int) -> TypeEngine[str]:
    """A text that is searched by its beginning and paged by its order: both databases compare its bytes, so that an
    index serves both. PostgreSQL would else compare as its locale has it."""
    return String(length).with_variant(String(length, collation="C"), "postgresql")


_IN_CONFLICT = text("conflicts > 0")
_UNPURGED = text("purged_at IS NULL")
_HAS_BODY = text("body IS NOT NULL")
_SEALED = text("body_key IS NOT NULL")

notifications = Table(
    "notifications",
    metadata,
    Column("id", keyed(36), primary_key=True),
    Column("provider", keyed(32), nullable=False),
    Column("facility", keyed(64), nullable=False),
    Column("dedupe_key", keyed(KEY), nullable=False),
    Column("fingerprint", String(64), nullable=False),
    Column("event_type", String(120), nullable=False),
    Column("state", keyed(16), nullable=False),
    Column("reason", String(40), nullable=False),
    Column("detail", Text, nullable=False),
    Column("received_at", UtcTime, nullable=False),
    Column("processed_at", UtcTime, nullable=False),
    Column("source", String(45), nullable=False),
    Column("content_type", String(200), nullable=False),
    Column("headers", Text, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("body_key", String(16)),
    Column("purged_at", UtcTime),
    Column("verified", Boolean, nullable=False),
    Column("deliveries", Integer, nullable=False),
    Column("conflicts", Integer, nullable=False),
    Column("payment_id", keyed(KEY)),
    Column("event", Text),
    UniqueConstraint("provider", "facility", "dedupe_key"),
    Index(None, "provider", "facility", "payment_id"),
    Index(None, "provider", "facility", "id"),
    Index(None, "provider", "facility", "state", "id"),
    Index(None, "state", "id"),
    Index("ix_notifications_in_conflict", "id", sqlite_where=_IN_CONFLICT, postgresql_where=_IN_CONFLICT),
    Index("ix_notifications_unpurged", "id", sqlite_where=_UNPURGED, postgresql_where=_UNPURGED),
    Index("ix_notifications_body_key", "body_key", sqlite_where=_SEALED, postgresql_where=_SEALED),
)
"""Ids begin with the time of arrival, so that their order is that of arrival, and a span of time is a span of ids.
`body_key` names the key of an encrypted body, None for a plain one. After `purged_at` the body is empty."""

repeats = Table(
    "repeats",
    metadata,
    Column("id", keyed(36), primary_key=True),
    Column("notification_id", keyed(36), nullable=False),
    Column("provider", keyed(32), nullable=False),
    Column("facility", keyed(64), nullable=False),
    Column("conflict", Boolean, nullable=False),
    Column("received_at", UtcTime, nullable=False),
    Column("source", String(45), nullable=False),
    Column("content_type", String(200), nullable=False),
    Column("headers", Text, nullable=False),
    Column("body", LargeBinary),
    Column("body_key", String(16)),
    Column("purged_at", UtcTime),
    Index(None, "notification_id"),
    Index(None, "provider", "facility", "conflict", "id"),
    Index("ix_repeats_with_body", "id", sqlite_where=_HAS_BODY, postgresql_where=_HAS_BODY),
    Index("ix_repeats_body_key", "body_key", sqlite_where=_SEALED, postgresql_where=_SEALED),
)
"""Every further delivery of a notification. A conflict keeps its body; a duplicate says nothing new."""

payments = Table(
    "payments",
    metadata,
    Column("provider", keyed(32), primary_key=True),
    Column("facility", keyed(64), primary_key=True),
    Column("payment_id", keyed(KEY), primary_key=True),
    Column("receipt_number", keyed(KEY)),
    Column("state", keyed(20), nullable=False),
    Column("amount", BigInteger),
    Column("currency", String(3)),
    Column("exponent", SmallInteger, nullable=False),
    Column("surcharge", BigInteger),
    Column("amount_refunded", BigInteger, nullable=False),
    Column("reference", keyed(255)),
    Column("customer_reference", keyed(255)),
    Column("card_scheme", String(64)),
    Column("response_code", String(64)),
    Column("response_description", String(255)),
    Column("summary_code", String(16)),
    Column("soft_decline", Boolean, nullable=False),
    Column("settlement_date", Date),
    Column("occurred_at", UtcTime),
    Column("updated_at", UtcTime, nullable=False),
    Column("custom", Text, nullable=False),
    Column("mismatch", Boolean, nullable=False),
    Index(None, "provider", "facility", "reference"),
    Index(None, "updated_at", "provider", "facility", "payment_id"),
    Index(None, "provider", "facility", "state", "updated_at", "payment_id"),
    Index(None, "provider", "facility", "settlement_date"),
    Index(None, "receipt_number"),
    Index(None, "reference", "updated_at"),
    Index(None, "customer_reference", "updated_at"),
    Index(None, "amount", "updated_at"),
    Index(None, "payment_id"),
    # Few of many: counted by every health check.
    Index(
        "ix_payments_mismatch",
        *("updated_at", "provider", "facility", "payment_id"),
        postgresql_where=text("mismatch"),
        sqlite_where=text("mismatch = 1"),
    ),
)
"""Amounts are minor units with `exponent` decimals."""

expectations = Table(
    "expectations",
    metadata,
    Column("provider", keyed(32), primary_key=True),
    Column("facility", keyed(64), primary_key=True),
    Column("key", keyed(300), primary_key=True),
    Column("reference", keyed(255), nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("currency", String(3), nullable=False),
    Column("exponent", SmallInteger, nullable=False),
    Column("registered_at", UtcTime, nullable=False),
    Column("token", String(255)),
    Column("webhook_token", String(255)),
    Column("valid_to", UtcTime),
    Column("merchant", String(100)),
    Index(None, "provider", "facility", "reference"),
    Index(None, "registered_at"),
)
"""`key` is ``token:`` and the token, or ``ref:`` and the reference."""

replays = Table(
    "replays",
    metadata,
    Column("id", keyed(36), primary_key=True),
    Column("state", keyed(24), nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("created_by", String(100), nullable=False),
    Column("origin", String(200), nullable=False),
    Column("reason", Text, nullable=False),
    Column("chosen", Text, nullable=False),
    Column("total", Integer, nullable=False),
    Column("done", Integer, nullable=False),
    Column("outcomes", Text, nullable=False),
    Column("approved_by", String(100)),
    Column("approved_at", UtcTime),
    Column("started_at", UtcTime),
    Column("changed_at", UtcTime, nullable=False),
    Column("ended_at", UtcTime),
    Index(None, "state", "id"),
)
"""`chosen` is what was asked for, as JSON; `outcomes` counts the results so far, as JSON."""

_WAITING = text("outcome IS NULL")

replay_items = Table(
    "replay_items",
    metadata,
    Column("replay_id", keyed(36), primary_key=True),
    Column("notification_id", keyed(36), primary_key=True),
    Column("outcome", keyed(24)),
    Column("result", Text),
    Column("done_at", UtcTime),
    Index(None, "replay_id", "outcome", "notification_id"),
    Index(None, "notification_id"),
    # No two replays have the same notification to do, whoever asks for them at the same time.
    Index("uq_replay_items_waiting", "notification_id", unique=True, sqlite_where=_WAITING, postgresql_where=_WAITING),
)
"""One notification of a replay; without an `outcome` it is still to be done. `result` is JSON: before and after."""

resolutions = Table(
    "resolutions",
    metadata,
    Column("kind", keyed(16), primary_key=True),
    Column("provider", keyed(32), primary_key=True),
    Column("facility", keyed(64), primary_key=True),
    Column("subject", keyed(KEY), primary_key=True),
    Column("verdict", String(16), nullable=False),
    Column("seen", Integer, nullable=False),
    Column("operator", String(100), nullable=False),
    Column("reason", Text, nullable=False),
    Column("at", UtcTime, nullable=False),
)
"""What needed attention and does not any more: a notification by its id, or a payment by its own. `seen` is how many
conflicts there were; one more needs attention again."""

audit = Table(
    "audit",
    metadata,
    Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=False),
    Column("at", UtcTime, nullable=False),
    Column("operator", keyed(100), nullable=False),
    Column("origin", String(200), nullable=False),
    Column("action", keyed(40), nullable=False),
    Column("subject", keyed(300), nullable=False),
    Column("reason", Text, nullable=False),
    Column("facts", Text, nullable=False),
    Column("previous", String(64), nullable=False),
    Column("hash", String(64), nullable=False),
    Column("key", String(16), nullable=False),
    Column("seal", String(64), nullable=False),
    Index(None, "operator", "number"),
    Index(None, "subject", "number"),
)
"""What operators did; triggers refuse a change. See `workers.audit`."""


idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("client", keyed(100), primary_key=True),
    Column("key", keyed(200), primary_key=True),
    Column("digest", String(64), nullable=False),
    Column("made_id", keyed(36), nullable=False),
    Column("used_at", UtcTime, nullable=False),
)
"""Which replay or reconciliation a client of the API asked for with an ``Idempotency-Key``; `digest` is of what it
asked for."""

ended_sessions = Table(
    "ended_sessions",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("expires_at", UtcTime, nullable=False),
)
"""Sessions of the console that were signed out; a copy of their cookie is worth nothing."""

operator_passwords = Table(
    "operator_passwords",
    metadata,
    Column("name", keyed(64), primary_key=True),
    Column("sealed", LargeBinary, nullable=False),
)
"""Passwords that operators have chosen themselves; see `workers.console.chosen`. The worker may not read them."""

second_factors = Table(
    "second_factors",
    metadata,
    Column("name", keyed(64), primary_key=True),
    Column("sealed", LargeBinary, nullable=False),
    Column("last_step", BigInteger, nullable=False),
)
"""Devices that operators have enrolled; see `workers.console.factors`. The worker may not read them. `last_step` is
that of the last one-time password that counted."""

browser_returns = Table(
    "browser_returns",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("provider", keyed(32), nullable=False),
    Column("facility", keyed(64), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("returned_at", UtcTime, nullable=False),
    Column("verified", Boolean, nullable=False),
    Column("outcome", String(16), nullable=False),
    Column("payment_id", keyed(KEY)),
    Column("reference", keyed(255)),
    Column("receipt_number", String(KEY)),
    Column("amount", BigInteger),
    Column("surcharge", BigInteger),
    Column("currency", String(3)),
    Column("response_code", String(64)),
    Column("summary_code", String(16)),
    Column("reported", String(40)),
    Column("error_fields", Text, nullable=False),
    UniqueConstraint("provider", "facility", "digest"),
    Index(None, "provider", "facility", "payment_id"),
    Index(None, "provider", "facility", "reference"),
    Index(None, "returned_at"),
)
"""What customers were told when they came back: for display beside what the bank said. Amounts have two decimals."""

reconciliations = Table(
    "reconciliations",
    metadata,
    Column("id", keyed(36), primary_key=True),
    Column("provider", keyed(32), nullable=False),
    Column("facility", keyed(64), nullable=False),
    Column("file_name", String(255), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("first_day", Date),
    Column("last_day", Date),
    Column("rows", Integer, nullable=False),
    Column("matched", Integer, nullable=False),
    Column("entered", Integer, nullable=False),
    Column("findings", Integer, nullable=False),
    Column("counts", Text, nullable=False),
    Column("began_at", UtcTime, nullable=False),
    Column("finished_at", UtcTime),
    Index(None, "provider", "facility", "id"),
)
"""One run over one settlement file. `finished_at` is null while it runs, and stays so when it was interrupted."""

findings = Table(
    "findings",
    metadata,
    Column("reconciliation_id", keyed(36), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("kind", String(40), nullable=False),
    Column("line", Integer),
    Column("receipt_number", String(KEY)),
    Column("payment_id", String(KEY)),
    Column("here", String(64)),
    Column("in_file", String(64)),
    Column("entered", Boolean, nullable=False),
    Column("detail", Text, nullable=False),
)
"""What a reconciliation found, in the order of the file. `entered` where the row was put into the ledger."""

alarms = Table(
    "alarms",
    metadata,
    Column("kind", keyed(40), primary_key=True),
    Column("subject", keyed(300), primary_key=True),
    Column("sentence", Text, nullable=False),
    Column("level", Integer, nullable=False),
    Column("times", Integer, nullable=False),
    Column("raised_at", UtcTime, nullable=False),
    Column("told_at", UtcTime, nullable=False),
    Column("cleared_at", UtcTime),
    Column("acknowledged_by", String(100)),
    Column("acknowledged_at", UtcTime),
    Column("acknowledged_reason", Text),
    Column("acknowledged_level", Integer),
)
"""The latest alarm of each kind and subject, open while `cleared_at` is null. See `workers.alarms.board`."""

_UNDONE = text("done_at IS NULL")

alarm_messages = Table(
    "alarm_messages",
    metadata,
    Column("id", keyed(36), primary_key=True),
    Column("channel", String(16), nullable=False),
    Column("content", Text, nullable=False),
    Column("made_at", UtcTime, nullable=False),
    Column("tries", Integer, nullable=False),
    Column("done_at", UtcTime),
    Column("fault", String(200)),
    Index("ix_alarm_messages_waiting", "id", sqlite_where=_UNDONE, postgresql_where=_UNDONE),
)
"""What is or was to be sent about alarms. `fault` says why the last try failed; with `done_at`, why it was given up."""

alarm_watch = Table(
    "alarm_watch",
    metadata,
    Column("one", SmallInteger, primary_key=True, autoincrement=False),
    Column("holder", String(200), nullable=False),
    Column("beat", BigInteger, nullable=False),
    Column("beaten_at", UtcTime, nullable=False),
)
"""The one row: which machine looks after alarms, and a count that it raises as long as it does; -1 when it stopped."""

compatibility = Table("compatibility", metadata, Column("since", String(32), primary_key=True))
"""One row: the oldest revision whose version of Postback still works on this ledger. Migrations alone write it; a
version that knows this revision takes a ledger that is newer than itself."""
