"""The steps of ``deploy/README.md``, as far as they need no root and no systemd: what they write is what is read."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509

from receiver import settings as configuration
from tests.deploy.programs import program
from tests.live.apart import DEPLOY
from tests.live.installation import command
from tests.servers import eventually, redis_server

PAGE = (DEPLOY / "README.md").read_text()
FOLDERS = (
    *("/etc/postback", "/etc/redis", "/etc/nginx", "/etc/ssl/postback", "/etc/systemd/system", "/etc/prometheus"),
    *("/var/lib/postback", "/var/lib/redis", "/var/www", "/run/redis"),
)
# What only root may do, and what only systemd can.
LEFT_OUT = re.compile(r"^(useradd|chown|systemctl|nginx|apt-get|curl|export REPOSITORY)\b.*\n", re.MULTILINE)


def step(title: str) -> str:
    """The commands below a heading."""
    (block,) = re.findall(r"```sh\n(.*?)```", PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0], re.DOTALL)
    return str(block)


class Machine:
    """A folder in the place of the root, and this user in that of all others."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for folder in FOLDERS:
            (root / folder[1:]).mkdir(parents=True)
        (root / "etc/nginx/conf.d").mkdir()
        (root / "etc/nginx/nginx.conf").write_text("events { worker_connections 768; }\n")
        self.path = root / "etc/postback/postback.toml"
        programs = f"{Path(sys.executable).parent}:{Path(command()[0]).parent}"
        self.environment = {
            **os.environ,
            "PATH": f"{programs}:{os.environ['PATH']}",
            "POSTBACK_CONFIG": str(self.path),
            "NAME": "notify.example.net",
        }

    def follow(self, title: str) -> None:
        commands = LEFT_OUT.sub("", step(title)).replace("runuser -u postback -- ", "")
        commands = commands.replace("install -d -o postback -g postback", "install -d")
        for folder in FOLDERS:
            commands = commands.replace(folder, f"{self.root}{folder}")
        done = subprocess.run(
            ["/bin/bash", "-euo", "pipefail", "-c", commands],
            capture_output=True,
            text=True,
            cwd=DEPLOY.parent,
            env=self.environment,
            timeout=60,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        done = [*command(), *arguments, "--config", str(self.path)]
        return subprocess.run(done, capture_output=True, text=True, timeout=60)


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    # Short, as a Unix socket's path must be.
    with tempfile.TemporaryDirectory(prefix="postback-") as root:
        here = Machine(Path(root))
        here.follow("3. User, folders, configuration")
        here.follow("4. The queue")
        yield here


def test_the_configuration_is_what_the_rest_expects(machine: Machine) -> None:
    settings = configuration.load(machine.path)
    assert settings.data_dir == machine.root / "var/lib/postback"
    assert settings.receive.trusted_proxies == ("127.0.0.1/32",)
    assert settings.receive.forwarded_header == "X-Forwarded-For"
    assert settings.queue.redis_url is not None
    assert settings.store.database_url is not None
    secrets = sorted((machine.root / "etc/postback/secrets").iterdir())
    assert len(secrets) > 5
    assert {path.stat().st_mode & 0o777 for path in (machine.path, *secrets)} == {0o640}
    assert (machine.root / "etc/postback/secrets").stat().st_mode & 0o777 == 0o750


def test_the_queue_is_durable_and_the_doctor_finds_no_fault(machine: Machine) -> None:
    redis = machine.root / "etc/redis"
    moved = ["--dir", str(machine.root / "var/lib/redis"), "--aclfile", str(redis / "users.acl")]
    server = subprocess.Popen([redis_server(), str(redis / "redis.conf"), *moved])
    try:
        eventually((machine.root / "run/redis/redis-server.sock").exists, what="the socket")
        machine.follow("5. The services")
        assert "an answer means that it is on the disk" in machine.run("doctor").stdout
    finally:
        server.terminate()
        server.wait(10)
    users = (redis / "users.acl").read_text().splitlines()
    assert [line.split()[1] for line in users] == ["default", "postback-worker"]
    units = {path.name for path in (machine.root / "etc/systemd/system").iterdir()}
    assert {path.name for path in (DEPLOY / "systemd").iterdir()} == units


def test_the_proxy_gets_its_name_and_its_certificate(machine: Machine) -> None:
    machine.follow("6. nginx")
    text = (machine.root / "etc/nginx/conf.d/postback.conf").read_text()
    assert text.count("server_name notify.example.net;") == 2
    assert "example.com" not in text
    assert "4096" in (machine.root / "etc/nginx/nginx.conf").read_text()
    certificate = x509.load_pem_x509_certificate((machine.root / "etc/ssl/postback/fullchain.pem").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["notify.example.net"]


def test_monitoring_asks_for_what_is_configured(machine: Machine) -> None:
    program("promtool")
    machine.follow("Watched")
    text = (machine.root / "etc/prometheus/prometheus.yml").read_text()
    assert 'targets: ["notify.example.net:443"]' in text
    settings = configuration.load(machine.path)
    for bind in (settings.receive.bind, settings.console.bind):
        assert f'targets: ["{bind}"]' in text
