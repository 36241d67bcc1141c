"""Every error of the API as RFC 9457 problem details."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from redis.exceptions import RedisError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from receiver import logs
from receiver.errors import STATUS_OF, LedgerAway, NotDone, Reason
from workers.console.site import Trouble, seen

log = logs.get("workers.console.api.problems")

MEDIA_TYPE = "application/problem+json"


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """RFC 9457. `type` and `reason` are fixed for ever, `detail` is one sentence for people."""

    type: str
    title: str
    status: int
    detail: str
    reason: str


class Declined(Exception):
    """A request that is not answered as it was asked."""

    def __init__(self, reason: Reason, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail, self.headers = reason, detail, headers


def problem(reason: Reason, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    said = Problem(
        type=f"urn:postback:problem:{reason.value}",
        title=reason.value.replace("_", " ").capitalize(),
        status=STATUS_OF[reason],
        detail=detail,
        reason=reason.value,
    )
    return Response(msgspec.json.encode(said) + b"\n", said.status, headers, MEDIA_TYPE)


async def declined(request: Request, error: Exception) -> Response:
    assert isinstance(error, Declined)
    if error.reason in (Reason.CREDENTIALS_REFUSED, Reason.ROLE_REFUSED):
        asker = getattr(request.state, "asker", None)
        log.warning("api_refused", path=request.url.path, reason=error.reason, client=asker, source=seen(request))
    return problem(error.reason, error.detail, error.headers)


async def not_done(request: Request, error: Exception) -> Response:
    assert isinstance(error, NotDone)
    return problem(error.reason, error.detail)


async def trouble(request: Request, error: Exception) -> Response:
    assert isinstance(error, Trouble)
    return problem(Reason.REQUEST_MALFORMED, error.sentence)


async def http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        return problem(Reason.METHOD_REFUSED, "This address has another method.", error.headers)
    return problem(Reason.UNKNOWN_PAGE, "The API has no such address.")


async def ledger_away(request: Request, error: Exception) -> Response:
    log.warning("console_ledger_away", error=str(error))
    return problem(Reason.LEDGER_AWAY, "The ledger does not answer; try again soon.", {"retry-after": "5"})


async def redis_away(request: Request, error: Exception) -> Response:
    log.warning("console_redis_away", error=type(error).__name__)
    return problem(Reason.REDIS_AWAY, "Redis does not answer; try again soon.", {"retry-after": "5"})


async def failed(request: Request, error: Exception) -> Response:
    log.error("api_failed", path=request.url.path, exc_info=error)
    return problem(Reason.FAULT, "A fault of ours; it is in the log of the console.")


HANDLERS = {
    Declined: declined,
    NotDone: not_done,
    Trouble: trouble,
    HTTPException: http_error,
    LedgerAway: ledger_away,
    RedisError: redis_away,
    Exception: failed,
}
