"""Processes for the bench: started, measured from outside through /proc, and stopped."""

from __future__ import annotations

import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Loaded:
    """What wrk saw of one load. Times in milliseconds."""

    requests: int
    seconds: float
    p50: float
    p99: float
    longest: float
    bad_status: int
    errors: int

    @property
    def per_second(self) -> float:
        return self.requests / self.seconds


def require_wrk() -> None:
    if shutil.which("wrk") is None:
        sys.exit("The bench needs wrk, the load generator: apt-get install wrk (Debian), brew install wrk (macOS).")


def load(port: int, script: Path, requests: Path, connections: int, seconds: int) -> Loaded:
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(script)]
    command += [f"http://127.0.0.1:{port}", str(requests)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds + 120)
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT"))
    count, duration, p50, p99, status, failed, late, longest = map(int, line.split()[1:])
    return Loaded(count, duration / 1e6, p50 / 1000, p99 / 1000, longest / 1000, status, failed + late)


@contextmanager
def running(argv: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> Iterator[int]:
    """A process for the length of the block; gives its id."""
    with log.open("ab") as output:
        process = subprocess.Popen(argv, stdout=output, stderr=output, env={**os.environ, **(environment or {})})
    try:
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for_port(port: int, seconds: float = 20) -> float:
    """Seconds until somebody listens."""
    began = time.perf_counter()
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return time.perf_counter() - began
        except OSError:
            if time.perf_counter() - began > seconds:
                raise
            time.sleep(0.005)


def wait_until(condition: Any, seconds: float) -> float:
    """Seconds until `condition()` is true; a bench that waits for ever says nothing."""
    began = time.perf_counter()
    while not condition():
        if time.perf_counter() - began > seconds:
            raise TimeoutError(f"not within {seconds} s")
        time.sleep(0.02)
    return time.perf_counter() - began


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def resident_mib(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE / (1 << 20)


def described() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if "model name" in line), platform.machine())
    return {"cpu": model, "cores": os.cpu_count(), "python": platform.python_version(), "kernel": platform.release()}
