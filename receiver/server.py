"""The HTTP server's side of a connection: uvicorn's own protocol, with answers that leave in one piece, and with bounds
for all that comes around a body."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, cast
from urllib.parse import unquote

import httptools
import msgspec
import uvicorn
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import (
    HEADER_RE,
    HEADER_VALUE_RE,
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from receiver import metrics, service
from receiver.door import ENDS_UNREAD, Door
from receiver.errors import Reason

MAX_AROUND = 64 << 10
"""Bytes of a request beside its body and what came with its beginning: a sender's headers have a few hundred."""
PER_BODY_BYTE = 9
"""Bytes for each of a body that comes in the smallest chunks, itself included."""
MOST_WAITING = 50
"""Requests of one connection that wait for an answer to the one before. One piece may have thousands of small ones, and
nobody else is heard while it is read. The connection ends with the answer to the last of these, which tells the client
that what it sent behind was not read (RFC 9112, 9.6)."""
HEAD_WITHIN = 30.0
"""Seconds in which a head must come, and an answer must be taken, at the most twice as many."""

CLIENTS_LEAVE_WITHIN = 3.0
"""Seconds that clients have, before a restart, to take an answer that says so or to close what they do not use. A proxy
that closes idle connections sooner never sends a request into one that is just being closed."""
FIRST_REQUEST_WITHIN = 1.0
"""Seconds in which a connection that came at the last moment must have begun its request."""
_CLOSE = (b"connection", b"close")
_ASGI = {"version": "3.0", "spec_version": "2.3"}
_LONGEST_KNOWN = 200
"""Bytes of a target that is read only once."""

# The parser would read HTTP/0.9 and HTTP/2.0 as well, each as something that it is not.
_VERSIONS = ("1.1", "1.0")
_OF_UPGRADE = (b"upgrade", b"http2-settings")


