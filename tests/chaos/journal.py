"""What the senders themselves write down: what they sent, and every answer by its id. On disk, so that memory stays
bounded however long a run is."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_SCHEMA = """
CREATE TABLE payments (
    number INTEGER PRIMARY KEY, provider TEXT, facility TEXT, payment_id TEXT, amount TEXT, currency TEXT
);
CREATE TABLE notifications (
    number INTEGER PRIMARY KEY, payment INTEGER, digest BLOB, says TEXT, refunded TEXT, forged INTEGER,
    attempts INTEGER DEFAULT 0
);
CREATE TABLE answers (id TEXT PRIMARY KEY, notification INTEGER, status TEXT);
"""


class Journal:
    """Every call writes; `commit` from time to time makes one transaction of many."""

    def __init__(self, path: Path) -> None:
        self.db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        # The machine does not crash, only what is tested does.
        self.db.execute("PRAGMA synchronous = OFF")
        self.db.execute("PRAGMA journal_mode = WAL")
        self.db.executescript(_SCHEMA)
        self.db.execute("BEGIN")
        self.payments = 0
        self.notifications = 0

    def payment(self, provider: str, facility: str, payment_id: str, amount: str, currency: str) -> int:
        self.payments += 1
        self.db.execute(
            "INSERT INTO payments VALUES (?, ?, ?, ?, ?, ?)",
            (self.payments, provider, facility, payment_id, amount, currency),
        )
        return self.payments

    def notification(self, payment: int | None, body: bytes, says: str, refunded: str | None, forged: bool) -> int:
        self.notifications += 1
        self.db.execute(
            "INSERT INTO notifications (number, payment, digest, says, refunded, forged) VALUES (?, ?, ?, ?, ?, ?)",
            (self.notifications, payment, digest(body), says, refunded, forged),
        )
        return self.notifications

    def answered(self, notification: int, answer_id: str, status: str) -> None:
        self.db.execute("INSERT INTO answers VALUES (?, ?, ?)", (answer_id, notification, status))

    def attempted(self, notification: int, attempts: int) -> None:
        self.db.execute("UPDATE notifications SET attempts = attempts + ? WHERE number = ?", (attempts, notification))

    def commit(self) -> None:
        self.db.execute("COMMIT")
        self.db.execute("BEGIN")

    def script(self, statements: str) -> None:
        self.db.execute("COMMIT")
        self.db.executescript(statements)
        self.db.execute("BEGIN")

    def fill(self, statement: str, rows: Iterable[tuple[Any, ...]]) -> None:
        """For the audit, which brings the ledger's rows here to compare them."""
        self.db.executemany(statement, rows)
        self.commit()

    def close(self) -> None:
        self.db.close()


def digest(body: bytes) -> bytes:
    """The key under which the senders know a notification: no two have the same body."""
    return hashlib.blake2b(body, digest_size=16).digest()
