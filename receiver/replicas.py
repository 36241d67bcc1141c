"""Commits that replicas confirm, for a queue that outlives its master: MULTI, the commands, EXEC and WAIT in one round
trip, on one connection.

WAIT speaks of what its own connection wrote. A client of redis-py takes a connection from a pool for each call, and may
open a new one in between, to another master even: there WAIT would confirm a write that it knows nothing of.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from redis import Redis
from redis import asyncio as redis_asyncio
from redis.exceptions import RedisError

WAIT_SHARE = 0.5
"""Of the deadline that replicas may take."""

Command = tuple[Any, ...]


class TooFewReplicas(RedisError):
    """The master has it; fewer replicas than asked for have confirmed it in time."""


def commands_of(pipeline: Any) -> list[Command]:
    """What was said into a pipeline of redis-py."""
    return [command for command, _ in pipeline.command_stack]


def execute(redis: Redis, commands: Sequence[Command], replicas: int, deadline: float) -> list[Any]:
    """The replies of the transaction. Raises `TooFewReplicas`, and whatever redis-py raises."""
    said = _said(commands, replicas, deadline)
    connection: Any = redis.connection_pool.get_connection()
    try:
        connection.send_packed_command(connection.pack_commands(said))
        return _judged([connection.read_response() for _ in said], replicas)
    except TooFewReplicas:
        raise
    except BaseException:
        # Replies that were not read would be taken for those of the next command.
        connection.disconnect()
        raise
    finally:
        redis.connection_pool.release(connection)


async def execute_async(
    redis: redis_asyncio.Redis, commands: Sequence[Command], replicas: int, deadline: float
) -> list[Any]:
    """The same for the event loop."""
    said = _said(commands, replicas, deadline)
    connection: Any = await redis.connection_pool.get_connection()  # type: ignore[no-untyped-call]
    try:
        await connection.send_packed_command(connection.pack_commands(said))
        return _judged([await connection.read_response() for _ in said], replicas)
    except TooFewReplicas:
        raise
    except BaseException:
        await connection.disconnect(nowait=True)
        raise
    finally:
        await redis.connection_pool.release(connection)


def _said(commands: Sequence[Command], replicas: int, deadline: float) -> list[Command]:
    return [("MULTI",), *commands, ("EXEC",), ("WAIT", replicas, int(deadline * WAIT_SHARE * 1000))]


def _judged(replies: list[Any], replicas: int) -> list[Any]:
    done: list[Any]
    *_, done, confirmed = replies
    for reply in done:
        if isinstance(reply, Exception):
            raise reply
    if confirmed < replicas:
        raise TooFewReplicas(f"{confirmed} of {replicas} replicas confirmed.")
    return done