class Connection(HttpToolsProtocol):
    """uvicorn keeps headers without end, and waits for their end for ever, all before our source check could look; it
    takes what comes behind a body for headers, and loses the body of a client that would rather speak HTTP/2. It also
    does for every request what need be done once: half of what an empty endpoint costs."""

    def __init__(self, *arguments: Any, door: Door, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._door = door

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._chunk = self._around = 0
        self._most = MAX_AROUND
        self._deaf = False
        self.began = self.loop.time()
        self._stuck_in: tuple[str, object] | None = None
        self._idle_since: float | None = None
        # What uvicorn's own does, which makes a socket object for each of the two addresses.
        self.connections.add(self)
        self.transport = cast(asyncio.Transport, transport)
        self.flow = FlowControl(self.transport)
        self.server = _address(transport, "sockname")
        self.client = cast(Any, _address(transport, "peername"))
        self.scheme = "https" if transport.get_extra_info("sslcontext") else "http"
        if self._door.enter(self, self.client[0] if self.client else ""):
            self._door.keep_looking(self.loop, HEAD_WITHIN)
        else:
            self._deaf = True
            self.transport.write(_FULL)
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._door.leave(self)
        super().connection_lost(exc)

    @property
    def waits(self) -> bool:
        """Whether it is the client's turn: to send the rest of a request, or the next one."""
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is None or cycle.response_complete or cycle.more_body

    @property
    def awaits_head(self) -> bool:
        """Whether a request has begun, or a new connection has not said anything yet."""
        cycle: RequestResponseCycle | None = self.cycle
        return (cycle is None or cycle.response_complete) and self._idle_since is None

    def hang_up(self) -> None:
        self.transport.abort()

    def end_with_the_request_in_hand(self) -> None:
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is not None and not cycle.response_complete:
            cycle.keep_alive = False

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        self._idle_since = None
        while data:
            self._chunk, rest = len(data), b""
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                rest = self._again_without_upgrade(data[upgrade.args[0] :])
                if not rest:
                    self._refuse("This server is no proxy.")
                    return
            except httptools.HttpParserError:
                self._refuse("The request is not well-formed HTTP.")
                return
            self._around += len(data)
            if self._around > self._most and not self.transport.is_closing():
                self._refuse("The head of the request is too large.")
                return
            data = rest

    def eof_received(self) -> bool:  # type: ignore[override]
        """A client that has said all may still wait for the answer."""
        self._deaf = True
        if not self._end_with_what_came_whole():
            self.transport.close()
        return True

    def on_message_begin(self) -> None:
        # Other requests may have come in the same piece.
        self._around, self._most = -self._chunk, MAX_AROUND
        self.began = self.loop.time()
        self.url = b""
        self.expect_100_continue = False
        self.headers = []

    def on_headers_complete(self) -> None:
        parser = self.parser
        version = parser.get_http_version()
        if version not in _VERSIONS:
            raise ValueError("another version of HTTP")
        self.scope = scope = cast(
            Any,
            {
                "type": "http",
                "asgi": _ASGI,
                "http_version": version,
                "method": parser.get_method().decode("ascii"),
                "server": self.server,
                "client": self.client,
                "scheme": self.scheme,
                "root_path": "",
                "headers": self.headers,
                "state": self.app_state.copy(),
            },
        )
        # What comes behind the body is no header: anybody could write there what a proxy writes above.
        self.headers = []
        if parser.should_upgrade():
            return
        target = _target if len(self.url) <= _LONGEST_KNOWN else _target.__wrapped__
        scope["path"], scope["raw_path"], scope["query_string"] = target(self.url)
        before: RequestResponseCycle | None = self.cycle
        self._before = before
        self.cycle = cycle = Cycle(self, version == "1.1" and parser.should_keep_alive())
        if before is None or before.response_complete:
            self._start_asgi_task(cycle, self.app)
        elif len(self.pipeline) < MOST_WAITING:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, self.app))
        else:
            self.cycle = before
            raise ValueError("too many requests at once")
        if self._door.closing:
            self.end_with_the_request_in_hand()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        task = self.loop.create_task(cycle.run_asgi(app))
        cast(Cycle, cycle).task = task
        self.tasks.add(task)

    def on_response_complete(self) -> None:
        """The next request of the connection, if it is there; else the connection is idle, which `look` ends. A timer
        for each answer would cost more than the answer."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        else:
            self._idle_since = self.loop.time()

    def on_body(self, body: bytes) -> None:
        self._most += len(body) * PER_BODY_BYTE
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is None or cycle.response_complete or self.parser.should_upgrade():
            return
        before: Any = cycle.body
        if not before:
            # Nearly always all of it: only one that goes on is kept where there is room for more.
            cycle.body = cast(Any, body)
        else:
            cycle.body = bytearray(before) if isinstance(before, bytes) else before
            cycle.body += body
        if len(cycle.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        cycle.message_event.set()

    def _should_upgrade(self) -> bool:
        """Asked by uvicorn once the client has asked for it: it then leaves the request alone."""
        return True

    def _again_without_upgrade(self, rest: bytes) -> bytes:
        """The request whose head was read, and what follows, as it is without the wish for another protocol, which a
        server may leave unanswered (RFC 9110, 7.8). Java's client has that wish by default. b"" for CONNECT."""
        if self.scope["method"] == "CONNECT":
            return b""
        self.parser = httptools.HttpRequestParser(self)
        version = self.scope["http_version"].encode()
        lines = [b"%s %s HTTP/%s" % (self.scope["method"].encode(), self.url, version)]
        for name, value in cast(Sequence[tuple[bytes, bytes]], self.scope["headers"]):
            if name == b"connection":
                wishes = [wish.strip() for wish in value.split(b",")]
                lines.append(b"connection: " + b", ".join(wish for wish in wishes if wish.lower() not in _OF_UPGRADE))
            elif name not in _OF_UPGRADE:
                lines.append(name + b": " + value)
        return b"\r\n".join([*lines, b"", rest])

    def _refuse(self, detail: str) -> None:
        """Answers 400 and hears nothing more. Requests before this one, which came whole, get their own answers."""
        self._deaf = True
        metrics.refused("", "", Reason.REQUEST_MALFORMED).inc()
        if not self._end_with_what_came_whole():
            self.transport.write(_answer(400, b"Bad Request", Reason.REQUEST_MALFORMED, detail))
            self.transport.close()

    def _end_with_what_came_whole(self) -> bool:
        """Whether a request that came whole still waits for its answer; the connection then ends with the last such."""
        if self.pipeline and self.pipeline[0][0].more_body:
            self.pipeline.popleft()
            self.cycle = cast(RequestResponseCycle, self._before)
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is None or cycle.response_complete or cycle.more_body:
            return False
        cycle.keep_alive = False
        return True

    def look(self) -> None:
        """Ends a connection that is stuck in the same as at the last look: in waiting for a head, in an answer that
        nobody takes, or in its end; and one that was idle for too long. A request that is being answered has limits of
        its own."""
        cycle: RequestResponseCycle | None = self.cycle
        stuck_in: tuple[str, object] | None = None
        if self.transport.is_closing():
            stuck_in = ("end", None)
        elif self.flow.write_paused:
            stuck_in = ("answer", cycle)
        elif self.awaits_head:
            stuck_in = ("head", cycle)
        elif self._idle_since is not None and self.loop.time() - self._idle_since >= self.timeout_keep_alive:
            self.transport.close()
        if stuck_in is not None and stuck_in == self._stuck_in:
            metrics.CONNECTIONS_CLOSED.labels(stuck_in[0]).inc()
            self.hang_up()
            return
        self._stuck_in = stuck_in


