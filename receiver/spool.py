"""The spool: where a batch goes when Redis does not take it, so that its senders are still answered 200.

One SQLite file under `data_dir`, shared by the accept processes of this machine. A batch is in it as soon as `add`
returns: write-ahead log, ``synchronous=FULL``, one fsync a commit. SQLite undoes a torn last write by itself.
"""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from typing import Any, NamedTuple

from receiver.errors import ConfigurationError, NotStored

_PAGE = 4096
_PATIENCE = 1.0
"""Seconds that a statement waits for another process."""
_TRY_AGAIN = 0.001


class Spooled(NamedTuple):
    position: int
    job_id: str
    sealed: bytes
    description: str


class Spool:
    """Every call may block on the disk: call it from a thread, one at a time."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        """`max_bytes` bounds the file; over it, as on a full disk, `add` raises `NotStored`.

        Raises `ConfigurationError` where no such file can be kept.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._db = sqlite3.connect(path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False)
            path.chmod(0o600)
            self._db.execute(f"PRAGMA page_size = {_PAGE}")
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute(f"PRAGMA max_page_count = {max(max_bytes // _PAGE, 16)}")
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS batches (position INTEGER PRIMARY KEY AUTOINCREMENT,"
                " job_id TEXT NOT NULL UNIQUE, sealed BLOB NOT NULL, description TEXT NOT NULL)"
            )
            self._db.execute("PRAGMA busy_timeout = 0")
        except (sqlite3.Error, OSError) as error:
            raise ConfigurationError(f"data_dir: the spool {path} cannot be used: {error}.") from None

    def add(self, job_id: str, sealed: bytes, description: str) -> None:
        """Puts a batch on the disk. Raises `NotStored` when the disk or the spool is full or fails."""
        try:
            self._execute(
                "INSERT INTO batches (job_id, sealed, description) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
                (job_id, sealed, description),
            )
        except sqlite3.Error as error:
            raise NotStored(f"The spool did not take the batch: {error}.") from error

    def try_out(self) -> None:
        """Raises `NotStored` when `add` would have no room; leaves nothing behind."""
        try:
            self._execute("BEGIN IMMEDIATE")
            try:
                self.add("", bytes(2 * _PAGE), "")
                self._execute("DELETE FROM batches WHERE job_id = ''")
                self._execute("COMMIT")
            finally:
                if self._db.in_transaction:
                    self._execute("ROLLBACK")
        except sqlite3.Error as error:
            raise NotStored(f"The spool takes no batches: {error}.") from error

    def oldest(self, max_bytes: int, max_batches: int = 64, after: int = 0) -> list[Spooled]:
        """The first batches behind the position `after`, in the order in which they came: at least one if there is any,
        then up to `max_bytes`."""
        rows = self._execute(
            "SELECT position, job_id, sealed, description FROM batches WHERE position > ? ORDER BY position LIMIT ?",
            (after, max_batches),
        )
        batches: list[Spooled] = []
        for row in rows:
            batch = Spooled(*row)
            max_bytes -= len(batch.sealed)
            if batches and max_bytes < 0:
                break
            batches.append(batch)
        return batches

    def remove(self, up_to: int) -> None:
        """Removes the batches up to this position. No later batch ever gets a lower one."""
        self._execute("DELETE FROM batches WHERE position <= ?", (up_to,))

    def count(self) -> int:
        return int(self._execute("SELECT count(*) FROM batches").fetchone()[0])

    def close(self) -> None:
        self._db.close()

    def _execute(self, statement: str, values: tuple[Any, ...] = ()) -> sqlite3.Cursor:
        # SQLite's own wait sleeps up to 0.1 s between two tries, so that a process that writes all the time would leave
        # no gap for another.
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                return self._db.execute(statement, values)
            except sqlite3.OperationalError as error:
                if getattr(error, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
            time.sleep(_TRY_AGAIN)
