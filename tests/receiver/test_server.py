"""The server's side of a connection: an answer leaves in one piece, what is read has bounds, and so has every wait."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import uvicorn
from uvicorn.server import ServerState

from receiver import metrics, server
from receiver.door import ENDS_UNREAD, Door
from receiver.server import Connection


async def measured(scope: Any, receive: Any, send: Any) -> None:
    """Answers how long the body was."""
    size, more = 0, True
    while more:
        event = await receive()
        if event["type"] == "http.disconnect":
            return
        size, more = size + len(event.get("body", b"")), event.get("more_body", False)
    answer = str(size).encode()
    headers = [(b"content-length", str(len(answer)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


@asynccontextmanager
async def listening(
    app: Any = None,
    door: Door | None = None,
    kind: type[Connection] = Connection,
    idle: int = 60,
    host: str = "127.0.0.1",
) -> AsyncIterator[int]:
    config = uvicorn.Config(app or measured, ws="none", access_log=False, log_config=None, timeout_keep_alive=idle)
    config.load()
    state, door = ServerState(), door or Door(1000, 1000)
    loop = asyncio.get_running_loop()
    serving = await loop.create_server(lambda: kind(config, state, {}, door=door), host, 0)
    try:
        yield serving.sockets[0].getsockname()[1]
    finally:
        serving.close()
        for connection in list(state.connections):
            connection.transport.close()
        async with asyncio.timeout(20):
            while state.connections:
                await asyncio.sleep(0.001)


async def sent(port: int, *pieces: bytes) -> bytes:
    """All that comes back until the server closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with suppress(ConnectionError):
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
    answer = b""
    async with asyncio.timeout(20):
        with suppress(ConnectionError):
            while part := await reader.read(1000):
                answer += part
    await ended(writer)
    return answer


