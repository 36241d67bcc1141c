"""The socket that a service manager holds: accept processes are started again behind it and refuse nobody."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from functools import partial
from http.client import HTTPConnection
from pathlib import Path

import pytest

from receiver import service
from receiver.errors import ConfigurationError
from tests.deploy.service import Service, under_load
from tests.live.installation import Installation, command
from tests.live.test_installation import quickstream
from tests.servers import Valkey, absent, eventually, running_valkey


@pytest.fixture(scope="module")
def queue() -> Iterator[Valkey]:
    with running_valkey() as server:
        yield server


@pytest.fixture
def served(tmp_path: Path, queue: Valkey, request: pytest.FixtureRequest) -> Iterator[Service]:
    with queue.client() as redis:
        redis.flushall()
    processes = getattr(request, "param", 1)
    here = Service(tmp_path, queue=f'redis_url = "{queue.url}"', receive=f"processes = {processes}")
    try:
        here.start()
        yield here
    finally:
        here.close()


@pytest.mark.parametrize(("served", "times"), [(1, 2), (2, 1)], indirect=["served"], ids=["one process", "two"])
def test_a_restart_under_load_fails_no_request(served: Service, times: int) -> None:
    with under_load(partial(HTTPConnection, "127.0.0.1", served.port, timeout=30)) as load:
        for _ in range(times):
            load.more()
            served.restart()
        load.more()
    assert set(load.answers) == {200}, load.answers
    assert served.recorded(load.answers[200])


def test_who_comes_while_nothing_runs_waits_for_the_next_one(served: Service) -> None:
    assert served.stop() == 0
    with socket.create_connection(("127.0.0.1", served.port), timeout=30) as early:
        early.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        served.start()
        assert early.recv(12) == b"HTTP/1.1 200"


def test_an_idle_connection_does_not_hold_up_a_restart(served: Service) -> None:
    with socket.create_connection(("127.0.0.1", served.port), timeout=30) as idle:
        idle.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"connection: close" not in idle.recv(1000).lower()
        assert served.process is not None
        served.process.send_signal(signal.SIGTERM)
        # Answered as long as the process goes on; then it is told that this was the last.
        eventually(lambda: b"connection: close" in asked(served).lower(), what="an answer that says so")
        idle.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = idle.recv(1000)
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"connection: close" in answer.lower()
        assert idle.recv(1) == b""
        assert served.process.wait(15) == 0


def asked(served: Service) -> bytes:
    with socket.create_connection(("127.0.0.1", served.port), timeout=30) as another:
        another.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        return another.recv(1000)


def test_systemds_own_hand_over(tmp_path: Path, queue: Valkey) -> None:
    """`systemd-socket-activate` starts the service when somebody comes."""
    if shutil.which("systemd-socket-activate") is None:
        absent("systemd-socket-activate", FileNotFoundError("systemd is not installed"))
    here = Installation(tmp_path, queue=f'redis_url = "{queue.url}"')
    hands_over = ["systemd-socket-activate", "--listen", f"127.0.0.1:{here.port}", "--fdname", "postback-serve"]
    with here.log.open("ab") as log:
        here.process = subprocess.Popen(
            [*hands_over, *command(), "serve", "--config", str(here.config)], stdout=log, stderr=log
        )
    try:
        eventually(here.accepts, what="an answer")
        assert here.post("/notify/quickstream/acme", quickstream("1"), {}).status_code == 401
        assert here.stop() == 0
    finally:
        here.close()


def test_it_is_refused_where_it_is_not_what_the_configuration_says(tmp_path: Path) -> None:
    here = Service(tmp_path)
    here.listening.close()
    here.listening = socket.create_server(("127.0.0.1", 0))
    here.launch()
    assert here.process is not None
    assert here.process.wait(30) == 2
    port = here.listening.getsockname()[1]
    said = f"postback: receive.bind: is 127.0.0.1:{here.port}, but the service manager listens on 127.0.0.1:{port}.\n"
    assert here.log.read_text() == said
    here.close()


class TestHandedSocket:
    @pytest.fixture(autouse=True)
    def _environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in (("PID", str(os.getpid())), ("FDS", "1"), ("FDNAMES", "postback-serve.socket")):
            monkeypatch.setenv(f"LISTEN_{name}", value)

    @pytest.fixture
    def handed(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            monkeypatch.setattr(service, "FIRST_FD", os.dup(listening.fileno()))
            yield listening

    def test_it_is_taken_once(self, handed: socket.socket) -> None:
        bind = f"127.0.0.1:{handed.getsockname()[1]}"
        taken = service.handed_socket(bind, "receive.bind")
        assert taken is not None
        with taken:
            assert taken.getsockname() == handed.getsockname()
            assert service.handed_socket(bind, "receive.bind") is None
            assert not [name for name in os.environ if name.startswith("LISTEN_")]

    def test_one_for_another_process_is_left_alone(
        self, handed: socket.socket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LISTEN_PID", str(os.getppid()))
        assert service.handed_socket(f"127.0.0.1:{handed.getsockname()[1]}", "receive.bind") is None

    @pytest.mark.parametrize("number", ["", "0", "2", "all"])
    def test_it_is_one(self, number: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LISTEN_FDS", number)
        with pytest.raises(ConfigurationError, match=rf"hands over {number or 'no'} sockets"):
            service.handed_socket("127.0.0.1:8080", "receive.bind")

    @pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
    @pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
    def test_it_listens(
        self, family: socket.AddressFamily, kind: socket.SocketKind, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with socket.socket(family, kind) as other:
            monkeypatch.setattr(service, "FIRST_FD", os.dup(other.fileno()))
            with pytest.raises(ConfigurationError, match="a TCP socket that listens"):
                service.handed_socket("127.0.0.1:8080", "receive.bind")

    def test_it_is_a_socket(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with (tmp_path / "file").open("w") as file:
            monkeypatch.setattr(service, "FIRST_FD", file.fileno())
            with pytest.raises(ConfigurationError, match="is no socket"):
                service.handed_socket("127.0.0.1:8080", "receive.bind")
