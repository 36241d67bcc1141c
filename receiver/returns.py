"""``GET /return/{provider}/{facility}``: the customer comes back from the payment page.

The customer sees a page, or goes on to the merchant with a signed result; what was said is noted for the operators.
Nothing here touches a payment, and nothing here may cost a notification anything: no body is read, nothing is waited
for, and only so many returns a second are looked at.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from starlette.responses import HTMLResponse, RedirectResponse, Response

from receiver import logs, metrics, return_page, return_result, returned
from receiver.accept import Accept, Visit, report_cards
from receiver.errors import Reason, Refused
from receiver.providers.base import ReturnEndpoint
from receiver.return_log import ReturnLog
from receiver.settings import Settings

log = logs.get("receiver.returns")

PREFIX = b"/return/"
PER_SECOND = 100.0
AT_ONCE = 200.0
"""Returns that one process looks at: each costs about as much as a notification, and anybody can send them."""
RECORDS_PER_SECOND = 1.0
"""Refusal records of those that are turned away."""


class Returns:
    """A raw ASGI application, as `Accept` is."""

    def __init__(self, settings: Settings, accept: Accept, returns: ReturnLog) -> None:
        self.use(settings)
        self._accept = accept
        self._returns = returns
        self._room = Room(PER_SECOND, AT_ONCE)
        self._on_record = Room(RECORDS_PER_SECOND, 1)
        self._turned_away = metrics.REFUSED.labels("", "", Reason.RETURNS_FULL)

    def use(self, settings: Settings) -> None:
        """From now on these are the endpoints and their secrets."""
        self._endpoints: dict[bytes, ReturnEndpoint] = {
            PREFIX + endpoint.path.encode(): endpoint
            for endpoint in settings.endpoint
            if isinstance(endpoint, ReturnEndpoint)
        }

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if not self._room.take():
            await self._turn_away(scope, send)
            return
        visit = Visit()
        try:
            response = self._answer(scope, visit)
        except Refused as refused:
            refused = await self._accept.refused(scope, visit, refused)
            response = _refusal(refused)
        except Exception:
            # The customer gets a page whatever happens here: nothing depends on this one.
            log.exception("return_failed")
            response = HTMLResponse(return_page.neutral(), 500)
        response.headers.update(return_page.HEADERS)
        await response(scope, receive, send)

    def _answer(self, scope: Any, visit: Visit) -> Response:
        # The path as sent, undecoded, as for notifications.
        endpoint = self._endpoints.get(scope["raw_path"])
        visit.size = len(scope["query_string"])
        if endpoint is None:
            raise Refused(Reason.UNKNOWN_ENDPOINT, "There is no such page.")
        if scope["method"] not in ("GET", "HEAD"):
            raise Refused(Reason.METHOD_REFUSED, "Customers come back with GET.")
        said = returned.read(scope["query_string"], endpoint)
        if said is None:
            return HTMLResponse(return_page.neutral())
        said, numbers = returned.without_cards(said, endpoint)
        if numbers:
            report_cards(said.provider, said.facility, "return", numbers)
        if scope["method"] == "GET":
            # A HEAD is a link checker's: nobody saw anything.
            metrics.RETURNS.labels(said.provider, said.facility, said.outcome).inc()
            self._returns.add(said)
        if endpoint.return_url is not None:
            return RedirectResponse(return_result.location(said, endpoint), 303)
        return HTMLResponse(return_page.of_return(said))

    async def _turn_away(self, scope: Any, send: Any) -> None:
        """As cheap as an answer can be, and not all of it on record: a flood must not cost more for being refused."""
        if self._on_record.take():
            self._accept.record(scope, Visit(), _FULL)
        else:
            self._accept.tally.count(self._turned_away)
        for message in _FULL_ANSWER:
            await send(message)


class Room:
    """So many a second, and as many at once as were not used before."""

    __slots__ = ("_clock", "_left", "_most", "_rate", "_seen")

    def __init__(self, rate: float, most: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._most = self._left = most
        self._clock = clock
        self._seen = clock()

    def take(self) -> bool:
        now = self._clock()
        self._left = min(self._most, self._left + (now - self._seen) * self._rate)
        self._seen = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


def _refusal(refused: Refused) -> Response:
    headers = {}
    if refused.reason is Reason.METHOD_REFUSED:
        # The body of a POST is not read: the connection cannot be used again.
        headers = {"allow": "GET, HEAD", "connection": "close"}
    return HTMLResponse(return_page.of_refusal(refused.reason), refused.status, headers)


_FULL = Refused(Reason.RETURNS_FULL, "More browser returns than this process looks at.")
_FULL_PAGE = HTMLResponse(
    return_page.of_refusal(_FULL.reason), _FULL.status, {**return_page.HEADERS, "retry-after": "3"}
)
_FULL_ANSWER: tuple[dict[str, Any], ...] = (
    {"type": "http.response.start", "status": _FULL.status, "headers": _FULL_PAGE.raw_headers},
    {"type": "http.response.body", "body": _FULL_PAGE.body},
)
