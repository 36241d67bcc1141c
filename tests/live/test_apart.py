"""Least rights: the processes apart, each with its own user and role, over TLS, do all they do and nothing more."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.exceptions import NoPermissionError, RedisError
from sqlalchemy import create_engine
from sqlalchemy.exc import OperationalError, ProgrammingError

from tests.live.apart import DEPLOY, PASSWORDS, Database, Ledger, OneFile, Queue, certified, served
from tests.live.installation import API_KEY, ENDPOINTS, command, free_port
from tests.live.test_installation import ACME, FORM, quickstream
from tests.secrecy import RECORDER
from tests.servers import eventually
from tests.workers.settlement import ROW
from workers.console import passwords
from workers.ledger.tables import metadata
from workers.simulator.cash_applied import file_of

PROCESSES = ("serve", "work", "console")
OPERATOR = "operators-password-17"
NEXT = "operators-choice-18"
CLIENT_KEY = "console-client-key-of-32-characters!"


class Apart:
    """`serve`, `work` and `console`, each with a configuration of its own that names only what it needs."""

    def __init__(self, folder: Path, queue: Queue, database: Ledger, certificates: Path) -> None:
        self.folder, self.queue, self.database, self.certificates = folder, queue, database, certificates
        self.ports = {"serve": free_port(), "console": free_port()}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.client = httpx.Client(timeout=15, trust_env=False)
        for process, role in (("serve", "accept"), ("work", "worker"), ("console", "console"), ("migrate", "owner")):
            self._configure(process, role)

    def _configure(self, process: str, role: str) -> None:
        lines = [f'data_dir = "{self.folder / process}"', "[receive]", f'bind = "127.0.0.1:{self.ports["serve"]}"']
        lines += ["max_held = 2", "[console]", f'bind = "127.0.0.1:{self.ports["console"]}"']
        if role != "owner":
            lines += ["[queue]", f'redis_url = "{self.queue.of(role)}"']
        if role != "accept":
            lines += ["[store]", f'database_url = "{self.database.of(role)}"']
        lines += ["[security]", 'seal_keys = ["seal-key-of-the-apart"]']
        if role == "console":
            lines += [
                f'operators = [{{ name = "ops", password_hash = "{passwords.make(OPERATOR, 14)}", role = "operator" }}]'
            ]
        lines += [f'api_keys = ["{API_KEY}", {{ name = "shop", key = "{CLIENT_KEY}", role = "approver" }}]']
        self.config(process).write_text("\n".join(lines) + ENDPOINTS)

    def config(self, process: str) -> Path:
        return self.folder / f"{process}.toml"

    def log(self, process: str) -> Path:
        return self.folder / f"{process}.log"

    def start(self, process: str) -> None:
        with self.log(process).open("ab") as log:
            self._processes[process] = subprocess.Popen(
                [*command(), process, "--config", str(self.config(process))], stdout=log, stderr=log
            )

    def run(self, *arguments: str, by: str = "work") -> subprocess.CompletedProcess[str]:
        called = [*command(), *arguments, "--config", str(self.config(by))]
        return subprocess.run(called, capture_output=True, text=True, timeout=120)

    def ready(self) -> bool:
        try:
            return all(
                self.client.get(f"http://127.0.0.1:{port}/readyz").status_code == 200 for port in self.ports.values()
            )
        except httpx.TransportError:
            return False

    def get(self, process: str, path: str) -> httpx.Response:
        return self.client.get(f"http://127.0.0.1:{self.ports[process]}{path}")

    def post(self, path: str, body: bytes, **headers: str) -> httpx.Response:
        encoded = {name.replace("_", "-").encode(): value.encode("latin-1") for name, value in headers.items()}
        return self.client.post(f"http://127.0.0.1:{self.ports['serve']}{path}", content=body, headers=encoded)

    def api(self, method: str, path: str, **more: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {CLIENT_KEY}", **more.pop("headers", {})}
        return self.client.request(method, f"http://127.0.0.1:{self.ports['console']}{path}", headers=headers, **more)

    def token(self, path: str) -> str:
        """The form token of a page of the console."""
        found = re.search(r'name="token" value="([^"]+)"', self.get("console", path).text)
        assert found is not None
        return found[1]

    def form(self, path: str, fields: dict[str, str], **more: Any) -> httpx.Response:
        return self.client.post(f"http://127.0.0.1:{self.ports['console']}{path}", data=fields, **more)

    def close(self) -> None:
        self.client.close()
        for process in self._processes.values():
            process.send_signal(signal.SIGTERM)
        for process in self._processes.values():
            process.wait(30)


@contextmanager
def running(folder: Path, queue: Queue, database: Ledger, certificates: Path) -> Iterator[Apart]:
    here = Apart(folder, queue, database, certificates)
    done = here.run("migrate", by="migrate")
    assert done.returncode == 0, done.stderr
    database.grant()
    try:
        for process in PROCESSES:
            here.start(process)
        eventually(here.ready, 60, "three processes")
        yield here
    finally:
        RECORDER.look_at_processes()
        here.close()
        for process in PROCESSES:
            RECORDER.look(f"the log of {process}", here.log(process).read_bytes())
            print(process, here.log(process).read_text()[-3000:])


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Apart]:
    """Redis and PostgreSQL, both with TLS."""
    with (
        certified() as certificates,
        served(Queue("redis", certificates)) as queue,
        served(Database(certificates)) as database,
        running(tmp_path_factory.mktemp("apart"), queue, database, certificates) as here,
    ):
        yield here


@pytest.fixture
def on_valkey(tmp_path: Path) -> Iterator[Apart]:
    """Valkey, where no user needs CONFIG, and one file of SQLite: it knows no roles."""
    with (
        certified() as certificates,
        served(Queue("valkey", certificates)) as queue,
        running(tmp_path, queue, OneFile(tmp_path), certificates) as here,
    ):
        yield here


def notify(apart: Apart, receipt: str, **fields: str) -> httpx.Response:
    return apart.post("/notify/quickstream/acme", quickstream(receipt, **fields), Content_Type=FORM, Authorization=ACME)


def reconciled(apart: Apart) -> None:
    """An operator signs in and gives a settlement file with a payment that nobody told of."""
    signed_in = apart.form("/sign-in", {"token": apart.token("/sign-in"), "name": "ops", "password": OPERATOR})
    assert signed_in.status_code == 303, signed_in.text
    file = {"file": ("caf.csv", file_of([ROW | {"Receipt Number": "7009"}]))}
    given = apart.form("/reconciliations", {"token": apart.token("/"), "endpoint": "quickstream/acme"}, files=file)
    assert given.status_code == 303, given.text

    def entered() -> bool:
        return [
            each["receipt_number"] for each in apart.api("GET", "/api/v1/payments?search=7009").json()["items"]
        ] == ["7009"]

    eventually(entered, 30, "the payment of the file")
    another = {"current": OPERATOR, "new": NEXT, "again": NEXT}
    assert apart.form("/password", {"token": apart.token("/password"), **another}).status_code == 200
    assert apart.form("/sign-out", {"token": apart.token("/")}).status_code == 303


@pytest.mark.parametrize("place", ["apart", "on_valkey"])
def test_all_is_done_that_the_processes_do(request: pytest.FixtureRequest, place: str) -> None:
    """What a day has: accepted, refused, registered, held, released, returned, replayed, settled, asked for."""
    apart: Apart = request.getfixturevalue(place)
    assert notify(apart, "7001").json()["status"] == "accepted"
    assert notify(apart, "7002", business="OTHER").json()["status"] == "quarantined"
    assert apart.post("/notify/quickstream/acme", b"x=1", Content_Type=FORM).status_code == 401
    assert apart.get("serve", "/return/debitsuccess/gym?Token=T1").status_code == 200
    casual = json.dumps({"PaymentFormToken": "T1", "WebhookToken": "W1", "Status": "Success"}).encode()
    assert apart.post("/notify/debitsuccess/gym", casual).json()["status"] == "held"
    assert apart.post("/notify/debitsuccess/gym", casual.replace(b"T1", b"T2")).json()["status"] == "held"
    assert apart.post("/notify/debitsuccess/gym", casual.replace(b"T1", b"T3")).status_code == 429
    expectation = {"token": "T1", "webhook_token": "W1", "reference": "M1", "amount": "12.50", "currency": "NZD"}
    registered = apart.post(
        "/expect/debitsuccess/gym", json.dumps(expectation).encode(), Authorization=f"Bearer {API_KEY}"
    )
    assert registered.status_code == 201

    def released() -> bool:
        found = apart.api("GET", "/api/v1/payments?search=M1").json()["items"]
        return [each["state"] for each in found] == ["captured"]

    eventually(released, 30, "the released payment")
    assert apart.post("/notify/debitsuccess/gym", casual).json()["status"] == "accepted"

    (broken,) = apart.api("GET", "/api/v1/notifications?state=quarantined").json()["items"]
    tried = apart.api("POST", "/api/v1/replays", json={"ids": [broken["id"]], "dry_run": True})
    assert tried.status_code == 200, tried.text
    asked = apart.api(
        "POST", "/api/v1/replays", json={"ids": [broken["id"]], "reason": "again"}, headers={"Idempotency-Key": "apart"}
    )
    assert asked.status_code == 201, asked.text
    eventually(
        lambda: apart.api("GET", asked.headers["location"]).json()["state"] == "done", 30, "the end of the replay"
    )
    subject = {"kind": "quarantined", "subjects": [{"subject": broken["id"]}], "reason": "not ours"}
    assert apart.api("POST", "/api/v1/attention/ignore", json=subject).status_code == 200
    assert apart.api("POST", "/api/v1/attention/reopen", json=subject).status_code == 200
    reconciled(apart)
    for path in ("/api/v1/refusals", "/api/v1/audit", "/api/v1/reconciliations", "/api/v1/health"):
        assert apart.api("GET", path).status_code == 200, path
    for process in apart.ports:
        assert "postback_queue_batches" in apart.get(process, "/metrics").text
    assert json.loads(apart.run("health").stdout)["redis"]["workers"] == 1
    assert "fault" not in apart.run("doctor").stdout
    assert apart.run("payments", "rebuild", "--check").returncode == 0
    assert apart.run("purge").returncode == 0
    assert apart.run("audit", "verify").returncode == 0
    # Where CONFIG is not allowed WAITAOF stands in; redis-py tells newer servers its name, which nothing needs.
    assert {said for said in apart.queue.denied() if "config|get" not in said and "client|setinfo" not in said} == set()
    assert place == "on_valkey" or not apart.queue.denied()
    for process in PROCESSES:
        assert "permission denied" not in apart.log(process).read_text()


@pytest.mark.parametrize(
    "command",
    [
        *("GET rq:job:x", "HGETALL rq:job:x", "LPOP rq:queue:notifications", "LRANGE rq:queue:notifications 0 -1"),
        *("RPUSH rq:queue:other x", "DEL rq:queue:notifications", "SET postback:anything x", "SET elsewhere x"),
        *("XRANGE postback:refusals - +", "XTRIM postback:refusals MAXLEN 0", "DEL postback:refusals"),
        *("KEYS *", "SCAN 0", "FLUSHALL", "FLUSHDB", "CONFIG SET appendfsync no", "CONFIG REWRITE"),
        *("SHUTDOWN", "ACL LIST", "ACL SETUSER postback-accept allkeys", "MONITOR", "CLIENT LIST"),
        *("SUBSCRIBE rq:pubsub:x", "PUBLISH rq:pubsub:x x", "REPLICAOF NO ONE", "BGREWRITEAOF", "SAVE", "SCRIPT FLUSH"),
    ],
)
def test_the_accept_side_may_write_the_queue_and_nothing_else(apart: Apart, command: str) -> None:
    with apart.queue.client(apart.queue.of("accept")) as client, pytest.raises(NoPermissionError):
        client.execute_command(*command.split())


def test_a_script_may_no_more_than_its_user(apart: Apart) -> None:
    """Token buckets are counted by a script, so that the accept side may send some."""
    with apart.queue.client(apart.queue.of("accept")) as client:
        with pytest.raises(NoPermissionError):
            client.eval("return redis.call('HGETALL', KEYS[1])", 1, "rq:job:x")
        for beside in ("'HGETALL', 'rq:job:x'", "'FLUSHALL'"):
            with pytest.raises(RedisError, match=r"(?i)acl|permission|can't access|can't run"):
                client.eval(f"return redis.call({beside})", 1, "postback:bucket:x")


@pytest.mark.parametrize(
    ("role", "command"),
    [
        ("worker", "CONFIG SET appendfsync no"),
        ("worker", "FLUSHALL"),
        ("worker", "SET elsewhere x"),
        ("worker", "ACL LIST"),
        ("console", "SET postback:token:x x"),
        ("console", "GET postback:token:x"),
        ("console", "HGETALL rq:job:x"),
        ("console", "LPOP rq:queue:notifications"),
        ("console", "DEL postback:refusals"),
        ("console", "FLUSHALL"),
    ],
)
def test_no_other_user_may_do_what_it_need_not(apart: Apart, role: str, command: str) -> None:
    with apart.queue.client(apart.queue.of(role)) as client, pytest.raises(NoPermissionError):
        client.execute_command(*command.split())


def test_nobody_comes_in_without_a_user(apart: Apart) -> None:
    for url in (apart.queue.url("postback-accept", "wrong"), apart.queue.url("default", "")):
        with apart.queue.client(url) as client, pytest.raises(RedisError):
            client.ping()


def forbidden(apart: Apart, role: str, statement: str) -> str:
    engine = create_engine(apart.database.of(role))
    try:
        with engine.begin() as connection, pytest.raises(ProgrammingError) as caught:
            connection.exec_driver_sql(statement)
        connection.rollback()
    finally:
        engine.dispose()
    return str(caught.value.orig)


@pytest.mark.parametrize("role", ["worker", "console"])
@pytest.mark.parametrize(
    "statement",
    [
        *("UPDATE audit SET reason = ''", "DELETE FROM audit", "TRUNCATE audit", "DELETE FROM notifications"),
        *("DROP TABLE payments", "ALTER TABLE payments ADD x int", "CREATE TABLE x (y int)"),
        *("DELETE FROM replays", "DELETE FROM findings", "UPDATE alembic_version SET version_num = ''"),
        *("COPY (SELECT 1) TO PROGRAM 'true'", "SELECT pg_read_file('/etc/hostname')"),
    ],
)
def test_no_role_rewrites_history_or_the_schema(apart: Apart, role: str, statement: str) -> None:
    assert re.search("permission denied|must be (owner|superuser)", forbidden(apart, role, statement))


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO expectations (provider) VALUES ('x')",
        "UPDATE expectations SET amount = 1",
        "UPDATE repeats SET conflict = false",
        "DELETE FROM repeats",
        "DELETE FROM browser_returns",
        "UPDATE idempotency_keys SET key = 'x'",
        "DELETE FROM operator_passwords",
        "DELETE FROM second_factors",
    ],
)
def test_the_console_registers_and_purges_nothing(apart: Apart, statement: str) -> None:
    assert "permission denied" in forbidden(apart, "console", statement)


@pytest.mark.parametrize(
    "statement",
    ["SELECT sealed FROM operator_passwords", "INSERT INTO operator_passwords VALUES ('ops', '')",
     "UPDATE operator_passwords SET sealed = ''", "DELETE FROM operator_passwords",
     "SELECT sealed FROM second_factors", "INSERT INTO second_factors VALUES ('ops', '', 0)",
     "UPDATE second_factors SET last_step = 0", "DELETE FROM second_factors"],
)  # fmt: skip
def test_the_worker_knows_nothing_of_operators_passwords(apart: Apart, statement: str) -> None:
    assert "permission denied" in forbidden(apart, "worker", statement)


def test_every_table_is_granted_by_name(apart: Apart) -> None:
    """A table that a migration adds needs a line: nobody could write it in production, while the tests' own could."""
    grants = (DEPLOY / "postgresql" / "grants.sql").read_text()
    assert [name for name in metadata.tables if not re.search(rf"\b{name}\b", grants)] == []


