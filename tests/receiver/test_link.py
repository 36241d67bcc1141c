"""The kept connection: a transaction is whole or an error, and a closed connection is no fault."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import ReadOnlyError, RedisError, ResponseError
from rq import Queue

from receiver.connection import QUEUE, Serializer, connect_async
from receiver.job import RECORD_BATCH, JobTemplate, enqueue
from receiver.link import Link
from tests.receiver.serving import configured
from tests.servers import Valkey


def with_link(folder: Path, server: Valkey, scenario: Callable[[Link], Awaitable[None]], deadline: float = 5) -> None:
    async def run() -> None:
        pool = connect_async(configured(folder, server.url), deadline, 1).connection_pool
        link = Link(pool, deadline)
        try:
            await scenario(link)
        finally:
            await link.close()

    asyncio.run(run())


def test_a_transaction_gives_the_replies_of_its_commands(redis: Redis, valkey_server: Valkey, tmp_path: Path) -> None:
    async def scenario(link: Link) -> None:
        assert await link.transaction([("SET", "a", b"1"), ("INCR", "a"), ("LPUSH", "l", "x", "y")]) == [b"OK", 2, 2]
        assert await link.transaction([("GET", "a")]) == [b"2"]

    with_link(tmp_path, valkey_server, scenario)


def test_a_refused_command_names_its_own_fault_and_the_link_goes_on(
    redis: Redis, valkey_server: Valkey, tmp_path: Path
) -> None:
    async def scenario(link: Link) -> None:
        with pytest.raises(ResponseError, match="unknown command"):
            await link.transaction([("SET", "a", "1"), ("NOTHING",)])
        # Found only when it is carried out.
        with pytest.raises(ResponseError, match="wrong kind of value"):
            await link.transaction([("SET", "a", "1"), ("LPUSH", "a", "x")])
        redis.replicaof("127.0.0.1", "1")
        with pytest.raises(ReadOnlyError):
            await link.transaction([("SET", "a", "2")])
        redis.replicaof("NO", "ONE")
        assert await link.transaction([("SET", "a", "3")]) == [b"OK"]

    with_link(tmp_path, valkey_server, scenario)


def test_a_connection_that_was_closed_while_idle_is_made_again(
    redis: Redis, valkey_server: Valkey, tmp_path: Path
) -> None:
    async def scenario(link: Link) -> None:
        await link.transaction([("SET", "a", "1")])
        redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")  # type: ignore[no-untyped-call]
        assert await link.transaction([("INCR", "a")]) == [2]

    with_link(tmp_path, valkey_server, scenario)


def test_late_replies_are_not_taken_for_those_of_the_next_transaction(
    redis: Redis, valkey_server: Valkey, tmp_path: Path
) -> None:
    async def scenario(link: Link) -> None:
        await link.transaction([("SET", "a", "1")])
        redis.execute_command("CLIENT", "PAUSE", "1500", "ALL")  # type: ignore[no-untyped-call]
        with pytest.raises(TimeoutError):
            await link.transaction([("SET", "a", "late")])
        await asyncio.to_thread(redis.ping)
        assert await link.transaction([("GET", "b")]) == [None]

    with_link(tmp_path, valkey_server, scenario, deadline=0.5)


def test_a_server_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    async def run() -> None:
        settings = configured(tmp_path, f"unix://{tmp_path}/nobody.sock")
        pool = connect_async(settings, 1, 1).connection_pool
        with pytest.raises((RedisError, OSError)):
            await Link(pool, 1).transaction([("PING",)])

    asyncio.run(run())


def test_the_template_says_what_rq_says(redis: Redis) -> None:
    queue = Queue(QUEUE, connection=redis, serializer=Serializer)
    template = JobTemplate(queue, RECORD_BATCH)
    for number in range(2):
        job_id, argument = f"job-{number}", b"sealed \x00\xff" * 50
        pipeline = redis.pipeline(transaction=True)
        enqueue(queue, pipeline, RECORD_BATCH, job_id, argument, f"description {number}")
        said = [command for command, _ in pipeline.command_stack]
        ours = template.commands(job_id, argument, f"description {number}")
        assert [len(command) for command in ours] == [len(command) for command in said]
        for mine, theirs in zip(ours, said, strict=True):
            for position, (part, theirs_part) in enumerate(zip(mine, theirs, strict=True)):
                if position and theirs[position - 1] not in ("data", "created_at", "enqueued_at"):
                    assert part == theirs_part
        for command in ours:
            redis.execute_command(*command)  # type: ignore[no-untyped-call]
        job = queue.fetch_job(job_id)
        assert job is not None
        assert (job.func_name, job.args, job.kwargs) == (RECORD_BATCH, [argument], {})
        assert job.created_at == job.enqueued_at
        assert job.created_at is not None
        assert job.description == f"description {number}"
    assert queue.get_job_ids() == ["job-0", "job-1"]
