"""The server's side of a connection: what it writes at one moment leaves in one piece, in order, and before the end."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from receiver.server import WholeAnswers


class Wire:
    def __init__(self) -> None:
        self.seen: list[bytes | str] = []

    def write(self, data: bytes) -> None:
        self.seen.append(data)

    def close(self) -> None:
        self.seen.append("closed")

    def is_closing(self) -> bool:
        return "closed" in self.seen


def test_what_is_written_at_one_moment_is_one_piece() -> None:
    async def scenario() -> list[Any]:
        wire = Wire()
        transport = WholeAnswers(cast(Any, wire), asyncio.get_running_loop())
        transport.write(b"HTTP/1.1 200 OK\r\n\r\n")
        transport.write(b"")
        transport.write(b"body")
        await asyncio.sleep(0)
        transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await asyncio.sleep(0)
        assert not transport.is_closing()
        transport.write(b"HTTP/1.1 403 Forbidden\r\n\r\n")
        transport.write(b"{}")
        transport.close()
        await asyncio.sleep(0)
        assert transport.is_closing()
        return wire.seen

    assert asyncio.run(scenario()) == [
        b"HTTP/1.1 200 OK\r\n\r\nbody",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 403 Forbidden\r\n\r\n{}",
        "closed",
    ]
