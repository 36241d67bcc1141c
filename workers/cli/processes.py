"""`postback up`, `serve` and `work`: the processes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workers.cli import options

if TYPE_CHECKING:
    import socket
    import subprocess

    from receiver.app import Application
    from receiver.settings import Settings
    from workers.supervisor import Supervisor

OTHER_FILES = 100
"""That a process has open beside its connections."""
READY_WITHIN = 60.0
"""Seconds that `up` waits for its processes before it gives up."""
PATIENCE = 5.0
"""Seconds in which an accept process must have stopped,"""
TIME_TO_LEAVE = 4.0
"""and what clients have before that where the socket stays: `receiver.server` gives them as long."""
MIGRATE_AGAIN_AFTER = 2.0
LEDGER_AWAY = 1
"""What `postback migrate` exits with when the ledger does not answer."""


def register(app: typer.Typer) -> None:
    app.command()(up)
    app.command()(serve)
    app.command()(work)


def up(
    config: options.Config = None,
    demo: Annotated[
        bool, typer.Option("--demo", help="Also send sample notifications and show their payments.")
    ] = False,
) -> None:
    """Run everything on this machine: embedded Valkey and SQLite unless configured otherwise."""
    from receiver import settings as configuration
    from workers.cli import starter

    path = configuration.find(config)
    if not path.exists():
        password = starter.write(path)
        print(f"Wrote {path} with generated secrets beside it.")
        print(f"Sign in to the console as {starter.OPERATOR} with the password, shown this once: {password}")
    settings = configuration.load(path)
    sys.exit(_run_all(path.resolve(), settings, demo))


def serve(
    config: options.Config = None,
    fd: Annotated[int | None, typer.Option(hidden=True)] = None,
    stays: Annotated[
        bool, typer.Option("--stays", hidden=True, help="The socket stays open when this process ends.")
    ] = False,
) -> None:
    """Run the accept processes."""
    from receiver import service
    from receiver import settings as configuration

    path = configuration.find(config).resolve()
    settings = configuration.load(path)
    handed = service.handed_socket(settings.receive.bind, "receive.bind") if fd is None else None
    if fd is None and settings.receive.processes > 1:
        sys.exit(_run_accept_processes(path, settings, handed))
    share_metrics(settings)
    from receiver import logs

    logs.configure("serve")
    _require_durability(settings)
    _run_server(path, settings, fd if handed is None else handed.detach(), stays or handed is not None)


def work(config: options.Config = None) -> None:
    """Run a worker."""
    from receiver import settings as configuration

    settings = configuration.load(configuration.find(config))
    share_metrics(settings)
    from receiver import logs

    logs.configure("work")
    require_schema(settings)
    from workers.runner import work as run

    _spare_the_collector()
    run(settings)


def _run_server(path: Path, settings: Settings, fd: int | None, socket_stays: bool) -> None:
    import signal
    import socket

    from receiver.app import build
    from receiver.door import Door
    from receiver.server import Server, configured
    from receiver.settings import networks
    from receiver.source import TrustedProxies

    receive = settings.receive
    proxies = TrustedProxies(networks(receive.trusted_proxies, "receive.trusted_proxies"))
    door = Door(files_for(receive.max_connections), receive.max_connections_per_address, proxies.trusts)
    listening = socket.socket(fileno=fd) if fd is not None else listen(settings.receive.bind, "receive.bind")
    application = build(settings)
    asked: list[int] = []

    async def reload_if_asked() -> None:
        if asked:
            asked.clear()
            _reload(application, path)

    server = Server(
        configured(application, door, callback_notify=reload_if_asked, timeout_notify=1),
        door,
        socket_stays=socket_stays,
    )
    # uvicorn raises the signal that stopped it once more when it is done; by then there is nothing left to stop.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    # Done between two turns of the event loop: a signal may come while a lock is held that the reload takes as well.
    signal.signal(signal.SIGHUP, lambda number, _: asked.append(number))
    _spare_the_collector()
    server.run(sockets=[listening])
    if not server.started:
        sys.exit(1)


def _spare_the_collector() -> None:
    import gc

    # What is there now stays: the collector need not look at it again after every few hundred requests.
    gc.collect()
    gc.freeze()
    # Nor at what is in hand, again and again: nearly all that requests and batches leave goes without it.
    gc.set_threshold(50_000)


def _reload(application: Application, path: Path) -> None:
    """Endpoints, their secrets, API keys and seal keys anew, ``file:`` secrets included; a request that is under way is
    not touched. A configuration that cannot be used changes nothing."""
    from receiver import logs
    from receiver import settings as configuration
    from receiver.errors import ConfigurationError

    log = logs.get("workers.cli")
    try:
        settings = configuration.load(path)
    except ConfigurationError as error:
        log.error("configuration_refused", fault=str(error))
        return
    application.use(settings)
    log.info("configuration_reloaded", endpoints=len(settings.endpoint))


def _run_accept_processes(path: Path, settings: Settings, handed: socket.socket | None) -> int:
    from receiver import logs
    from workers.supervisor import Supervisor

    share_metrics(settings)
    logs.configure("supervisor")
    _require_durability(settings)
    supervisor = Supervisor()
    supervisor.listen()
    listening = handed or listen(settings.receive.bind, "receive.bind")
    _start_accept_processes(supervisor, path, settings, listening, stays=handed is not None)
    supervisor.run()
    supervisor.stop(together=True)
    return 0


def _start_accept_processes(
    supervisor: Supervisor, path: Path, settings: Settings, listening: socket.socket, *, stays: bool = False
) -> None:
    """The parent holds the socket, so that a process that is started again refuses nobody meanwhile. `stays`: it
    remains open after the parent as well, and clients have time to leave."""
    import signal

    from workers.supervisor import Child, own_command

    command = own_command(
        "serve", "--config", str(path), "--fd", str(listening.fileno()), *(["--stays"] if stays else [])
    )
    for number in range(settings.receive.processes):
        passed, patience = (listening.fileno(),), PATIENCE + (TIME_TO_LEAVE if stays else 0.0)
        supervisor.start(Child(f"serve-{number}", command, patience, passed, on_reload=signal.SIGHUP))


def _run_all(path: Path, settings: Settings, demo: bool) -> int:
    import signal

    share_metrics(settings)
    from receiver import logs
    from receiver.connection import connect
    from receiver.errors import ConfigurationError
    from workers import valkey
    from workers.supervisor import Child, Supervisor, own_command

    logs.configure("up")
    lock = _only_one(settings)
    supervisor = Supervisor()
    supervisor.listen()
    listening = listen(settings.receive.bind, "receive.bind")
    try:
        migrating = _begin_migration(path)
        if settings.queue.redis_url is None:
            # It keeps the lock as long as it lives: a second one on the same files would be the end of both.
            with using_data_dir():
                server = valkey.command(settings.data_dir)
            supervisor.start(Child("valkey", server, patience=3.0, pass_fds=(lock,)))
        redis = connect(settings)
        if not supervisor.wait_for(lambda: _answers(redis), READY_WITHIN):
            if supervisor.stopping:
                return 0
            raise ConfigurationError("queue.redis_url: Redis does not answer.")
        _require_durability(settings)
        _start_accept_processes(supervisor, path, settings, listening)
        if not _migrated(supervisor, path, migrating):
            return 0
        again = signal.SIGTERM
        supervisor.start(Child("work", own_command("work", "--config", str(path)), patience=5.0, on_reload=again))
        if any(getattr(endpoint, "settlement_folder", None) for endpoint in settings.endpoint):
            watching = own_command("reconcile", "--watch", "--config", str(path))
            supervisor.start(Child("reconcile", watching, patience=3.0, on_reload=again))
        address = f"http://{settings.receive.bind}"
        if not supervisor.wait_for(lambda: _ready(settings), READY_WITHIN):
            return 0 if supervisor.stopping else 1
        print(f"Postback is ready on {address} ({len(settings.endpoint)} endpoints). Ctrl-C stops it.")
        if watched := _start_console(supervisor, path, settings):
            print(f"The console is on {watched}.", end="")
            print("" if settings.security.operators else " `postback operator add NAME` lets somebody sign in.")
        sys.stdout.flush()
        if demo:
            from workers.cli import demonstration

            demonstration.start(settings, path)
        supervisor.run()
        return 0
    finally:
        listening.close()
        supervisor.stop()
        os.close(lock)


def _start_console(supervisor: Supervisor, path: Path, settings: Settings) -> str | None:
    """Its address. Accepting goes first: where the console cannot listen, all else runs without it."""
    import signal

    import structlog

    from receiver.errors import ConfigurationError
    from workers.cli import console
    from workers.supervisor import Child, own_command

    try:
        listening = listen(settings.console.bind, "console.bind")
    except ConfigurationError as error:
        structlog.get_logger("workers.cli").warning("console_not_started", fault=str(error))
        return None
    command = own_command("console", "--config", str(path), "--fd", str(listening.fileno()))
    passed = (listening.fileno(),)
    supervisor.start(Child("console", command, patience=5.0, pass_fds=passed, on_reload=signal.SIGTERM))
    return console.address(settings)


def _begin_migration(path: Path) -> subprocess.Popen[bytes]:
    """In a process of its own, beside the start of the queue: it takes as long, and its memory is given back."""
    import subprocess

    from workers.supervisor import own_command

    return subprocess.Popen(own_command("migrate", "--quiet", "--config", str(path)))


def _migrated(supervisor: Supervisor, path: Path, migrating: subprocess.Popen[bytes]) -> bool:
    """Waits until the ledger is up to date, however long it does not answer: what comes meanwhile is accepted, and
    waits in the queue. False when told to stop. Raises `ConfigurationError` for a ledger that will never do."""
    from receiver.errors import ConfigurationError

    while supervisor.wait_for(partial(_ended, migrating), float("inf")):
        if migrating.returncode == 0:
            return True
        if migrating.returncode != LEDGER_AWAY:
            raise ConfigurationError("store.database_url: the ledger could not be brought up to date.")
        supervisor.wait_for(lambda: False, MIGRATE_AGAIN_AFTER)
        migrating = _begin_migration(path)
    migrating.terminate()
    migrating.wait()
    return False


def _ended(process: subprocess.Popen[bytes]) -> bool:
    return process.poll() is not None


def _only_one(settings: Settings) -> int:
    """A lock on `data_dir` for as long as this process lives. Waits for one that is just being stopped."""
    import fcntl
    import time

    from receiver.errors import ConfigurationError

    with using_data_dir():
        settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = os.open(settings.data_dir / "up.lock", os.O_CREAT | os.O_RDWR, 0o600)
    deadline = time.monotonic() + 10
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except OSError:
            if time.monotonic() > deadline:
                raise ConfigurationError(f"data_dir: another `postback up` uses {settings.data_dir}.") from None
            time.sleep(0.1)


def listen(bind: str, place: str) -> socket.socket:
    """Raises `ConfigurationError` that names `place`."""
    import socket

    from receiver.errors import ConfigurationError
    from receiver.settings import host_and_port

    host, port = host_and_port(bind, place)
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(2048)
    except OSError as error:
        raise ConfigurationError(f"{place}: cannot listen on {bind}: {error.strerror}.") from None
    listening.set_inheritable(True)
    return listening


def files_for(connections: int) -> int:
    """How many connections this process can have open, at most `connections`: each is a file to the system, whose own
    first limit is often 1024."""
    import resource

    from receiver import logs

    log = logs.get("workers.cli")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        if soft < wanted:
            log.warning("connections_limited", connections=soft - OTHER_FILES)
        return min(connections, max(10, soft - OTHER_FILES))
    return connections


def share_metrics(settings: Settings) -> None:
    """All processes of this machine show one set of figures. Must run before `receiver.metrics` is imported."""
    from receiver import counted

    with using_data_dir():
        counted.join(settings.data_dir / "metrics")


@contextmanager
def using_data_dir() -> Iterator[None]:
    """What cannot be kept there is a fault of the configuration, and stops the start."""
    from receiver.errors import ConfigurationError

    try:
        yield
    except OSError as error:
        raise ConfigurationError(f"data_dir: {error.filename} cannot be used: {error.strerror}.") from None


def _require_durability(settings: Settings) -> None:
    """Refuses to start on a Redis that answers before it has fsynced. One that is away is no fault."""
    import structlog
    from redis.exceptions import RedisError

    from receiver.connection import connect, durability
    from receiver.errors import ConfigurationError

    redis = connect(settings)
    try:
        fault = durability(redis).fault
    except (RedisError, OSError):
        return
    finally:
        redis.close()
    if fault and settings.queue.durability == "strict":
        raise ConfigurationError(f"queue.durability: is strict, but in this Redis {fault}.")
    if fault:
        structlog.get_logger("workers.cli").warning("redis_not_durable", fault=fault)


def require_schema(settings: Settings) -> None:
    """Refuses to start on a ledger that is too old, or too new, for this version. One that is away is no fault."""
    from receiver.errors import ConfigurationError, LedgerAway
    from workers.ledger.database import schema, url

    try:
        fault = schema(url(settings)).fault
    except LedgerAway:
        return
    if fault:
        raise ConfigurationError(f"store.database_url: {fault}")


def _answers(redis: Any) -> bool:
    from redis.exceptions import RedisError

    try:
        return bool(redis.ping())
    except (RedisError, OSError):
        return False


def _ready(settings: Settings) -> bool:
    import http.client

    from receiver.settings import host_and_port

    host, port = host_and_port(settings.receive.bind, "receive.bind")
    connection = http.client.HTTPConnection("127.0.0.1" if host in ("0.0.0.0", "::") else host, port, timeout=2)  # noqa: S104
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()
