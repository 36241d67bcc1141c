"""Named faults against the shipped processes: nothing answered 200 is lost, and nothing counts twice.

Each test brings the installation to a state that it can see, breaks it there, and looks at what comes of it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from redis import Redis
from redis.exceptions import RedisError

from receiver.connection import url
from receiver.job import RECORD_BATCH
from receiver.notification import Envelope, new_id, now_us, seal_batch
from receiver.signing import Seal, Secret
from tests.live.installation import Installation, command, free_port, installed
from tests.live.postgres import Postgres
from tests.live.state import State, locked, stopped
from tests.live.test_installation import ACME, FORM, notify, quickstream
from tests.servers import eventually, redis_server

RECOVERED_WITHIN = 15.0
ANSWERED_WITHIN = 2.0


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    with installed(tmp_path_factory.mktemp("faults")) as here:
        yield here


@pytest.fixture(scope="module")
def running_on_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """The same with Debian's redis-server."""
    folder = tmp_path_factory.mktemp("redis")
    with redis_7(folder, "--appendonly", "yes", "--appendfsync", "always") as start:
        start()
        with installed(folder, queue=f'redis_url = "unix://{folder}/redis.sock"') as here:
            yield here


@pytest.fixture
def state(running: Installation) -> Iterator[State]:
    """Of an installation that is well, before the test and after it."""
    yield from watched_over(running)


@pytest.fixture(params=["running", "running_on_redis"])
def on_either(request: pytest.FixtureRequest) -> Iterator[State]:
    """The same, with each of the two queue servers."""
    yield from watched_over(request.getfixturevalue(request.param))


def watched_over(running: Installation) -> Iterator[State]:
    here = State(running)
    eventually(lambda: well(here), 30, "a well installation")
    yield here
    eventually(lambda: well(here), 30, "an installation that is well again")
    assert here.failed() == 0
    here.close()


def well(state: State) -> bool:
    try:
        answer = state.running.client.get("/readyz")
        return answer.json()["status"] == "ready" and bool(state.running.pids("work")) and state.idle()
    except (httpx.TransportError, RedisError):
        return False


def receipts(first: int, count: int) -> list[str]:
    return [str(number) for number in range(first, first + count)]


def send(running: Installation, receipt: str) -> float:
    """Sends a payment that must be answered 200; gives the seconds that it took."""
    began = time.monotonic()
    answer = notify(running, quickstream(receipt))
    assert (answer.status_code, answer.json()["status"]) == (200, "accepted")
    return time.monotonic() - began


def the(pids: list[int]) -> int:
    (pid,) = pids
    return pid


def kill(running: Installation, role: str) -> None:
    """kill -9, and wait until another process of the role has taken over."""
    old = the(running.pids(role))
    os.kill(old, signal.SIGKILL)
    eventually(lambda: set(running.pids(role)) - {old}, what=f"a new {role}")


# The worker


def test_a_worker_killed_in_the_middle_of_a_batch(running: Installation, state: State) -> None:
    with locked(state.ledger_file):
        send(running, "8001")
        eventually(lambda: state.started() == 1, 30, "a batch in hand")
        running.kill("work")
    began = time.monotonic()
    eventually(lambda: state.once(["8001"]), RECOVERED_WITHIN, "the batch, run again")
    assert time.monotonic() - began < RECOVERED_WITHIN
    eventually(state.idle, what="an empty queue")
    assert state.logged("batch_put_back")


def test_a_worker_killed_after_its_commit_and_before_the_job_is_removed(running: Installation, state: State) -> None:
    before = len(state.logged("batch_put_back"))
    valkey = the(running.pids("valkey"))
    with locked(state.ledger_file):
        send(running, "8011")
        eventually(lambda: state.started() == 1, 30, "a batch in hand")
        os.kill(valkey, signal.SIGSTOP)
    # What the worker says after its commit reaches nobody: it ends with the server that stands still.
    eventually(lambda: state.rows(["8011"]), what="the committed row")
    kill(running, "work")
    kill(running, "valkey")
    eventually(lambda: len(state.logged("batch_put_back")) > before, RECOVERED_WITHIN, "the batch, put back")
    eventually(state.idle, RECOVERED_WITHIN, "the job, run again and removed")
    assert state.once(["8011"])