def configured(application: Any, door: Door, **more: Any) -> uvicorn.Config:
    """How each of our servers runs: all that a stranger could use without end has its bound in `Connection`, in `door`
    or here."""
    return uvicorn.Config(
        application,
        # It would look for a coroutine function, which would be one more for each request.
        interface="asgi3",
        http=cast(Any, partial(Connection, door=door)),
        loop="uvloop",
        lifespan="on",
        ws="none",
        # It would believe X-Forwarded-For from 127.0.0.1 before our own source check could look.
        proxy_headers=False,
        server_header=False,
        access_log=False,
        log_config=None,
        # Longer than a proxy keeps its own, which would otherwise send into one that is just being closed.
        timeout_keep_alive=75,
        timeout_graceful_shutdown=4,
        **more,
    )


class Server(uvicorn.Server):
    """uvicorn ends idle connections the moment it stops, and with them the request that is just on its way: nobody
    answers it, and a proxy may not send a POST again. Where the socket stays open for the process that comes next, this
    one first goes on for a while and ends each connection with an answer that says so."""

    def __init__(self, config: uvicorn.Config, door: Door, *, socket_stays: bool) -> None:
        super().__init__(config)
        self._door = door
        self._socket_stays = socket_stays

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        service.tell("READY=1")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._socket_stays:
            await self._let_clients_leave()
        await super().shutdown(sockets)

    async def _let_clients_leave(self) -> None:
        self._door.closing = True
        connections = cast(set[Connection], self.server_state.connections)
        unaware = set(connections)
        for connection in unaware:
            connection.end_with_the_request_in_hand()
        await _until(lambda: not unaware & connections, CLIENTS_LEAVE_WITHIN)
        # From here on, who comes waits for the next process.
        for each in self.servers:
            each.close()
        await _until(lambda: not any(connection.awaits_head for connection in connections), FIRST_REQUEST_WITHIN)


