"""Holds what the senders wrote down against the ledger, from outside."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, select

from tests.chaos.journal import Journal, digest
from workers.ledger import pages, queries
from workers.ledger.database import open_engine
from workers.ledger.tables import notifications, repeats

_SCHEMA = """
CREATE TABLE stored (
    id TEXT PRIMARY KEY, digest BLOB, state TEXT, verified INTEGER, deliveries INTEGER, conflicts INTEGER,
    payment_id TEXT
);
CREATE TABLE repeated (id TEXT PRIMARY KEY, stored TEXT, conflict INTEGER);
CREATE TABLE paid (
    provider TEXT, facility TEXT, payment_id TEXT, state TEXT, amount TEXT, currency TEXT, refunded TEXT,
    PRIMARY KEY (provider, facility, payment_id)
);
CREATE TEMP VIEW answered AS
    SELECT answers.id, notification, status, digest FROM answers
    JOIN notifications ON notifications.number = answers.notification;
"""
_INDEXES = """
CREATE INDEX stored_digest ON stored (digest);
CREATE INDEX sent_digest ON notifications (digest);
CREATE INDEX sent_payment ON notifications (payment);
CREATE INDEX repeated_stored ON repeated (stored);
"""

# Each gives the keys of what is wrong, and why.
_LOST = {
    "answered 200 and not in the ledger": """
        SELECT DISTINCT 'notification ' || notification || ' (' || id || ', ' || status || ')' FROM answered
        WHERE NOT EXISTS (SELECT 1 FROM stored WHERE stored.digest = answered.digest)
    """,
    "an answered id that leads nowhere, or to another notification": """
        SELECT answered.id FROM answered
        LEFT JOIN repeated ON repeated.id = answered.id
        LEFT JOIN stored ON stored.id = coalesce(repeated.stored, answered.id)
        WHERE stored.digest IS NOT answered.digest
    """,
}
_DOUBLED = {
    "in the ledger more than once": """
        SELECT group_concat(id, ' ') FROM stored GROUP BY digest HAVING count(*) > 1
    """,
    "deliveries that are not one more than the repeats": """
        SELECT id || ' ' || deliveries FROM stored
        WHERE deliveries != 1 + (SELECT count(*) FROM repeated WHERE repeated.stored = stored.id)
    """,
    "more deliveries than attempts": """
        SELECT stored.id || ' ' || deliveries || ' > ' || attempts FROM stored
        JOIN notifications ON notifications.digest = stored.digest WHERE deliveries > attempts
    """,
    "fewer deliveries than answers": """
        SELECT stored.id || ' ' || deliveries FROM stored JOIN (
            SELECT digest, count(*) AS answers FROM answered GROUP BY notification
        ) AS told ON told.digest = stored.digest WHERE deliveries < told.answers
    """,
}
_WRONG = {
    "verified, and nobody sent it so": """
        SELECT stored.id FROM stored LEFT JOIN notifications ON notifications.digest = stored.digest
        WHERE verified AND (notifications.number IS NULL OR forged)
    """,
    "forged, and of effect": """
        SELECT stored.id FROM stored JOIN notifications ON notifications.digest = stored.digest
        WHERE forged AND state = 'processed'
    """,
    "genuine, and not processed": """
        SELECT stored.id || ' ' || state FROM stored JOIN notifications ON notifications.digest = stored.digest
        WHERE NOT forged AND state != 'processed'
    """,
    "a repeat that says the same, taken for a conflict": """
        SELECT id FROM repeated WHERE conflict UNION SELECT id FROM stored WHERE conflicts
    """,
}

# The first of these that is said of a payment is its state.
_RANKS = ("partially_refunded", "captured", "declined", "failed", "expired", "authorised", "pending")


@dataclass(slots=True)
class Findings:
    stored: int = 0
    payments: int = 0
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def audit(journal: Journal, database_url: str) -> Findings:
    findings = Findings()
    journal.script(_SCHEMA)
    engine = open_engine(database_url)
    try:
        with queries.reading(engine) as connection:
            journal.fill("INSERT INTO stored VALUES (?, ?, ?, ?, ?, ?, ?)", _notifications(connection))
            journal.fill("INSERT INTO repeated VALUES (?, ?, ?)", _repeats(connection))
            journal.fill("INSERT INTO paid VALUES (?, ?, ?, ?, ?, ?, ?)", _payments(connection))
    finally:
        engine.dispose()
    journal.script(_INDEXES)
    findings.stored = journal.db.execute("SELECT count(*) FROM stored").fetchone()[0]
    findings.payments = journal.db.execute("SELECT count(*) FROM paid").fetchone()[0]
    for found, checks in ((findings.lost, _LOST), (findings.doubled, _DOUBLED), (findings.wrong, _WRONG)):
        for what, statement in checks.items():
            found += [f"{what}: {row[0]}" for row in journal.db.execute(statement)]
    findings.wrong += _wrong_payments(journal)
    return findings


def _notifications(connection: Connection) -> Iterator[tuple[Any, ...]]:
    columns = notifications.c
    query = select(
        columns.id, columns.body, columns.state, columns.verified, columns.deliveries, columns.conflicts,
        columns.payment_id,
    )  # fmt: skip
    for row in connection.execute(query.execution_options(yield_per=1000)):
        yield row.id, digest(row.body), *row[2:]


def _repeats(connection: Connection) -> Iterator[tuple[Any, ...]]:
    query = select(repeats.c.id, repeats.c.notification_id, repeats.c.conflict)
    for row in connection.execute(query.execution_options(yield_per=1000)):
        yield tuple(row)


def _payments(connection: Connection) -> Iterator[tuple[Any, ...]]:
    for payment in pages.every_payment(connection, queries.Filter()):
        yield (
            payment["provider"],
            payment["facility"],
            payment["payment_id"],
            payment["state"],
            payment["amount"],
            payment["currency"],
            payment["amount_refunded"],
        )


def _wrong_payments(journal: Journal) -> list[str]:
    """A payment is what its stored notifications say together."""
    wrong = []
    rows = journal.db.execute(
        """
        SELECT p.provider, p.facility, p.payment_id, p.amount, p.currency, said.says, said.refunded,
               paid.state, paid.amount, paid.currency, paid.refunded
        FROM (
            SELECT payment, group_concat(says) AS says, max(notifications.refunded) AS refunded FROM notifications
            JOIN stored ON stored.digest = notifications.digest
            WHERE payment IS NOT NULL AND NOT forged AND stored.state = 'processed' GROUP BY payment
        ) AS said
        JOIN payments AS p ON p.number = said.payment
        LEFT JOIN paid USING (provider, facility, payment_id)
        """
    )
    expected = 0
    for provider, facility, payment_id, amount, currency, says, refunded, *found in rows:
        expected += 1
        states = set(says.split(","))
        wanted = [next(state for state in _RANKS if state in states), Decimal(amount), currency, Decimal(refunded or 0)]
        state, found_amount, found_currency, found_refunded = found
        got = [state, Decimal(found_amount or "NaN"), found_currency, Decimal(found_refunded or "NaN")]
        if got != wanted:
            wrong.append(f"payment {provider}/{facility} {payment_id}: is {got}, should be {wanted}")
    paid = journal.db.execute("SELECT count(*) FROM paid").fetchone()[0]
    if paid != expected:
        wrong.append(f"{paid} payments in the ledger, {expected} were notified")
    return wrong
