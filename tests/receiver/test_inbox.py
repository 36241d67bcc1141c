"""Step 7, commit: when `commit` returns, the envelope is on a disk, in Redis or in the spool; and it always returns."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from redis import Redis
from redis.exceptions import ReadOnlyError, RedisError

from receiver import inbox as module
from receiver import job
from receiver.connection import PROBE
from receiver.errors import NotStored
from receiver.inbox import Batch, Inbox, Turn
from receiver.link import Link
from receiver.notification import Envelope, open_batch
from receiver.signing import Seal
from receiver.spool import Spool
from tests.receiver.serving import BATCH_SEAL, PATIENCE, QUEUE_KEY, batches, configured, envelope, jobs, kept
from tests.servers import SERVERS, Valkey, eventually, free_port, running_valkey
from tests.support import secrets

Scenario = Callable[[], Coroutine[Any, Any, None]]


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> Iterator[Valkey]:
    """A Valkey that the test may stop, kill or spoil."""
    with running_valkey(request.param) as server:
        yield server


@asynccontextmanager
async def open_inbox(folder: Path, server: Valkey, durability: str = "strict", **receive: Any) -> AsyncIterator[Inbox]:
    inbox = Inbox(configured(folder, server.url, durability, **receive), BATCH_SEAL)
    await inbox.start()
    try:
        yield inbox
    finally:
        await inbox.stop()


async def until(look: Callable[[], object], what: str) -> None:
    await asyncio.to_thread(eventually, look, 20, what)


async def commit_in_time(inbox: Inbox, *envelopes: Envelope) -> None:
    """Commits all at once, each within the promise."""
    began = time.monotonic()
    await asyncio.gather(*(inbox.commit(envelope) for envelope in envelopes))
    assert time.monotonic() - began < PATIENCE


async def stored(inbox: Inbox, each: Envelope) -> bool:
    try:
        await inbox.commit(each)
    except NotStored:
        return False
    return True


def numbered(count: int, first: int = 0) -> list[Envelope]:
    return [envelope(b"n=%d" % number, str(number)) for number in range(first, first + count)]


def keys(envelopes: list[Envelope]) -> list[str]:
    return [each.dedupe_key for each in envelopes]


def test_one_envelope_is_one_job(redis: Redis, valkey_server: Valkey, tmp_path: Path) -> None:
    given = envelope(b"\x00\xff not text", "r-1")

    async def scenario() -> None:
        async with open_inbox(tmp_path, valkey_server) as inbox:
            assert (inbox.fault, inbox.redis_up, inbox.spooled, inbox.not_durable) == (None, True, 0, False)
            await inbox.commit(given)

    asyncio.run(scenario())
    (job,) = jobs(redis)
    assert open_batch(job.args[0], BATCH_SEAL) == [given]
    assert (job.func_name, job.kwargs, job.description) == (
        "workers.jobs.record_batch",
        {},
        "1 notification: quickstream/acme 1",
    )
    assert (job.timeout, job.result_ttl, job.failure_ttl, job.retries_left) == (60, 1, -1, 10_000)
    assert job.origin == "notifications"


def test_what_waits_at_the_same_moment_is_one_batch_in_order(
    redis: Redis, valkey_server: Valkey, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with open_inbox(tmp_path, valkey_server) as inbox:
            await asyncio.gather(*(inbox.commit(each) for each in numbered(1200)))

    asyncio.run(scenario())
    # Two commits may be under way at once: each batch keeps its order, they among themselves do not.
    found = sorted(batches(redis), key=lambda batch: int(batch[0].dedupe_key))
    assert [len(batch) for batch in found] == [512, 512, 176]
    assert [key for batch in found for key in keys(batch)] == [str(number) for number in range(1200)]
    assert {job.description for job in jobs(redis)} == {
        f"{count} notifications: quickstream/acme {count}" for count in (512, 176)
    }


def test_a_batch_has_at_most_4_mib(redis: Redis, valkey_server: Valkey, tmp_path: Path) -> None:
    sizes = [1 << 20, 1 << 20, 1 << 20, 1 << 20, 1, 3 << 20, (1 << 20) + 1, 4 << 20, 4 << 20, 1, 1]
    given = [envelope(b"x" * size, str(number)) for number, size in enumerate(sizes)]

    async def scenario() -> None:
        async with open_inbox(tmp_path, valkey_server) as inbox:
            await asyncio.gather(*(inbox.commit(each) for each in given))

    asyncio.run(scenario())
    # Two commits may be under way at once, so the batches have no order among themselves.
    assert sorted([len(each.body) for each in batch] for batch in batches(redis)) == sorted(
        [sizes[0:4], sizes[4:6], sizes[6:7], sizes[7:8], sizes[8:9], sizes[9:11]]
    )


async def by_thread(batch: Batch, link: Link) -> bool:
    """Sends every batch the way that it goes while something is wrong."""
    return False


def test_while_a_commit_is_in_flight_the_next_gather(
    redis: Redis, valkey_server: Valkey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with open_inbox(tmp_path, valkey_server) as inbox:
            gate, entered, write = threading.Event(), threading.Event(), inbox._write

            def slowly(batch: Batch) -> None:
                entered.set()
                assert gate.wait(10)
                write(batch)

            monkeypatch.setattr(inbox, "_enqueued", by_thread)
            monkeypatch.setattr(inbox, "_write", slowly)
            waiting = [asyncio.create_task(inbox.commit(each)) for each in numbered(1)]
            await asyncio.to_thread(entered.wait, 10)
            few = module.OVERLAP_FROM - 1
            waiting += [asyncio.create_task(inbox.commit(each)) for each in numbered(few, 1)]
            await asyncio.sleep(0)
            assert not any(task.done() for task in waiting)
            assert len(inbox._committing) == 1
            gate.set()
            await asyncio.gather(*waiting)

    asyncio.run(scenario())
    assert [len(batch) for batch in batches(redis)] == [1, module.OVERLAP_FROM - 1]


def test_a_second_commit_begins_beside_the_first_when_many_wait(
    redis: Redis, valkey_server: Valkey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with open_inbox(tmp_path, valkey_server) as inbox:
            gate, entered, enqueued = asyncio.Event(), asyncio.Event(), inbox._enqueued

            async def slowly(batch: Batch, link: Link) -> bool:
                entered.set()
                if batch.description.startswith("1 "):
                    await gate.wait()
                return await enqueued(batch, link)

            monkeypatch.setattr(inbox, "_enqueued", slowly)
            first = asyncio.create_task(inbox.commit(envelope(b"n=0", "0")))
            await entered.wait()
            await asyncio.gather(*(inbox.commit(each) for each in numbered(module.OVERLAP_FROM, 1)))
            assert not first.done()
            gate.set()
            await first

    asyncio.run(scenario())
    assert sorted(len(batch) for batch in batches(redis)) == [1, module.OVERLAP_FROM]


def test_what_comes_in_the_same_turn_goes_with_the_next_batch(
    valkey_server: Valkey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> list[str]:
        said: list[str] = []
        async with open_inbox(tmp_path, valkey_server) as inbox:
            gate = asyncio.Event()

            async def noted(batch: Batch, link: Link) -> bool:
                said.append(batch.description.partition(" ")[0])
                return await gate.wait()

            monkeypatch.setattr(inbox, "_enqueued", noted)
            waiting = [asyncio.create_task(inbox.commit(envelope()))]
            while not said:
                await asyncio.sleep(0)
            waiting.append(asyncio.create_task(inbox.commit(envelope())))
            await asyncio.sleep(0)
            # The end of the first commit, and behind it two more requests.
            gate.set()
            waiting += [asyncio.create_task(inbox.commit(envelope())) for _ in range(2)]
            await asyncio.gather(*waiting)
        return said

    assert asyncio.run(scenario()) == ["1", "3"]


def test_a_long_queue_makes_larger_batches(redis: Redis, valkey_server: Valkey, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_inbox(tmp_path, valkey_server) as inbox:
            inbox._queue_length = module.LINGER_FROM + 1
            first = [asyncio.create_task(inbox.commit(envelope())) for _ in range(2)]
            # A turn of the loop later an idle process would have taken the first two alone.
            for _ in range(3):
                await asyncio.sleep(0)
            await asyncio.gather(*first, inbox.commit(envelope()))
            # One alone waits for nobody.
            inbox._queue_length = module.LINGER_FROM + 1
            await inbox.commit(envelope())

    asyncio.run(scenario())
    assert [len(batch) for batch in batches(redis)] == [3, 1]


def test_a_worker_with_another_seal_key_cannot_open_it(redis: Redis, valkey_server: Valkey, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_inbox(tmp_path, valkey_server) as inbox:
            await inbox.commit(envelope())

    asyncio.run(scenario())
    with pytest.raises(Exception, match="The seal fits none of the keys"):
        open_batch(jobs(redis)[0].args[0], Seal(secrets("another"), "batch"))


def kill(server: Valkey) -> None:
    server.kill()


def revive(server: Valkey) -> None:
    server.start()


def pause(server: Valkey) -> None:
    assert server.process is not None
    server.process.send_signal(signal.SIGSTOP)


def resume(server: Valkey) -> None:
    assert server.process is not None
    server.process.send_signal(signal.SIGCONT)


def admin(*command: str) -> Callable[[Valkey], None]:
    def run(server: Valkey) -> None:
        client = server.client()
        client.execute_command(*command)  # type: ignore[no-untyped-call]
        client.close()

    return run


def lock_out(server: Valkey) -> None:
    admin("CONFIG", "SET", "requirepass", "secret")(server)
    # Who is connected already stays known.
    client = Redis.from_url(f"{server.url}?password=secret")
    client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")  # type: ignore[no-untyped-call]
    client.close()


def let_in(server: Valkey) -> None:
    client = Redis.from_url(f"{server.url}?password=secret")
    client.config_set("requirepass", "")
    client.close()


OUTAGES = {
    "killed": (kill, revive, "TimeoutError|ConnectionError"),
    "paused": (pause, resume, "TimeoutError"),
    "out of memory": (
        admin("CONFIG", "SET", "maxmemory", "1"),
        admin("CONFIG", "SET", "maxmemory", "0"),
        "OutOfMemoryError",
    ),
    "a replica": (
        admin("REPLICAOF", "127.0.0.1", "1"),
        admin("REPLICAOF", "NO", "ONE"),
        "ReadOnlyError",
    ),
    "wrong password": (lock_out, let_in, "AuthenticationError"),
    "frozen writes": (
        admin("CLIENT", "PAUSE", "60000", "WRITE"),
        admin("CLIENT", "UNPAUSE"),
        "TimeoutError",
    ),
}


@pytest.mark.parametrize("outage", OUTAGES)
def test_an_outage_is_spooled_and_drained_in_order(server: Valkey, tmp_path: Path, outage: str) -> None:
    spoil, mend, fault = OUTAGES[outage]

    async def scenario() -> None:
        async with open_inbox(tmp_path, server) as inbox:
            await commit_in_time(inbox, *numbered(3))
            await asyncio.to_thread(spoil, server)
            # Not all at once, so that there are several batches.
            await commit_in_time(inbox, *numbered(10, 3))
            for number in range(13, 18):
                await commit_in_time(inbox, *numbered(1, number))
            await until(lambda: inbox.spooled == 6, "the spool")
            assert inbox.fault is not None
            assert inbox.fault.startswith("Redis does not")
            assert inbox.fault.split()[-1].rstrip(".") in fault.split("|") or outage == "wrong password"
            assert (inbox.redis_up, inbox.not_durable, inbox.spool_fault) == (False, False, None)
            await asyncio.to_thread(mend, server)
            await until(lambda: inbox.redis_up and inbox.spooled == 0, "a drained spool")
            await commit_in_time(inbox, *numbered(1, 18))

    asyncio.run(scenario())
    client = server.client()
    assert keys(kept(client)) == [str(number) for number in range(19)]
    assert [len(batch) for batch in batches(client)] == [3, 10, 1, 1, 1, 1, 1, 1]
    client.close()


@pytest.mark.parametrize("outage", OUTAGES)
def test_it_starts_during_an_outage(server: Valkey, tmp_path: Path, outage: str) -> None:
    spoil, mend, _ = OUTAGES[outage]

    async def scenario() -> None:
        await asyncio.to_thread(spoil, server)
        async with open_inbox(tmp_path, server) as inbox:
            assert inbox.fault is not None
            await commit_in_time(inbox, *numbered(3))
            assert inbox.spooled == 1
            await asyncio.to_thread(mend, server)
            await until(lambda: inbox.redis_up and inbox.spooled == 0, "a drained spool")

    asyncio.run(scenario())
    client = server.client()
    assert keys(kept(client)) == ["0", "1", "2"]
    client.close()


def test_what_was_spooled_before_a_stop_is_drained_after_the_next_start(server: Valkey, tmp_path: Path) -> None:
    async def spool() -> None:
        async with open_inbox(tmp_path, server) as inbox:
            for number in range(5):
                await commit_in_time(inbox, *numbered(1, number))

    async def drain() -> None:
        async with open_inbox(tmp_path, server) as inbox:
            assert (inbox.fault, inbox.spooled) == (None, 0), "the first look drains already"

    server.kill()
    asyncio.run(spool())
    server.start()
    asyncio.run(drain())
    client = server.client()
    assert keys(kept(client)) == [str(number) for number in range(5)]
    client.close()


def test_a_server_that_is_slow_but_in_time_is_used(server: Valkey, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_inbox(tmp_path, server) as inbox:
            admin("CLIENT", "PAUSE", "500", "WRITE")(server)
            began = time.monotonic()
            await inbox.commit(envelope())
            assert 0.3 < time.monotonic() - began < PATIENCE
            assert (inbox.fault, inbox.spooled) == (None, 0)

    asyncio.run(scenario())
    client = server.client()
    assert len(kept(client)) == 1
    client.close()


def test_a_full_spool_is_not_stored_and_room_is_used_again(server: Valkey, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_inbox(tmp_path, server, max_spool="128KiB") as inbox:
            await asyncio.to_thread(server.kill)
            taken = 0
            while await stored(inbox, envelope(b"x" * 20_000, str(taken))):
                taken += 1
            assert 2 <= taken <= 6
            assert inbox.spool_fault is not None
            # Those that wait together fail together, each with an answer.
            assert await asyncio.gather(*(stored(inbox, envelope(b"x" * 20_000)) for _ in range(10))) == [False] * 10
            await asyncio.to_thread(server.start)
            await until(lambda: inbox.redis_up and inbox.spooled == 0 and inbox.spool_fault is None, "recovery")
            client = server.client()
            assert keys(kept(client)) == [str(number) for number in range(taken)]
            client.close()
            await asyncio.to_thread(server.kill)
            await commit_in_time(inbox, envelope(b"x" * 20_000, "again"))

    asyncio.run(scenario())


def test_an_envelope_that_cannot_be_written_fails_alone(redis: Redis, valkey_server: Valkey, tmp_path: Path) -> None:
    poison = envelope(b"poison", "half a surrogate pair: \ud800")

    async def scenario() -> None:
        async with open_inbox(tmp_path, valkey_server) as inbox:
            given = [*numbered(5), poison, *numbered(5, 5)]
            outcomes = await asyncio.gather(*(inbox.commit(each) for each in given), return_exceptions=True)
            assert [type(outcome) for outcome in outcomes] == [*[type(None)] * 5, NotStored, *[type(None)] * 5]
            assert (inbox.fault, inbox.spooled) == (None, 0), "that is no fault of Redis"
            with pytest.raises(NotStored, match="The commit failed"):
                await inbox.commit(poison)
            await inbox.commit(envelope(dedupe_key="10"))

    asyncio.run(scenario())
    assert keys(kept(redis)) == [str(number) for number in range(11)]


def test_an_unexpected_error_of_the_client_library_is_spooled(
    redis: Redis, valkey_server: Valkey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with open_inbox(tmp_path, valkey_server) as inbox:

            def enqueue(*arguments: Any) -> None:
                raise AttributeError("an error of RQ")

            with monkeypatch.context() as broken:
                broken.setattr(module, "enqueue", enqueue)
                broken.setattr(job, "enqueue", enqueue)
                await commit_in_time(inbox, envelope(dedupe_key="1"))
                assert (inbox.spooled, inbox.fault) == (1, "Redis does not take batches: AttributeError.")
                await until(
                    lambda: inbox.fault == "Redis does not answer as it should: AttributeError.", "the drainer's look"
                )
            await until(lambda: inbox.redis_up and inbox.spooled == 0, "a drained spool")

    asyncio.run(scenario())
    assert keys(kept(redis)) == ["1"]


def test_a_request_that_is_cancelled_disturbs_nobody(redis: Redis, valkey_server: Valkey, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_inbox(tmp_path, valkey_server) as inbox:
            tasks = [asyncio.create_task(inbox.commit(each)) for each in numbered(10)]
            await asyncio.sleep(0)
            for task in tasks[::2]:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            assert [type(outcome) for outcome in outcomes] == [asyncio.CancelledError, type(None)] * 5
            await inbox.commit(envelope(dedupe_key="10"))

    asyncio.run(scenario())
    # Kept although nobody waits: the sender was not answered and sends again, which is no second effect.
    assert keys(kept(redis)) == [str(number) for number in range(11)]


def test_nobody_is_left_waiting_when_the_commit_itself_is_cancelled(
    valkey_server: Valkey, redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with open_inbox(tmp_path, valkey_server) as inbox:
            gate = threading.Event()
            with monkeypatch.context() as slow:
                slow.setattr(inbox, "_enqueued", by_thread)
                slow.setattr(inbox, "_write", lambda batch: gate.wait(10))
                tasks = [asyncio.create_task(inbox.commit(each)) for each in numbered(1200)]
                await until(lambda: len(inbox._committing) == 2 and len(inbox._pending) == 176, "two commits")
                for committing in inbox._committing:
                    committing.cancel()
                outcomes = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
                gate.set()
            assert {str(outcome) for outcome in outcomes} == {"not_stored: The commit was cancelled."}
            await inbox.commit(envelope())

    asyncio.run(scenario())
    assert len(kept(redis)) == 1


def test_nobody_is_left_waiting_when_the_threads_are_gone(valkey_server: Valkey, redis: Redis, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_inbox(tmp_path, valkey_server) as inbox:
            inbox._writer.shutdown()
            inbox.fault = "Redis is away."
            outcomes = await asyncio.wait_for(
                asyncio.gather(*(inbox.commit(each) for each in numbered(3)), return_exceptions=True), 5
            )
            assert [str(outcome) for outcome in outcomes] == ["not_stored: The commit failed."] * 3

    asyncio.run(scenario())


def test_stopping_loses_nothing_and_takes_nothing_more(redis: Redis, valkey_server: Valkey, tmp_path: Path) -> None:
    async def scenario() -> None:
        inbox = Inbox(configured(tmp_path, valkey_server.url), BATCH_SEAL)
        await inbox.start()
        tasks = [asyncio.create_task(inbox.commit(each)) for each in numbered(1500)]
        await asyncio.sleep(0)
        await inbox.stop()
        assert await asyncio.gather(*tasks) == [None] * 1500
        with pytest.raises(NotStored, match="The receiver stops"):
            await inbox.commit(envelope())

    asyncio.run(scenario())
    assert len(kept(redis)) == 1500


def test_stopping_during_an_outage_is_quick_and_keeps_the_spool(server: Valkey, tmp_path: Path) -> None:
    async def scenario() -> None:
        inbox = Inbox(configured(tmp_path, server.url), BATCH_SEAL)
        await inbox.start()
        pause(server)
        tasks = [asyncio.create_task(inbox.commit(each)) for each in numbered(10)]
        await asyncio.sleep(0)
        began = time.monotonic()
        await inbox.stop()
        assert time.monotonic() - began < 3
        assert await asyncio.gather(*tasks) == [None] * 10
        resume(server)
        async with open_inbox(tmp_path, server) as next_one:
            assert next_one.spooled == 0

    asyncio.run(scenario())
    client = server.client()
    assert keys(kept(client)) == [str(number) for number in range(10)]
    client.close()


def test_a_stop_does_not_wait_for_a_long_spool(redis: Redis, valkey_server: Valkey, tmp_path: Path) -> None:
    async def scenario() -> None:
        inbox = Inbox(configured(tmp_path, valkey_server.url), BATCH_SEAL)
        for number in range(300):
            inbox._spool.add(f"{number:032x}", b"sealed", "")
        enqueue, moved = inbox._enqueue, []

        def enqueue_then_stop(batches: Any) -> None:
            enqueue(batches)
            moved.append(len(batches))
            inbox._stopping = True

        inbox._enqueue = enqueue_then_stop  # type: ignore[method-assign, assignment]
        await inbox.start()
        assert (moved, inbox.spooled) == ([64], 236)
        await inbox.stop()

    asyncio.run(scenario())


def test_a_configuration_that_is_not_durable_any_more_is_noticed(server: Valkey, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_inbox(tmp_path, server) as inbox:
            await commit_in_time(inbox, *numbered(1))
            admin("CONFIG", "SET", "appendfsync", "everysec")(server)
            await until(lambda: inbox.not_durable, "the look")
            assert inbox.fault == (
                "Redis is not durable: appendfsync is not always, so the answer comes before the fsync."
            )
            await commit_in_time(inbox, *numbered(1, 1))
            assert inbox.spooled == 1
            # Away is something else, and the spool is honest then.
            await asyncio.to_thread(server.kill)
            await until(lambda: not inbox.not_durable, "the look")
            assert inbox.redis_up is False
            await asyncio.to_thread(server.start)
            await until(lambda: inbox.redis_up and inbox.spooled == 0, "a drained spool")

    asyncio.run(scenario())
    client = server.client()
    assert keys(kept(client)) == ["0", "1"]
    client.close()


def test_relaxed_uses_what_is_not_durable(server: Valkey, tmp_path: Path) -> None:
    async def scenario() -> None:
        admin("CONFIG", "SET", "appendonly", "no")(server)
        async with open_inbox(tmp_path, server, "relaxed") as inbox:
            await commit_in_time(inbox, envelope())
            assert (inbox.fault, inbox.not_durable, inbox.spooled) == (None, False, 0)

    asyncio.run(scenario())
    client = server.client()
    assert len(kept(client)) == 1
    client.close()


@pytest.mark.parametrize("server", ["valkey"], indirect=True)
def test_where_config_is_not_allowed_each_commit_is_confirmed(server: Valkey, tmp_path: Path) -> None:
    admin("ACL", "SETUSER", "app", "on", ">pw", "~*", "&*", "+@all", "-config")(server)
    address = server.url.replace("unix://", "unix://app:pw@")

    async def scenario() -> None:
        inbox = Inbox(configured(tmp_path, address), BATCH_SEAL)
        await inbox.start()
        assert (inbox.fault, inbox.confirm_each) == (None, True)
        admin("DEL", PROBE)(server)
        await commit_in_time(inbox, *numbered(1))
        assert client.exists(PROBE), "the commit asked for itself"
        # Nothing is fsynced any more: an answer would be a lie.
        admin("CONFIG", "SET", "appendfsync", "no")(server)
        began = time.monotonic()
        await inbox.commit(envelope(dedupe_key="1"))
        assert time.monotonic() - began < PATIENCE
        assert (inbox.fault, inbox.spooled) == ("Redis does not take batches: RedisError.", 1)
        admin("CONFIG", "SET", "appendfsync", "always")(server)
        await until(lambda: inbox.redis_up and inbox.spooled == 0, "a drained spool")
        await inbox.stop()

    client = server.client()
    asyncio.run(scenario())
    assert keys(kept(client)) == ["0", "1"]
    client.close()


def test_what_the_writer_finds_while_the_drainer_looks_stands(
    valkey_server: Valkey, redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox = Inbox(configured(tmp_path, valkey_server.url), BATCH_SEAL)
    inbox._look()
    assert inbox.redis_up
    drain = inbox._drain

    def writer_fails_meanwhile() -> None:
        inbox._unfit("does not take batches", ReadOnlyError("no"))
        drain()

    with monkeypatch.context() as racing:
        racing.setattr(inbox, "_drain", writer_fails_meanwhile)
        inbox._look()
    assert inbox.fault == "Redis does not take batches: ReadOnlyError."
    inbox._look()
    assert inbox.redis_up
    asyncio.run(inbox.stop())


def test_what_is_spooled_while_the_drainer_finishes_is_not_forgotten(
    valkey_server: Valkey, redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox = Inbox(configured(tmp_path, valkey_server.url), BATCH_SEAL)
    inbox._write(inbox._sealed(numbered(1)))
    drain = inbox._drain

    def writer_spools_after_it() -> None:
        drain()
        inbox._write(inbox._sealed(numbered(1, 1)))

    with monkeypatch.context() as racing:
        racing.setattr(inbox, "_drain", writer_spools_after_it)
        inbox._look()
    assert (inbox.redis_up, inbox.spooled) == (True, 1)
    inbox._look()
    assert inbox.spooled == 0
    assert keys(kept(redis)) == ["0", "1"]
    asyncio.run(inbox.stop())


def test_a_batch_that_cannot_be_removed_is_not_moved_again(
    valkey_server: Valkey, redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox = Inbox(configured(tmp_path, valkey_server.url), BATCH_SEAL)
    inbox._write(inbox._sealed(numbered(1)))

    def remove(up_to: int) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as full:
        full.setattr(inbox._spool, "remove", remove)
        for _ in range(3):
            inbox._look()
        assert (inbox.redis_up, inbox.spooled) == (True, 1), "a fault of the spool is none of Redis"
        inbox._write(inbox._sealed(numbered(1, 1)))
    inbox._look()
    assert (inbox.spooled, inbox.spool_fault) == (0, None)
    assert keys(kept(redis)) == ["0", "1"]
    assert redis.llen(QUEUE_KEY) == 2
    asyncio.run(inbox.stop())


def test_a_spool_that_cannot_be_read_does_not_keep_redis_from_being_used(
    valkey_server: Valkey, redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox = Inbox(configured(tmp_path, valkey_server.url), BATCH_SEAL)

    def broken(*arguments: object, **options: object) -> None:
        raise sqlite3.DatabaseError("database disk image is malformed")

    with monkeypatch.context() as disk:
        disk.setattr(inbox._spool, "oldest", broken)
        disk.setattr(inbox._spool, "count", broken)
        inbox._look()
        assert (inbox.redis_up, inbox.spool_fault) == (True, "database disk image is malformed")
        inbox._write(inbox._sealed(numbered(1)))
    inbox._look()
    assert inbox.spool_fault is None
    assert keys(kept(redis)) == ["0"]
    asyncio.run(inbox.stop())


def test_only_one_process_drains_at_a_time(valkey_server: Valkey, redis: Redis, tmp_path: Path) -> None:
    inbox = Inbox(configured(tmp_path, valkey_server.url), BATCH_SEAL)
    inbox._write(inbox._sealed(numbered(1)))
    other = Turn(tmp_path / "spool" / "spool.lock")
    with other as mine:
        assert mine
        inbox._look()
        assert (inbox.redis_up, inbox.spooled) == (True, 1)
    other.close()
    inbox._look()
    assert inbox.spooled == 0
    assert keys(kept(redis)) == ["0"]
    asyncio.run(inbox.stop())


def test_a_turn_is_taken_again_after_it_was_given_up(tmp_path: Path) -> None:
    one, other = Turn(tmp_path / "lock"), Turn(tmp_path / "lock")
    for first, second in ((one, other), (other, one)):
        with first as mine, second as theirs:
            assert (mine, theirs) == (True, False)
        with second as theirs:
            assert theirs
    one.close()
    other.close()


def test_draining_keeps_up_with_what_is_spooled_meanwhile(redis: Redis, valkey_server: Valkey, tmp_path: Path) -> None:
    inbox = Inbox(configured(tmp_path, valkey_server.url), BATCH_SEAL)
    for number in range(200):
        inbox._write(inbox._sealed(numbered(1, number)))
    assert inbox.spooled == 200
    round_trips = 0
    enqueue = inbox._enqueue

    def counting(batches: Any) -> None:
        nonlocal round_trips
        round_trips += 1
        enqueue(batches)

    inbox._enqueue = counting  # type: ignore[method-assign, assignment]
    inbox._look()
    assert (inbox.redis_up, inbox.spooled, round_trips) == (True, 0, 4)
    assert keys(kept(redis)) == [str(number) for number in range(200)]
    asyncio.run(inbox.stop())


def test_the_drainer_outlives_every_error(
    valkey_server: Valkey, redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox = Inbox(configured(tmp_path, valkey_server.url), BATCH_SEAL)
    for error in (RedisError("x"), OSError("x"), ValueError("x"), msgspec.DecodeError("x")):

        def fail(was_up: bool, error: Exception = error) -> None:
            raise error

        with monkeypatch.context() as failing:
            failing.setattr(inbox, "_examine", fail)
            inbox._look()
        assert inbox.fault == f"Redis does not answer as it should: {type(error).__name__}."
        inbox._look()
        assert inbox.redis_up
    asyncio.run(inbox.stop())


def test_the_spool_never_holds_up_the_event_loop(
    server: Valkey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of its calls may wait: for the disk, and for another process."""
    threads: set[str] = set()
    execute = Spool._execute

    def watched(*arguments: Any) -> Any:
        threads.add(threading.current_thread().name)
        return execute(*arguments)

    monkeypatch.setattr(Spool, "_execute", watched)

    async def scenario() -> None:
        async with open_inbox(tmp_path, server) as inbox:
            server.kill()
            await commit_in_time(inbox, *numbered(3))
            assert inbox.spooled
            server.start()
            await until(lambda: inbox.redis_up and not inbox.spooled, "a drained spool")

    asyncio.run(scenario())
    assert threads == {"commit_0", "drain_0"}