async def _until(condition: Callable[[], bool], seconds: float) -> None:
    """Waits for it, and for one turn at the least, in which the event loop brings what has come already."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    await asyncio.sleep(0.05)
    while not condition() and loop.time() < deadline:
        await asyncio.sleep(0.02)


class Cycle(RequestResponseCycle):
    """One request and its answer. What is usual, a request that came whole and an answer of one piece with a length,
    takes a short way here; all else goes uvicorn's."""

    def __init__(self, connection: Connection, keep_alive: bool) -> None:
        # What uvicorn's own does, without its eleven arguments.
        self.scope = connection.scope
        self.transport = connection.transport
        self.flow = connection.flow
        self.logger = connection.logger
        self.access_logger = connection.access_logger
        self.access_log = connection.access_log
        self.default_headers = connection.server_state.default_headers
        self.message_event = _UNHEARD
        self.on_response = connection.on_response_complete
        self.disconnected = False
        self.keep_alive = keep_alive
        self.waiting_for_100_continue = connection.expect_100_continue
        self.body = cast(Any, b"")
        self.more_body = True
        self._taken = False
        """Whether the application has had all of the body."""
        self.response_started = False
        self.response_complete = False
        self.chunked_encoding = None
        self.expected_content_length = 0
        self._start: Any = None
        self._tasks = connection.tasks
        self.task: asyncio.Task[None] | None = None

    async def run_asgi(self, app: Any) -> None:
        try:
            await app(self.scope, self.receive, self.send)
        except BaseException as error:
            self.logger.error("The application failed.", exc_info=error)
        finally:
            self._tasks.discard(cast(Any, self.task))
        if not self.response_complete and not self.disconnected:
            self._start = None
            if self.response_started:
                self.transport.close()
            else:
                await self.send_500_response()
        # It holds the connection, which holds this.
        self.on_response = _nothing

    async def receive(self) -> Any:
        usual = not (self.more_body or self.disconnected or self.response_complete or self.waiting_for_100_continue)
        if self._taken or not usual:
            self._listen()
            message = await super().receive()
            self._taken = self._taken or not message.get("more_body", True)
            return message
        self._taken = True
        self.flow.resume_reading()
        # Whoever asks again waits for the end of the connection.
        self.message_event.clear()
        body, self.body = bytes(self.body), cast(Any, b"")
        return {"type": "http.request", "body": body, "more_body": False}

    def _listen(self) -> None:
        """Most requests are never waited for: the event for that is made when one is."""
        if self.message_event is _UNHEARD:
            self.message_event = asyncio.Event()
            if not self._taken and (self.body or not self.more_body):
                self.message_event.set()

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start" and not self.response_started:
            # With its body it is one write: each is a system call that wakes the client.
            self._start = message
            if self.more_body and message.get(ENDS_UNREAD):
                self.keep_alive = False
            return
        start, self._start = self._start, None
        if start is not None and not self._send_whole(start, message):
            await super().send(start)
            start = None
        if start is None:
            await super().send(message)

    def _send_whole(self, start: Any, message: Any) -> bool:
        """Whether this was the whole of an answer, which is one write then."""
        if message.get("more_body") or self.scope["method"] == "HEAD":
            return False
        if self.disconnected or self.flow.write_paused or self.access_log:
            return False
        body, headers = message.get("body", b""), (*self.default_headers, *start["headers"])
        head, self.keep_alive = _head(start["status"], headers, len(body), self.keep_alive)
        if head is None:
            return False
        self.response_started = self.response_complete = True
        self.waiting_for_100_continue = False
        self.message_event.set()
        self.transport.write(head + body)
        if not self.keep_alive:
            self.transport.close()
        self.on_response()
        return True


def _address(transport: asyncio.BaseTransport, of: str) -> tuple[str, int] | None:
    """Without an IPv6 address's flow and scope; None of a Unix socket, which has no such."""
    found = transport.get_extra_info(of)
    return (str(found[0]), int(found[1])) if isinstance(found, tuple) else None


class _Unheard(asyncio.Event):
    """The event of all requests that nobody waits for."""

    def set(self) -> None:
        """Nobody hears it."""


_UNHEARD = _Unheard()


def _nothing() -> None:
    """For an answer that is complete."""


@lru_cache(maxsize=256)
def _target(url: bytes) -> tuple[str, bytes, bytes]:
    """Path, path as sent, and query. Raises `httptools.HttpParserError`."""
    parsed = httptools.parse_url(url)
    return unquote(parsed.path.decode("ascii")), parsed.path, parsed.query or b""


@lru_cache(maxsize=256)
def _head(
    status: int, headers: tuple[tuple[bytes, bytes], ...], length: int, keep_alive: bool
) -> tuple[bytes | None, bool]:
    """The head of an answer that is whole, of which there are few, and whether the connection goes on after it. None
    for one that is not whole, or says something else of its connection. Raises `RuntimeError` for a header that would
    be more than one line."""
    keep_alive = keep_alive and _CLOSE not in headers
    given = [header for header in headers if header != _CLOSE]
    if any(name in (b"connection", b"transfer-encoding") for name, _ in given):
        return None, keep_alive
    if any(HEADER_RE.search(name) or HEADER_VALUE_RE.search(value) for name, value in given):
        raise RuntimeError("A header of the answer is none.")
    if (b"content-length", b"%d" % length) not in given:
        return None, keep_alive
    lines = [name + b": " + value for name, value in (given if keep_alive else [*given, _CLOSE])]
    return STATUS_LINE[status] + b"\r\n".join([*lines, b"", b""]), keep_alive


@lru_cache(maxsize=16)
def _answer(status: int, phrase: bytes, reason: Reason, detail: str, more: bytes = b"") -> bytes:
    body = msgspec.json.encode({"error": reason, "detail": detail})
    head = b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%sconnection: close\r\n\r\n"
    return head % (status, phrase, len(body), more) + body


_FULL = _answer(
    503,
    b"Service Unavailable",
    Reason.CONNECTIONS_FULL,
    "Too many connections are open. Send it again.",
    b"retry-after: 5\r\n",
)
