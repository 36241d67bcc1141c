"""deploy/redis: the servers start with these very files, are durable, and fail over as the users there may."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import RedisError

from receiver.connection import durability
from tests.live.apart import DEPLOY, certified, users
from tests.live.apart import PASSWORDS as OF_PROCESSES
from tests.live.installation import Installation
from tests.servers import SERVERS, eventually, free_port, redis_server

REDIS = DEPLOY / "redis"
PASSWORDS = {
    "PASSWORD_OF_REPLICA": "replica-password",
    "PASSWORD_OF_SENTINEL": "sentinel-password",
    "PASSWORD_OF_SENTINELS": "sentinels-password",
}


@pytest.fixture(scope="module")
def certificates() -> Iterator[Path]:
    with certified() as folder:
        yield folder


class Servers:
    """Servers in `folder` that run until they are stopped."""

    def __init__(self, folder: Path, certificates: Path) -> None:
        self.folder, self.certificates = folder, certificates
        self._commands: list[list[str]] = []
        self._processes: list[subprocess.Popen[bytes]] = []

    def url(self, port: int, scheme: str = "rediss") -> str:
        tls = f"?ssl_ca_certs={self.certificates / 'ca.pem'}" if scheme.startswith("rediss") else ""
        return f"{scheme}://test:test@localhost:{port}/0{tls}"

    def start(self, program: str, file: Path, port: int, *options: str, last: str = "") -> None:
        """Ports and places are ours; all else is as `file` has it, of which the server gets a copy that it may rewrite.
        `last` is a line more."""
        home = self.folder / str(port)
        home.mkdir()
        configuration = home / file.name
        configuration.write_text(f"{file.read_text()}{last}\n")
        acl = home / "users.acl"
        acl.write_text(users() + filled((REDIS / "replication.acl").read_text()))
        own = ["--dir", str(home), "--logfile", str(home / "log"), *self._tls(), *options]
        if "--sentinel" not in options:
            own += ["--aclfile", str(acl)]
        self._commands.append([program, str(configuration), *own])
        self._processes.append(subprocess.Popen(self._commands[-1]))

    def restart(self) -> None:
        self.stop()
        self._processes = [subprocess.Popen(command) for command in self._commands]

    def _tls(self) -> list[str]:
        names = {"cert-file": "server.pem", "key-file": "server.key", "ca-cert-file": "ca.pem"}
        return [part for name, file in names.items() for part in (f"--tls-{name}", str(self.certificates / file))]

    def stop(self) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait(10)


@contextmanager
def servers(folder: Path, certificates: Path) -> Iterator[Servers]:
    started = Servers(folder, certificates)
    try:
        yield started
    finally:
        started.stop()
        for log in sorted(folder.rglob("log")):
            print(log, log.read_text()[-3000:])


def filled(text: str) -> str:
    """With our passwords, as somebody who follows README.md puts theirs in."""
    for place, password in sorted(PASSWORDS.items(), reverse=True):
        hashed = hashlib.sha256(password.encode()).hexdigest()
        text = text.replace(f"SHA256_OF_{place.removeprefix('PASSWORD_OF_')}_PASSWORD", hashed).replace(place, password)
    return text


def answers(url: str) -> bool:
    with Redis.from_url(url, socket_timeout=5) as client:
        try:
            return bool(client.ping())
        except RedisError:
            return False


def doctor(folder: Path, url: str, more: str = "") -> tuple[str, str]:
    here = Installation(folder, queue=f'redis_url = "{url}"\n{more}')
    try:
        (found,) = [finding for finding in here.json("doctor") if finding["check"] == "queue"]
    finally:
        here.close()
    return found["verdict"], found["detail"]


@pytest.mark.parametrize("kind", SERVERS)
def test_what_was_committed_is_there_after_a_restart(kind: str, certificates: Path, tmp_path: Path) -> None:
    """The servers replay transactions with the rights of `default`, and drop those that it might not do."""
    port = free_port()
    program = redis_server() if kind == "redis" else SERVERS[kind](tmp_path).command()[0]
    with servers(tmp_path, certificates) as started:
        started.start(program, REDIS / "redis.conf", port, "--tls-port", "0", "--port", str(port))
        url = started.url(port, "redis")
        eventually(lambda: answers(url), what="the server")
        with Redis.from_url(
            url.replace("test:test", f"postback-accept:{OF_PROCESSES['accept']}"), socket_timeout=5
        ) as client:
            batch = client.pipeline(transaction=True)
            # A transaction of one command is kept as that command.
            batch.sadd("rq:queues", "rq:queue:notifications").rpush("rq:queue:notifications", "a batch").execute()
        started.restart()
        eventually(lambda: answers(url), what="the server again")
        with Redis.from_url(url, socket_timeout=5) as client:
            assert client.lrange("rq:queue:notifications", 0, -1) == [b"a batch"]


@pytest.mark.parametrize("kind", SERVERS)
def test_the_configuration_is_durable(kind: str, certificates: Path, tmp_path: Path) -> None:
    port = free_port()
    with servers(tmp_path, certificates) as started:
        if kind == "redis":
            started.start(redis_server(), REDIS / "redis.conf", port, "--tls-port", str(port))
            url = started.url(port)
        else:
            # The wheel's is built without TLS.
            valkey = SERVERS[kind](tmp_path).command()[0]
            started.start(valkey, REDIS / "redis.conf", port, "--tls-port", "0", "--port", str(port))
            url = started.url(port, "redis")
        eventually(lambda: answers(url), what="the server")
        assert doctor(tmp_path, url) == ("ok", "an answer means that it is on the disk")
        with Redis.from_url(url, socket_timeout=5) as client:
            assert durability(client).fault is None
            wanted = {
                "maxmemory-policy": "noeviction",
                "save": "",
                "aof-load-truncated": "yes",
                "protected-mode": "yes",
            }
            found = client.config_get(*wanted)
            assert {name: found[name] for name in wanted} == wanted
            # `default` is off: whoever has no user is nobody.
            assert client.acl_getuser("default")["enabled"] is False


def test_a_group_fails_over_with_the_users_of_the_files(certificates: Path, tmp_path: Path) -> None:
    first, second, watching = free_port(), free_port(), free_port()
    replication = tmp_path / "replication.conf"
    replication.write_text(filled((REDIS / "replication.conf").read_text()))
    sentinel = tmp_path / "sentinel.conf"
    sentinel.write_text(
        filled((REDIS / "sentinel.conf").read_text()).replace("queue-1.internal 6380", f"localhost {first}")
    )
    with servers(tmp_path, certificates) as started:
        for port, more in ((first, ()), (second, ("--replicaof", f"localhost {first}"))):
            options, last = ("--tls-port", str(port), *more), f"include {replication}"
            started.start(redis_server(), REDIS / "redis.conf", port, *options, last=last)
            eventually(lambda port=port: answers(started.url(port)), what="the server")  # type: ignore[misc]
        started.start(redis_server(), sentinel, watching, "--tls-port", str(watching), "--sentinel")
        of_sentinels = f"sentinel_password={PASSWORDS['PASSWORD_OF_SENTINELS']}"
        group = started.url(watching, "rediss+sentinel").replace("/0?", "/postback/0?") + f"&{of_sentinels}"
        ca = str(certificates / "ca.pem")
        with Redis(
            host="localhost", port=watching, ssl=True, ssl_ca_certs=ca, password="sentinels-password", socket_timeout=5
        ) as asked:

            def knows_the_replica() -> bool:
                try:
                    state = asked.sentinel_masters()["postback"]
                except RedisError:
                    return False
                return bool(state["num-slaves"] == 1 and not state["is_odown"])

            eventually(knows_the_replica, 30, "a Sentinel that knows the replica")
            said = ("ok", "an answer means that it is on the disk and at 1 replica")
            eventually(lambda: doctor(tmp_path, group, "replicas = 1") == said, 30, "a replica that follows")
            asked.sentinel_failover("postback")
            eventually(lambda: asked.sentinel_get_master_addr_by_name("postback")[1] == second, 30, "another master")
        # Sentinel leaves the old master alone for a while before it tells it the same.
        with Redis.from_url(started.url(first), socket_timeout=5) as old:
            old.replicaof("localhost", second)
        # Both have the same lines, and so either may be either.
        eventually(lambda: doctor(tmp_path, group, "replicas = 1") == said, 30, "a replica of the new master")
