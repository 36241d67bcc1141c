"""Commits that replicas confirm, for a queue that outlives its master: MULTI, the commands, EXEC and WAIT in one round
trip, on one connection.

WAIT speaks of what its own connection wrote. A client of redis-py takes a connection from a pool for each call, and may
open a new one in between, to another master even: there WAIT would confirm a write that it knows nothing of.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from redis import Redis
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
    said = transaction(commands, replicas, deadline)
    connection: Any = redis.connection_pool.get_connection()
    try:
        connection.send_packed_command(connection.pack_commands(said))
        return judged([connection.read_response() for _ in said], replicas)
    except TooFewReplicas:
        raise
    except BaseException:
        # Replies that were not read would be taken for those of the next command.
        connection.disconnect()
        raise
    finally:
        redis.connection_pool.release(connection)


def transaction(commands: Sequence[Command], replicas: int, deadline: float) -> list[Command]:
    """What is sent; without replicas to wait for, the transaction alone."""
    wait = [("WAIT", replicas, int(deadline * WAIT_SHARE * 1000))] if replicas else []
    return [("MULTI",), *commands, ("EXEC",), *wait]


def judged(replies: list[Any], replicas: int) -> list[Any]:
    """The replies to the commands, from all that came, where an error may stand as well. Raises `TooFewReplicas`, and
    the first error: EXEC fails for a refused command too, but does not say why."""
    confirmed = replies.pop() if replicas else 0
    done: Any = replies[-1]
    for reply in [*replies, *(done if isinstance(done, list) else ())]:
        if isinstance(reply, Exception):
            raise reply
    if isinstance(confirmed, Exception):
        raise confirmed
    if confirmed < replicas:
        raise TooFewReplicas(f"{confirmed} of {replicas} replicas confirmed.")
    return list(done)
