"""A queue with a fail-over: a master, a replica and three Sentinels on loopback, all with passwords."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError

from tests.servers import eventually, free_port, redis_server

SERVICE = "mymaster"
PASSWORD = "queue-password"
WATCH_PASSWORD = "sentinel-password"


class Group:
    """Debian's ``redis-server`` five times. Whoever is master is asked of the first Sentinel."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self.servers = [free_port(), free_port()]
        self.sentinels = [free_port() for _ in range(3)]

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.sentinels)
        return f"redis+sentinel://:{PASSWORD}@{hosts}/{SERVICE}/0?sentinel_password={WATCH_PASSWORD}"

    def start(self) -> None:
        first, second = self.servers
        self.start_server(first)
        self.start_server(second, f"replicaof 127.0.0.1 {first}")
        self.until_replicated(first)
        for port in self.sentinels:
            self._run(
                port,
                f"requirepass {WATCH_PASSWORD}",
                f"sentinel sentinel-pass {WATCH_PASSWORD}",
                f"sentinel monitor {SERVICE} 127.0.0.1 {first} 2",
                f"sentinel auth-pass {SERVICE} {PASSWORD}",
                f"sentinel down-after-milliseconds {SERVICE} 1000",
                f"sentinel failover-timeout {SERVICE} 4000",
                options=("--sentinel",),
            )
        for port in self.sentinels:
            eventually(lambda port=port: self._knows_all(port), 30, "Sentinels that know each other")  # type: ignore[misc]

    def start_server(self, port: int, *lines: str) -> None:
        """Starts it with its own file again, which Sentinel may have rewritten."""
        self._run(
            port,
            f"requirepass {PASSWORD}",
            f"masterauth {PASSWORD}",
            "appendonly yes",
            "appendfsync always",
            'save ""',
            *lines,
        )

    def until_replicated(self, master: int) -> None:
        with self.client(master) as client:
            eventually(lambda: client.wait(1, 100) == 1, 30, "a replica that follows")

    def master(self) -> int:
        """The port of the master, as a Sentinel says."""
        with Redis(port=self.sentinels[0], password=WATCH_PASSWORD, socket_timeout=5) as sentinel:
            answer: tuple[str, int] = sentinel.sentinel_get_master_addr_by_name(SERVICE)
        return int(answer[1])

    def client(self, port: int) -> Redis:
        return Redis(port=port, password=PASSWORD, socket_timeout=5)

    def kill(self, port: int) -> None:
        self._processes[port].kill()
        self._processes[port].wait()

    def stop(self) -> None:
        for process in self._processes.values():
            process.kill()
            process.wait()

    def _run(self, port: int, *lines: str, options: tuple[str, ...] = ()) -> None:
        home = self._folder / str(port)
        home.mkdir(exist_ok=True)
        configuration = home / "server.conf"
        if not configuration.exists():
            common = (f"port {port}", "bind 127.0.0.1", f"dir {home}", f"logfile {home}/log")
            configuration.write_text("\n".join((*common, *lines, "")))
        self._processes[port] = subprocess.Popen([redis_server(), str(configuration), *options])
        with Redis(port=port, password=WATCH_PASSWORD if options else PASSWORD, socket_timeout=5) as client:
            eventually(lambda: answers(client.ping), what=f"the server on {port}")

    def _knows_all(self, port: int) -> bool:
        with Redis(port=port, password=WATCH_PASSWORD, socket_timeout=5) as sentinel:
            state = sentinel.sentinel_masters()[SERVICE]
        return bool(state["num-other-sentinels"] == 2 and state["num-slaves"] == 1)


def answers(ask: Callable[[], object]) -> bool:
    try:
        return bool(ask())
    except RedisError:
        return False


@contextmanager
def watched(folder: Path) -> Iterator[Group]:
    group = Group(folder)
    try:
        group.start()
        yield group
    finally:
        group.stop()
