"""How many connections are open at once, in all and from one address, and which of them go when there are too many.

Whoever holds connections open without saying anything must not keep senders out. So a full house does not turn away the
newest, who has a request in hand: it hangs up on those that have kept us waiting longest.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from functools import lru_cache
from typing import Protocol

from receiver import metrics
from receiver.source import neighbourhood, parse

ENDS_UNREAD = "postback.ends_unread"
"""True in the beginning of an answer whose request is read no further: if something of it has not come yet, the
connection ends. One that came whole leaves it open, as a new connection costs us more than a refusal."""

SHARE_THAT_GOES = 50
"""One in so many, at least one, so that a flood of newcomers does not make us look through all for each of them."""


class Guest(Protocol):
    """A connection. Hanging up ends it and what it was sending."""

    began: float
    """When its last request began, or else the connection itself."""

    @property
    def waits(self) -> bool:
        """Whether it is the client's turn; one that is waiting for our answer is never hung up on."""

    def hang_up(self) -> None: ...

    def look(self) -> None:
        """Asked every now and then: a connection that is stuck ends itself."""


class Door:
    """Of one process."""

    def __init__(self, most: int, most_of_one: int, is_proxy: Callable[[str], bool] = lambda peer: False) -> None:
        """`most_of_one` is for each address, an IPv6 network of 64 bits being one. Proxies of ours, behind which
        everybody has the same address, may have as many as there are, and go last."""
        self._most = most
        self._most_of_one = most_of_one
        self._is_proxy = is_proxy
        self._whose = lru_cache(maxsize=4096)(self._find_whose)
        self._inside: dict[Guest, str] = {}
        """With the address of each; "" for proxies."""
        self._of_one: dict[str, int] = {}
        self.closing = False
        """Whether each answer is to be the last of its connection, as this process ends."""
        self._next_look: asyncio.TimerHandle | None = None
        self._closed = {why: metrics.CONNECTIONS_CLOSED.labels(why) for why in ("all", "address")}

    def enter(self, guest: Guest, peer: str) -> bool:
        """False when there is no room, and none can be made."""
        whose = self._whose(peer)
        if whose and self._of_one.get(whose, 0) >= self._most_of_one and not self._make_room("address", whose):
            return False
        if len(self._inside) >= self._most and not self._make_room("all"):
            return False
        self._inside[guest] = whose
        self._of_one[whose] = self._of_one.get(whose, 0) + 1
        return True

    def keep_looking(self, loop: asyncio.AbstractEventLoop, every: float) -> None:
        """Has each guest look at itself every so many seconds, for as long as there is one. A timer of its own would be
        a good part of what a short visit costs."""
        if self._next_look is None:
            self._next_look = loop.call_later(every, self._look, loop, every)

    def _look(self, loop: asyncio.AbstractEventLoop, every: float) -> None:
        self._next_look = None
        for guest in list(self._inside):
            guest.look()
        if self._inside:
            self.keep_looking(loop, every)

    def leave(self, guest: Guest) -> None:
        whose = self._inside.pop(guest, None)
        if whose is None:
            return
        self._of_one[whose] -= 1
        if not self._of_one[whose]:
            del self._of_one[whose]

    def _find_whose(self, peer: str) -> str:
        address = parse(peer)
        return "" if address is None or self._is_proxy(peer) else neighbourhood(address)

    def _make_room(self, why: str, whose: str | None = None) -> bool:
        waiting = [
            (not of, guest.began, number, guest)
            for number, (guest, of) in enumerate(self._inside.items())
            if guest.waits and (whose is None or of == whose)
        ]
        most = self._most if whose is None else self._most_of_one
        going = heapq.nsmallest(max(1, most // SHARE_THAT_GOES), waiting)
        for *_, guest in going:
            self.leave(guest)
            guest.hang_up()
        self._closed[why].inc(len(going) or 1)
        return bool(going)
