"""Which servers a Sentinel address names, and what of it goes where."""

from __future__ import annotations

import asyncio

import pytest

from receiver.connection import DEADLINE, connect, connect_async
from receiver.errors import ConfigurationError
from receiver.sentinel import SHARE, parse
from tests.receiver.test_connection import NO_ADDRESS, SECRET, at

FULL = (
    "rediss+sentinel://app:p%40ss@s1,s2:5000,[::1]:5001/pay%2Fments/3"
    "?sentinel_username=watch&sentinel_password=s%26cret&ssl_ca_certs=/etc/ca.pem"
)


def test_every_part_of_an_address() -> None:
    watched = parse(FULL)
    assert watched.sentinels == (("s1", 26379), ("s2", 5000), ("::1", 5001))
    assert watched.service == "pay/ments"
    assert watched.server == {
        "username": "app", "password": "p@ss", "db": 3, "ssl": True, "ssl_ca_certs": "/etc/ca.pem"
    }  # fmt: skip
    assert watched.sentinel == {
        "username": "watch", "password": "s&cret", "ssl": True, "ssl_ca_certs": "/etc/ca.pem"
    }  # fmt: skip


def test_the_shortest_address() -> None:
    watched = parse("redis+sentinel://s1/mymaster")
    assert (watched.sentinels, watched.service, watched.server, watched.sentinel) == (
        (("s1", 26379),), "mymaster", {}, {}
    )  # fmt: skip


def test_all_share_one_deadline() -> None:
    for client in (connect(at(FULL)), connect_async(at(FULL), DEADLINE, 2)):
        options = client.connection_pool.connection_kwargs
        assert (options["socket_timeout"], options["username"], options["db"]) == (DEADLINE, "app", 3)
        assert client.connection_pool.connection_class.__name__ == "SentinelManagedSSLConnection"
        for sentinel in getattr(client.connection_pool, "sentinel_manager").sentinels:  # noqa: B009
            asked = sentinel.connection_pool.connection_kwargs
            assert asked["socket_timeout"] == DEADLINE * SHARE
            assert (asked["username"], asked["password"]) == ("watch", "s&cret")
            assert asked["retry"].get_retries() == 0


@pytest.mark.parametrize(
    "address",
    [
        f"redis+sentinel://{SECRET}",
        f"redis+sentinel://:{SECRET}@/mymaster",
        f"redis+sentinel://:{SECRET}@s1,,s2/mymaster",
        f"redis+sentinel://:{SECRET}@s1:{SECRET}/mymaster",
        f"redis+sentinel://s1/mymaster?no_such_option={SECRET}",
        f"redis+sentinel://s1/mymaster?sentinel_timeout={SECRET}",
        f"redis+sentinel://s1/mymaster?{SECRET}",
    ],
)
def test_an_address_that_cannot_be_one_is_named_and_not_shown(address: str) -> None:
    for make in (lambda: connect(at(address)), lambda: connect_async(at(address), 1.0, 2)):
        with pytest.raises(ConfigurationError) as error:
            make()
        assert str(error.value) == NO_ADDRESS


def test_closing_closes_the_connections_to_the_sentinels_too() -> None:
    async def look() -> None:
        client = connect_async(at(FULL), 1.0, 2)
        await client.aclose()

    asyncio.run(look())
    connect(at(FULL)).close()
