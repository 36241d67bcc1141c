"""The HTTP server's side of a connection: uvicorn's own protocol, with answers that leave in one piece."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class Connection(HttpToolsProtocol):
    """uvicorn writes the headers of an answer and its body apart, and each is a system call that wakes the client."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        whole = WholeAnswers(cast(asyncio.Transport, transport), self.loop)
        super().connection_made(cast(asyncio.Transport, whole))


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
