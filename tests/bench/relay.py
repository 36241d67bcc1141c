"""hookrelay with its Redis back end, checking the same signature: a peer that is measured where it is installed."""

from __future__ import annotations

import hmac
import os
from collections.abc import Mapping

from fastapi import FastAPI
from hookrelay.backends.redis import RedisBackend
from hookrelay.fastapi import create_webhook_router
from redis.asyncio import Redis

from tests.bench.requests import SIGNATURE_KEY


def signed(body: bytes, headers: Mapping[str, str]) -> bool:
    wanted = hmac.new(SIGNATURE_KEY.encode(), body, "sha256").hexdigest()
    return hmac.compare_digest(headers.get("cko-signature", ""), wanted)


app = FastAPI()
app.include_router(
    create_webhook_router(
        backend=RedisBackend(Redis.from_url(os.environ["BENCH_REDIS"])),
        source="checkout",
        path="/main",
        verify_signature=signed,
        idempotency_key=lambda payload: str(payload.get("id")),
    ),
    prefix="/notify/checkout",
)