# Replicas


@pytest.fixture
def replica(server: Valkey) -> Iterator[Valkey]:
    """One that follows `server`, which listens on a port for it."""
    with running_valkey(server.kind) as follower:
        port = free_port()
        admin("CONFIG", "SET", "port", str(port))(server)
        admin("REPLICAOF", "127.0.0.1", str(port))(follower)
        eventually(lambda: in_step(follower), what="a replica that follows")
        yield follower


def in_step(follower: Valkey) -> bool:
    client = follower.client()
    try:
        return bool(client.info("replication")["master_link_status"] == "up")
    finally:
        client.close()


def replicated(folder: Path, server: Valkey, count: int = 1) -> Inbox:
    settings = configured(folder, server.url)
    queue = msgspec.structs.replace(settings.queue, replicas=count)
    return Inbox(msgspec.structs.replace(settings, queue=queue), BATCH_SEAL)


@contextmanager
def standing_still(server: Valkey) -> Iterator[None]:
    assert server.process is not None
    server.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        server.process.send_signal(signal.SIGCONT)


def test_a_batch_is_with_the_replica_before_it_is_answered(server: Valkey, replica: Valkey, tmp_path: Path) -> None:
    async def scenario() -> None:
        inbox = replicated(tmp_path, server)
        await inbox.start()
        # A replica of a busy machine may be late at first.
        await until(lambda: (inbox.fault, inbox.replicas_away) == (None, False), "a replica that confirms")
        for number in range(20):
            await commit_in_time(inbox, *numbered(1, number))
            # Asked at once: what is not there now was not waited for.
            assert len(kept(follower)) == number + 1
        assert inbox.spooled == 0
        await inbox.stop()

    follower = replica.client()
    asyncio.run(scenario())
    follower.close()


