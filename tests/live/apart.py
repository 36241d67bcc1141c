"""A Redis and a PostgreSQL with TLS, and with the users and roles of deploy/."""

from __future__ import annotations

import hashlib
import ipaddress
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy import create_engine

from tests.servers import SERVERS, absent, eventually, free_port, redis_server

DEPLOY = Path(__file__).parents[2] / "deploy"
PASSWORDS = {
    "accept": "acl-accept-password",
    "worker": "acl-worker-password",
    "console": "acl-console-password",
    "owner": "role-owner-password",
}


# Certificates


def make_authority(folder: Path, name: str) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """A certificate authority; its certificate is ``folder/NAME.pem``."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _signed(name, key, name, key, authority=True)
    (folder / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return certificate, key


def make_certificate(folder: Path, authority: tuple[x509.Certificate, ec.EllipticCurvePrivateKey]) -> None:
    """``folder/server.pem`` and ``folder/server.key``, of localhost and 127.0.0.1."""
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = authority[0].subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
    certificate = _signed("localhost", key, str(issuer), authority[1], authority=False)
    (folder / "server.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "server.key").write_bytes(private)
    (folder / "server.key").chmod(0o600)


def _signed(
    name: str, key: ec.EllipticCurvePrivateKey, issuer: str, by: ec.EllipticCurvePrivateKey, *, authority: bool
) -> x509.Certificate:
    now = datetime.now(UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(by, hashes.SHA256())
    )


# Redis


def users(**changed: str) -> str:
    """``deploy/redis/users.acl`` with our passwords, and a user for the test itself."""
    lines = (DEPLOY / "redis" / "users.acl").read_text()
    for role in ("accept", "worker", "console"):
        hashed = hashlib.sha256(PASSWORDS[role].encode()).hexdigest()
        lines = lines.replace(f"SHA256_OF_{role.upper()}_PASSWORD", hashed)
    for old, new in changed.items():
        lines = lines.replace(old.replace("_get", "|get"), new)
    return f"{lines}user test on >test ~* &* +@all\n"


class Queue:
    """``redis-server`` with TLS and nothing else, or Valkey on its socket; both with the users of deploy/."""

    folder: Path

    def __init__(self, kind: str, certificates: Path) -> None:
        self.kind = kind
        self._certificates = certificates
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def url(self, user: str, password: str) -> str:
        if self.kind == "valkey":
            return SERVERS["valkey"](self.folder).url.replace("unix://", f"unix://{user}:{password}@", 1)
        return f"rediss://{user}:{password}@localhost:{self._port}/0?ssl_ca_certs={self._certificates / 'ca.pem'}"

    def of(self, role: str) -> str:
        return self.url(f"postback-{role}", PASSWORDS[role])

    def client(self, url: str | None = None) -> Redis:
        return Redis.from_url(url or self.url("test", "test"), socket_timeout=5)

    def start(self) -> None:
        # Debian's Redis 7.0 has no WAITAOF, and Valkey needs no CONFIG for it.
        known = {} if self.kind == "redis" else {"+config_get": "+waitaof"}
        acl = self.folder / "users.acl"
        acl.write_text(users(**known))
        acl.chmod(0o600)
        command = [*SERVERS[self.kind](self.folder).command(), "--aclfile", str(acl)]
        if self.kind == "redis":
            command[0] = redis_server()
            command += ["--tls-port", str(self._port), "--tls-auth-clients", "no"]
            command += ["--tls-cert-file", str(self._certificates / "server.pem")]
            command += ["--tls-key-file", str(self._certificates / "server.key")]
            command += ["--tls-ca-cert-file", str(self._certificates / "ca.pem"), "--unixsocket", ""]
        self._process = subprocess.Popen(command)
        eventually(self._answers, what="the queue server")

    def _answers(self) -> bool:
        if self.kind == "redis":
            # redis-py forgets the TLS socket of a connection that is refused.
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self._port)) != 0:
                    return False
        with self.client() as client:
            try:
                return bool(client.ping())
            except RedisError:
                return False

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait(10)

    def denied(self) -> list[str]:
        """What users were refused so far: ``user: why what (command)``."""
        with self.client() as client:
            found = client.acl_log()
            return [
                f"{each['username']}: {each['reason']} {each['object']} ({each['client-info']['cmd']})"
                for each in found
            ]


# PostgreSQL


class Database:
    """Debian's PostgreSQL with TLS, and with the roles of deploy/. Reached over TCP with a password, else not."""

    folder: Path

    def __init__(self, certificates: Path) -> None:
        self._certificates = certificates
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        # The server does not run as root.
        self._owner = pwd.getpwnam("postgres") if os.getuid() == 0 else pwd.getpwuid(os.getuid())

    def of(self, role: str, password: str = "", **options: str) -> str:
        wanted = {"sslmode": "verify-full", "sslrootcert": str(self._certificates / "ca.pem")} | options
        more = "&".join(f"{name}={value}" for name, value in wanted.items())
        secret = password or PASSWORDS[role]
        return f"postgresql+psycopg://postback_{role}:{secret}@localhost:{self._port}/postback?{more}"

    @property
    def _own(self) -> str:
        return f"postgresql+psycopg://postgres@/{{}}?host={self.folder}&port={self._port}"

    def start(self) -> None:
        programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
        if not programs:
            absent("PostgreSQL with TLS", FileNotFoundError("Debian's postgresql is not installed"))
        data = self.folder / "data"
        for name in ("server.pem", "server.key"):
            shutil.copy(self._certificates / name, self.folder)
        for path in (self.folder, *self.folder.iterdir()):
            os.chown(path, self._owner.pw_uid, self._owner.pw_gid)
        done = self._run([str(programs[-1] / "initdb"), "-D", str(data), "-U", "postgres", "--no-sync", "-E", "UTF8"])
        assert done.wait(120) == 0
        (data / "pg_hba.conf").write_text("local all postgres trust\nhostssl all all all scram-sha-256\n")
        settings = {
            "port": str(self._port),
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": str(self.folder),
            "ssl": "on",
            "ssl_cert_file": str(self.folder / "server.pem"),
            "ssl_key_file": str(self.folder / "server.key"),
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        self._process = self._run([str(programs[-1] / "postgres"), "-D", str(data), *options])
        eventually(lambda: self._try("postgres", "SELECT 1"), 60, "PostgreSQL")
        self.execute("postgres", "CREATE DATABASE postback")
        self.execute("postback", (DEPLOY / "postgresql" / "roles.sql").read_text())
        for role in ("owner", "worker", "console"):
            self.execute("postback", f"ALTER ROLE postback_{role} PASSWORD '{PASSWORDS[role]}'")

    def grant(self) -> None:
        self.execute("postback", (DEPLOY / "postgresql" / "grants.sql").read_text())

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(30)

    def execute(self, database: str, statements: str) -> None:
        """As the superuser."""
        engine = create_engine(self._own.format(database), isolation_level="AUTOCOMMIT")
        try:
            with engine.connect() as connection:
                cursor: Any = connection.connection.cursor()
                cursor.execute(statements)
        finally:
            engine.dispose()

    def _try(self, database: str, statement: str) -> bool:
        try:
            self.execute(database, statement)
        except Exception:
            return False
        return True

    def _run(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                user=self._owner.pw_uid,
                group=self._owner.pw_gid,
                extra_groups=[],
            )


class OneFile:
    """SQLite, which everybody who may read the file may write."""

    def __init__(self, folder: Path) -> None:
        self._url = f"sqlite:///{folder / 'ledger.sqlite3'}"

    def of(self, role: str, password: str = "", **options: str) -> str:
        return self._url

    def grant(self) -> None:
        """There is nothing to grant."""


Ledger = Database | OneFile


class Server(Protocol):
    folder: Path

    def start(self) -> None: ...

    def stop(self) -> None: ...


S = TypeVar("S", bound=Server)


@contextmanager
def certified() -> Iterator[Path]:
    """A folder with ``ca.pem``, the authority of ``server.pem``, and ``other.pem``, the authority of nothing."""
    with tempfile.TemporaryDirectory(prefix="postback-") as folder:
        make_certificate(Path(folder), make_authority(Path(folder), "ca"))
        make_authority(Path(folder), "other")
        yield Path(folder)


@contextmanager
def served(server: S) -> Iterator[S]:
    with tempfile.TemporaryDirectory(prefix="postback-") as folder:
        server.folder = Path(folder)
        try:
            server.start()
            yield server
        finally:
            server.stop()
