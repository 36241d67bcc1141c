"""Refusals for the console to show."""

from __future__ import annotations

import msgspec
from redis import Redis

from receiver.notification import now_us
from receiver.refusals import STREAM, Refusal


def refuse(redis: Redis, count: int) -> None:
    """Every second for its source, the others for their signature; `size` tells their order."""
    pipeline = redis.pipeline(transaction=False)
    for number in range(count):
        reason = "signature_refused" if number % 2 else "source_refused"
        one = Refusal(now_us(), "checkout", "main", "203.0.113.9", reason, "It does not fit.", 403, number, "")
        pipeline.xadd(STREAM, {"r": msgspec.msgpack.encode(one)})
    pipeline.execute()