def test_a_worker_killed_while_it_splits_a_batch(running: Installation, state: State) -> None:
    """One envelope cannot be recorded at all, so that each is tried alone."""
    numbers = receipts(81_000, 300)
    bad = msgspec.structs.replace(envelope("80999"), received_at=2**62)
    job = new_id(now_us())
    try:
        state.push(RECORD_BATCH, job, seal_batch([bad, *map(envelope, numbers)], state.seal()))
        eventually(lambda: state.rows(numbers), what="the first of the split batch")
        with locked(state.ledger_file):
            assert 0 < len(state.rows(numbers)) < len(numbers)
            running.kill("work")
        eventually(lambda: state.once(numbers), RECOVERED_WITHIN, "all others of the batch")
        assert state.logged("batch_split")
        assert state.logged("notification_not_recorded", id=bad.id)
        assert state.failed() == 0, "what could not be recorded is kept and tried again"
        assert state.queue.fetch_job(job) is not None
    finally:
        eventually(lambda: forgotten(state, job), what="a queue without the bad batch")


def forgotten(state: State, job_id: str) -> bool:
    state.forget(job_id)
    return state.idle()


def envelope(receipt: str) -> Envelope:
    """What an accept process makes of a proven payment."""
    received_at = now_us()
    return Envelope(
        id=new_id(received_at),
        provider="quickstream",
        facility="acme",
        received_at=received_at,
        source="127.0.0.1",
        content_type=FORM,
        headers={},
        body=quickstream(receipt),
        verified=True,
        dedupe_key=f"LIVE:{receipt}",
        event_type="payment",
        fingerprint=receipt,
        quarantine="",
        detail="",
    )


# The accept processes


def test_an_accept_process_killed_while_requests_wait(running: Installation, state: State) -> None:
    before, waiting = receipts(8200, 3), receipts(8210, 20)
    for receipt in before:
        send(running, receipt)
    sockets = []
    with stopped(the(running.pids("valkey"))):
        for receipt in waiting:
            sockets.append(socket.create_connection(("127.0.0.1", running.port), timeout=20))
            sockets[-1].sendall(raw(quickstream(receipt)))
        running.kill("serve")
        told = [receipt for receipt, one in zip(waiting, sockets, strict=True) if answered_200(one)]
    eventually(lambda: running.client.get("/readyz").json()["status"] == "ready", 30, "a ready receiver")
    eventually(lambda: state.once(before + told), what="all that was answered")
    for receipt in waiting:
        # The sender sends again what was not answered.
        if receipt not in told:
            send(running, receipt)
    # What the killed process had sent already, Valkey did when it went on: then the second one is a repeat.
    eventually(lambda: state.once(before + waiting, (1, 2)), what="all")


def raw(body: bytes) -> bytes:
    return (
        b"POST /notify/quickstream/acme HTTP/1.1\r\nHost: here\r\nContent-Type: " + FORM.encode() + b"\r\n"
        b"Authorization: " + ACME.encode() + b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    )


def answered_200(connection: socket.socket) -> bool:
    with connection, suppress(OSError):
        return connection.recv(65536).startswith(b"HTTP/1.1 200")
    return False


def test_the_spool_survives_a_killed_accept_process(running: Installation, state: State) -> None:
    numbers = receipts(8250, 5)
    with stopped(the(running.pids("valkey"))):
        for receipt in numbers:
            assert send(running, receipt) < ANSWERED_WITHIN
        kill(running, "serve")
        eventually(lambda: degraded(running)["spool_batches"] >= len(numbers), 30, "a receiver that found its spool")
        send(running, "8255")
    eventually(lambda: state.once([*numbers, "8255"]), what="all that was spooled, before the kill and after it")


# The queue


def test_valkey_killed_starts_again_from_its_file(running: Installation, state: State) -> None:
    numbers = receipts(8300, 5)
    with stopped(the(running.pids("work"))):
        # Nobody takes them out of the queue before it dies.
        for receipt in numbers:
            send(running, receipt)
        kill(running, "valkey")
    eventually(lambda: state.once(numbers), 30, "all that was answered")