def test_the_accept_side_has_no_role_in_the_database(apart: Apart) -> None:
    assert "database_url" not in apart.config("serve").read_text()
    roles = re.findall(r"CREATE ROLE (\w+)", (DEPLOY / "postgresql" / "roles.sql").read_text())
    assert roles == ["postback_owner", "postback_worker", "postback_console"]


@pytest.mark.parametrize("authority", ["other.pem", ""])
def test_a_server_that_proves_nothing_is_none(apart: Apart, authority: str) -> None:
    """Neither process speaks to a queue or a database whose certificate another authority has signed."""
    certificates = apart.certificates
    database = apart.database.of("worker", sslrootcert=str(certificates / authority) if authority else "system")
    queue = (
        apart.queue.of("worker").replace("/ca.pem", f"/{authority}")
        if authority
        else apart.queue.of("worker").split("?")[0]
    )
    config = apart.folder / "untrusting.toml"
    lines = apart.config("work").read_text()
    for old, new in ((apart.database.of("worker"), database), (apart.queue.of("worker"), queue)):
        lines = lines.replace(old, new)
    config.write_text(lines)
    said = subprocess.run([*command(), "doctor", "--config", str(config)], capture_output=True, text=True, timeout=60)
    assert said.returncode == 1
    assert "store.database_url:" in said.stdout
    assert PASSWORDS["worker"] not in said.stdout + said.stderr
    assert "queue.redis_url: Redis does not answer" in said.stdout


def test_the_database_takes_nobody_without_tls_or_password(apart: Apart) -> None:
    for url in (apart.database.of("worker", sslmode="disable"), apart.database.of("worker", "wrong")):
        engine = create_engine(url)
        try:
            with pytest.raises(OperationalError):
                engine.connect()
        finally:
            engine.dispose()
