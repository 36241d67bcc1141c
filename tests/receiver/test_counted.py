"""What processes count together, after some of them have ended: nothing is lost, and little is left behind."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from receiver import counted

COUNTS = """
import sys
from pathlib import Path
from receiver import counted
counted.join(Path(sys.argv[1]))
from receiver import metrics
metrics.ACCEPTED.labels("quickstream", "acme", "accepted").inc(int(sys.argv[2]))
metrics.COMMIT_SECONDS.labels("redis").observe(0.004)
metrics.QUEUE_BATCHES.set(int(sys.argv[2]))
print(counted.name, flush=True)
sys.stdin.read()
sys.stdout.write(metrics.expose().decode())
"""


@contextmanager
def counting(folder: Path, number: int) -> Iterator[subprocess.Popen[str]]:
    """A process that counts `number`, and shows all figures when it is told to end."""
    process = subprocess.Popen(
        [sys.executable, "-c", COUNTS, folder, str(number)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.communicate()


def shown(process: subprocess.Popen[str]) -> dict[str, float]:
    page, _ = process.communicate(timeout=30)
    lines = [line for line in page.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def figures(process: subprocess.Popen[str]) -> tuple[float, float, float]:
    """Accepted, commits, and the gauge."""
    found = shown(process)
    return (
        found['postback_accepted_total{facility="acme",provider="quickstream",status="accepted"}'],
        found['postback_commit_seconds_count{to="redis"}'],
        found["postback_queue_batches"],
    )


def test_what_ended_processes_counted_stays_and_their_files_do_not(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        with counting(tmp_path, number) as process:
            process.send_signal(signal.SIGKILL)
            process.wait()
    with counting(tmp_path, 10) as alive, counting(tmp_path, 20) as last:
        # Of those before, and of two that live: three files and a lock each.
        assert len(list(tmp_path.glob("*.db"))) == 9
        assert len(list(tmp_path.glob("*.lock"))) == 3
        assert figures(last) == (36, 5, 20)
        assert figures(alive) == (36, 5, 20)


def test_a_process_that_lives_keeps_its_files(tmp_path: Path) -> None:
    with counting(tmp_path, 5) as alive:
        before = set(tmp_path.iterdir())
        counted.gather(tmp_path)
        assert set(tmp_path.iterdir()) == before
        assert figures(alive) == (5, 1, 5)


def test_two_processes_of_one_id_count_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counted, "_kept", [])
    first, second = counted._take_name(tmp_path), counted._take_name(tmp_path)
    assert second == f"{first}-1"


def test_files_of_versions_that_held_no_lock(tmp_path: Path) -> None:
    with counting(tmp_path, 7) as process:
        name = str(process.pid)
        (tmp_path / f"{name}.lock").unlink()
        counted.gather(tmp_path)
        assert (tmp_path / f"counter_{name}.db").exists(), "it lives"
        process.kill()
        process.wait()
    counted.gather(tmp_path)
    assert {file.name for file in tmp_path.glob("*.db")} == {
        *("counter_departed.db", "histogram_departed.db", "gauge_mostrecent_departed.db"),
    }
    with counting(tmp_path, 1) as last:
        assert figures(last) == (8, 2, 1)


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 100, b"\x40\x00\x00\x00" + b"\x00" * 8], ids=["empty", "damaged", "cut short"]
)
def test_a_file_that_cannot_be_read_costs_its_own_figures_only(tmp_path: Path, content: bytes) -> None:
    with counting(tmp_path, 3) as process:
        process.kill()
        process.wait()
    # No process has such a number.
    (tmp_path / "counter_99999999.db").write_bytes(content)
    with counting(tmp_path, 1) as last:
        assert figures(last) == (4, 2, 1)
    assert not (tmp_path / "counter_99999999.db").exists()
