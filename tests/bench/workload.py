"""The loads of the bench, each on a fresh installation: what was answered, what was stored, and how long that took."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from redis import Redis
from rq import Queue
from sqlalchemy import Engine, func, make_url, select, text

from receiver import settings as configuration
from receiver.connection import QUEUE, Serializer, connect
from receiver.inbox import MAX_BATCH
from receiver.job import RECORD_BATCH, enqueue
from receiver.notification import Envelope, new_id, now_us, seal_batch
from receiver.providers import PROVIDERS
from receiver.providers.base import Message
from receiver.signing import Seal
from tests.bench import machine, requests
from tests.servers import running_postgres
from workers import valkey
from workers.ledger import database, pages, queries
from workers.ledger.tables import notifications, repeats

# More than any server here answers in a second.
_REQUESTS_PER_SECOND = 30_000
_LONGEST_DRAIN = 900


class Bench:
    """Folders, request files and a PostgreSQL that several loads share."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.stack = stack
        self.series = itertools.count(1)
        self.script = folder / "load.lua"
        self.script.write_text(requests.LUA)
        self._postgres: str | None = None

    def requests(self, kind: str, seconds: int) -> Path:
        path = self.folder / "requests"
        requests.write(path, kind, _REQUESTS_PER_SECOND * seconds, next(self.series))
        return path

    def postgres(self) -> str:
        """An empty database on one server for the whole bench."""
        if self._postgres is None:
            self._postgres = self.stack.enter_context(running_postgres())
        name = f"bench{next(self.series)}"
        engine = database.open_engine(self._postgres)
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
        engine.dispose()
        return str(make_url(self._postgres).set(database=name).render_as_string(hide_password=False))


class Installation:
    """Valkey, the accept processes and a worker, each started when it is asked for."""

    def __init__(self, bench: Bench, processes: int = 1, database_url: str | None = None) -> None:
        self.folder = bench.folder / f"i{next(bench.series)}"
        self.folder.mkdir()
        self.port = machine.free_port()
        self.log = self.folder / "log"
        self.config = self.folder / "postback.toml"
        store = f'database_url = "{database_url}"' if database_url else ""
        self.config.write_text(
            f'data_dir = "var"\n[receive]\nbind = "127.0.0.1:{self.port}"\nprocesses = {processes}\n'
            f'[store]\n{store}\n[security]\nseal_keys = ["bench-seal-key"]\n{requests.CONFIGURATION}'
        )
        self.settings = configuration.load(self.config)
        self.settings.data_dir.mkdir()
        self.stack = ExitStack()
        self.stack.enter_context(machine.running(valkey.command(self.settings.data_dir), self.log))
        self.redis = connect(self.settings)
        machine.wait_until(self._redis_answers, 20)
        database.migrate(database.url(self.settings))
        self.engine: Engine = database.open_engine(database.url(self.settings))

    def __enter__(self) -> Installation:
        return self

    def __exit__(self, *exc: object) -> None:
        self.engine.dispose()
        self.redis.close()
        self.stack.close()

    def serve(self) -> int:
        pid = self.stack.enter_context(machine.running(_command("serve", self.config), self.log))
        machine.wait_for_port(self.port)
        return pid

    def work(self) -> int:
        return self.stack.enter_context(machine.running(_command("work", self.config), self.log))

    def waiting(self) -> int:
        queue = Queue(QUEUE, connection=self.redis, serializer=Serializer)
        pipeline = self.redis.pipeline(transaction=True)
        # A job that a worker takes is for a moment in neither the queue nor its registry.
        for key in (queue.key, queue.intermediate_queue.key):
            pipeline.llen(key)
        pipeline.zcard(queue.started_job_registry.key)
        return int(sum(pipeline.execute()))

    def stored(self) -> tuple[int, int]:
        """Notifications, and deliveries that were repeats."""
        with queries.reading(self.engine) as connection:
            rows = connection.scalar(select(func.count()).select_from(notifications)) or 0
            again = connection.scalar(select(func.count()).select_from(repeats)) or 0
        return rows, again

    def drained(self) -> float:
        return machine.wait_until(lambda: self.waiting() == 0, _LONGEST_DRAIN)

    def _redis_answers(self) -> bool:
        try:
            return bool(self.redis.ping())
        except Exception:
            return False


PEERS = {
    "raw": ("peers:raw", "quickstream form"),
    "starlette": ("peers:starlette", "quickstream form"),
    "naive": ("peers:naive", "quickstream form"),
    "hookrelay": ("relay:app", "checkout"),
}
"""Their applications, and the requests that they are sent."""


