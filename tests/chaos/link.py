"""A proxy that can be told to misbehave: it stands between two parties and passes on what they say."""

from __future__ import annotations

import asyncio
import socket
from enum import StrEnum
from pathlib import Path
from random import Random
from typing import cast

Address = tuple[str, int] | Path
"""Host and port, or the path of a Unix socket."""


class Mode(StrEnum):
    PASS = "pass"
    CUT = "cut"
    """New connections are accepted and dropped."""
    DELAY = "delay"
    """Everything takes up to a second longer."""
    HALVE = "halve"
    """Of what is said next only the first half arrives, then the connection breaks."""


class Link:
    """Listens on `here` and connects to `there`."""

    def __init__(self, here: Address, there: Address, random: Random) -> None:
        self.here = here
        self.there = there
        self.mode = Mode.PASS
        self.random = random
        self.sides: set[_Side] = set()
        self._server: asyncio.AbstractServer | None = None

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        if isinstance(self.here, Path):
            listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            listening.bind(str(self.here))
            self._server = await loop.create_unix_server(lambda: _Side(self, None), sock=listening, backlog=512)
        else:
            listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(self.here)
            self._server = await loop.create_server(lambda: _Side(self, None), sock=listening, backlog=512)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        self.cut()

    def cut(self) -> None:
        """Breaks every connection."""
        for side in list(self.sides):
            side.abort()


class _Side(asyncio.Protocol):
    """One end of a connection. The end that faces `there` is made by the one that was called."""

    def __init__(self, link: Link, other: _Side | None) -> None:
        self._link = link
        self._other = other
        self._transport: asyncio.Transport | None = None
        self._early = bytearray()
        self._not_before = 0.0
        self._connecting: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._link.sides.add(self)
        if self._other is None:
            if self._link.mode is Mode.CUT:
                self.abort()
                return
            self._connecting = asyncio.create_task(self._connect())

    async def _connect(self) -> None:
        loop, there = asyncio.get_running_loop(), self._link.there
        try:
            if isinstance(there, Path):
                _, side = await loop.create_unix_connection(lambda: _Side(self._link, self), str(there))
            else:
                _, side = await loop.create_connection(lambda: _Side(self._link, self), *there)
        except OSError:
            self.abort()
            return
        self._other = side
        if self._transport is None or self._transport.is_closing():
            side.abort()
        elif self._early:
            side.write(bytes(self._early))
            self._early.clear()

    def data_received(self, data: bytes) -> None:
        if self._other is None:
            self._early += data
            return
        mode = self._link.mode
        if mode is Mode.HALVE:
            self._other.write(data[: len(data) // 2])
            self._other.finish()
            self.abort()
            return
        loop = asyncio.get_running_loop()
        now = loop.time()
        if mode is Mode.DELAY:
            self._not_before = max(self._not_before, now + self._link.random.random())
        if self._not_before > now:
            # In order, also behind what is still delayed.
            loop.call_at(self._not_before, self._other.write, data)
        else:
            self._other.write(data)

    def write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def finish(self) -> None:
        """Ends the connection when all that was written is on its way."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def pause_writing(self) -> None:
        if self._other is not None and self._other._transport is not None:
            self._other._transport.pause_reading()

    def resume_writing(self) -> None:
        if self._other is not None and self._other._transport is not None:
            self._other._transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        self._link.sides.discard(self)
        if self._other is not None:
            self._other.abort() if error else self._other.finish()
