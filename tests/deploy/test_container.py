"""deploy/container, without an engine: linted, valid, hardened, and whatever a container is given fits together."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import typer
import yaml
from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy import make_url, text

from receiver import settings as configuration
from receiver.connection import durability
from receiver.settings import Settings
from tests.deploy.programs import program
from tests.live.apart import DEPLOY
from tests.live.installation import Installation
from tests.servers import SERVERS, eventually, free_port
from workers.cli.main import app
from workers.ledger import database

CONTAINER = DEPLOY / "container"
CONTAINERFILE = (CONTAINER / "Containerfile").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((CONTAINER / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = [name for name, service in SERVICES.items() if service["image"] == "postback"]
SECRETS = "/run/secrets/"


def instruction(name: str) -> str:
    """The rest of the last instruction of the name, with its continued lines."""
    found = re.findall(rf"^{name} ((?:.*\\\n)*.*)$", CONTAINERFILE, re.MULTILINE)
    return str(found[-1]).replace("\\\n", "")


def command_of(healthcheck: str) -> list[str]:
    return list(json.loads(healthcheck[healthcheck.index("[") :]))


# -- the files alone


def test_the_containerfile_has_no_findings() -> None:
    done = subprocess.run(
        [program("hadolint"), str(CONTAINER / "Containerfile")], capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.returncode) == ("", 0)


def test_the_image_runs_as_nobody_and_has_what_it_copies() -> None:
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", instruction("USER"))
    sent = set(re.findall(r"^!(.*)$", (CONTAINER / "Containerfile.dockerignore").read_text(), re.MULTILINE))
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", CONTAINERFILE, re.MULTILINE)
    assert sent == {source for line in copied for source in line.split()}
    assert all((DEPLOY.parent / source).exists() for source in sent)


def test_the_python_of_the_image_is_the_one_of_the_lock() -> None:
    version = re.search(r"^ARG PYTHON=python:(\d+\.\d+)", CONTAINERFILE, re.MULTILINE)
    assert version is not None
    assert f"--python-version {version[1]} " in (DEPLOY / "requirements.lock").read_text()


def test_the_compose_file_is_valid() -> None:
    compose_spec = pytest.importorskip("compose_spec")
    # A reader of YAML puts the merged keys in, as Compose does.
    given = yaml.safe_dump(COMPOSE, sort_keys=False)
    compose_spec.PyCompose.from_yaml(given).to_spec()
    with pytest.raises(ValueError, match="read_onyl"):
        compose_spec.PyCompose.from_yaml(given.replace("read_only", "read_onyl"))


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_hardened(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert name in OURS or re.fullmatch(r"[1-9]\d*:[1-9]\d*", service["user"])
    assert service["restart"] in ("unless-stopped", "no")
    assert "healthcheck" in service or service["restart"] == "no" or name == "serve"
    assert {"mem_limit", "pids_limit", "networks"} <= service.keys()
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
    assert all(mount.endswith(":ro") or "/" not in mount.split(":")[0] for mount in service.get("volumes", ()))


def test_the_accept_side_reaches_no_ledger() -> None:
    reached = {name: set(service["networks"]) for name, service in SERVICES.items()}
    assert reached["serve"] & reached["ledger"] == set()
    assert {name for name, networks in reached.items() if "front" in networks} == {"serve", "console"}
    assert COMPOSE["networks"]["queue"]["internal"] is True
    assert COMPOSE["networks"]["ledger"]["internal"] is True


def test_what_waits_waits_for_what_can_come() -> None:
    waits = {name: service.get("depends_on", {}) for name, service in SERVICES.items()}
    for name, of in waits.items():
        for other, how in of.items():
            condition = how["condition"]
            assert condition != "service_healthy" or not SERVICES[other].get("healthcheck", {}).get("disable", False)
            assert (condition == "service_completed_successfully") == (SERVICES[other]["restart"] == "no"), name
    # A machine that starts without its queue answers from the spool.
    assert waits["serve"] == {"queue": {"condition": "service_started"}}


@pytest.mark.parametrize("name", OURS)
def test_every_command_is_one(name: str) -> None:
    group: Any = typer.main.get_command(app)
    called, *rest = SERVICES[name]["command"]
    group.commands[called].make_context(called, rest)
    assert json.loads(instruction("ENTRYPOINT")) == ["postback"]
    assert json.loads(instruction("CMD")) == ["serve"]


# -- what a container is given


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """deploy/container of a checkout of its own, after secrets.sh."""
    folder = tmp_path_factory.mktemp("checkout")
    for part in ("container", "redis", "postgresql"):
        shutil.copytree(DEPLOY / part, folder / part)
    subprocess.run([folder / "container" / "secrets.sh"], check=True, timeout=60)
    return folder / "container"


def secrets_of(checkout: Path, name: str) -> dict[str, Path]:
    """The files that a service sees, by their names in /run/secrets."""
    found = {}
    for entry in SERVICES[name].get("secrets", ()):
        source, target = (entry, entry) if isinstance(entry, str) else (entry["source"], entry["target"])
        found[target] = checkout / COMPOSE["secrets"][source]["file"]
    return found


def mounted(checkout: Path, name: str) -> dict[str, Path]:
    """The files and folders of the checkout that a service sees, by where."""
    pairs = [mount.split(":")[:2] for mount in SERVICES[name].get("volumes", ())]
    found = {target: (checkout / source).resolve() for source, target in pairs if "/" in source}
    return found | {f"{SECRETS}{target}": path for target, path in secrets_of(checkout, name).items()}


def load(checkout: Path, name: str, folder: Path) -> Settings:
    """The configuration as the process of a service would read it, with nothing but the secrets of the service."""
    for target, path in secrets_of(checkout, name).items():
        shutil.copy(path, folder / target)
    place = re.search(r"POSTBACK_CONFIG=(\S+)", CONTAINERFILE)
    assert place is not None
    file = folder / "postback.toml"
    file.write_text(mounted(checkout, name)[place[1]].read_text().replace(f"file:{SECRETS}", "file:"))
    return configuration.load(file)


def test_every_file_that_is_mounted_is_there(checkout: Path) -> None:
    for name in SERVICES:
        assert all(path.exists() for path in mounted(checkout, name).values())
    declared = {(checkout / secret["file"]).name for secret in COMPOSE["secrets"].values()}
    used = {path.name for name in SERVICES for path in secrets_of(checkout, name).values()}
    assert used == declared
    assert stat.S_IMODE((checkout / "secrets").stat().st_mode) == 0o700


def test_secrets_that_are_there_stay(checkout: Path) -> None:
    before = {path: path.read_bytes() for path in (checkout / "secrets").iterdir()}
    subprocess.run([checkout / "secrets.sh"], check=True, timeout=60)
    assert {path: path.read_bytes() for path in (checkout / "secrets").iterdir()} == before


@pytest.mark.parametrize("name", OURS)
def test_every_process_has_the_secrets_that_it_needs_and_its_own_users(
    name: str, checkout: Path, tmp_path: Path
) -> None:
    settings = load(checkout, name, tmp_path)
    assert settings.queue.redis_url is not None
    assert settings.store.database_url is not None
    user = {"serve": "postback-accept", "work": "postback-worker", "console": "postback-console"}.get(name)
    queue = urlsplit(settings.queue.redis_url.reveal().decode())
    assert (queue.username, queue.hostname, queue.port) == (user, "queue", 6379)
    ledger = make_url(settings.store.database_url.reveal().decode())
    role = {"serve": None, "migrate": "owner", "work": "worker", "console": "console"}[name]
    expected = (f"postback_{role}", "ledger", "postback") if role else (None, None, "/var/lib/postback/none.sqlite3")
    assert (ledger.username, ledger.host, ledger.database) == expected
    # Where the process writes is a volume or in memory.
    written = [mount.split(":")[1] for mount in SERVICES[name]["volumes"] if not mount.endswith(":ro")]
    written += [mount.split(":")[0] for mount in SERVICES[name]["tmpfs"]]
    assert str(settings.data_dir) in written
    assert "/tmp" in written  # noqa: S108


def test_ports_and_proxies_agree(checkout: Path, tmp_path: Path) -> None:
    settings = load(checkout, "serve", tmp_path)
    (front,) = COMPOSE["networks"]["front"]["ipam"]["config"]
    assert settings.receive.trusted_proxies == settings.console.trusted_proxies == (f"{front['gateway']}/32",)
    for name, bind in (("serve", settings.receive.bind), ("console", settings.console.bind)):
        host, port = bind.split(":")
        (published,) = SERVICES[name]["ports"]
        assert host == "0.0.0.0"  # noqa: S104
        assert published == f"127.0.0.1:{port}:{port}"
        own = SERVICES[name].get("healthcheck", {}).get("test") or command_of(instruction("HEALTHCHECK"))
        assert f":{port}/readyz" in own[-1]
    assert instruction("EXPOSE").split() == ["8080", "8081"]


@contextmanager
def queue_server(checkout: Path, folder: Path, port: int) -> Iterator[None]:
    """Valkey as the service `queue` starts it."""
    places = mounted(checkout, "queue")
    binary, *arguments = [str(places.get(part, part)) for part in SERVICES["queue"]["command"]]
    assert binary == "valkey-server"
    ours = {"/data": str(folder), "6379": str(port)}
    process = subprocess.Popen(
        [SERVERS["valkey"](folder).command()[0], *(ours.get(part, part) for part in arguments), "--loglevel", "warning"]
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait(10)


def test_the_queue_knows_the_users_and_is_durable(checkout: Path, tmp_path: Path) -> None:
    port = free_port()
    with queue_server(checkout, tmp_path, port):
        for name in ("serve", "work", "console"):
            url = (
                secrets_of(checkout, name)["redis_url"].read_text().strip().replace("@queue:6379", f"@127.0.0.1:{port}")
            )
            with Redis.from_url(url, socket_timeout=5) as client:

                def up(client: Redis = client) -> bool:
                    try:
                        return bool(client.ping())
                    except RedisError:
                        return False

                eventually(up, what="the queue")
                assert durability(client).fault is None
        # What the health check sends.
        assert SERVICES["queue"]["healthcheck"]["test"][1].count(f"{SECRETS}redis_password_accept") == 1
        password = secrets_of(checkout, "queue")["redis_password_accept"].read_text().strip()
        with Redis(port=port, username="postback-accept", password=password, socket_timeout=5) as client:
            assert client.ping()


def test_the_ledger_gives_each_role_its_password(checkout: Path, postgres_url: str) -> None:
    places = mounted(checkout, "ledger")
    scripts = [path for target, path in sorted(places.items()) if target.startswith("/docker-entrypoint-initdb.d/")]
    assert [path.name for path in scripts] == ["roles.sql", "passwords.sh"]
    roles, passwords = scripts
    engine = database.open_engine(postgres_url).execution_options(isolation_level="AUTOCOMMIT")
    server = make_url(postgres_url)
    environment = {"PATH": os.environ["PATH"], "POSTGRES_USER": "postgres", "POSTGRES_DB": "postback"}
    environment |= {"SECRETS": str(checkout / "secrets"), "PGHOST": str(server.query["host"])}
    assert SERVICES["ledger"]["environment"].items() >= {"POSTGRES_USER": "postgres", "POSTGRES_DB": "postback"}.items()
    psql = program("psql")
    with engine.connect() as connection:
        connection.execute(text("CREATE DATABASE postback"))
        try:
            subprocess.run(
                [psql, "-U", "postgres", "-d", "postback", "-q", "-v", "ON_ERROR_STOP=1", "-f", str(roles)],
                env=environment,
                check=True,
                timeout=60,
            )
            subprocess.run([str(passwords)], env=environment, check=True, timeout=60)
            query = text("SELECT rolname, rolpassword FROM pg_authid WHERE rolname LIKE 'postback\\_%'")
            kept = {row.rolname: row.rolpassword for row in connection.execute(query)}
        finally:
            connection.execute(text("DROP DATABASE postback WITH (FORCE)"))
            connection.execute(text("DROP ROLE postback_owner, postback_worker, postback_console"))
    engine.dispose()
    for name, role in (("migrate", "owner"), ("work", "worker"), ("console", "console")):
        given = make_url(secrets_of(checkout, name)["database_url"].read_text().strip()).password
        assert proves(str(given), kept[f"postback_{role}"])
    assert not proves("another", kept["postback_owner"])


def proves(password: str, kept: str) -> bool:
    """Whether a SCRAM-SHA-256 verifier of PostgreSQL is that of the password (RFC 5802)."""
    found = re.fullmatch(r"SCRAM-SHA-256\$(\d+):(.+)\$(.+):(.+)", kept)
    assert found is not None
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), b64decode(found[2]), int(found[1]))
    return hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest() == b64decode(found[3])


# -- health


def test_the_health_checks_see_what_they_ask(tmp_path: Path) -> None:
    checks = {
        "8080": command_of(instruction("HEALTHCHECK")),
        "8081": SERVICES["console"]["healthcheck"]["test"][1:],
    }
    here = Installation(tmp_path)
    ports = {"8080": here.port, "8081": here.console_port}

    def healthy(port: str) -> bool:
        (python, *arguments) = [part.replace(f":{port}/", f":{ports[port]}/") for part in checks[port]]
        assert python == "python"
        return subprocess.run([sys.executable, *arguments], capture_output=True, timeout=60).returncode == 0

    assert not any(healthy(port) for port in checks)
    try:
        here.start()
        for port in checks:
            eventually(lambda port=port: healthy(port), what="a healthy process")  # type: ignore[misc]
    finally:
        here.close()
