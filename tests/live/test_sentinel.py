"""A master that is lost under load: Sentinel promotes its replica, and nothing that was answered 200 is lost."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.live.installation import Installation, installed
from tests.live.state import State
from tests.live.test_faults import degraded
from tests.live.test_installation import notify, quickstream
from tests.live.watched import Group, watched
from tests.servers import eventually

PAUSE = 0.02
"""Seconds from one answer to the next request."""


@pytest.fixture
def group(tmp_path: Path) -> Iterator[Group]:
    with watched(tmp_path) as group:
        yield group


class Load(threading.Thread):
    """Sends payments until it is told to end, each by a sender that never sends again."""

    def __init__(self, running: Installation, first: int) -> None:
        super().__init__(daemon=True)
        self._running = running
        self._next = first
        self._ending = threading.Event()
        self.told: list[str] = []
        self.untold: list[str] = []

    def run(self) -> None:
        while not self._ending.wait(PAUSE):
            receipt = str(self._next)
            self._next += 1
            try:
                status = notify(self._running, quickstream(receipt)).status_code
            except httpx.TransportError:
                status = 0
            (self.told if status == 200 else self.untold).append(receipt)

    def end(self) -> None:
        self._ending.set()
        self.join(30)
        assert not self.is_alive()


def test_a_master_that_is_lost_under_load(group: Group, tmp_path: Path) -> None:
    with installed(tmp_path, queue=f'redis_url = "{group.url}"\nreplicas = 1') as running:
        state = State(running)
        lost = group.master()
        loads = [Load(running, first) for first in (910_000, 920_000, 930_000, 940_000)]
        for load in loads:
            load.start()
        try:
            eventually(lambda: all(len(load.told) > 20 for load in loads), 30, "a load")
            group.kill(lost)
            # Whoever is answered now is answered from the spool: there is no master.
            sent = [len(load.told) for load in loads]
            eventually(lambda: all(len(load.told) > count for load, count in zip(loads, sent, strict=True)), 10)
            eventually(lambda: group.master() != lost, 30, "another master")
            # It has no replica, and takes what comes all the same; the spool keeps a copy.
            eventually(lambda: state.metric("postback_replicas_away") == 1, 30, "the figure of the replicas")
            assert degraded(running, "TooFewReplicas")["redis"] == "unreplicated"
            late = loads[0].told[-1]
            eventually(lambda: state.rows([late]), 30, "a payment that the new master passed on")
            assert running.run("health").returncode == 1
            assert any("Too few replicas" in problem for problem in health(running)["problems"])
        finally:
            for load in loads:
                load.end()
        told = [receipt for load in loads for receipt in load.told]
        assert [receipt for load in loads for receipt in load.untold] == [], "the spool stands in at once"
        # The old master comes back, and Sentinel makes it the replica.
        group.start_server(lost)
        group.until_replicated(group.master())
        eventually(lambda: running.client.get("/readyz").json()["status"] == "ready", 30, "a drained spool")
        eventually(lambda: state.once(told), 60, "all that was answered, once")
        eventually(state.idle, 30, "an empty queue")
        assert state.failed() == 0
        assert state.logged("replicas_away", process="serve")
        assert health(running)["status"] == "ok"
        state.close()


def test_doctor_looks_for_the_replicas(group: Group, tmp_path: Path) -> None:
    here = Installation(tmp_path, queue=f'redis_url = "{group.url}"\nreplicas = 1')
    try:
        (found,) = [finding for finding in here.json("doctor") if finding["check"] == "queue"]
        assert (found["verdict"], found["detail"]) == (
            "ok",
            "an answer means that it is on the disk and at 1 replica",
        )
        (replica,) = set(group.servers) - {group.master()}
        group.kill(replica)
        done = here.run("doctor", "--json")
        assert done.returncode == 1
        (found,) = [finding for line in done.stdout.splitlines() if (finding := json.loads(line))["check"] == "queue"]
        assert (found["verdict"], found["detail"]) == ("fault", "queue.replicas: 0 of 1 replicas confirmed.")
    finally:
        here.close()


def health(running: Installation) -> dict[str, Any]:
    state: dict[str, Any] = json.loads(running.run("health").stdout)
    return state
