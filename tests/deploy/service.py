"""`postback serve` as systemd runs it by ``deploy/systemd``, and senders that go on while it is started again."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from http.client import HTTPConnection, HTTPException
from itertools import count
from pathlib import Path
from typing import Any

from tests.live.installation import Installation, command
from tests.live.test_installation import ACME, FORM, quickstream
from tests.servers import eventually

# What systemd does between fork and exec: the socket becomes descriptor 3, and the process learns that it is meant.
_HAND_OVER = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="postback-serve.socket")
os.execv(sys.argv[2], sys.argv[2:])
"""
HEADERS = {"Content-Type": FORM, "Authorization": ACME}
PAUSES = (0.002, 0.005, 0.02, 0.1, 0.5)
"""Seconds between two requests of one sender, each of which is a thread: some are busy, some mostly idle."""


class Service(Installation):
    """Its socket is the manager's and stays open when the process ends; it is ready when it says so."""

    def __init__(self, folder: Path, **tables: Any) -> None:
        super().__init__(folder, **tables)
        self.listening = socket.create_server(("127.0.0.1", self.port), backlog=4096)
        self._hears = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._hears.bind(f"\0postback-{os.getpid()}-{self.port}")
        self._hears.settimeout(30)

    def launch(self, *arguments: str) -> None:
        environment = {**os.environ, "NOTIFY_SOCKET": f"@postback-{os.getpid()}-{self.port}"}
        served = [*command(), "serve", *arguments, "--config", str(self.config)]
        number = self.listening.fileno()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _HAND_OVER, str(number), *served],
                stdout=log,
                stderr=log,
                env=environment,
                pass_fds=(number,),
            )

    def wait_until_ready(self) -> None:
        while self._hears.recv(100) != b"READY=1":
            pass

    def restart(self) -> None:
        """As `systemctl restart` does: the next one starts when the one before it has ended."""
        assert self.stop() == 0, self.log.read_text()
        self.start()

    def recorded(self, number: int) -> bool:
        """Whether a worker puts exactly so many notifications into the ledger, all there are."""
        assert self.run("migrate").returncode == 0
        with self.log.open("ab") as log:
            worker = subprocess.Popen([*command(), "work", "--config", str(self.config)], stdout=log, stderr=log)
        try:
            eventually(lambda: self._count() >= number, what=f"{number} notifications")
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(15) == 0
        finally:
            worker.kill()
            worker.wait()
        return self._count() == number

    def _count(self) -> int:
        with closing(sqlite3.connect(self.data_dir / "ledger.sqlite3")) as ledger:
            (number,) = ledger.execute("SELECT count(*) FROM notifications").fetchone()
        return int(number)

    def close(self) -> None:
        super().close()
        self.listening.close()
        self._hears.close()


class Load:
    """Senders, each on a connection of its own. Those that keep it do so as far as its answers let them; the others
    open one for each notification."""

    def __init__(self, connect: Callable[[], HTTPConnection]) -> None:
        self._connect = connect
        self._numbers = count(1)
        self._over = threading.Event()
        self.answers: Counter[int | str] = Counter()

    def send(self, keeps: bool, pause: float) -> None:
        connection = self._connect()
        while not self._over.is_set():
            body = quickstream(f"9{next(self._numbers):08}")
            try:
                connection.request("POST", "/notify/quickstream/acme", body, HEADERS)
                answer = connection.getresponse()
                answer.read()
                self.answers[answer.status] += 1
            except (OSError, HTTPException) as error:
                self.answers[f"{type(error).__name__}: {error}"] += 1
                connection.close()
            if not keeps:
                connection.close()
            self._over.wait(pause)
        connection.close()

    def more(self, number: int = 100) -> None:
        """Waits until so many more were answered."""
        wanted = sum(self.answers.values()) + number
        eventually(lambda: sum(self.answers.values()) >= wanted, what=f"{number} more answers")

    def end(self) -> None:
        self._over.set()


@contextmanager
def under_load(connect: Callable[[], HTTPConnection], pauses: Sequence[float] = PAUSES) -> Iterator[Load]:
    """Two senders for each pause, one of each kind, until the end of the block."""
    load = Load(connect)
    senders = [threading.Thread(target=load.send, args=(keeps, pause)) for pause in pauses for keeps in (True, False)]
    for sender in senders:
        sender.start()
    try:
        yield load
    finally:
        load.end()
        for sender in senders:
            sender.join()
