"""What Postback is measured against: a raw ASGI function, Starlette's own hello world, and what most people write."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from redis import Redis
from rq import Queue
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route


async def raw(scope: Any, receive: Any, send: Any) -> None:
    """Reads nothing and answers 200: the limit of the server itself."""
    if scope["type"] != "http":
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


async def hello(request: Request) -> Response:
    await request.body()
    return Response(b"ok")


starlette = Starlette(routes=[Route("/notify/{provider}/{facility}", hello, methods=["POST"])])


async def enqueue_each(request: Request) -> Response:
    """The naive design: parse the form, one job per request, in a thread."""
    form = await request.form()
    job = await asyncio.to_thread(_queue().enqueue, "tests.bench.peers.store", dict(form))
    return JSONResponse({"id": job.id})


naive = Starlette(routes=[Route("/notify/{provider}/{facility}", enqueue_each, methods=["POST"])])


def _queue() -> Queue:
    global _cached
    if _cached is None:
        _cached = Queue("naive", connection=Redis.from_url(os.environ["BENCH_REDIS"]))
    return _cached


_cached: Queue | None = None


def store(fields: dict[str, str]) -> None:
    """The stock worker's job: one notification, one transaction."""
    import json

    from sqlalchemy import create_engine, text

    global _engine
    if _engine is None:
        _engine = create_engine(os.environ["BENCH_DATABASE"])
        with _engine.begin() as connection:
            connection.execute(text("CREATE TABLE IF NOT EXISTS naive (receipt VARCHAR(64) PRIMARY KEY, fields TEXT)"))
    with _engine.begin() as connection:
        connection.execute(
            text("INSERT INTO naive VALUES (:receipt, :fields) ON CONFLICT DO NOTHING"),
            {"receipt": fields["receiptNumber"], "fields": json.dumps(fields)},
        )


_engine: Any = None
