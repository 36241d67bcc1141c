"""A cheap HTTP client: requests are bytes made beforehand, connections are kept, and no answer is an answer too."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

NO_ANSWER = 0
_Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def request(path: str, headers: Mapping[str, str], body: bytes) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: receiver", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


class Client:
    def __init__(self, host: str, port: int, timeout: float) -> None:
        self._address = host, port
        self._timeout = timeout
        self._idle: list[_Connection] = []

    async def send(self, message: bytes) -> tuple[int, bytes]:
        """Status and body; (`NO_ANSWER`, b"") where no whole answer came in time."""
        connection: _Connection | None = None
        try:
            async with asyncio.timeout(self._timeout):
                reader, writer = connection = self._free() or await asyncio.open_connection(*self._address)
                writer.write(message)
                head = await reader.readuntil(b"\r\n\r\n")
                status, length, keep = _read(head)
                body = await reader.readexactly(length)
        except (OSError, TimeoutError, EOFError, ValueError, asyncio.LimitOverrunError):
            if connection is not None:
                connection[1].transport.abort()
            return NO_ANSWER, b""
        except BaseException:
            if connection is not None:
                connection[1].transport.abort()
            raise
        if keep:
            self._idle.append((reader, writer))
        else:
            writer.close()
        return status, body

    def _free(self) -> _Connection | None:
        while self._idle:
            reader, writer = self._idle.pop()
            if not writer.is_closing() and not reader.at_eof():
                return reader, writer
            writer.transport.abort()
        return None

    def close(self) -> None:
        for _, writer in self._idle:
            writer.transport.abort()
        self._idle.clear()


def _read(head: bytes) -> tuple[int, int, bool]:
    """Status, length of the body, and whether the connection may be used again."""
    first, *lines = head.lower().split(b"\r\n")
    length, keep = 0, True
    for line in lines:
        name, _, value = line.partition(b":")
        if name == b"content-length":
            length = int(value)
        elif name == b"connection":
            keep = b"close" not in value
    return int(first.split(b" ", 2)[1]), length, keep
