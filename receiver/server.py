"""The HTTP server's side of a connection: uvicorn's own protocol, with answers that leave in one piece, and with bounds
for all that comes around a body."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

MAX_AROUND = 64 << 10
"""Bytes of a request beside its body and what came with its beginning: a sender's headers have a few hundred."""
PER_BODY_BYTE = 9
"""Bytes for each of a body that comes in the smallest chunks, itself included."""
HEAD_WITHIN = 30.0
"""Seconds in which a head must come, at the most twice as many."""


class Connection(HttpToolsProtocol):
    """uvicorn writes the headers of an answer and its body apart, and each is a system call that wakes the client. It
    also keeps headers without end, and waits for their end for ever, all before our source check could look."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._chunk = self._around = 0
        self._most = MAX_AROUND
        self._waited_for: object = self
        self._next_look = self.loop.call_later(HEAD_WITHIN, self._look)
        whole = WholeAnswers(cast(asyncio.Transport, transport), self.loop)
        super().connection_made(cast(asyncio.Transport, whole))

    def connection_lost(self, exc: Exception | None) -> None:
        self._next_look.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._chunk = len(data)
        super().data_received(data)
        self._around += len(data)
        if self._around > self._most and not self.transport.is_closing():
            self.send_400_response("The head of the request is too large.")

    def on_message_begin(self) -> None:
        # Other requests may have come in the same piece.
        self._around, self._most = -self._chunk, MAX_AROUND
        super().on_message_begin()

    def on_body(self, body: bytes) -> None:
        self._most += len(body) * PER_BODY_BYTE
        super().on_body(body)

    def _look(self) -> None:
        """Closes a connection that waits for the same head as at the last look. A request that is being answered, and
        the pause until the next one begins, have limits of their own."""
        cycle: RequestResponseCycle | None = self.cycle
        answered = cycle is None or cycle.response_complete
        waits = answered and self.timeout_keep_alive_task is None
        if waits and self._waited_for is cycle:
            self.transport.close()
            return
        self._waited_for = cycle if waits else self
        self._next_look = self.loop.call_later(HEAD_WITHIN, self._look)


class WholeAnswers:
    """A transport that hands on what was written at the same moment as one piece."""

    __slots__ = ("_loop", "_transport", "_written")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._written = b""

    def write(self, data: bytes) -> None:
        if self._written:
            self._written += data
        elif data:
            self._written = data
            self._loop.call_soon(self._hand_on)

    def close(self) -> None:
        self._hand_on()
        self._transport.close()

    def _hand_on(self) -> None:
        if self._written:
            written, self._written = self._written, b""
            self._transport.write(written)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
