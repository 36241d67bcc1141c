"""The clock of the whole machine is set by hours, under an installation at work: nothing waits for it to catch up.

Debian's libfaketime stands before every process of the installation, Valkey's as well; it leaves the monotonic clock.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live.installation import Installation
from tests.live.state import State, locked
from tests.live.test_faults import ANSWERED_WITHIN, RECOVERED_WITHIN, kill, send, well
from tests.servers import absent, eventually

HOUR = 3600


class Clock:
    """What the processes with this environment take for the time, in seconds from the true one."""

    def __init__(self, folder: Path) -> None:
        libraries = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
        if not libraries:
            absent("libfaketime", FileNotFoundError("libfaketime is not installed"))
        self._file = folder / "clock"
        self.set(0)
        self.environment = {
            **os.environ,
            "LD_PRELOAD": str(libraries[0]),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            # Read again at every look at the clock.
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def set(self, seconds: int) -> None:
        # In one step: a clock that is read half would stand still.
        new = self._file.with_suffix(".new")
        new.write_text(f"{seconds:+d}s\n")
        new.replace(self._file)


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    return Clock(tmp_path)


@pytest.fixture
def running(tmp_path: Path, clock: Clock) -> Iterator[Installation]:
    here = Installation(tmp_path, environment=clock.environment)
    try:
        here.start()
        yield here
    finally:
        here.close()


@pytest.fixture
def state(running: Installation) -> Iterator[State]:
    here = State(running)
    eventually(lambda: well(here), 30, "a well installation")
    yield here
    assert here.failed() == 0
    here.close()


@pytest.mark.parametrize("hours", [-3, 5])
def test_the_batch_of_a_killed_worker_does_not_wait_for_the_clock(
    running: Installation, state: State, clock: Clock, hours: int
) -> None:
    with locked(state.ledger_file):
        send(running, "8901")
        eventually(lambda: state.started() == 1, 30, "a batch in hand")
        running.kill("work")
        clock.set(hours * HOUR)
    eventually(lambda: state.once(["8901"]), RECOVERED_WITHIN, "the batch, run again")
    assert send(running, "8902") < ANSWERED_WITHIN
    eventually(lambda: state.once(["8901", "8902"]), RECOVERED_WITHIN, "the next payment")
    eventually(lambda: well(state), 30, "a well installation")


@pytest.mark.parametrize("hours", [-3, 5])
def test_a_batch_that_waits_for_the_ledger_does_not_wait_for_the_clock(
    running: Installation, state: State, clock: Clock, hours: int
) -> None:
    with locked(state.ledger_file):
        send(running, "8911")
        eventually(lambda: state.scheduled() == 1, 30, "a batch that waits")
        clock.set(hours * HOUR)
        assert send(running, "8912") < ANSWERED_WITHIN
    eventually(lambda: state.once(["8911", "8912"]), 45, "all that waited")
    eventually(lambda: well(state), 30, "a well installation")


def test_the_spool_does_not_ask_the_clock(running: Installation, state: State, clock: Clock) -> None:
    redis = state.separate()
    redis.config_set("maxmemory", "1mb")
    for number, hours in enumerate((0, -3, 5, 0)):
        clock.set(hours * HOUR)
        assert send(running, str(8920 + number)) < ANSWERED_WITHIN
    kill(running, "serve")
    redis.config_set("maxmemory", "0")
    redis.close()
    numbers = [str(8920 + number) for number in range(4)]
    eventually(lambda: state.once(numbers), 30, "all that was spooled")
    rows = sorted(state.rows(numbers), key=lambda row: str(row.dedupe_key))
    times = [row.received_at for row in rows]
    assert times[1] < times[0] < times[2], "each has the time that the clock showed"
    eventually(lambda: well(state), 30, "a well installation")
