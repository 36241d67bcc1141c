"""Against guessing: after a few wrong passwords the next try must wait, for a name and for an address alike.

A try counts before its password is looked at, so that many at the same moment are no way around. Names that nobody has
are treated as those that somebody has: an answer says nothing of which exist. Memory is bounded: of addresses and
unknown names only the latest are remembered, and operators' own names are never pushed out by them.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from receiver.source import Address, neighbourhood

FREE_FOR_NAME = 5
FREE_FOR_ADDRESS = 20
"""Many people may share an address."""
FIRST_WAIT = 15.0
LONGEST_WAIT = 900.0
FORGOTTEN_AFTER = 3600.0
REMEMBERED = 10_000


class TooManyTries(Exception):
    def __init__(self, seconds: float) -> None:
        super().__init__(f"The next try may come in {seconds:.0f} s.")
        self.seconds = seconds


@dataclass(slots=True)
class _Record:
    failures: int = 0
    last: float = 0.0
    locked_until: float = 0.0


class Guesses:
    def __init__(self, names: Iterable[str], clock: Callable[[], float] = time.monotonic) -> None:
        """`names` are those of the operators."""
        self._clock = clock
        self._lock = threading.Lock()
        self._operators = {name.lower(): _Record() for name in names}
        self._names: OrderedDict[str, _Record] = OrderedDict()
        self._addresses: OrderedDict[str, _Record] = OrderedDict()

    def attempt(self, name: str, address: Address) -> None:
        """Counts a try as a failure until `succeeded` says otherwise.

        Raises `TooManyTries` for one that comes too soon, which does not count.
        """
        with self._lock:
            now = self._clock()
            records = [(self._of_name(name), FREE_FOR_NAME), (self._of_address(address), FREE_FOR_ADDRESS)]
            wait = max(record.locked_until - now for record, _ in records)
            if wait > 0:
                raise TooManyTries(wait)
            for record, free in records:
                _count(record, free, now)

    def succeeded(self, name: str, address: Address) -> None:
        """The last try was right. The address keeps what it did before: an own account is no way to guess others'."""
        with self._lock:
            record = self._of_name(name)
            record.failures, record.locked_until = 0, 0.0
            record = self._of_address(address)
            record.failures = max(0, record.failures - 1)
            record.locked_until = 0.0

    def _of_name(self, name: str) -> _Record:
        name = name.lower()[:100]
        return self._operators.get(name) or _recalled(self._names, name)

    def _of_address(self, address: Address) -> _Record:
        return _recalled(self._addresses, neighbourhood(address))


def _count(record: _Record, free: int, now: float) -> None:
    if now - record.last > FORGOTTEN_AFTER:
        record.failures = 0
    record.failures += 1
    record.last = now
    if record.failures >= free:
        record.locked_until = now + min(FIRST_WAIT * 2.0 ** min(record.failures - free, 30), LONGEST_WAIT)


def _recalled(records: OrderedDict[str, _Record], key: str) -> _Record:
    record = records.pop(key, None) or _Record()
    records[key] = record
    if len(records) > REMEMBERED:
        records.popitem(last=False)
    return record
