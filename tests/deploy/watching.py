"""A Prometheus of Debian that watches a whole installation, by the example and the rules of ``deploy/prometheus``."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from receiver.errors import Reason
from tests.deploy.programs import program
from tests.live.installation import Installation
from tests.servers import eventually, free_port

FOLDER = Path(__file__).parents[2] / "deploy" / "prometheus"
RULES = FOLDER / "postback.rules.yml"

_NAME = re.compile(r"\bpostback(?:_[a-z0-9]+)+\b")
_SELECTOR = re.compile(r"\b(postback(?:_[a-z0-9]+)+)\{([^}]*)\}")
_MATCHER = re.compile(r'(\w+)(=~|!=|=)"([^"]*)"')


class Prometheus:
    """Looks every second at both ports of `running`."""

    def __init__(self, folder: Path, running: Installation) -> None:
        self._running = running
        self._port = free_port()
        self._configuration = folder / "prometheus.yml"
        self._data = folder / "data"
        self._log = folder / "log"
        example = (FOLDER / "prometheus.yml").read_text()
        for written, here in (
            ("127.0.0.1:8080", f"127.0.0.1:{running.port}"),
            ("127.0.0.1:8081", f"127.0.0.1:{running.console_port}"),
            ("_interval: 15s", "_interval: 1s"),
            ("- postback.rules.yml", f"- {RULES}"),
        ):
            assert written in example
            example = example.replace(written, here)
        self._configuration.write_text(example)
        self._process: subprocess.Popen[bytes] | None = None
        self._client = httpx.Client(base_url=f"http://127.0.0.1:{self._port}/api/v1", timeout=10, trust_env=False)

    def start(self) -> None:
        arguments = [
            program("prometheus"),
            f"--config.file={self._configuration}",
            f"--storage.tsdb.path={self._data}",
            f"--web.listen-address=127.0.0.1:{self._port}",
        ]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(arguments, stdout=log, stderr=log)
        eventually(self._sees_all, 30, "a Prometheus that sees both ports")

    def stop(self) -> None:
        self._client.close()
        if self._process is not None:
            self._process.terminate()
            self._process.wait(15)

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series of an instant query, without those that are not numbers. Fails for one that cannot be parsed."""
        answer = self._client.get("/query", params={"query": expression}).json()
        assert answer["status"] == "success", (expression, answer.get("error"))
        return [each for each in answer["data"]["result"] if each["value"][1] != "NaN"]

    def rules(self) -> list[dict[str, Any]]:
        """All rules as it has read and evaluated them."""
        groups = self._client.get("/rules").json()["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]

    def _sees_all(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self._log.read_text()
        try:
            return len(self.query('up{job="postback"} == 1')) == 2
        except (httpx.TransportError, ValueError):
            return False


@contextmanager
def watched(folder: Path, running: Installation) -> Iterator[Prometheus]:
    prometheus = Prometheus(folder, running)
    try:
        prometheus.start()
        yield prometheus
    finally:
        prometheus.stop()


class Exposed:
    """What the ports of an installation show: every name, and the labels of every sample."""

    def __init__(self, *pages: str) -> None:
        lines = [line for page in pages for line in page.splitlines()]
        self.names = {line.split()[2] for line in lines if line.startswith("# TYPE ")}
        self.samples: dict[str, list[dict[str, str]]] = {}
        for line in lines:
            if match := re.match(r"(\w+)(?:\{(.*)\})? ", line):
                self.names.add(match[1])
                self.samples.setdefault(match[1], []).append(dict(re.findall(r'(\w+)="([^"]*)"', match[2] or "")))

    def lacks(self, expression: str) -> list[str]:
        """What `expression` asks for and nobody shows: names, and values of labels."""
        missing = [name for name in _NAME.findall(_without_texts(expression)) if name not in self.names]
        for name, matchers in _SELECTOR.findall(expression):
            for label, operator, value in _MATCHER.findall(matchers):
                if value.startswith("$"):
                    continue
                there = {each.get(label) for each in self.samples.get(name, [])}
                if label == "reason":
                    # Shown from the first refusal on: there are many, for each endpoint.
                    there |= set(Reason)
                wanted = value.split("|") if operator == "=~" else [value] if operator == "=" else []
                for each in wanted:
                    if not any(shown is not None and re.fullmatch(each, shown) for shown in there):
                        missing.append(f"{name}{{{label}={each}}}")
        return missing


def _without_texts(expression: str) -> str:
    return re.sub(r'"[^"]*"', '""', expression)
