"""Where it all happens: the shipped processes, with links of ours between them and a small disk for the spool."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import NamedTuple

import httpx
from redis import Redis
from redis.exceptions import RedisError

from receiver.connection import socket_path
from tests.chaos.link import Link
from tests.live.installation import Installation, command, free_port
from tests.live.postgres import Postgres

SPOOL_DISK = "24m"
"""Enough for the load of a minute, and quickly filled."""
CONNECTIONS = 2
"""Of a worker to its database, at most."""


class Unfinished(NamedTuple):
    """Batches on their way to the ledger, by where they are."""

    queued: int
    between: int
    started: int
    scheduled: int
    spooled: int

    @property
    def batches(self) -> int:
        return sum(self)

    def __str__(self) -> str:
        return ", ".join(f"{number} {where}" for where, number in self._asdict().items())


class Place:
    """``postback up`` with two accept processes and its worker, and a second ``postback work`` beside it."""

    def __init__(self, store: str, random: Random) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="chaos-"))
        self.postgres = Postgres(self.folder) if store == "postgresql" else None
        self._random = random
        self.installation: Installation
        self.second_worker: subprocess.Popen[bytes] | None = None
        self.sender_link: Link
        self.store_link: Link | None = None
        self.small_disk = False
        self._starting = asyncio.Lock()
        self._closing = False

    async def start(self) -> None:
        lines = ""
        if self.postgres is not None:
            await asyncio.to_thread(self.postgres.start)
            port = free_port()
            self.store_link = Link(("127.0.0.1", port), self.postgres.socket, self._random)
            await self.store_link.start()
            lines = f'database_url = "postgresql+psycopg://postgres@127.0.0.1:{port}/postgres"'
        folder = self.folder / "installation"
        folder.mkdir()
        self.installation = Installation(folder, store=lines, receive="processes = 2\nmax_held = 100000")
        self._mount(self.installation.data_dir / "spool")
        await asyncio.to_thread(self.installation.start)
        self._start_second_worker()
        self.sender_link = Link(("127.0.0.1", free_port()), ("127.0.0.1", self.installation.port), self._random)
        await self.sender_link.start()

    @property
    def database_url(self) -> str:
        if self.postgres is not None:
            return self.postgres.url
        return f"sqlite:///{self.ledger_file}"

    @property
    def ledger_file(self) -> Path:
        return self.installation.data_dir / "ledger.sqlite3"

    @property
    def valkey_socket(self) -> Path:
        return socket_path(self.installation.data_dir)

    def redis(self, socket: Path | None = None) -> Redis:
        return Redis(unix_socket_path=str(socket or self.valkey_socket), socket_timeout=5, protocol=2)

    def pids(self, role: str) -> list[int]:
        """Of ``up``, ``serve``, ``work``, ``valkey`` or ``postgres``."""
        if role == "up":
            process = self.installation.process
            return [process.pid] if process is not None and process.poll() is None else []
        if role == "postgres":
            return self.postgres.pids() if self.postgres is not None else []
        found = self.installation.pids(role)
        second = self.second_worker
        if role == "work" and second is not None and second.poll() is None:
            found.append(second.pid)
        return found

    async def look_after(self) -> None:
        """Starts the second worker and ``up`` again when they end, as the machine's own supervisor would."""
        while not self._closing:
            process = self.installation.process
            if process is not None and process.poll() is not None:
                await self.start_again()
            if self.second_worker is not None and self.second_worker.poll() is not None:
                self._start_second_worker()
            await asyncio.sleep(0.5)

    async def start_again(self) -> None:
        """Starts ``up`` unless somebody else just did, again and again until it stays."""
        async with self._starting:
            while not self._closing:
                process = self.installation.process
                assert process is not None
                if process.poll() is not None:
                    with self.installation.log.open("ab") as log:
                        arguments = [*command(), "up", "--config", str(self.installation.config)]
                        process = await asyncio.to_thread(subprocess.Popen, arguments, stdout=log, stderr=log)
                    self.installation.process = process
                while process.poll() is None:
                    if await self.ready():
                        return
                    await asyncio.sleep(0.2)
                await asyncio.sleep(0.5)

    async def ready(self) -> bool:
        """Asked without the link."""
        try:
            async with httpx.AsyncClient(timeout=2, trust_env=False) as client:
                answer = await client.get(f"{self.installation.url}/readyz")
        except httpx.TransportError:
            return False
        return answer.status_code == 200

    def unfinished(self) -> Unfinished | None:
        """What is still on its way to the ledger; None when nobody answers."""
        redis = self.redis()
        try:
            pipeline = redis.pipeline(transaction=False)
            for kind, key in (
                ("llen", "rq:queue:notifications"),
                ("llen", "rq:queue:notifications:intermediate"),
                ("zcard", "rq:wip:notifications"),
                ("zcard", "rq:scheduled:notifications"),
            ):
                getattr(pipeline, kind)(key)
            queued, between, started, scheduled = pipeline.execute()
            answer = self.installation.client.get("/readyz", timeout=5)
            return Unfinished(queued, between, started, scheduled, answer.json().get("spool_batches", 0))
        except (RedisError, OSError, httpx.TransportError, ValueError):
            return None
        finally:
            redis.close()

    def tidy(self) -> None:
        """Lets Valkey give back what it keeps for the next time, which is not what it leaks."""
        redis = self.redis()
        try:
            redis.memory_purge()
        except (RedisError, OSError):
            pass
        finally:
            redis.close()

    def left_over(self) -> list[str]:
        """What should not be there any more when all is done."""
        found = self._keys_left()
        if self.postgres is not None:
            backends = len(self.postgres.backends())
            allowed = CONNECTIONS * len(self.pids("work"))
            if backends > allowed:
                found.append(f"{backends} connections to PostgreSQL, at most {allowed} are needed")
        return found

    def _keys_left(self) -> list[str]:
        """Keys of jobs that are over and will not end by themselves: of each kind how many, and one of them."""
        redis = self.redis()
        kinds: dict[str, list[str]] = {}
        try:
            for key in redis.scan_iter("rq:*", count=1000):
                kind = key.decode().split(":")[1]
                if kind in ("job", "results", "execution", "executions") and redis.ttl(key) == -1:
                    kinds.setdefault(kind, []).append(key.decode())
        except (RedisError, OSError) as error:
            return [f"Valkey does not answer: {error}"]
        finally:
            redis.close()
        return [f"{len(keys)} keys of {kind} left, such as {keys[0]}" for kind, keys in kinds.items()]

    def set_aside(self) -> int:
        redis = self.redis()
        try:
            return int(redis.zcard("rq:failed:notifications"))
        finally:
            redis.close()

    async def close(self, keep: bool) -> None:
        self._closing = True
        if hasattr(self, "sender_link"):
            await self.sender_link.stop()
        if self.store_link is not None:
            await self.store_link.stop()
        if hasattr(self, "installation"):
            for role in ("postgres", "valkey", "serve", "work", "up"):
                self._wake(role)
            if self.second_worker is not None:
                self.second_worker.kill()
                self.second_worker.wait()
            await asyncio.to_thread(self.installation.close)
        if self.postgres is not None:
            await asyncio.to_thread(self.postgres.stop)
        if self.small_disk:
            subprocess.run(["/bin/umount", "-l", str(self.installation.data_dir / "spool")], check=False)
        if keep:
            print(f"kept: {self.folder}")
        else:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _wake(self, role: str) -> None:
        """Lets what stands still go on, or it could not end. What is gone by now needs nothing."""
        if self.installation.process is None:
            return
        with suppress(OSError):
            for pid in self.pids(role):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def _start_second_worker(self) -> None:
        with self.installation.log.open("ab") as log:
            arguments = [*command(), "work", "--config", str(self.installation.config)]
            self.second_worker = subprocess.Popen(arguments, stdout=log, stderr=log)

    def _mount(self, spool: Path) -> None:
        spool.mkdir(parents=True, mode=0o700)
        mount = ["/bin/mount", "-t", "tmpfs", "-o", f"size={SPOOL_DISK},mode=700", "chaos", str(spool)]
        try:
            self.small_disk = subprocess.run(mount, stderr=subprocess.DEVNULL, check=False).returncode == 0
        except OSError:
            self.small_disk = False