def test_a_killed_supervisor_leaves_nothing_that_harms_the_next(tmp_path: Path) -> None:
    """Its processes stop by themselves; whoever starts it again at once only has to insist."""
    with installed(tmp_path) as running:
        state = State(running)
        try:
            for receipt in receipts(8350, 3):
                send(running, receipt)
            assert running.process is not None
            running.process.kill()
            running.process.wait()

            def started() -> bool:
                with suppress(RuntimeError):
                    running.start()
                    return True
                return False

            eventually(started, 60, "an installation that runs again")
            send(running, "8353")
            eventually(lambda: state.once(receipts(8350, 4)), 30, "all that was answered")
        finally:
            state.close()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_killed_supervisor_whose_valkey_hangs(tmp_path: Path) -> None:
    """The next one waits for it: two servers on one file would harm it, and the old one takes the socket with it."""
    with installed(tmp_path) as running:
        state = State(running)
        try:
            send(running, "8360")
            eventually(lambda: state.once(["8360"]), what="the first payment")
            valkey = the(running.pids("valkey"))
            with stopped(valkey):
                assert running.process is not None
                running.process.kill()
                running.process.wait()
                # Its group has no parent any more, so that the kernel wakes it up to end.
                running.start()
                assert not alive(valkey)
            send(running, "8361")
            eventually(lambda: state.once(["8360", "8361"]), 30, "all that was answered")
        finally:
            state.close()


@contextmanager
def full(redis: Redis) -> Iterator[None]:
    redis.config_set("maxmemory", "1mb")
    try:
        yield
    finally:
        redis.config_set("maxmemory", "0")


@contextmanager
def read_only(redis: Any) -> Iterator[None]:
    """A replica of a server that is not there, as after a fail-over that went wrong."""
    redis.execute_command("REPLICAOF", "127.0.0.1", str(free_port()))
    try:
        yield
    finally:
        redis.execute_command("REPLICAOF", "NO", "ONE")


@contextmanager
def other_password(redis: Redis) -> Iterator[None]:
    redis.config_set("requirepass", "changed")
    redis.client_kill_filter(_type="normal", skipme=True)
    try:
        yield
    finally:
        redis.config_set("requirepass", "")


@contextmanager
def too_slow(redis: Redis) -> Iterator[None]:
    with stopped(redis.info()["process_id"]):
        yield


@contextmanager
def not_durable(redis: Redis) -> Iterator[None]:
    redis.config_set("appendfsync", "everysec")
    try:
        yield
    finally:
        redis.config_set("appendfsync", "always")


@pytest.mark.parametrize(
    ("number", "fault", "told"),
    [
        (8400, full, "OutOfMemoryError"),
        (8420, read_only, "ReadOnlyError"),
        (8440, other_password, "AuthenticationError"),
        (8460, too_slow, "TimeoutError"),
    ],
)
def test_a_queue_that_takes_nothing_is_stood_in_for_by_the_spool(
    on_either: State, number: int, fault: Callable[[Redis], Any], told: str
) -> None:
    state, running = on_either, on_either.running
    numbers = receipts(number, 8)
    redis = state.separate()
    with fault(redis):
        for receipt in numbers:
            assert send(running, receipt) < ANSWERED_WITHIN
        body = eventually(lambda: degraded(running, told), what="degraded")
        assert body["redis"] == "away"
        eventually(lambda: degraded(running, told)["spool_batches"] == len(numbers), what="all in the spool")
        eventually(lambda: state.metric("postback_redis_up") == 0, what="the figure of the queue")
        eventually(lambda: state.metric("postback_spool_batches") == len(numbers), what="the figure of the spool")
        assert state.logged("redis_away", process="serve")
        assert not state.rows(numbers)
    redis.close()
    eventually(lambda: running.client.get("/readyz").json()["status"] == "ready", what="a drained spool")
    eventually(lambda: state.once(numbers), what="all that was spooled")
    recorded = [row.processed_at for row in state.rows(numbers)]
    assert recorded == sorted(recorded), "drained oldest first"
    assert state.logged("redis_up")
    assert state.logged("spool_drained")
    eventually(lambda: state.metric("postback_redis_up") == 1, what="the figure of the queue")


