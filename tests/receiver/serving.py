"""The accept side as the tests run it: four endpoints with known secrets, and a look at what reached the queue."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis import asyncio as redis_asyncio
from rq.job import Job

from receiver import app, buckets, expected, settings
from receiver.connection import QUEUE, Serializer, connect_async
from receiver.notification import Envelope, new_id, now_us, open_batch
from receiver.settings import Settings
from receiver.signing import Seal
from tests.asgi import Application, running
from tests.servers import Valkey
from tests.support import secrets

SEAL_KEY = "seal-key-of-the-tests"
API_KEY = "api-key-of-the-tests"
BATCH_SEAL = Seal(secrets(SEAL_KEY), "batch")
EXPECTATION_SEAL = Seal(secrets(SEAL_KEY), "expectation")
QUEUE_KEY = f"rq:queue:{QUEUE}"

PATIENCE = 8.0
"""Seconds within which a sender is answered, whatever Redis does. They allow 10 s; the 2 s that we promise are those of
a machine that has nothing else to do, which no test can know."""

SENDER = "203.0.113.7"
PROXY = "10.0.0.1"

ENDPOINTS: list[dict[str, Any]] = [
    {
        "provider": "quickstream",
        "facility": "acme",
        "allowed_sources": ["203.0.113.0/24", "2001:db8::/32"],
        "username": "acme",
        "passwords": ["old:pässword", "new:pässword"],
        "supplier_business_codes": ["ACME"],
    },
    {
        "provider": "checkout",
        "facility": "main",
        "signature_keys": ["cko-old-key", "cko-new-key"],
        "authorization_keys": ["cko-static-key"],
    },
    {"provider": "debitsuccess", "facility": "gym", "event_tokens": ["event-old-token", "event-new-token"]},
    {"provider": "paymentz", "facility": "eu", "secure_keys": ["pz-old-key", "pz-new-key"]},
]


def configured(folder: Path, redis_url: str, durability: str = "strict", **receive: Any) -> Settings:
    return settings.read(
        {
            "data_dir": str(folder),
            "receive": {"trusted_proxies": [f"{PROXY}/32"], **receive},
            "queue": {"redis_url": redis_url, "durability": durability},
            "security": {"seal_keys": [SEAL_KEY], "api_keys": ["old-api-key", API_KEY]},
            "endpoint": ENDPOINTS,
        },
        folder,
    )


@contextmanager
def serving(configuration: Settings) -> Iterator[Application]:
    with running(app.build(configuration)) as application:
        yield application


def envelope(body: bytes = b"a=1", dedupe_key: str = "1", event_type: str = "payment") -> Envelope:
    received_at = now_us()
    return Envelope(
        id=new_id(received_at),
        provider="quickstream",
        facility="acme",
        received_at=received_at,
        source=SENDER,
        content_type="application/x-www-form-urlencoded",
        headers={},
        body=body,
        verified=True,
        dedupe_key=dedupe_key,
        event_type=event_type,
        fingerprint="f",
        quarantine="",
        detail="",
    )


def jobs(redis: Redis) -> list[Job]:
    """The jobs in the queue, first come first. One that is in it twice, as Redis took it and did not say so in time,
    counts once: its second run has no effect."""
    ids: Any = redis.lrange(QUEUE_KEY, 0, -1)
    return [Job.fetch(job_id.decode(), connection=redis, serializer=Serializer) for job_id in dict.fromkeys(ids)]


def batches(redis: Redis) -> list[list[Envelope]]:
    return [open_batch(job.args[0], BATCH_SEAL) for job in jobs(redis) if job.func_name == "workers.jobs.record_batch"]


def kept(redis: Redis) -> list[Envelope]:
    return [envelope for batch in batches(redis) for envelope in batch]


def be_patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine Redis, or the event loop that asks it, may be late, and Redis would count as away."""
    monkeypatch.setattr(expected, "FIND_DEADLINE", 10.0)
    monkeypatch.setattr(expected, "COUNT_DEADLINE", 10.0)
    monkeypatch.setattr(buckets, "DEADLINE", 10.0)


def with_client(
    server: Valkey, folder: Path, work: Callable[[redis_asyncio.Redis], Awaitable[None]], connections: int = 16
) -> None:
    """Runs `work` in an event loop of its own, with the client that looks up tokens and buckets."""

    async def run() -> None:
        client = connect_async(configured(folder, server.url), expected.FIND_DEADLINE, connections)
        try:
            await work(client)
        finally:
            await client.aclose()

    asyncio.run(run())


def up() -> bool:
    return True


def away() -> bool:
    return False