async def ended(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()


@pytest.mark.parametrize(
    "request_",
    [
        b"GET / HTTP/1.1\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 2\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 2\r\nExpect: 100-continue\r\n",
    ],
)
def test_whoever_asks_after_the_body_waits_for_the_end(request_: bytes) -> None:
    """As answers that are files or streams do: one that was told anything else asks for ever."""
    heard: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        asking = asyncio.create_task(receive())
        await asyncio.sleep(0)
        await measured(scope, _nothing_more, send)
        heard.append((await asking)["type"])

    async def look() -> bytes:
        async with listening(app) as port:
            return await sent(port, request_ + b"Host: h\r\nConnection: close\r\n\r\n" + b"ab" * (b"POST" in request_))

    answer = asyncio.run(look())
    assert answer.endswith(b"\r\n\r\n0")
    assert heard == ["http.disconnect"]


async def _nothing_more() -> Any:
    return {"type": "http.request"}


GET = b"GET / HTTP/1.1\r\nHost: h\r\n"
POST = b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n"
CLOSE = b"Connection: close\r\n\r\n"
ENDLESS = [b"a" * 10_000] * 2000


@pytest.mark.parametrize(
    "beginning",
    [
        pytest.param(b"GET /", id="path"),
        pytest.param(GET + b"X-One: ", id="one header"),
        pytest.param(POST + b"\r\n1\r\nx\r\n0\r\nX-One: ", id="a header behind the body"),
    ],
)
def test_what_never_ends_is_not_kept(beginning: bytes) -> None:
    async def scenario() -> int:
        taken = 0
        async with listening() as port:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            with suppress(ConnectionError):
                async with asyncio.timeout(20):
                    for piece in [beginning, *ENDLESS]:
                        writer.write(piece)
                        await writer.drain()
                        taken += len(piece)
            await ended(writer)
        return taken

    # The rest of what was taken lies in the sockets.
    assert asyncio.run(scenario()) < 20_000_000


def test_small_pieces_of_a_body_and_requests_that_come_together_are_no_large_head() -> None:
    async def scenario() -> tuple[bytes, bytes]:
        async with listening() as port:
            pieces = [b"1\r\nx\r\n" * 1000] * 100
            chunked = await sent(port, POST + CLOSE, *pieces, b"0\r\n\r\n")
            padded = GET + b"X-Padding: " + b"a" * 4000 + b"\r\n"
            together = await sent(port, (padded + b"\r\n") * server.MOST_WAITING + padded + CLOSE)
            return chunked, together

    chunked, together = asyncio.run(scenario())
    assert chunked.endswith(b"\r\n\r\n100000")
    assert together.count(b"200 OK") == server.MOST_WAITING + 1


@pytest.mark.parametrize("request_", [GET + b"\r\n", POST + b"\r\n1\r\nx\r\n0\r\n\r\n"], ids=["GET", "POST"])
def test_too_many_requests_in_one_piece_end_with_the_last_that_is_answered(request_: bytes) -> None:
    async def scenario() -> bytes:
        async with listening() as port:
            return await sent(port, request_ * 1000)

    head, *answers = asyncio.run(scenario()).split(b"HTTP/1.1 200 OK\r\n")
    assert (head, len(answers)) == (b"", server.MOST_WAITING + 1)
    assert [b"connection: close" in answer for answer in answers] == [False] * server.MOST_WAITING + [True]


def answering(*messages: dict[str, Any], fault: Exception | None = None) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        for message in messages:
            await send(message)
        if fault:
            raise fault

    return app


def begun(*headers: tuple[bytes, bytes], status: int = 200) -> dict[str, Any]:
    return {"type": "http.response.start", "status": status, "headers": list(headers)}


def piece(body: bytes, *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": more}


def test_nobody_is_asked_for_a_body_after_the_answer() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await measured(scope, _nothing_more, send)
        await receive()

    async def scenario() -> bytes:
        async with listening(app) as port:
            return await sent(port, GET + b"Expect: 100-continue\r\n\r\n" + GET + CLOSE)

    answer = asyncio.run(scenario())
    assert answer.count(b"200 OK") == 2
    assert b"100 Continue" not in answer


LENGTH = (b"content-length", b"4")


@pytest.mark.parametrize(
    ("request_", "messages", "head", "rest"),
    [
        pytest.param(
            GET + b"\r\n" + GET + CLOSE, (begun(LENGTH), piece(b"word")), b"HTTP/1.1 200 OK", b"word", id="usual"
        ),
        pytest.param(
            b"HEAD / HTTP/1.1\r\nHost: h\r\n" + CLOSE, (begun(LENGTH), piece(b"word")), b"200 OK", b"", id="HEAD"
        ),
        pytest.param(
            b"GET / HTTP/1.0\r\n\r\n", (begun(LENGTH), piece(b"word")), b"connection: close", b"word", id="1.0"
        ),
        pytest.param(GET + CLOSE, (begun(), piece(b"word")), b"chunked", b"4\r\nword\r\n0\r\n\r\n", id="no length"),
        pytest.param(
            GET + CLOSE, (begun(LENGTH), piece(b"wo", more=True), piece(b"rd")), b"200 OK", b"word", id="pieces"
        ),
        pytest.param(
            GET + b"\r\n",
            (begun(LENGTH, (b"connection", b"close")), piece(b"word")),
            b"connection: close",
            b"word",
            id="close",
        ),
        pytest.param(
            GET + b"Expect: 100-continue\r\n" + CLOSE,
            (begun(LENGTH), piece(b"word")),
            b"100 Continue",
            b"word",
            id="expect",
        ),
    ],
)
def test_answers_of_all_shapes(request_: bytes, messages: Any, head: bytes, rest: bytes) -> None:
    async def scenario() -> bytes:
        async with listening(answering(*messages)) as port:
            return await sent(port, request_)

    answer = asyncio.run(scenario())
    assert head in answer
    assert answer.endswith(b"\r\n\r\n" + rest)


@pytest.mark.parametrize("length", ["Content-Length: 4\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n4\r\n"])
@pytest.mark.parametrize("method", ["POST", "HEAD"])
def test_only_what_came_whole_leaves_the_connection_open_unread(method: str, length: str) -> None:
    async def unread(scope: Any, receive: Any, send: Any) -> None:
        await send(begun(LENGTH, status=403) | {ENDS_UNREAD: True})
        await send(piece(b"word"))

    request = f"{method} / HTTP/1.1\r\nHost: h\r\n{length}body".encode()
    end = b"\r\n0\r\n\r\n" if "chunked" in length else b""

    async def scenario() -> tuple[bytes, bytes]:
        async with listening(unread) as port:
            return await sent(port, request + end + GET + CLOSE), await sent(port, request[:-1])

    whole, cut = asyncio.run(scenario())
    assert whole.count(b"HTTP/1.1 403") == 2
    assert cut.count(b"HTTP/1.1 403") == 1


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_both_ends_of_a_connection_are_known(host: str) -> None:
    ends: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        ends.append((scope["client"], scope["server"], scope["scheme"]))
        await measured(scope, receive, send)

    async def scenario() -> tuple[Any, ...]:
        async with listening(app, host=host) as port:
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(GET + CLOSE)
            await reader.read()
            ours = writer.get_extra_info("sockname")[:2], writer.get_extra_info("peername")[:2]
            await ended(writer)
            return (*ours, "http")

    assert [asyncio.run(scenario())] == ends


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        pytest.param((), b"HTTP/1.1 500 ", id="nothing was sent"),
        pytest.param((begun(LENGTH),), b"HTTP/1.1 500 ", id="only the start"),
        pytest.param((begun(LENGTH), piece(b"wo", more=True)), b"HTTP/1.1 200 OK", id="a part of the body"),
        pytest.param(
            (begun((b"x-a", b"1\r\nx-b: 2"), LENGTH), piece(b"word")), b"HTTP/1.1 500 ", id="a header that is two"
        ),
        pytest.param((begun(LENGTH), piece(b"words")), b"HTTP/1.1 200 OK", id="more than it said"),
    ],
)
@pytest.mark.parametrize("fault", [None, RuntimeError("broken")])
def test_an_application_that_fails_ends_the_connection(messages: Any, expected: bytes, fault: Exception | None) -> None:
    async def scenario() -> bytes:
        async with listening(answering(*messages, fault=fault)) as port:
            return await sent(port, GET + b"\r\n")

    answer = asyncio.run(scenario())
    assert answer.startswith(expected)
    assert answer.count(b"HTTP/1.1") == 1


