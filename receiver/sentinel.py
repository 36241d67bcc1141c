"""Redis Sentinel: an address that names several of them, and pools whose every new connection asks where the master is.

``redis+sentinel://user:password@s1:26379,s2:26379,s3:26379/mymaster/0``, or ``rediss+sentinel://`` for TLS on all of
them. User and password are those of the Redis servers; ``?sentinel_username=`` and ``?sentinel_password=`` those of the
Sentinels. redis-py knows Sentinel, but no address for it; this form is the one that others have.
"""

from __future__ import annotations

from typing import Any, NamedTuple
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit

from redis import asyncio as redis_asyncio
from redis.asyncio import sentinel as asyncio_sentinel
from redis.connection import parse_url
from redis.sentinel import Sentinel, SentinelConnectionPool

SCHEMES = ("redis+sentinel", "rediss+sentinel")
PORT = 26379
SHARE = 0.2
"""Of the deadline that one Sentinel may take: after two that are away there is still time for the third."""
_OF_SENTINELS = "sentinel_"


class Watched(NamedTuple):
    sentinels: tuple[tuple[str, int], ...]
    service: str
    server: dict[str, Any]
    """Options of connections to the Redis servers, as redis-py has them."""
    sentinel: dict[str, Any]
    """Options of connections to the Sentinels."""


def is_address(url: str) -> bool:
    return url.partition("://")[0] in SCHEMES


def parse(url: str) -> Watched:
    """Raises `ValueError` for an address that cannot be one; its text may quote the address."""
    parts = urlsplit(url)
    tls = parts.scheme == SCHEMES[1]
    given, _, hosts = parts.netloc.rpartition("@")
    service, _, db = parts.path.strip("/").partition("/")
    sentinels = tuple(_host_and_port(host) for host in hosts.split(","))
    if not unquote(service):
        raise ValueError("no name of the service")
    options = parse_qsl(parts.query, strict_parsing=bool(parts.query))
    for_server = [(name, value) for name, value in options if not name.startswith(_OF_SENTINELS)]
    # redis-py reads everything but the host, so that its rules hold here as well.
    plain = SplitResult("rediss" if tls else "redis", f"{given}@h" if given else "h", db, urlencode(for_server), "")
    server: dict[str, Any] = dict(parse_url(plain.geturl()))  # type: ignore[no-untyped-call]
    del server["host"]
    server.pop("connection_class", None)
    tls_options = {name: value for name, value in server.items() if name.startswith("ssl_")}
    sentinel: dict[str, Any] = {
        name.removeprefix(_OF_SENTINELS): value for name, value in options if name.startswith(_OF_SENTINELS)
    }
    if sentinel.keys() - {"username", "password"}:
        raise ValueError("an unknown option of the Sentinels")
    if tls:
        server["ssl"] = sentinel["ssl"] = True
    return Watched(sentinels, unquote(service), server, {**sentinel, **tls_options})


def _host_and_port(text: str) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    if not parts.hostname:
        raise ValueError("a Sentinel without a host")
    return parts.hostname, parts.port or PORT


class MasterPool(SentinelConnectionPool):
    """Connections to the master that the Sentinels name at the moment, for the blocking client."""

    def __init__(self, watched: Watched, **options: Any) -> None:
        manager: Any = Sentinel(watched.sentinels, sentinel_kwargs={**watched.sentinel, **options})  # type: ignore[no-untyped-call]
        super().__init__(watched.service, manager, **watched.server)  # type: ignore[no-untyped-call]

    def disconnect(self, inuse_connections: bool = True) -> None:
        super().disconnect(inuse_connections)
        if inuse_connections:
            for client in self.sentinel_manager.sentinels:
                client.close()


class BlockingMasterPool(asyncio_sentinel.SentinelConnectionPool, redis_asyncio.BlockingConnectionPool):
    """The same for the event loop; who finds no connection free waits for one."""

    def __init__(self, watched: Watched, max_connections: int, timeout: float, **options: Any) -> None:
        manager: Any = asyncio_sentinel.Sentinel(watched.sentinels, sentinel_kwargs={**watched.sentinel, **options})  # type: ignore[no-untyped-call]
        options = {**watched.server, "max_connections": max_connections, "timeout": timeout}
        super().__init__(watched.service, manager, **options)  # type: ignore[no-untyped-call]

    async def disconnect(self, inuse_connections: bool = True) -> None:
        await super().disconnect(inuse_connections)
        if inuse_connections:
            await self.sentinel_manager.aclose()