def test_while_the_replica_is_away_the_spool_keeps_a_second_copy(
    server: Valkey, replica: Valkey, tmp_path: Path
) -> None:
    async def scenario() -> None:
        inbox = replicated(tmp_path, server)
        await inbox.start()
        await commit_in_time(inbox, *numbered(2))
        with standing_still(replica):
            await commit_in_time(inbox, *numbered(3, 2))
            await until(lambda: inbox.replicas_away, "the fault")
            assert inbox.fault == "Redis has too few replicas: TooFewReplicas."
            assert (inbox.redis_up, inbox.redis_answers) == (False, True)
            await commit_in_time(inbox, *numbered(3, 5))
            # Payments are not late: the master has them, and the spool keeps them.
            await until(lambda: keys(kept(master))[-3:] == ["5", "6", "7"], "the batches with the master")
            assert inbox.spooled == 2
        await until(lambda: inbox.redis_up and inbox.spooled == 0, "a drained spool")
        assert not inbox.replicas_away
        await inbox.stop()

    master, follower = server.client(), replica.client()
    asyncio.run(scenario())
    assert set(keys(kept(master))) == set(keys(kept(follower))) == {str(number) for number in range(8)}
    master.close()
    follower.close()


def test_accept_processes_together_offer_each_batch_once(server: Valkey, replica: Valkey, tmp_path: Path) -> None:
    """More would do no harm, and make a long queue several times as long."""

    async def scenario() -> None:
        inboxes = [replicated(tmp_path, server) for _ in range(3)]
        for inbox in inboxes:
            await inbox.start()
        with standing_still(replica):
            for number, inbox in enumerate(inboxes):
                await commit_in_time(inbox, *numbered(1, number))
            await until(lambda: all(inbox.replicas_away for inbox in inboxes), "the fault")
            for number, inbox in enumerate(inboxes * 5, 3):
                await commit_in_time(inbox, *numbered(1, number))
            await until(lambda: set(keys(kept(master))) == wanted, "all of them with the master")
            offered = master.llen("rq:queue:notifications")
            for inbox in inboxes:
                inbox._look()
            assert master.llen("rq:queue:notifications") == offered
            # Some come once more: what a process gave to the master before it knew of the missing replica.
            assert 18 <= offered < 2 * 18
        for inbox in inboxes:
            await until(lambda inbox=inbox: inbox.redis_up, "a drained spool")  # type: ignore[misc]
            await inbox.stop()

    wanted = {str(number) for number in range(18)}
    master = server.client()
    asyncio.run(scenario())
    master.close()


