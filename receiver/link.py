"""One kept connection from the event loop to Redis, for transactions that many requests wait for."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import hiredis
from redis.asyncio import ConnectionPool
from redis.exceptions import ConnectionError as ConnectionLost
from redis.exceptions import RedisError, ResponseError

from receiver import replicas
from receiver.replicas import Command


class Link:
    """redis-py makes the connection: address, TLS, user. Its own pipeline takes the connection from a pool, looks
    whether it still lives and sets a timer for each of the replies, which is half of what a commit costs. Here one
    deadline counts for all, a connection that fails is closed and made again, and hiredis writes the commands, as
    redis-py has it do without asyncio.
    """

    def __init__(self, pool: ConnectionPool, deadline: float) -> None:
        self._connection: Any = pool.make_connection()  # type: ignore[no-untyped-call]
        self._deadline = deadline
        self._kept = False

    async def transaction(self, commands: Sequence[Command], copies: int = 0) -> list[Any]:
        """The replies to `commands`, which Redis carries out together or not at all; with `copies`, after so many
        replicas have them.

        Raises `RedisError`, `TooFewReplicas` among them, `OSError`, or `TimeoutError` after the deadline. The commands
        may then have been carried out.
        """
        said = replicas.transaction(commands, copies, self._deadline)
        whole = False
        try:
            async with asyncio.timeout(self._deadline):
                try:
                    replies = await self._replies(said)
                except (ConnectionLost, OSError):
                    if not self._kept:
                        raise
                    # A connection that was idle may have been closed by the other side: that is no fault of Redis.
                    await self.close()
                    replies = await self._replies(said)
            whole = True
        finally:
            if not whole:
                # Late replies would be taken for those of the next transaction.
                await self.close()
        return replicas.judged(replies, copies)

    async def _replies(self, said: Sequence[Command]) -> list[Any]:
        connection = self._connection
        self._kept = connection.is_connected
        if not self._kept:
            await connection.connect()
            # The deadline of the whole counts.
            connection.socket_timeout = None
        await connection.send_packed_command(b"".join(map(hiredis.pack_command, said)))
        replies: list[Any] = []
        for _ in said:
            try:
                replies.append(await connection.read_response())
            except ResponseError as error:
                replies.append(error)
        return replies

    async def close(self) -> None:
        with suppress(RedisError, OSError):
            await self._connection.disconnect(nowait=True)
