"""The receipts of a file, on disk: a million of them in memory would be more than the rest of a reconciliation."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

import msgspec

_INSERT = """
INSERT OR IGNORE INTO seen
SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(?) WHERE true
RETURNING receipt, outcome
"""
_ABSENT = "SELECT value FROM json_each(?) WHERE NOT EXISTS (SELECT 1 FROM seen WHERE receipt = value)"


class Seen:
    """Which receipts came, and with which outcomes. The file is SQLite's own temporary one and ends with the object."""

    def __init__(self) -> None:
        self._database = sqlite3.connect("", isolation_level=None)
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute(
            "CREATE TABLE seen (receipt TEXT, outcome TEXT, PRIMARY KEY (receipt, outcome)) WITHOUT ROWID"
        )

    def add(self, rows: Sequence[tuple[str, str]]) -> list[bool]:
        """Notes receipts with their outcomes; says of each whether it is new."""
        new = set(self._database.execute(_INSERT, (msgspec.json.encode(rows).decode(),)).fetchall())
        fresh = []
        for row in rows:
            fresh.append(row in new)
            new.discard(row)
        return fresh

    def absent(self, receipts: Sequence[str]) -> set[str]:
        """Those of `receipts` that did not come."""
        return {receipt for (receipt,) in self._database.execute(_ABSENT, (msgspec.json.encode(receipts).decode(),))}

    def close(self) -> None:
        self._database.close()