def test_an_answer_is_one_write() -> None:
    writes: list[bytes] = []

    class Wire(asyncio.Transport):
        def __init__(self, transport: asyncio.Transport) -> None:
            self._transport = transport

        def write(self, data: Any) -> None:
            writes.append(bytes(data))
            self._transport.write(data)

        def __getattribute__(self, name: str) -> Any:
            own = name in ("write", "_transport")
            return object.__getattribute__(self, name) if own else getattr(self._transport, name)

    class Watched(Connection):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(Wire(cast(asyncio.Transport, transport)))

    async def scenario() -> None:
        async with listening(kind=Watched) as port:
            await sent(port, GET + b"\r\n" + GET + b"\r\n" + GET + CLOSE)

    asyncio.run(scenario())
    assert len(writes) == 3
    assert all(write.startswith(b"HTTP/1.1 200 OK\r\n") and write.endswith(b"\r\n\r\n0") for write in writes)
    assert [b"connection: close" in write for write in writes] == [False, False, True]


def test_a_connection_that_is_idle_for_too_long_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEAD_WITHIN", 0.02)

    async def scenario() -> bytes:
        async with listening(idle=0) as port:
            return await sent(port, GET + b"\r\n")

    assert asyncio.run(scenario()).endswith(b"\r\n\r\n0")


