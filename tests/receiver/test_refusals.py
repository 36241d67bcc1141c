"""Refusal records: kept in a capped stream, gathered, and held back while Redis is away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from receiver import refusals as module
from receiver.connection import connect
from receiver.notification import utc
from receiver.refusals import KEEP, STREAM, Refusal, RefusalLog, listed
from tests.receiver.serving import configured
from tests.servers import Valkey, eventually, running_valkey

AT = 1_741_231_329_123_456


@pytest.fixture
def server() -> Iterator[Valkey]:
    with running_valkey() as server:
        yield server


def refusal(number: int = 0, **changes: Any) -> Refusal:
    fields: dict[str, Any] = {
        "at": AT + number,
        "provider": "quickstream",
        "facility": "acme",
        "source": "203.0.113.7",
        "reason": "credentials_refused",
        "detail": "The Authorization header does not match this endpoint.",
        "status": 403,
        "size": 356,
        "content_type": "application/x-www-form-urlencoded",
    }
    return Refusal(**{**fields, **changes})


@asynccontextmanager
async def open_log(server: Valkey, folder: Path) -> Any:
    client = connect(configured(folder, server.url))
    log = RefusalLog(client)
    log.start()
    try:
        yield log
    finally:
        await log.stop()
        client.close()


async def until(look: Any) -> None:
    await asyncio.to_thread(eventually, look)


def test_a_record_is_listed_as_it_was_given(redis: Redis, valkey_server: Valkey, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_log(valkey_server, tmp_path) as log:
            log.add(refusal(1))
            await until(lambda: redis.xlen(STREAM) == 1)
            log.add(refusal(2, provider="/notify/a?", facility="", content_type=""))

    asyncio.run(scenario())
    newest, oldest = listed(redis)
    assert oldest == {
        "at": utc(AT + 1),
        "provider": "quickstream",
        "facility": "acme",
        "source": "203.0.113.7",
        "reason": "credentials_refused",
        "detail": "The Authorization header does not match this endpoint.",
        "status": 403,
        "size": 356,
        "content_type": "application/x-www-form-urlencoded",
    }
    assert (newest["provider"], newest["facility"], newest["at"]) == ("/notify/a?", "", utc(AT + 2))
    assert [row["at"] for row in listed(redis, limit=1)] == [utc(AT + 2)]


def test_a_flood_is_written_together(
    redis: Redis, valkey_server: Valkey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes: list[int] = []
    write = RefusalLog._write

    def counting(self: RefusalLog, refusals: list[Refusal]) -> None:
        writes.append(len(refusals))
        write(self, refusals)

    monkeypatch.setattr(RefusalLog, "_write", counting)

    async def scenario() -> None:
        async with open_log(valkey_server, tmp_path) as log:
            for number in range(2500):
                log.add(refusal(number))

    asyncio.run(scenario())
    assert writes == [1000, 1000, 500]
    assert [row["at"] for row in listed(redis)] == [utc(AT + number) for number in reversed(range(2500))]


def test_while_redis_is_away_they_wait(server: Valkey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_EVERY", 0.05)

    async def scenario() -> None:
        async with open_log(server, tmp_path) as log:
            await asyncio.to_thread(server.kill)
            for number in range(3):
                log.add(refusal(number))
            await until(lambda: not log._wake.is_set())
            log.add(refusal(3))
            await asyncio.to_thread(server.start)
            client = server.client()
            await until(lambda: client.xlen(STREAM) == 4)
            assert [row["at"] for row in listed(client)] == [utc(AT + number) for number in (3, 2, 1, 0)]
            client.close()

    asyncio.run(scenario())


def test_over_the_cap_the_oldest_go(server: Valkey, tmp_path: Path) -> None:
    log = RefusalLog(connect(configured(tmp_path, server.url)))
    for number in range(KEEP + 10):
        log.add(refusal(number))
    assert [each.at - AT for each in log._waiting] == list(range(10, KEEP + 10))


def test_the_newest_are_not_dropped_for_those_that_could_not_be_written(server: Valkey, tmp_path: Path) -> None:
    async def scenario() -> None:
        client = connect(configured(tmp_path, server.url))
        log = RefusalLog(client)
        server.kill()
        for number in range(KEEP):
            log.add(refusal(number))
        flushing = asyncio.create_task(log._flush())
        await asyncio.sleep(0)
        for number in range(KEEP, KEEP + 600):
            log.add(refusal(number))
        assert await flushing is False
        assert [each.at - AT for each in log._waiting] == list(range(600, KEEP + 600))
        client.close()

    asyncio.run(scenario())


def test_the_stream_is_capped(redis: Redis, valkey_server: Valkey, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_log(valkey_server, tmp_path) as log:
            for rounds in range(3):
                for number in range(KEEP // 2):
                    log.add(refusal(rounds * KEEP // 2 + number))
                await until(lambda: not log._waiting)

    asyncio.run(scenario())
    assert KEEP <= redis.xlen(STREAM) < KEEP + 200
    assert len(listed(redis)) == KEEP
    assert listed(redis, 1)[0]["at"] == utc(AT + 3 * KEEP // 2 - 1)


def test_a_stop_writes_what_waits_and_does_not_wait_for_redis(server: Valkey, tmp_path: Path) -> None:
    async def scenario(away: bool) -> float:
        async with open_log(server, tmp_path) as log:
            if away:
                await asyncio.to_thread(server.kill)
            for number in range(1500):
                log.add(refusal(number))
            await asyncio.sleep(0)
            began = time.monotonic()
            await log.stop()
        return time.monotonic() - began

    asyncio.run(scenario(away=False))
    client = server.client()
    assert client.xlen(STREAM) == 1500
    client.close()
    assert asyncio.run(scenario(away=True)) < 3


def test_a_record_that_cannot_be_written_stops_no_other(redis: Redis, valkey_server: Valkey, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_log(valkey_server, tmp_path) as log:
            log.add(refusal(content_type="\ud800"))
            await until(lambda: not log._waiting)
            log.add(refusal(7))
            await until(lambda: redis.xlen(STREAM) == 1)

    asyncio.run(scenario())
    assert listed(redis)[0]["at"] == utc(AT + 7)
