"""Memory and open files of the processes: the same at the end as at the start."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.place import Place

ROLES = ("up", "serve", "work", "valkey")
_PAGE = os.sysconf("SC_PAGE_SIZE")
MORE_FILES = 40
"""Connections that may be open at one moment and not at another."""
MORE_MEMORY = 48 << 20
PER_TOKEN = 2048
"""Bytes of Valkey's memory for each token: those it keeps for a week."""


@dataclass(frozen=True, slots=True)
class Use:
    processes: int
    files: int
    memory: int


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
