"""Drives an ASGI application in this process: raw paths, header bytes and bodies that no HTTP client would send."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Any
from urllib.parse import unquote

from receiver.door import ENDS_UNREAD
from tests.secrecy import RECORDER

Pairs = Sequence[tuple[bytes, bytes]]


class End(Enum):
    """How a body may end without being complete."""

    SILENCE = "the rest never comes"
    HANGUP = "the client hangs up"
    UNTOUCHED = "reading it at all fails the request"


Body = bytes | Sequence[bytes | End]
"""One piece, or several; after the last piece comes an empty last one, unless an `End` takes its place."""


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Unread(AssertionError):
    """The application read a body that it had no reason to read."""


class Application:
    """A running application. `post` and `ask` wait for the answer, `begin` does not."""

    def __init__(self, app: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._app = app
        self._loop = loop

    def post(self, path: str, headers: Mapping[str, str] | Pairs = (), body: Body = b"", **more: Any) -> Answer:
        return self.ask("POST", path, headers, body, **more)

    def get(self, path: str) -> Answer:
        return self.ask("GET", path)

    def ask(self, *arguments: Any, **more: Any) -> Answer:
        answer = self.begin(*arguments, **more).result(30)
        assert answer is not None, "the application gave no answer"
        return answer

    def begin(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | Pairs = (),
        body: Body = b"",
        client: str | None = "203.0.113.7",
    ) -> Future[Answer | None]:
        """The future gives None when the application ends without an answer."""
        pairs = (
            [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
            if isinstance(headers, Mapping)
            else list(headers)
        )
        raw_path, _, query = path.encode("latin-1").partition(b"?")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": unquote(raw_path.decode("latin-1")),
            "raw_path": raw_path,
            "query_string": query,
            "root_path": "",
            "headers": pairs,
            "client": (client, 4711) if client else None,
            "server": ("127.0.0.1", 8080),
        }
        return asyncio.run_coroutine_threadsafe(_ask(self._app, scope, body), self._loop)

    def run(self, work: Callable[[], Any]) -> Any:
        """Calls `work` in the application's event loop."""

        async def call() -> Any:
            return work()

        return asyncio.run_coroutine_threadsafe(call(), self._loop).result(30)


async def _ask(app: Any, scope: dict[str, Any], body: Body) -> Answer | None:
    pieces: list[bytes | End] = [body] if isinstance(body, bytes) else [*body, b""]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        piece = pieces.pop(0) if pieces else End.HANGUP
        if isinstance(piece, bytes):
            return {"type": "http.request", "body": piece, "more_body": bool(pieces)}
        if piece is End.UNTOUCHED:
            raise Unread
        if piece is End.SILENCE:
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app(scope, receive, send)
    if not sent:
        return None
    start, *rest = sent
    assert start["type"] == "http.response.start"
    names = [name for name, _ in start["headers"]]
    assert len(set(names)) == len(names), names
    headers = {name.decode(): value.decode() for name, value in start["headers"]}
    if start.get(ENDS_UNREAD) and pieces:
        # As our server does.
        headers["connection"] = "close"
    answered = b"".join(message.get("body", b"") for message in rest)
    assert headers.get("content-length", str(len(answered))) == str(len(answered))
    assert not rest[-1].get("more_body", False)
    RECORDER.look(f"the answer to {scope['path']}", answered + repr(headers).encode())
    return Answer(start["status"], headers, answered)


@contextmanager
def running(app: Any) -> Iterator[Application]:
    """Starts `app` in an event loop of a thread of its own, and shuts it down as a server does."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="application")
    thread.start()

    async def begin() -> tuple[asyncio.Task[None], asyncio.Queue[dict[str, Any]], asyncio.Queue[dict[str, Any]]]:
        to_app: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        from_app: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        lifespan = asyncio.create_task(app({"type": "lifespan", "state": {}}, to_app.get, from_app.put))
        await to_app.put({"type": "lifespan.startup"})
        message = await from_app.get()
        assert message["type"] == "lifespan.startup.complete", message
        return lifespan, to_app, from_app

    async def end(lifespan: asyncio.Task[None], to_app: Any, from_app: Any) -> None:
        await to_app.put({"type": "lifespan.shutdown"})
        message = await from_app.get()
        assert message["type"] == "lifespan.shutdown.complete", message
        await lifespan

    async def left_over() -> None:
        # As a server that stops does with requests that hang.
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await asyncio.get_running_loop().shutdown_default_executor()

    try:
        parts = asyncio.run_coroutine_threadsafe(begin(), loop).result(30)
        yield Application(app, loop)
        asyncio.run_coroutine_threadsafe(end(*parts), loop).result(30)
    finally:
        asyncio.run_coroutine_threadsafe(left_over(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)
        loop.close()
