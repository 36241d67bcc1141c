"""Bytes on a connection, as the server reads them: in one piece and in many, which must come to the same requests."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from uvicorn.server import ServerState

from receiver.door import Door
from receiver.server import MOST_WAITING, Connection, configured

_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) [A-Za-z -]*\r\n")
_TURNS = 50
"""Of the event loop, in which whatever is to be answered is."""
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+")
_NO_VALUE = re.compile(rb"[\x00\r\n]")


class Request(NamedTuple):
    """One that came whole."""

    method: str
    path: bytes
    query: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes


class Heard(NamedTuple):
    requests: list[Request]
    answers: bytes

    @property
    def statuses(self) -> list[int]:
        return [int(status) for status in _STATUS.findall(self.answers)]


class _Transport(asyncio.Transport):
    """A socket that takes everything at once."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 4711), "sockname": ("127.0.0.1", 8080)})
        self.written = bytearray()
        self.closing = False

    def write(self, data: Any) -> None:
        if not self.closing:
            self.written += data

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    abort = close

    def pause_reading(self) -> None:
        pass

    resume_reading = pause_reading


def heard(pieces: Iterable[bytes]) -> Heard:
    """What the server makes of `pieces`, and answers; each comes when all before it is answered."""
    return _LOOP.run_until_complete(_heard(pieces))


async def _taken(scope: Any, receive: Any, send: Any) -> None:
    body, more = b"", True
    while more:
        event = await receive()
        if event["type"] == "http.disconnect":
            return
        body, more = body + event.get("body", b""), event.get("more_body", False)
    headers = tuple((bytes(name), bytes(value)) for name, value in scope["headers"])
    scope["state"]["requests"].append(Request(scope["method"], scope["raw_path"], scope["query_string"], headers, body))
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"{}"})


# One for all: each has a timer, and what a timer holds is kept until it is due.
_DOOR = Door(10, 10)
_CONFIG = configured(_taken, _DOOR)


async def _heard(pieces: Iterable[bytes]) -> Heard:
    requests: list[Request] = []
    transport, connection = _Transport(), Connection(_CONFIG, ServerState(), {"requests": requests}, door=_DOOR)
    connection.connection_made(transport)
    for piece in pieces:
        if transport.closing:
            break
        connection.data_received(piece)
        await _answered(connection)
    if not transport.closing:
        connection.eof_received()
        await _answered(connection)
    connection.connection_lost(None)
    await _answered(connection)
    return Heard(requests, bytes(transport.written))


async def _answered(connection: Connection) -> None:
    for _ in range(_TURNS):
        await asyncio.sleep(0)
        cycle: Any = connection.cycle
        if not connection.tasks or (cycle is not None and cycle.more_body):
            return


_LOOP = asyncio.new_event_loop()


def fault(data: bytes) -> str:
    """What is wrong with how `data` is read; "" when all is well."""
    whole = heard([data])
    for way in ([data[:half], data[half:]] for half in {len(data) // 2, len(data) // 3, data.find(b"\r\n") + 1}):
        if said := _difference(whole, heard(filter(None, way))):
            return said
    for request in whole.requests:
        if not request.path.startswith((b"/", b"*")):
            return "a path does not begin as one"
        for name, value in request.headers:
            if not _TOKEN.fullmatch(name) or _NO_VALUE.search(value):
                return "a header is none"
    return ""


def _difference(whole: Heard, pieces: Heard) -> str:
    for each in (whole, pieces):
        if not set(each.statuses) <= {100, 200, 400}:
            return f"an answer is {each.statuses}"
        if each.statuses.count(200) != len(each.requests):
            return "there are more or fewer answers than requests"
        if each.answers.count(b"HTTP/1.1 ") != len(each.statuses):
            return "an answer is none"
    # So many are heard of one piece at the least.
    most = MOST_WAITING + 1
    if whole.requests[:most] != pieces.requests[:most]:
        return "in pieces it is another request"
    return ""
