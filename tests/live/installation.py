"""A whole installation for the tests: the shipped command as processes, reached over HTTP and the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.secrecy import RECORDER
from tests.servers import eventually
from tests.servers import free_port as free_port

API_KEY = "test-api-key"

ENDPOINTS = """
[[endpoint]]
provider = "quickstream"
facility = "acme"
environment = "test"
allowed_sources = ["127.0.0.0/8"]
username = "acme"
passwords = ["qs-old:pass", "qs-new:pässword"]
hmac_passwords = ["return-old-password", "return-new-password"]
supplier_business_codes = ["ACME"]

[[endpoint]]
provider = "quickstream"
facility = "octane"
environment = "test"
allowed_sources = ["127.0.0.0/8"]
username = "octane"
passwords = ["octane-password"]
supplier_business_codes = ["OCTANE"]

[[endpoint]]
provider = "quickstream"
facility = "elsewhere"
environment = "production"
username = "elsewhere"
passwords = ["elsewhere-password"]
supplier_business_codes = ["ELSEWHERE"]

[[endpoint]]
provider = "checkout"
facility = "main"
signature_keys = ["cko-old-key", "cko-new-key"]

[[endpoint]]
provider = "checkout"
facility = "static"
signature_keys = ["cko-static-key"]
authorization_keys = ["cko-static-authorization"]

[[endpoint]]
provider = "debitsuccess"
facility = "gym"
event_tokens = ["event-old-token", "event-new-token"]

[[endpoint]]
provider = "paymentz"
facility = "eu"
secure_keys = ["pz-old-key", "pz-new-key"]
"""


class Installation:
    """``postback up`` in a folder of its own, on a free port."""

    def __init__(
        self,
        folder: Path,
        *,
        queue: str = "",
        store: str = "",
        receive: str = "",
        alarms: str = "",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """`queue`, `store`, `receive` and `alarms` are further lines of those tables."""
        self._environment = environment
        self.folder = folder
        self.config = folder / "postback.toml"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.console_port = free_port()
        self.log = folder / "log.jsonl"
        self.process: subprocess.Popen[bytes] | None = None
        self.config.write_text(
            f'data_dir = "var"\n[receive]\nbind = "127.0.0.1:{self.port}"\n{receive}\n'
            f'[console]\nbind = "127.0.0.1:{self.console_port}"\n'
            f"[queue]\n{queue}\n[store]\n{store}\n[alarms]\n{alarms}\n"
            f'[security]\nseal_keys = ["old-seal-key", "new-seal-key"]\napi_keys = ["{API_KEY}"]\n{ENDPOINTS}'
        )
        self.client = httpx.Client(base_url=self.url, timeout=15, trust_env=False)

    @property
    def data_dir(self) -> Path:
        return self.folder / "var"

    def start(self, *arguments: str) -> None:
        """Starts ``postback`` with `arguments`, ``up`` without, and waits until it is ready."""
        self.launch(*arguments)
        self.wait_until_ready()

    def launch(self, *arguments: str) -> None:
        """As `start`, without waiting."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command(), *(arguments or ("up",)), "--config", str(self.config)],
                stdout=log,
                stderr=log,
                env=self._environment,
            )

    def wait_until_ready(self) -> None:
        def ready() -> bool:
            assert self.process is not None
            if self.process.poll() is not None:
                raise RuntimeError(f"postback ended with {self.process.returncode}:\n{self.log.read_text()}")
            return self.accepts() and bool(self.pids("work"))

        eventually(ready, 60, "a ready installation")

    def accepts(self) -> bool:
        """Whether the accept side answers; the worker may not be there yet."""
        try:
            return self.client.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def stop(self) -> int:
        """SIGTERM; gives the exit code. The promise is 10 s."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(15)

    def close(self) -> None:
        RECORDER.look_at_processes()
        if self.log.exists():
            RECORDER.look("the log", self.log.read_bytes())
        self.client.close()
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def pids(self, role: str) -> list[int]:
        """Process ids of the running children with this role: ``serve``, ``work`` or ``valkey``."""
        assert self.process is not None
        found: list[int] = []
        try:
            children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        except OSError:
            return found
        for line in children:
            try:
                arguments = Path(f"/proc/{line}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            # Valkey writes what it listens on into its own command line.
            if role.encode() in arguments or (role == "valkey" and b"valkey-server" in arguments[0]):
                found.append(int(line))
        return found

    def kill(self, role: str) -> None:
        """kill -9 of every process with this role."""
        for pid in self.pids(role):
            os.kill(pid, signal.SIGKILL)

    def post(self, path: str, body: bytes, headers: Mapping[str, str]) -> httpx.Response:
        encoded = {name.encode(): value.encode("latin-1") for name, value in headers.items()}
        return self.client.post(path, content=body, headers=encoded)

    def expect(self, path: str, expectation: Mapping[str, str]) -> httpx.Response:
        return self.client.post(path, json=dict(expectation), headers={"Authorization": f"Bearer {API_KEY}"})

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The finished command, with its exit code, standard output and standard error."""
        return subprocess.run(
            [*command(), *arguments, "--config", str(self.config)], capture_output=True, text=True, timeout=120
        )

    def json(self, *arguments: str) -> list[dict[str, Any]]:
        done = self.run(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]


def command() -> list[str]:
    """The command as a user has it: the script that the installation put beside Python."""
    script = Path(sys.executable).with_name("postback")
    return [str(script)] if script.exists() else [sys.executable, "-m", "workers.cli.main"]


@contextmanager
def installed(folder: Path, **tables: Any) -> Iterator[Installation]:
    """A ready installation; its log is printed when the test fails."""
    installation = Installation(folder, **tables)
    try:
        installation.start()
        yield installation
    except BaseException:
        if installation.log.exists():
            print(installation.log.read_text()[-10_000:])
        raise
    finally:
        installation.close()