def test_what_only_a_lost_master_had_comes_from_the_spool(server: Valkey, replica: Valkey, tmp_path: Path) -> None:
    """The replica was cut off, the master was lost for ever, and the replica takes its place."""

    async def scenario() -> None:
        inbox = replicated(tmp_path, server)
        await inbox.start()
        await commit_in_time(inbox, *numbered(2))
        admin("REPLICAOF", "NO", "ONE")(replica)
        await commit_in_time(inbox, *numbered(3, 2))
        await until(lambda: inbox.replicas_away, "the fault")
        await commit_in_time(inbox, *numbered(1, 5))
        await until(lambda: keys(kept(master))[-1:] == ["5"], "the batch with the master")
        server.kill()
        assert keys(kept(follower)) == ["0", "1"]
        await inbox.stop()
        # The same spool, before a new master that has no replica yet.
        inbox = replicated(tmp_path, replica)
        await inbox.start()
        await until(lambda: set(keys(kept(follower))) == {str(number) for number in range(6)}, "all that was answered")
        assert (inbox.replicas_away, inbox.spooled) == (True, 2)
        await inbox.stop()

    master, follower = server.client(), replica.client()
    asyncio.run(scenario())
    master.close()
    follower.close()


def test_a_commit_that_fails_inside_leaves_no_reply_to_the_next(server: Valkey, tmp_path: Path) -> None:
    """Replies that nobody read would be taken for those of the next batch."""

    async def scenario() -> None:
        inbox = replicated(tmp_path, server, 0)
        inbox._replicas = 1
        inbox.fault = None
        admin("CONFIG", "SET", "maxmemory", "1mb")(server)
        assert not await inbox._enqueued(inbox._sealed(numbered(1)), inbox._links[0])
        assert inbox.fault == "Redis does not take batches: OutOfMemoryError."
        admin("CONFIG", "SET", "maxmemory", "0")(server)
        inbox.fault = None
        assert not await inbox._enqueued(inbox._sealed(numbered(1, 1)), inbox._links[0])
        assert "TooFewReplicas" in str(inbox.fault)
        await inbox.stop()

    asyncio.run(scenario())
    client = server.client()
    assert keys(kept(client)) == ["1"]
    client.close()
