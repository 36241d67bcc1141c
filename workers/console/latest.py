"""An answer that costs something to find, asked for at most once a second however many look."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

FRESH = 1.0
"""Seconds for which an answer counts: however many ask, the databases are asked once."""


class Latest(Generic[T]):
    """What `find` said, at most `FRESH` seconds ago."""

    def __init__(self, find: Callable[[], T]) -> None:
        self._find = find
        self._lock = threading.Lock()
        self._latest: tuple[float, T] | None = None

    def now(self) -> T:
        with self._lock:
            if self._latest is None or time.monotonic() - self._latest[0] > FRESH:
                found = self._find()
                self._latest = (time.monotonic(), found)
            return self._latest[1]
