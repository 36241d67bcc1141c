"""How much refused requests may cost: so many for each endpoint and for each address, with a record, a line in the log
and their reason; those above it get one short answer and are only counted.

It is looked at when a request has been refused, so that what is proven is never limited, whoever sends beside it.
"""

from __future__ import annotations

from functools import lru_cache

from receiver.buckets import Buckets, Limit
from receiver.errors import Reason, Refused
from receiver.settings import Receive
from receiver.source import neighbourhood, parse

BURST_SECONDS = 100
"""An address may use at one moment what it has for so many seconds."""
AT_ONCE = 20

FULL = Refused(Reason.ATTEMPTS_FULL, "Too many refused requests; those that are proven are accepted all the same.")


class Attempts:
    def __init__(self, buckets: Buckets, receive: Receive) -> None:
        self._buckets = buckets
        self._of_endpoint = _limit(receive.max_refused)
        self._of_address = _limit(receive.max_refused_per_address)

    async def judge(self, refused: Refused, endpoint: str, source: str) -> Refused:
        """`refused` itself while there is room, else `FULL`. `endpoint` is its path, "" where there is none; `source`
        an address."""
        of_endpoint, of_address = _names(endpoint, source)
        # An address that has used up its own takes nothing from the others.
        if self._buckets.is_shut(of_endpoint) or not await self._buckets.take(of_address, self._of_address):
            return FULL
        return refused if await self._buckets.take(of_endpoint, self._of_endpoint) else FULL


@lru_cache(maxsize=4096)
def _names(endpoint: str, source: str) -> tuple[str, str]:
    """Of the two buckets."""
    address = parse(source)
    of_endpoint = f"refused:{endpoint}"
    return of_endpoint, f"{of_endpoint}:{neighbourhood(address) if address else ''}"


def _limit(per_second: int) -> Limit:
    return Limit(per_second * BURST_SECONDS, per_second, AT_ONCE)
