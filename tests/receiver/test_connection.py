"""Where Redis is, how long it is waited for, and whether its answers mean "on the disk"."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from redis import Redis
from redis.exceptions import ReadOnlyError, RedisError
from redis.exceptions import TimeoutError as RedisTimeout

from receiver import settings
from receiver.connection import (
    DEADLINE,
    PROBE,
    Durability,
    Serializer,
    aof_confirms,
    connect,
    connect_async,
    durability,
    socket_path,
    url,
)
from receiver.errors import ConfigurationError
from receiver.settings import Settings
from tests.receiver.serving import PATIENCE
from tests.servers import SERVERS, Valkey, running_valkey

SECRET = "hunter2"
NO_ADDRESS = "queue.redis_url: must be an address such as rediss://user:password@host:6379/0."
UNCONFIRMED = "CONFIG is not allowed and WAITAOF does not confirm an append-only file"


with_waitaof = pytest.mark.parametrize("server", ["valkey"], indirect=True)


def at(address: str | None, folder: Path = Path("/tmp/x")) -> Settings:  # noqa: S108
    document = {"security": {"seal_keys": ["k"]}, "queue": {"redis_url": address} if address else {}}
    return settings.read({**document, "data_dir": str(folder)}, folder)


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> Iterator[Valkey]:
    """A Valkey whose configuration the test may change."""
    with running_valkey(request.param) as server:
        yield server


@contextmanager
def paused(server: Valkey) -> Iterator[None]:
    assert server.process is not None
    server.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        server.process.send_signal(signal.SIGCONT)


def restricted(server: Valkey, rules: str) -> Redis:
    """A client whose user has these rules."""
    admin = server.client()
    admin.execute_command("ACL", "SETUSER", "app", "reset", "on", ">pw", "~*", "&*", *rules.split())  # type: ignore[no-untyped-call]
    admin.close()
    return connect(at(server.url.replace("unix://", "unix://app:pw@")))


def test_the_embedded_server_has_its_socket_in_the_data_folder() -> None:
    assert url(at(None, Path("/srv/postback"))) == "unix:///srv/postback/valkey.sock"


def test_a_long_data_folder_gets_its_socket_elsewhere() -> None:
    folder = Path("/srv") / ("x" * 200)
    path = socket_path(folder)
    assert len(os.fsencode(path)) <= 100
    assert path.name == "valkey.sock"
    assert path.parent.name.startswith(f"postback-{os.getuid()}-")
    assert path == socket_path(folder) != socket_path(folder / "y")


def test_a_data_folder_may_have_any_name(tmp_path: Path) -> None:
    folder = Path("/tmp/a b%20?c#d")  # noqa: S108
    assert connect(at(None, folder)).connection_pool.connection_kwargs["path"] == f"{folder}/valkey.sock"


@pytest.mark.parametrize(
    "address",
    [
        *(SECRET, f"http://{SECRET}", f"redis+sentinel://{SECRET}", f"redis://[{SECRET}"),
        *(
            f"redis://:{SECRET}@h:{SECRET}",
            f"redis://:{SECRET[:2]}/{SECRET[2:]}@h",
            f"redis://h?no_such_option={SECRET}",
        ),
        *(
            f"redis://h?socket_timeout={SECRET}",
            f"redis://h?max_connections={SECRET}",
            f"rediss://h?ssl_cert_reqs={SECRET}",
        ),
    ],
)
def test_an_address_that_cannot_be_one_is_named_and_not_shown(address: str) -> None:
    for make in (lambda: connect(at(address)), lambda: connect_async(at(address), 1.0, 2)):
        with pytest.raises(ConfigurationError) as error:
            make()
        assert str(error.value) == NO_ADDRESS
        assert error.value.__suppress_context__


def test_the_address_cannot_lengthen_the_deadline() -> None:
    address = (
        "redis://h?socket_timeout=60&socket_connect_timeout=60&decode_responses=true&retry_on_timeout=true&protocol=3"
    )
    for pool in (connect(at(address)).connection_pool, connect_async(at(address), DEADLINE, 2).connection_pool):
        options = pool.connection_kwargs
        assert (options["socket_timeout"], options["socket_connect_timeout"]) == (DEADLINE, DEADLINE)
        assert (options["decode_responses"], options["retry"].get_retries(), options["protocol"]) == (False, 0, 2)


def test_a_server_that_hangs_is_given_up_after_the_deadline(server: Valkey) -> None:
    client = connect(at(server.url), deadline=0.2)
    client.ping()
    with paused(server):
        began = time.monotonic()
        with pytest.raises(RedisTimeout):
            client.ping()
        assert time.monotonic() - began > 0.15
    client.close()


def test_the_event_loop_waits_for_a_connection_and_not_for_ever(server: Valkey) -> None:
    async def look() -> list[object]:
        client = connect_async(at(server.url), 0.3, 2)
        await client.set("a", "1")
        answers: list[object] = list(await asyncio.gather(*(client.get("a") for _ in range(50))))
        with paused(server):
            answers += await asyncio.gather(*(client.get("a") for _ in range(5)), return_exceptions=True)
        answers.append(await client.get("a"))
        await client.aclose()
        return answers

    began = time.monotonic()
    answers = asyncio.run(look())
    assert answers[:50] == [b"1"] * 50
    assert all(isinstance(answer, RedisError) for answer in answers[50:55])
    assert answers[55] == b"1"
    assert time.monotonic() - began < PATIENCE


def test_a_durable_server(server: Valkey) -> None:
    client = connect(at(server.url))
    assert durability(client) == Durability(None, confirm_each=False)
    client.close()


@pytest.mark.parametrize(
    ("name", "value", "fault"),
    [
        ("appendonly", "no", "appendonly is not yes, so nothing is written before the answer"),
        ("appendfsync", "everysec", "appendfsync is not always, so the answer comes before the fsync"),
        ("appendfsync", "no", "appendfsync is not always, so the answer comes before the fsync"),
        (
            "no-appendfsync-on-rewrite",
            "yes",
            "no-appendfsync-on-rewrite is yes, so that a rewrite suspends the fsync",
        ),
    ],
)
def test_a_server_that_is_not_durable(server: Valkey, name: str, value: str, fault: str) -> None:
    client = connect(at(server.url))
    client.config_set(name, value)
    assert durability(client) == Durability(fault, confirm_each=False)
    client.close()


@with_waitaof
def test_where_config_is_not_allowed_waitaof_tells(server: Valkey) -> None:
    client = restricted(server, "+@all -config")
    assert durability(client) == Durability(None, confirm_each=True)
    server.client().config_set("appendonly", "no")
    assert durability(client) == Durability(UNCONFIRMED, confirm_each=False)
    client.close()


@with_waitaof
def test_where_neither_is_allowed_nothing_is_believed(server: Valkey) -> None:
    client = restricted(server, "+@all -config -waitaof")
    assert durability(client) == Durability(UNCONFIRMED, confirm_each=False)
    client.close()


@with_waitaof
def test_waitaof_speaks_of_writes_of_other_connections_too(server: Valkey) -> None:
    """A pool gives any connection, and one that wrote nothing is told that all of nothing is on the disk."""
    writer, asker = connect(at(server.url)), connect(at(server.url))
    server.client().config_set("appendfsync", "no")
    writer.set("a", b"x")
    reply = asker.execute_command("WAITAOF", 1, 0, 100)  # type: ignore[no-untyped-call]
    assert reply[0] == 1, "which is why it cannot be asked alone"
    assert aof_confirms(asker) is False
    server.client().config_set("appendfsync", "always")
    assert aof_confirms(asker) is True
    assert asker.get(PROBE) == b"1"
    writer.close()
    asker.close()


@pytest.mark.parametrize("server", ["redis"], indirect=True)
def test_redis_7_must_tell_its_configuration(server: Valkey) -> None:
    """It has no WAITAOF, so that nothing else could tell."""
    client = restricted(server, "+@all -config")
    assert durability(client) == Durability(UNCONFIRMED, confirm_each=False)
    assert durability(server.client()) == Durability(None, confirm_each=False)
    client.close()


def test_a_server_that_takes_no_writes_or_does_not_answer_confirms_nothing(server: Valkey) -> None:
    client = connect(at(server.url), deadline=0.2)
    server.client().execute_command("REPLICAOF", "127.0.0.1", "1")  # type: ignore[no-untyped-call]
    with pytest.raises(ReadOnlyError):
        aof_confirms(client)
    with paused(server), pytest.raises(RedisTimeout):
        durability(client)
    client.close()


def test_jobs_are_messagepack() -> None:
    job: tuple[object, ...] = ("workers.jobs.record_batch", None, (b"\x00sealed\xff",), {})
    written = Serializer.dumps(job)
    assert Serializer.loads(written) == ["workers.jobs.record_batch", None, [b"\x00sealed\xff"], {}]
    assert msgspec.msgpack.decode(written) == Serializer.loads(written)
