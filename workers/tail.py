"""What happens now: new notifications and refusals, as they come."""

from __future__ import annotations

from collections import deque
from typing import Any

from redis import Redis
from sqlalchemy import Engine

from receiver import refusals
from workers.ledger import pages, queries
from workers.ledger.queries import Filter

MOST = 200
"""What is looked at each time; with more, the oldest of them are not shown."""
_REMEMBERED = 20 * MOST


class Tail:
    """Gives what came since the last look. A notification counts from when it is in the ledger, in whatever order
    workers put it there."""

    def __init__(self, engine: Engine, redis: Redis | None, wanted: Filter) -> None:
        self._engine = engine
        self._redis = redis
        self._wanted = wanted
        self._seen: deque[str] = deque(maxlen=_REMEMBERED)
        self._refused: deque[tuple[Any, ...]] = deque(maxlen=_REMEMBERED)

    def begin(self, shown: int) -> list[dict[str, Any]]:
        """The last `shown` notifications, oldest first; from now on only what is new."""
        newest = self._newest()
        self._seen.extend(each["id"] for each in newest)
        self._refused.extend(_name(each) for each in self._refusals())
        return [_told(each) for each in newest[len(newest) - min(shown, len(newest)) :]]

    def news(self) -> list[dict[str, Any]]:
        """Notifications and refusals with ``kind``, oldest first. Raises `LedgerAway` and `RedisError`."""
        seen, refused = set(self._seen), set(self._refused)
        told = [each for each in self._newest() if each["id"] not in seen]
        turned_away = [each for each in self._refusals() if _name(each) not in refused]
        self._seen.extend(each["id"] for each in told)
        self._refused.extend(map(_name, turned_away))
        found = [*map(_told, told), *({"kind": "refusal", **each} for each in turned_away)]
        return sorted(found, key=lambda each: each.get("received_at") or each["at"])

    def _newest(self) -> list[dict[str, Any]]:
        with queries.reading(self._engine) as connection:
            page = pages.page_notifications(connection, self._wanted)
        return page.items[::-1]

    def _refusals(self) -> list[dict[str, Any]]:
        if self._redis is None:
            return []
        wanted = {"provider": self._wanted.provider, "facility": self._wanted.facility}
        return [
            each
            for each in refusals.listed(self._redis, MOST)[::-1]
            if all(value in (None, each[name]) for name, value in wanted.items())
        ]


def _told(notification: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "notification", **notification}


def _name(refusal: dict[str, Any]) -> tuple[Any, ...]:
    return (refusal["at"], refusal["source"], refusal["reason"])
