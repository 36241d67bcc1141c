"""`postback serve`, `work` and the commands as an upgrade has them: apart, and of any version's code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tarfile
import threading
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import httpx
import pytest

from receiver import settings as configuration
from tests.contract.subjects import paymentz_callback
from tests.live.installation import Installation
from tests.servers import absent, eventually
from workers.ledger import database

ROOT = Path(__file__).parents[2]


class Version:
    """An installation whose parts are started one by one, from the code under `code`."""

    def __init__(self, folder: Path, code: Path, *, queue: str, store: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.running = Installation(folder, queue=f'redis_url = "{queue}"', store=f'database_url = "{store}"')
        self.code = code
        self.parts: list[subprocess.Popen[bytes]] = []
        self.endpoint = configuration.load(self.running.config).endpoints["paymentz", "eu"]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self._command(*arguments), cwd=self.code, env=self._environment, capture_output=True, text=True, timeout=60
        )

    def start(self, part: str, ready: str) -> subprocess.Popen[bytes]:
        """A process that runs on; `ready` is what it then logs, or the path that it then answers."""
        logged = self._logged(ready)
        with self.running.log.open("ab") as log:
            process = subprocess.Popen(
                self._command(part), cwd=self.code, env=self._environment, stdout=log, stderr=log
            )
        self.parts.append(process)

        def up() -> bool:
            if process.poll() is not None:
                raise RuntimeError(f"{part} ended with {process.returncode}:\n{self.running.log.read_text()}")
            return self.running.accepts() if ready.startswith("/") else self._logged(ready) > logged

        eventually(up, 60, f"{part} of {self.code}")
        return process

    def post(self) -> str:
        """One captured payment, which must be answered 200; its id."""
        outgoing = paymentz_callback(self.endpoint)
        response = self.running.post(outgoing.path, outgoing.body, outgoing.headers)
        assert response.status_code == 200, response.text
        return str(response.json()["id"])

    def close(self) -> None:
        for process in self.parts:
            stop(process)
        self.running.close()

    def _command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "workers.cli.main", *arguments, "--config", str(self.running.config)]

    @property
    def _environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(self.code)}

    def _logged(self, event: str) -> int:
        with suppress(FileNotFoundError):
            return self.running.log.read_text().count(f'"event": "{event}"')
        return 0


def stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


class Traffic:
    """Payments to each of `versions` in turn, without a pause, until it is stopped."""

    def __init__(self, *versions: Version) -> None:
        self.answered: list[str] = []
        """The ids of all notifications that were answered 200, in that order."""
        self.fault: BaseException | None = None
        self._versions = versions
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._send)
        self._thread.start()

    def flows(self, more: int = 10) -> None:
        """Waits until so many more were answered."""
        wanted = len(self.answered) + more
        eventually(lambda: self.fault or len(self.answered) >= wanted, 30, "traffic")
        assert self.fault is None, self.fault

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(30)
        assert self.fault is None, self.fault

    def _send(self) -> None:
        try:
            while not self._stopping.wait(0.01):
                for version in self._versions:
                    self.answered.append(version.post())
        except (AssertionError, httpx.HTTPError) as error:
            self.fault = error


def in_ledger(database_url: str) -> list[str]:
    """The ids of all notifications in a ledger, also of another version's."""
    engine = database.open_engine(database_url)
    try:
        with engine.connect() as connection:
            return list(connection.exec_driver_sql("SELECT id FROM notifications WHERE state = 'processed'").scalars())
    finally:
        engine.dispose()


def all_in_ledger(database_url: str, ids: list[str]) -> None:
    """Waits until each of `ids` is there."""

    def there() -> bool:
        missing = set(ids) - set(in_ledger(database_url))
        assert not missing, f"{len(missing)} of {len(ids)} are not in the ledger"
        return True

    eventually(there, 60, "all that was answered")


def before_newest_migration(folder: Path) -> Path:
    """The code of the commit before the newest migration, in `folder`. Skips where the history is not there."""
    newest = max((database.MIGRATIONS / "versions").glob("0*.py"))
    added = _git("log", "--diff-filter=A", "--format=%H", "--", str(newest)).decode().split()
    archive = _git("archive", f"{added[-1]}^" if added else "HEAD", "receiver", "workers")
    with tarfile.open(fileobj=BytesIO(archive)) as files:
        files.extractall(folder, filter="data")
    assert not (folder / newest.relative_to(ROOT)).exists()
    return folder


def _git(*arguments: str) -> bytes:
    try:
        shallow = subprocess.run(["git", "rev-parse", "--is-shallow-repository"], cwd=ROOT, capture_output=True)  # noqa: S607
        if shallow.stdout.strip() != b"false":
            pytest.skip("this is no checkout with its whole history")
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=True)  # noqa: S607
    except FileNotFoundError as error:
        absent("git", error)
    return done.stdout