def peer_load(bench: Bench, peer: str, connections: int, seconds: int) -> dict[str, Any]:
    """A peer's server, one process, the same server options as ours; those that need Redis get ours, fsync always."""
    application, kind = PEERS[peer]
    port = machine.free_port()
    with ExitStack() as stack:
        environment = {}
        if peer in ("naive", "hookrelay"):
            installation = stack.enter_context(Installation(bench))
            environment["BENCH_REDIS"] = str(installation.redis.connection_pool.connection_kwargs["path"])
            environment["BENCH_REDIS"] = f"unix://{environment['BENCH_REDIS']}"
        options = [
            "--http",
            "httptools",
            "--loop",
            "uvloop",
            "--no-access-log",
            "--no-proxy-headers",
            "--log-level",
            "warning",
        ]
        command = [sys.executable, "-m", "uvicorn", f"tests.bench.{application}", "--port", str(port), *options]
        pid = stack.enter_context(machine.running(command, bench.folder / "peer.log", environment))
        machine.wait_for_port(port)
        file = bench.requests(kind, seconds)
        before = machine.cpu_seconds(pid)
        seen = machine.load(port, bench.script, file, connections, seconds)
        used = machine.cpu_seconds(pid) - before
    return _row(peer, connections, seen, used)


def postback_load(
    bench: Bench, kind: str, connections: int, seconds: int, processes: int = 1, *, drain: bool = True
) -> dict[str, Any]:
    """The accept side under load without a worker beside it; then a worker drains what was accepted."""
    with Installation(bench, processes) as installation:
        return _load(bench, installation, installation.serve(), kind, connections, seconds) | (
            _drain(installation) if drain else {}
        )


def _load(
    bench: Bench, installation: Installation, pid: int, kind: str, connections: int, seconds: int
) -> dict[str, Any]:
    file = bench.requests(kind, seconds)
    before = machine.cpu_seconds(pid)
    seen = machine.load(installation.port, bench.script, file, connections, seconds)
    return _row(kind, connections, seen, machine.cpu_seconds(pid) - before)


def _drain(installation: Installation) -> dict[str, Any]:
    began = time.perf_counter()
    installation.work()
    installation.drained()
    stored, doubled = installation.stored()
    return {"stored": stored, "doubled": doubled, "drained_s": round(time.perf_counter() - began, 1)}


def drain(bench: Bench, store: str, backlog: int) -> dict[str, Any]:
    """One worker alone, from a backlog that was put into the queue as the accept side would."""
    url = bench.postgres() if store == "postgresql" else None
    with Installation(bench, database_url=url) as installation:
        _fill(installation, backlog, next(bench.series))
        pid = installation.work()
        machine.wait_until(lambda: installation.stored()[0] > 0, 60)
        first, began = installation.stored()[0], time.perf_counter()
        installation.drained()
        seconds = time.perf_counter() - began
        stored, doubled = installation.stored()
        return {
            "stored": stored,
            "doubled": doubled,
            "seconds": round(seconds, 2),
            "per_second": round((stored - first) / seconds, 1),
            "resident_mib": round(machine.resident_mib(pid), 1),
        }


def stock_worker(bench: Bench, backlog: int) -> dict[str, Any]:
    """RQ as it comes: one job and one transaction per notification, pickle, `SimpleWorker`."""
    with Installation(bench) as installation:
        path = installation.redis.connection_pool.connection_kwargs["path"]
        environment = {
            "BENCH_REDIS": f"unix://{path}",
            "BENCH_DATABASE": f"sqlite:///{installation.folder / 'naive.db'}",
        }
        queue = Queue("naive", connection=Redis(unix_socket_path=path))
        body = requests.body_of(requests.quickstream_form("1"))
        fields = dict(pair.split("=", 1) for pair in body.decode().split("&"))
        for number in range(backlog):
            queue.enqueue("tests.bench.peers.store", {**fields, "receiptNumber": str(number)}, result_ttl=0)
        command = [
            "rq",
            "worker",
            "naive",
            "-w",
            "rq.SimpleWorker",
            "--burst",
            "--url",
            environment["BENCH_REDIS"],
            "-q",
        ]
        with machine.running([sys.executable, "-m", "rq.cli", *command[1:]], installation.log, environment):
            machine.wait_until(lambda: queue.count < backlog, 60)
            left, began = queue.count, time.perf_counter()
            machine.wait_until(lambda: queue.count == 0, 300)
            seconds = time.perf_counter() - began
    return {"stored": backlog, "seconds": round(seconds, 2), "per_second": round(left / seconds, 1)}


def keeps_up(bench: Bench, seconds: int) -> dict[str, Any]:
    """Accept process and worker beside each other at full load; then how long the rest takes."""
    with Installation(bench) as installation:
        pid = installation.serve()
        installation.work()
        row = _load(bench, installation, pid, "quickstream form", 64, seconds)
        waiting = installation.waiting()
        left = installation.drained()
        stored, doubled = installation.stored()
        return row | {"batches_left": waiting, "drained_s": round(left, 1), "stored": stored, "doubled": doubled}


