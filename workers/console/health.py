"""Whether all is well, asked at most once a second however many look."""

from __future__ import annotations

import threading
import time
from typing import Any

from receiver.settings import Settings
from workers.health import examine

FRESH = 1.0
"""Seconds for which an examination counts: however many ask, the databases are asked once."""


class Health:
    """The health object, at most `FRESH` seconds old."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._latest: tuple[float, dict[str, Any]] | None = None

    def now(self) -> dict[str, Any]:
        with self._lock:
            if self._latest is None or time.monotonic() - self._latest[0] > FRESH:
                state = examine(self._settings)
                self._latest = (time.monotonic(), state)
            return self._latest[1]
