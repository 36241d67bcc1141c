"""A real nginx with ``deploy/nginx/postback.conf``, of which only names, ports and folders are changed."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import subprocess
from collections.abc import Mapping
from http.client import HTTPSConnection
from pathlib import Path

from tests.live.apart import DEPLOY
from tests.servers import absent, eventually, free_port

CONFIGURATION = (DEPLOY / "nginx" / "postback.conf").read_text()
_MAIN = """
{user}
pid {folder}/pid;
worker_processes 2;
events {{ worker_connections 1024; }}
http {{
    # As Debian has it: what ours does not say again would count.
    ssl_protocols TLSv1 TLSv1.1 TLSv1.2 TLSv1.3;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    access_log off;
    include {folder}/postback.conf;
}}
"""


def nginx() -> str:
    """The binary. Skips the test, or fails it in CI, where it is not installed."""
    binary = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if binary is None:
        absent("nginx", FileNotFoundError("nginx is not installed"))
        raise AssertionError
    return binary


class Nginx:
    def __init__(self, folder: Path, certificates: Path, upstreams: Mapping[str, str]) -> None:
        """`upstreams` are the lines of the configuration that take the place of others in it."""
        self.folder = folder
        self.port, self.plain = free_port(), free_port()
        self._binary = nginx()
        self._certificates = certificates
        self._process: subprocess.Popen[bytes] | None = None
        changes = {
            "notify.example.com": "localhost",
            "listen 443": f"listen {self.port}",
            "listen [::]:443": f"listen [::]:{self.port}",
            "listen 80": f"listen {self.plain}",
            "listen [::]:80": f"listen [::]:{self.plain}",
            "/etc/ssl/postback/fullchain.pem": f"{certificates}/server.pem",
            "/etc/ssl/postback/privkey.pem": f"{certificates}/server.key",
            "/var/log/nginx": str(folder),
        }
        text = CONFIGURATION
        for old, new in {**changes, **upstreams}.items():
            assert old in text, old
            text = text.replace(old, new)
        (folder / "postback.conf").write_text(text)
        user = "user root;" if os.getuid() == 0 else ""
        (folder / "nginx.conf").write_text(_MAIN.format(user=user, folder=folder))

    def check(self) -> subprocess.CompletedProcess[str]:
        """``nginx -t``."""
        return subprocess.run([*self._command(), "-t"], capture_output=True, text=True, timeout=30)

    def start(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen([*self._command(), "-g", "daemon off;"], stdout=log, stderr=log)
        eventually(self._answers, what="nginx")

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait(10)

    def connect(self, source: str = "127.0.0.1", version: ssl.TLSVersion | None = None) -> Connection:
        """Over TLS, from this address, which this machine has."""
        return Connection(self.port, self.trusting(version), source)

    def trusting(self, version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self._certificates / "ca.pem"))
        if version is not None:
            context.minimum_version = context.maximum_version = version
        return context

    def read(self, name: str) -> str:
        return (self.folder / name).read_text()

    def _command(self) -> list[str]:
        return [self._binary, "-p", str(self.folder), "-e", "stderr", "-c", str(self.folder / "nginx.conf")]

    def _answers(self) -> bool:
        if self._process is not None and self._process.poll() is not None:
            raise RuntimeError(f"nginx ended with {self._process.returncode}:\n{self.read('log')}")
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


class Connection(HTTPSConnection):
    """To ``localhost`` at 127.0.0.1: only IPv4 has many addresses of this machine."""

    def __init__(self, port: int, context: ssl.SSLContext, source: str) -> None:
        super().__init__("localhost", port)
        self._trusting = context
        self._source = source

    def connect(self) -> None:
        plain = socket.create_connection(("127.0.0.1", self.port), 30, (self._source, 0))
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = self._trusting.wrap_socket(plain, server_hostname=self.host)