def degraded(running: Installation, told: str = "") -> dict[str, Any]:
    """What `/readyz` says, with the fault that it names. Asserts what is not so."""
    answer = running.client.get("/readyz")
    body: dict[str, Any] = answer.json()
    assert (answer.status_code, body["status"]) == (200, "degraded")
    assert told in body["fault"]
    return body


def test_a_queue_that_stops_to_fsync_gets_nothing(on_either: State) -> None:
    state, running = on_either, on_either.running
    redis = state.separate()
    with not_durable(redis):
        eventually(lambda: running.client.get("/readyz").status_code == 503, what="not ready")
        send(running, "8480")
        assert "appendfsync" in running.client.get("/readyz").json()["fault"]
        assert not state.rows(["8480"])
    redis.close()
    eventually(lambda: state.once(["8480"]), what="what was spooled")


# The disk


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of its own at `folder`; gives a file that fills it as soon as it is written to."""
    folder.mkdir(parents=True, mode=0o700)
    mount = ["/bin/mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "postback-test", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody mount a file system, and without one no disk can be full")
    try:
        yield folder / "ballast"
    finally:
        subprocess.run(["/bin/umount", "-l", str(folder)], check=False)


def fill(ballast: Path) -> None:
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


def test_a_full_disk_under_the_spool_is_no_200(tmp_path: Path) -> None:
    with small_disk(tmp_path / "var" / "spool", "2m") as ballast, installed(tmp_path) as running:
        state = State(running)
        eventually(lambda: well(state), 30, "a well installation")
        with stopped(the(running.pids("valkey"))):
            told = ["8491"]
            assert send(running, "8491") < ANSWERED_WITHIN
            fill(ballast)
            # What was free inside the spool's own files is used up first.
            while (answer := notify(running, quickstream(str(8491 + len(told))))).status_code == 200:
                told.append(str(8491 + len(told)))
            refused = str(8491 + len(told))
            assert (answer.status_code, answer.json()["error"]) == (500, "not_stored")
            eventually(lambda: running.client.get("/readyz").status_code == 503, what="not ready")
            assert running.client.get("/readyz").json()["spool_fault"]
            assert state.logged("spool_unfit")
            assert state.logged("notification_not_stored")
            ballast.unlink()
            eventually(lambda: notify(running, quickstream("8489")).status_code == 200, what="room again")
        eventually(lambda: well(state), 30, "a well installation")
        assert state.once([*told, "8489"], (1, 2))
        assert not state.rows([refused]), "nothing half-written came through"
        assert running.run("health").returncode == 0
        state.close()


def test_a_full_disk_under_the_queue_is_stood_in_for_by_the_spool(tmp_path: Path) -> None:
    """A server that cannot write its append-only file ends itself. It is started again until the disk has room."""
    with small_disk(tmp_path / "var" / "valkey", "8m") as ballast, installed(tmp_path) as running:
        state = State(running)
        eventually(lambda: well(state), 30, "a well installation")
        valkey = the(running.pids("valkey"))
        fill(ballast)
        numbers = receipts(8150, 20)
        for receipt in numbers:
            assert send(running, receipt) < ANSWERED_WITHIN
        eventually(lambda: valkey not in running.pids("valkey"), what="the end of the server")
        assert degraded(running)["spool_batches"] > 0
        ballast.unlink()
        eventually(lambda: well(state), 30, "a well installation")
        assert state.once(numbers)
        assert state.failed() == 0
        state.close()


# What cannot be opened


def test_a_batch_with_a_wrong_seal_is_set_aside_for_ever(running: Installation, state: State) -> None:
    strange = Seal([Secret(b"somebody else's key")], "batch")
    job = new_id(now_us())
    try:
        state.push(RECORD_BATCH, job, seal_batch([envelope("8501")], strange))
        eventually(lambda: state.failed() == 1, what="the batch among those set aside")
        registry = state.queue.failed_job_registry
        assert state.redis.zscore(registry.key, job) == -1, "never expires"
        registry.cleanup()
        assert state.redis.ttl(f"rq:job:{job}") == -1
        send(running, "8502")
        eventually(lambda: state.once(["8502"]), what="the next batch")
        health = running.run("health")
        assert health.returncode == 1
        told = json.loads(health.stdout)
        assert told["redis"]["set_aside"] == 1
        assert any("set aside" in problem for problem in told["problems"])
        assert state.logged("seal_broken", job=job)
        assert state.metric('postback_batches_set_aside_total{why="seal_broken"}') == 1
        assert not state.rows(["8501"])

        # The runbook's way back: the key it was sealed with, and RQ's own command.
        text = running.config.read_text()
        running.config.write_text(text.replace('seal_keys = ["', 'seal_keys = ["somebody else\'s key", "'))
        kill(running, "work")
        options = ["--url", url(state.settings), "--serializer", "receiver.connection.Serializer"]
        assert state.failed() == 1
        assert rq("requeue", "--queue", "notifications", "--all", *options).returncode == 0
        eventually(lambda: state.once(["8501"]), what="the batch that was set aside")
    finally:
        state.forget(job)


def test_a_batch_of_a_newer_version_waits(running: Installation, state: State) -> None:
    job = new_id(now_us())
    try:
        newer = state.seal().seal(msgspec.msgpack.encode((2, {"what": "nobody knows yet"})))
        state.push(RECORD_BATCH, job, newer)
        eventually(lambda: state.scheduled() == 1, what="the batch among those that wait")
        send(running, "8510")
        eventually(lambda: state.once(["8510"]), what="the next batch")
        assert state.failed() == 0
        assert state.logged("envelope_newer")
        assert state.metric('postback_batches_set_aside_total{why="newer_envelope"}') == 1
        assert json.loads(running.run("health").stdout)["redis"]["batches"] == 1
    finally:
        state.forget(job)


def test_rqs_own_tools_show_what_waits(running: Installation, state: State) -> None:
    """`rq info` names the queue, each worker by machine and process, and what a job holds."""
    address = ["--url", url(state.settings)]
    with locked(state.ledger_file):
        send(running, "8530")
        eventually(lambda: state.started() == 1, 30, "a batch in hand")
        send(running, "8531")
        (waiting,) = eventually(state.queue.get_jobs, what="a batch in the queue")
        assert waiting.description == "1 notification: quickstream/acme 1"
        done = rq("info", *address, "--serializer", "receiver.connection.Serializer", "--raw")
        assert done.returncode == 0, done.stderr
        assert "queue notifications 1" in done.stdout
        pid = the(running.pids("work"))
        assert f"worker work-{socket.gethostname()}-{pid}-" in done.stdout
    eventually(lambda: state.once(["8530", "8531"]), 30, "both")


def rq(*arguments: str) -> subprocess.CompletedProcess[str]:
    script = str(Path(sys.executable).with_name("rq"))
    return subprocess.run([script, *arguments], capture_output=True, text=True, timeout=60)


# The ledger


def test_sqlite_locked_by_another_writer(running: Installation, state: State) -> None:
    numbers = receipts(8600, 5)
    with locked(state.ledger_file):
        for receipt in numbers:
            assert send(running, receipt) < ANSWERED_WITHIN
        # The worker's own patience ends first: the batch is put back, and no other is taken.
        eventually(lambda: state.logged("ledger_away"), 20, "a worker that gave up waiting")
        eventually(lambda: state.scheduled() == 1, what="a batch that waits")
        assert state.failed() == 0
        assert running.client.get("/readyz").json()["status"] == "ready"
    eventually(lambda: state.once(numbers), 30, "all that waited")
    assert state.failed() == 0
    eventually(state.idle, what="an empty queue")


def test_postgresql_stopped_and_started_again(tmp_path: Path) -> None:
    with postgres() as server, installed(tmp_path, store=f'database_url = "{server.url}"') as running:
        state = State(running, server.url)
        try:
            send(running, "8700")
            eventually(lambda: state.once(["8700"]), what="the first payment")
            server.stop("immediate")
            numbers = receipts(8701, 5)
            for receipt in numbers:
                assert send(running, receipt) < ANSWERED_WITHIN
            eventually(lambda: state.logged("ledger_away"), 45, "a worker without a ledger")
            assert json.loads(running.run("health").stdout)["database"]["status"] == "away"
            # Also one that is killed meanwhile finds its batch again.
            kill(running, "work")
            assert state.failed() == 0
            server.start()
            eventually(lambda: state.once(["8700", *numbers]), 45, "all that waited")
            eventually(state.idle, what="an empty queue")
            assert state.failed() == 0

            # Every connection is thrown out, and the server recovers by itself.
            os.kill(server.backends()[0], signal.SIGKILL)
            send(running, "8710")
            eventually(lambda: state.once(["8710"]), 45, "the payment after the crash")
            assert state.failed() == 0
        finally:
            state.close()


def test_started_while_postgresql_is_away(tmp_path: Path) -> None:
    """As after a power cut, when everything starts at the same time: the senders do not wait for the ledger."""
    with postgres() as server:
        running = Installation(tmp_path, store=f'database_url = "{server.url}"')
        state = State(running, server.url)
        server.stop("immediate")
        try:
            running.launch()
            eventually(lambda: "The ledger does not answer" in running.log.read_text(), 60, "a try without a ledger")
            eventually(running.accepts, 60, "an endpoint that accepts")
            send(running, "8720")
            server.start()
            running.wait_until_ready()
            eventually(lambda: state.once(["8720"]), 45, "the payment that waited")

            # A stop is heard while it waits.
            running.stop()
            server.stop("immediate")
            running.launch()
            eventually(running.accepts, 60, "an endpoint that accepts")
            assert running.stop() == 0
        finally:
            state.close()
            running.close()


@contextmanager
def postgres() -> Iterator[Postgres]:
    with tempfile.TemporaryDirectory(prefix="postback-") as folder:
        server = Postgres(Path(folder))
        try:
            server.start()
            yield server
        finally:
            server.stop()


# Debian's redis-server


@contextmanager
def redis_7(folder: Path, *options: str) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Gives what starts it; it is killed at the end."""
    binary = redis_server()
    processes: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        arguments = ["--port", "0", "--unixsocket", str(folder / "redis.sock"), "--dir", str(folder), "--save", ""]
        with (folder / "redis.log").open("ab") as log:
            processes.append(subprocess.Popen([binary, *arguments, *options], stdout=log, stderr=log))
        client = Redis(unix_socket_path=str(folder / "redis.sock"))

        def up() -> bool:
            try:
                return bool(client.ping())
            except RedisError:
                return False

        eventually(up, what="redis-server")
        client.close()
        return processes[-1]

    try:
        yield start
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_redis_7_killed_and_started_again(tmp_path: Path) -> None:
    with redis_7(tmp_path, "--appendonly", "yes", "--appendfsync", "always") as start:
        server = start()
        with installed(tmp_path, queue=f'redis_url = "unix://{tmp_path}/redis.sock"') as running:
            state = State(running)
            try:
                numbers = receipts(8800, 10)
                with stopped(the(running.pids("work"))):
                    for receipt in numbers[:5]:
                        send(running, receipt)
                    server.kill()
                    server.wait()
                    for receipt in numbers[5:]:
                        assert send(running, receipt) < ANSWERED_WITHIN
                    assert eventually(lambda: degraded(running), what="degraded")["redis"] == "away"
                    start()
                eventually(lambda: state.once(numbers), 30, "all that was answered")
                eventually(state.idle, what="an empty queue")
                assert state.failed() == 0
            finally:
                state.close()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--appendonly", "no"), "appendonly"),
        (("--appendonly", "yes", "--appendfsync", "everysec"), "appendfsync"),
    ],
)
def test_redis_7_that_does_not_fsync_is_refused(tmp_path: Path, options: tuple[str, ...], told: str) -> None:
    with redis_7(tmp_path, *options) as start:
        start()
        here = Installation(tmp_path, queue=f'redis_url = "unix://{tmp_path}/redis.sock"')
        try:
            for process in ("up", "serve"):
                done = subprocess.run(
                    [*command(), process, "--config", str(here.config)], capture_output=True, text=True, timeout=60
                )
                assert done.returncode == 2
                assert done.stderr.splitlines()[-1].startswith("postback: queue.durability")
                assert told in done.stderr
        finally:
            here.close()