def test_a_head_that_does_not_come_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEAD_WITHIN", 0.05)

    async def scenario() -> tuple[list[bytes], bytes]:
        async with listening() as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(GET + b"\r\n")
            await reader.readuntil(b"\r\n\r\n0")
            cut = [await sent(port), await sent(port, GET)]
            # The one that waits between two requests is still there.
            writer.write(GET + CLOSE)
            answer = await reader.read()
            await ended(writer)
            return cut, answer

    closed = metrics.CONNECTIONS_CLOSED.labels("head")
    before = closed._value.get()
    cut, answer = asyncio.run(scenario())
    assert cut == [b"", b""]
    assert closed._value.get() == before + 2
    assert answer.startswith(b"HTTP/1.1 200 OK")


def test_a_head_that_comes_a_byte_at_a_time_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEAD_WITHIN", 0.05)

    async def scenario() -> int:
        async with listening() as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            taken = 0
            async with asyncio.timeout(20):
                with suppress(ConnectionError):
                    for byte in GET + b"X-One: " + b"a" * 100_000:
                        writer.write(bytes([byte]))
                        await writer.drain()
                        taken += 1
                        with suppress(TimeoutError):
                            # The server's word that it has ended.
                            await asyncio.wait_for(reader.read(1), 0.01)
                            break
            await ended(writer)
            return taken

    assert asyncio.run(scenario()) < 10_000


def test_an_answer_that_nobody_takes_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEAD_WITHIN", 0.05)

    async def large(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(1000):
            await send({"type": "http.response.body", "body": b"a" * 100_000, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def scenario() -> None:
        door = Door(10, 10)
        async with listening(large, door) as port:
            with socket.create_connection(("127.0.0.1", port)) as silent:
                silent.sendall(GET + b"\r\n")
                async with asyncio.timeout(20):
                    while not door._inside:
                        await asyncio.sleep(0.001)
                    while door._inside:
                        await asyncio.sleep(0.001)

    asyncio.run(scenario())


def test_a_full_house_answers_503() -> None:
    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.Event().wait()

    async def scenario() -> bytes:
        async with listening(slow, Door(1, 1)) as port:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(GET + b"\r\n")
            await writer.drain()
            answer = b""
            async with asyncio.timeout(20):
                while not answer:
                    # Until its request was read, the first one gives way.
                    answer = await sent(port)
            await ended(writer)
            return answer

    answer = asyncio.run(scenario())
    assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    assert b"retry-after: 5\r\n" in answer
    assert b'"error":"connections_full"' in answer


def test_what_uvicorn_does_by_itself_is_bounded_for_both_servers() -> None:
    door = Door(10, 10)
    config = server.configured(measured, door)
    config.load()
    # What a proxy says is for our own check, and no other protocol is spoken.
    assert (config.proxy_headers, config.ws_protocol_class) == (False, None)
    assert (config.server_header, config.access_log, config.timeout_graceful_shutdown) == (False, False, 4)

    async def made() -> Connection:
        of_config: Any = config.http_protocol_class
        connection: Connection = of_config(config, ServerState(), {})
        return connection

    connection = asyncio.run(made())
    assert connection._door is door
    assert connection.timeout_keep_alive == 75
    for role in ("processes.py", "console.py"):
        text = (Path(server.__file__).parents[1] / "workers" / "cli" / role).read_text()
        assert "configured(application, door" in text
        assert "uvicorn.Config(" not in text


def test_one_process_of_several_never_says_that_all_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "manager"))
    door = Door(10, 10)
    config = uvicorn.Config(
        measured, http=cast(Any, partial(Connection, door=door)), lifespan="off", log_config=None, port=0
    )
    stopped_at_once = server.Server(config, door, socket_stays=False)
    stopped_at_once.should_exit = True
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "manager"))
        manager.setblocking(False)
        asyncio.run(stopped_at_once.serve())
        assert manager.recv(100) == b"READY=1"
        with pytest.raises(BlockingIOError):
            manager.recv(100)