def grown(
    bench: Bench, seconds: int, sizes: Sequence[int], store: str, progress: Callable[[dict[str, Any]], None]
) -> list[dict[str, Any]]:
    """The same loads on one installation whose ledger grows; the worker that fills it is the one that is measured."""
    rows = []
    url = bench.postgres() if store == "postgresql" else None
    with Installation(bench, database_url=url) as installation:
        serve = installation.serve()
        work = installation.work()
        there = 0
        for size in sizes:
            while there < size:
                portion = min(50_000, size - there)
                _fill(installation, portion, next(bench.series))
                installation.drained()
                there += portion
            # What the filling has left to the system to write would be charged to the loads.
            os.sync()
            row = _load(bench, installation, serve, "quickstream form", 64, seconds)
            installation.drained()
            _fill(installation, 60_000, next(bench.series))
            began = time.perf_counter()
            installation.drained()
            row |= {"drain_per_second": round(60_000 / (time.perf_counter() - began), 1)}
            row |= {"what": f"{store}, {size:,} stored", "list_ms": _first_page(installation)}
            row |= {
                "serve_mib": round(machine.resident_mib(serve), 1),
                "work_mib": round(machine.resident_mib(work), 1),
            }
            there = installation.stored()[0]
            rows.append(row)
            progress(row)
    return rows


def start_times(bench: Bench) -> dict[str, Any]:
    """Seconds until a command is ready, medians of three."""

    def median(measure: Callable[[], float]) -> float:
        return round(sorted(measure() for _ in range(3))[1], 3)

    def helped() -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "workers.cli.main", "--help"], capture_output=True, check=True)
        return time.perf_counter() - began

    def served() -> float:
        with Installation(bench) as installation:
            began = time.perf_counter()
            installation.serve()
            return time.perf_counter() - began

    def up() -> float:
        with Installation(bench) as installation:
            config = installation.config.read_text()
        installation.config.write_text(config)
        began = time.perf_counter()
        with machine.running(_command("up", installation.config), installation.log):
            machine.wait_until(lambda: "Postback is ready" in installation.log.read_text(), 60)
            return time.perf_counter() - began

    return {"postback --help": median(helped), "postback serve": median(served), "postback up": median(up)}


def _fill(installation: Installation, count: int, series: int) -> None:
    """Puts `count` notifications into the queue, in full batches, as the accept side makes them."""
    endpoint = installation.settings.endpoints["quickstream", "acme"]
    provider = PROVIDERS["quickstream"]
    seal = Seal(installation.settings.security.seal_keys, "batch")
    queue = Queue(QUEUE, connection=installation.redis, serializer=Serializer)
    batch: list[Envelope] = []
    for number in range(count):
        body = requests.body_of(requests.quickstream_form(f"{series:03d}{number:09d}"))
        message = Message("application/x-www-form-urlencoded", {}, body)
        identity = provider.identify(message, endpoint)
        at = now_us()
        batch.append(
            Envelope(
                id=new_id(at),
                provider="quickstream",
                facility="acme",
                received_at=at,
                source="127.0.0.1",
                content_type=message.content_type,
                headers={},
                body=body,
                verified=True,
                dedupe_key=identity.dedupe_key,
                event_type=identity.event_type,
                fingerprint=identity.fingerprint,
                quarantine="",
                detail="",
            )
        )
        if len(batch) == MAX_BATCH or number == count - 1:
            pipeline = installation.redis.pipeline()
            enqueue(queue, pipeline, RECORD_BATCH, new_id(at), seal_batch(batch, seal), "bench")
            pipeline.execute()
            batch = []


def _first_page(installation: Installation) -> float:
    """Milliseconds of the first page of `notifications list`, the median of five."""
    times = []
    for _ in range(5):
        began = time.perf_counter()
        with queries.reading(installation.engine) as connection:
            list(pages.every_notification(connection, queries.Filter(limit=50)))
        times.append((time.perf_counter() - began) * 1000)
    return round(sorted(times)[2], 2)


def _row(what: str, connections: int, seen: machine.Loaded, cpu: float) -> dict[str, Any]:
    return {
        "what": what,
        "connections": connections,
        "per_second": round(seen.per_second, 1),
        "p50_ms": round(seen.p50, 2),
        "p99_ms": round(seen.p99, 2),
        "cpu_us": round(cpu / max(seen.requests, 1) * 1e6, 1),
        "accepted": seen.requests - seen.bad_status,
        "refused": seen.bad_status,
        "errors": seen.errors,
    }


def _command(name: str, config: Path) -> list[str]:
    return [sys.executable, "-m", "workers.cli.main", name, "--config", str(config)]
