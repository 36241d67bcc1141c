"""Which secrets are still used: a figure for each, and in Redis when it last proved something, so that an old one can
be taken out once nobody sends by it any more.

Redis learns no secret: its name there is an HMAC under a seal key.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Iterator
from typing import NamedTuple

from redis import Redis
from redis.exceptions import RedisError

from receiver import metrics
from receiver.settings import Settings
from receiver.signing import Secret

SEEN = "postback:secrets"
"""A hash: in seconds since 1970 the last use of each secret, by its name, and the first start with it."""
WRITE_EVERY = 5.0
"""Seconds."""


class Listed(NamedTuple):
    """A secret that proves what is sent, and its place in the configuration."""

    provider: str
    facility: str
    setting: str
    position: int
    newest: bool
    secret: Secret

    @property
    def place(self) -> str:
        return f"{self.setting}[{self.position}]"


def listed(settings: Settings) -> Iterator[Listed]:
    """All secrets of the endpoints and of ``POST /expect``, oldest first within each setting."""
    lists = [
        (endpoint.provider, endpoint.facility, name, value)
        for endpoint in settings.endpoint
        for name in endpoint.__struct_fields__
        if isinstance(value := getattr(endpoint, name), tuple) and value and isinstance(value[0], Secret)
    ]
    for provider, facility, name, secrets in (*lists, ("", "", "api_keys", settings.security.api_keys)):
        for position, secret in enumerate(secrets):
            yield Listed(provider, facility, name, position, position == len(secrets) - 1, secret)


def name_of(secret: Secret, seal_key: Secret) -> str:
    """What stands for the secret in Redis: nobody can try out secrets on it without the seal key."""
    return hmac.digest(seal_key.reveal(), b"postback.secret\0" + secret.reveal(), "sha256").hex()[:32]


class Uses:
    """The counts of one accept process, handed on to the figures and to Redis."""

    def __init__(self, settings: Settings, redis: Redis) -> None:
        self._redis = redis
        self._listed: list[Listed] = []
        self._used: set[str] = set()
        self.use(settings)

    def use(self, settings: Settings) -> None:
        """From now on these are the secrets."""
        self.hand_on()
        self._seal_key = settings.security.seal_keys[-1]
        self._listed = list(listed(settings))
        self._handed_on = [0] * len(self._listed)
        self._new = {name_of(each.secret, self._seal_key) for each in self._listed}

    def hand_on(self) -> None:
        for index, each in enumerate(self._listed):
            if fresh := each.secret.used - self._handed_on[index]:
                self._handed_on[index] += fresh
                metrics.SECRET_MATCHED.labels(each.provider, each.facility, each.place).inc(fresh)
                self._used.add(name_of(each.secret, self._seal_key))

    async def watch(self) -> None:
        """For as long as the application runs."""
        while True:
            await self.write()
            await asyncio.sleep(WRITE_EVERY)

    async def write(self) -> None:
        used, new = self._used, self._new
        self._used, self._new = set(), set()
        if (used or new) and not await asyncio.to_thread(self._written, used, new):
            # Nothing depends on it; the next time will do.
            self._used |= used
            self._new |= new

    def _written(self, used: set[str], new: set[str]) -> bool:
        """In a thread: whether Redis took them."""
        now = int(time.time())
        try:
            pipeline = self._redis.pipeline(transaction=False)
            for name in new:
                pipeline.hsetnx(SEEN, f"{name}:first", str(now))
            for name in used:
                pipeline.hset(SEEN, name, str(now))
            pipeline.execute()
        except (RedisError, OSError):
            return False
        return True


class Unused(NamedTuple):
    """An older secret beside a newer one. `since` is its last use; where it had none, when it was first seen."""

    listed: Listed
    since: int | None
    """Seconds since 1970; None where no accept process has run with it yet."""
    ever: bool


def older(settings: Settings, redis: Redis) -> list[Unused]:
    """All secrets that are not the newest of their setting. Raises `RedisError`."""
    seen: dict[bytes, bytes] = redis.hgetall(SEEN)  # type: ignore[assignment]

    def latest(each: Listed, what: str) -> int | None:
        names = [f"{name_of(each.secret, key)}{what}".encode() for key in settings.security.seal_keys]
        return max((int(seen[name]) for name in names if name in seen), default=None)

    found = []
    for each in listed(settings):
        if not each.newest:
            last = latest(each, "")
            found.append(Unused(each, latest(each, ":first") if last is None else last, last is not None))
    return found
