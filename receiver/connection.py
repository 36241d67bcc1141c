"""Where Redis is, how long we wait for it, and what RQ may write into it."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import msgspec
from redis import ConnectionPool, Redis
from redis import asyncio as redis_asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError
from redis.retry import Retry

from receiver import replicas, sentinel
from receiver.errors import ConfigurationError
from receiver.settings import Settings

QUEUE = "notifications"
"""The RQ queue. One job is one batch."""

DEADLINE = 1.0
"""Seconds that a request may wait for Redis before the spool takes it: senders allow 10 s, our own promise is 2 s."""

PROBE = "postback:probe"
"""A key that is written to see whether Redis takes writes."""

# A Unix socket's path may have 107 bytes on Linux; a longer data_dir gets its socket in a private folder elsewhere.
_LONGEST_SOCKET = 100


class Serializer:
    """How RQ writes a job: MessagePack. RQ's own default is pickle, which runs whatever it is given."""

    @staticmethod
    def dumps(value: Any, /) -> bytes:
        return msgspec.msgpack.encode(value)

    @staticmethod
    def loads(message: bytes, /) -> Any:
        return msgspec.msgpack.decode(message)


def socket_path(data_dir: Path) -> Path:
    """The embedded Valkey's Unix socket."""
    path = data_dir / "valkey.sock"
    if len(os.fsencode(path)) <= _LONGEST_SOCKET:
        return path
    name = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"postback-{os.getuid()}-{name}" / "valkey.sock"


def url(settings: Settings) -> str:
    configured = settings.queue.redis_url
    return configured.reveal().decode() if configured else f"unix://{quote(str(socket_path(settings.data_dir)))}"


def connect(settings: Settings, deadline: float = DEADLINE) -> Redis:
    """A client that gives up after `deadline` seconds and never tries again by itself: what to do then is decided
    where it is used. Raises `ConfigurationError` for an address that cannot be one."""
    try:
        address, retry = url(settings), Retry(NoBackoff(), 0)
        pool: ConnectionPool
        if sentinel.is_address(address):
            asking = {"socket_timeout": min(deadline, DEADLINE) * sentinel.SHARE, "retry": retry}
            pool = sentinel.MasterPool(sentinel.parse(address), **asking)
        else:
            pool = ConnectionPool.from_url(address)
        _use(pool, deadline, retry)
    except (ValueError, TypeError, RedisError):
        # Their texts may quote the address, which may have a password.
        raise ConfigurationError(_NO_ADDRESS) from None
    return Redis.from_pool(pool)


def connect_async(settings: Settings, deadline: float, connections: int) -> redis_asyncio.Redis:
    """The same for the event loop, with at most `connections`; who finds none free waits for one."""
    try:
        address, retry = url(settings), AsyncRetry(NoBackoff(), 0)
        pool: redis_asyncio.ConnectionPool
        if sentinel.is_address(address):
            asking = {"socket_timeout": min(deadline, DEADLINE) * sentinel.SHARE, "retry": retry}
            pool = sentinel.BlockingMasterPool(sentinel.parse(address), connections, deadline, **asking)
        else:
            pool = redis_asyncio.BlockingConnectionPool.from_url(address, max_connections=connections, timeout=deadline)
        _use(pool, deadline, retry)
    except (ValueError, TypeError, RedisError):
        raise ConfigurationError(_NO_ADDRESS) from None
    return redis_asyncio.Redis.from_pool(pool)


_NO_ADDRESS = "queue.redis_url: must be an address such as rediss://user:password@host:6379/0."


def _use(pool: Any, deadline: float, retry: Any) -> None:
    """Our own rules count before what the address says; and one connection is made, though not opened, since only
    that refuses an option that does not exist."""
    pool.connection_kwargs.update(
        socket_timeout=deadline,
        socket_connect_timeout=deadline,
        retry=retry,
        health_check_interval=0,
        decode_responses=False,
        # In the newer protocol a server may push notices that make a client wait longer than its own timeout.
        protocol=2,
    )
    pool.connection_class(**pool.connection_kwargs)


def replicas_confirm(redis: Redis, count: int) -> None:
    """Whether a write reaches so many replicas at the moment. Raises `TooFewReplicas`, and whatever redis-py raises."""
    replicas.execute(redis, [("SET", PROBE, b"1")], count, DEADLINE)


class Durability(NamedTuple):
    fault: str | None
    """Why an answer from this server would not mean "on disk", as a part of a sentence; None when it does."""
    confirm_each: bool
    """Whether each commit must be confirmed with WAITAOF, as the server's configuration may not be read."""


def durability(redis: Redis) -> Durability:
    """Read from the server's configuration where the user may see it, else tried with WAITAOF (Redis 7.2, Valkey).

    Raises `RedisError` when the server does not answer.
    """
    try:
        config: Any = redis.config_get("*append*")
    except ResponseError:
        config = {}
    if "appendonly" not in config:
        if aof_confirms(redis):
            return Durability(None, confirm_each=True)
        return Durability("CONFIG is not allowed and WAITAOF does not confirm an append-only file", False)
    if config["appendonly"] != "yes":
        return Durability("appendonly is not yes, so nothing is written before the answer", False)
    if config.get("appendfsync") != "always":
        return Durability("appendfsync is not always, so the answer comes before the fsync", False)
    if config.get("no-appendfsync-on-rewrite") == "yes":
        return Durability("no-appendfsync-on-rewrite is yes, so that a rewrite suspends the fsync", False)
    return Durability(None, confirm_each=False)


def aof_confirms(redis: Redis) -> bool:
    """Whether the local append-only file has all that was written before this call, within the deadline.

    Raises `RedisError` when the server does not answer or takes no writes.
    """
    pipeline: Any = redis.pipeline(transaction=False)
    # WAITAOF speaks only of what its own connection wrote, and the pool may give us another one than the batch had.
    # A later write that is in the file proves the earlier ones.
    pipeline.set(PROBE, b"1")
    pipeline.execute_command("WAITAOF", 1, 0, int(DEADLINE * 900))
    written, confirmed = pipeline.execute(raise_on_error=False)
    if isinstance(written, Exception):
        raise written
    if isinstance(confirmed, ResponseError):
        return False
    if isinstance(confirmed, Exception):
        raise confirmed
    return int(confirmed[0]) >= 1
