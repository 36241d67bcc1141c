"""Against guessing: after a few wrong passwords the next try must wait.

A name is held up together with the address that tries it, so that nobody locks an operator out from elsewhere; an
address for all names that it tries; and a name for all addresses together, later, and not for those from which it has
signed in since this process began: so many addresses are no way around.

A try counts before its password is looked at, so that many at the same moment are no way around either. Names that
nobody has are treated as those that somebody has: an answer says nothing of which exist. Memory is bounded: only the
latest are remembered, and what is known of operators' own names is never pushed out.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import ceil
from typing import TypeVar

from receiver.source import Address, neighbourhood

K = TypeVar("K", str, tuple[str, str])

FREE_FOR_NAME = 5
"""From one address."""
FREE_FOR_ADDRESS = 20
"""Many people may share an address."""
FREE_EVERYWHERE = 50
"""For one name, from all addresses that are new to it."""
FIRST_WAIT = 15.0
LONGEST_WAIT = 900.0
FORGOTTEN_AFTER = 3600.0
REMEMBERED = 10_000
KNOWN = 100
"""Addresses from which one operator has signed in."""


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
        """`names` are those of the operators, and what `codes_of` makes of them."""
        self._clock = clock
        self._lock = threading.Lock()
        self._operators = {name.lower(): _Record() for name in names}
        self._known: dict[str, OrderedDict[str, None]] = {name: OrderedDict() for name in self._operators}
        self._names: OrderedDict[str, _Record] = OrderedDict()
        self._pairs: OrderedDict[tuple[str, str], _Record] = OrderedDict()
        self._addresses: OrderedDict[str, _Record] = OrderedDict()

    def attempt(self, name: str, address: Address) -> None:
        """Counts a try as a failure until `succeeded` says otherwise.

        Raises `TooManyTries` for one that comes too soon, which does not count.
        """
        with self._lock:
            now = self._clock()
            records = self._concerned(_of(name), neighbourhood(address))
            wait = max(record.locked_until - now for record, _ in records)
            if wait > 0:
                raise TooManyTries(wait)
            for record, free in records:
                _count(record, free, now)

    def succeeded(self, name: str, address: Address) -> None:
        """The last try was right. What others tried stays: an own account is no way to guess others', and an operator
        who signs in gives nobody who guesses a new start."""
        with self._lock:
            name, origin = _of(name), neighbourhood(address)
            for record, free in self._concerned(name, origin):
                record.failures = 0 if free == FREE_FOR_NAME else max(0, record.failures - 1)
                record.locked_until = 0.0
            if (known := self._known.get(name)) is not None:
                known[origin] = known.pop(origin, None)
                if len(known) > KNOWN:
                    known.popitem(last=False)

    def _concerned(self, name: str, origin: str) -> list[tuple[_Record, int]]:
        """What a try is counted in, with how many each has free."""
        records = [
            (_recalled(self._pairs, (name, origin)), FREE_FOR_NAME),
            (_recalled(self._addresses, origin), FREE_FOR_ADDRESS),
        ]
        if origin not in self._known.get(name, ()):
            records.append((self._operators.get(name) or _recalled(self._names, name), FREE_EVERYWHERE))
        return records


def _of(name: str) -> str:
    return name.lower()[:100]


def _count(record: _Record, free: int, now: float) -> None:
    if now - record.last > FORGOTTEN_AFTER:
        record.failures = 0
    record.failures += 1
    record.last = now
    if record.failures >= free:
        record.locked_until = now + min(FIRST_WAIT * 2.0 ** min(record.failures - free, 30), LONGEST_WAIT)


def _recalled(records: OrderedDict[K, _Record], key: K) -> _Record:
    record = records.pop(key, None) or _Record()
    records[key] = record
    if len(records) > REMEMBERED:
        records.popitem(last=False)
    return record


def codes_of(name: str) -> str:
    """As whose name tries at an operator's codes count: apart from those at his password, as else whoever knows that
    had a new start with every use of it. No operator's name has a blank."""
    return f"{name} code"


def wait(seconds: float) -> str:
    """How long somebody has to wait, in words."""
    return f"{ceil(seconds)} seconds" if seconds < 120 else f"{ceil(seconds / 60)} minutes"
