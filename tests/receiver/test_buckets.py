"""Token buckets: together in Redis, alone without it, and cheap under a flood."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis
from redis import asyncio as redis_asyncio

from receiver import buckets
from receiver.buckets import Buckets, Limit, key
from tests.receiver.serving import away, be_patient, up, with_client
from tests.servers import Valkey, running_valkey

LIMIT = Limit(10, 0.001, 4)


@pytest.fixture
def server() -> Iterator[Valkey]:
    """A Valkey that the test may stop."""
    with running_valkey() as server:
        yield server


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    be_patient(monkeypatch)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def taken(bucket: Buckets, name: str = "one", limit: Limit = LIMIT, tries: int = 30) -> int:
    return sum([await bucket.take(name, limit) for _ in range(tries)])


def test_processes_share_a_bucket(redis: Redis, valkey_server: Valkey, tmp_path: Path) -> None:
    async def work(client: redis_asyncio.Redis) -> None:
        here, there = Buckets(client, up), Buckets(client, up)
        assert await taken(here, tries=4) == 4
        assert await taken(there, tries=30) == 6
        assert await taken(here, tries=30) == 0
        assert await taken(here, "another") == 10

    with_client(valkey_server, tmp_path, work)


def test_tokens_come_back_with_time_and_are_not_saved_up(redis: Redis, valkey_server: Valkey, tmp_path: Path) -> None:
    async def work(client: redis_asyncio.Redis) -> None:
        clock, limit = Clock(), Limit(10, 1.0, 4)
        bucket = Buckets(client, up, clock)

        async def after(seconds: float) -> int:
            """As if the clock of Redis, too, had gone on."""
            clock.now += seconds
            redis.hincrbyfloat(key("one"), "at", -seconds)
            return await taken(bucket, "one", limit)

        assert await taken(bucket, "one", limit) == 10
        assert await after(5) in (5, 6)
        assert await after(1000) in (10, 11)
        # Set back by an hour, it gives nothing and takes nothing away.
        clock.now += buckets.ASK_AGAIN
        redis.hincrbyfloat(key("one"), "at", 3600)
        assert await taken(bucket, "one", limit) == 0
        assert await after(3) in (3, 4)
        assert 1 <= redis.ttl(key("one")) <= 11

    with_client(valkey_server, tmp_path, work)


def test_without_redis_each_process_has_a_bucket_of_its_own(server: Valkey, tmp_path: Path) -> None:
    async def work(client: redis_asyncio.Redis) -> None:
        clock, limit = Clock(), Limit(10, 1.0, 4)
        for redis_is in (away, up):
            server.kill()
            bucket = Buckets(client, redis_is, clock)
            assert await taken(bucket, "one", limit) == 10
            clock.now += 5
            assert await taken(bucket, "one", limit) == 5
            clock.now += 1000
            assert await taken(bucket, "one", limit) == 10

    with_client(server, tmp_path, work)


def test_a_server_that_may_not_run_it_is_as_good_as_away(server: Valkey, tmp_path: Path) -> None:
    server.client().execute_command("ACL", "SETUSER", "default", "-@scripting")  # type: ignore[no-untyped-call]

    async def work(client: redis_asyncio.Redis) -> None:
        assert await taken(Buckets(client, up)) == 10

    with_client(server, tmp_path, work)


def test_a_flood_asks_redis_seldom(redis: Redis, valkey_server: Valkey, tmp_path: Path) -> None:
    def asked() -> int:
        statistics = redis.info("commandstats").get("cmdstat_eval", {})
        return int(statistics.get("calls", 0))

    async def work(client: redis_asyncio.Redis) -> None:
        clock = Clock()
        bucket, limit, before = Buckets(client, up, clock), Limit(100, 0.001, 20), asked()
        answers = await asyncio.gather(*(bucket.take("one", limit) for _ in range(5000)))
        assert sum(answers) == 100
        assert bucket.is_shut("one")
        # Five times twenty, and once to find it empty.
        assert asked() - before == 6
        clock.now += buckets.ASK_AGAIN
        assert not bucket.is_shut("one")
        assert await taken(bucket, "one", limit) == 0
        assert asked() - before == 7

    with_client(valkey_server, tmp_path, work)


def test_what_is_remembered_is_bounded(
    redis: Redis, valkey_server: Valkey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buckets, "REMEMBERED", 3)

    async def work(client: redis_asyncio.Redis) -> None:
        bucket = Buckets(client, away)
        for number in range(10):
            assert await bucket.take(f"{number}", LIMIT)
        assert list(bucket._known) == ["7", "8", "9"]

    with_client(valkey_server, tmp_path, work)
