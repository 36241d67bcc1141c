"""Memory and open files of the processes: the same at the end as at the start, and never too much in between."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.place import Place

ROLES = ("up", "serve", "work", "valkey")
_PAGE = os.sysconf("SC_PAGE_SIZE")
MORE_FILES = 40
"""Connections that may be open at one moment and not at another."""
MORE_MEMORY = 48 << 20
MOST_MEMORY = {"up": 128 << 20, "serve": 192 << 20, "work": 256 << 20}
"""Of one process at any moment. Valkey has as much as there is in the queue."""
MOST_FILES = 4096
"""Of one process at any moment: at the worst, each delivery under way has a connection."""
LOOK_EVERY = 5.0
PER_TOKEN = 2048
"""Bytes of Valkey's memory for each token: those it keeps for a week."""


@dataclass(frozen=True, slots=True)
class Use:
    processes: int
    files: int
    memory: int


@dataclass(slots=True)
class Watch:
    """The most that one process of each role ever had. Processes are killed all the time, so that what one of them
    leaks would not show at the end."""

    most: dict[str, Use] = field(default_factory=dict)

    async def run(self, place: Place) -> None:
        while True:
            for role in ROLES:
                with suppress(OSError):
                    for pid in place.pids(role):
                        self._seen(role, _of([pid]))
            await asyncio.sleep(LOOK_EVERY)

    def _seen(self, role: str, use: Use) -> None:
        most = self.most.get(role, Use(1, 0, 0))
        self.most[role] = Use(1, max(most.files, use.files), max(most.memory, use.memory))

    def complaints(self) -> list[str]:
        found = []
        for role, limit in MOST_MEMORY.items():
            most = self.most[role]
            if most.memory > limit or most.files > MOST_FILES:
                found.append(f"{role}: {most.memory >> 20} MiB and {most.files} open files in one process")
        return found


def measure(place: Place) -> dict[str, Use]:
    return {role: _of(place.pids(role)) for role in ROLES}


def leaks(before: dict[str, Use], after: dict[str, Use], tokens: int) -> list[str]:
    found = []
    for role, now in after.items():
        then = before[role]
        room = MORE_MEMORY + (tokens * PER_TOKEN if role == "valkey" else 0)
        if now.processes != then.processes:
            found.append(f"{role}: {then.processes} processes before, {now.processes} after")
        if now.files > then.files + MORE_FILES:
            found.append(f"{role}: {then.files} open files before, {now.files} after")
        if now.memory > then.memory * 1.5 + room:
            found.append(f"{role}: {then.memory >> 20} MiB before, {now.memory >> 20} MiB after")
    return found


def _of(pids: list[int]) -> Use:
    files = memory = 0
    for pid in pids:
        try:
            files += len(os.listdir(f"/proc/{pid}/fd"))
            memory += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
        except OSError:
            continue
    return Use(len(pids), files, memory)
