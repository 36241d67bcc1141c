"""The ASGI application of ``postback serve``: the notify endpoint, and around it a small Starlette application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from receiver import expected, health, logs, metrics
from receiver.accept import Accept, Visit
from receiver.attempts import Attempts
from receiver.buckets import Buckets
from receiver.connection import connect, connect_async
from receiver.errors import NotStored, Reason, Refused
from receiver.inbox import Commits, Inbox
from receiver.refusals import RefusalLog
from receiver.return_log import ReturnLog
from receiver.returns import PREFIX, Returns
from receiver.secret_use import Uses
from receiver.settings import Settings
from receiver.signing import Seal, matches

if TYPE_CHECKING:
    from receiver.traced import TracedAccept
    from receiver.tracing import Tracing

log = logs.get("receiver.app")

HAND_ON_EVERY = 1.0
MAX_EXPECTATION = 16 << 10
LOOKUPS = 16
"""Connections for tokens and held notifications: a flood of those waits for one and opens no more."""


def build(settings: Settings) -> Application:
    """It starts although Redis is away; then the spool takes what comes."""
    metrics.begin(settings.endpoint)
    redis = connect(settings)
    lookups = connect_async(settings, expected.FIND_DEADLINE, LOOKUPS)
    inbox = Inbox(settings, Seal(settings.security.seal_keys, "batch"))
    refusals = RefusalLog(redis)
    tokens = expected.Tokens(lookups, lambda: inbox.redis_answers)
    receive = settings.receive
    held = expected.HeldLimit(lookups, lambda: inbox.redis_answers, receive.max_held, receive.max_held_per_address)
    attempts = Attempts(Buckets(lookups, lambda: inbox.redis_answers), receive)
    tracing, commits = _with_traces(settings, inbox)
    accept = Accept(settings, commits, tokens, held, refusals, attempts)
    notify = _traced(accept, tracing, settings)
    uses = Uses(settings, redis)
    seen = ReturnLog(redis, Seal(settings.security.seal_keys, "returns"), lambda: inbox.redis_up)
    returns = Returns(settings, accept, seen)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await inbox.start()
        refusals.start()
        seen.start()
        beside = [asyncio.create_task(each) for each in (_hand_on(accept, uses), accept.watch(), uses.watch())]
        yield
        for task in beside:
            task.cancel()
        await seen.stop()
        await inbox.stop()
        await refusals.stop()
        await lookups.aclose()
        redis.close()
        if tracing:
            await asyncio.to_thread(tracing.stop)

    rest = Starlette(
        routes=[
            Route("/livez", health.livez, methods=["GET"]),
            Route("/readyz", health.readyz, methods=["GET"]),
            Route("/metrics", health.metrics_page, methods=["GET"]),
            Route("/expect/{provider}/{facility}", expect, methods=["POST"]),
        ],
        exception_handlers={Refused: _refused, NotStored: _not_stored, HTTPException: _http_error},
        lifespan=lifespan,
    )
    # A redirect would repeat the Host header, which anybody can write.
    rest.router.redirect_slashes = False
    rest.state.settings = settings
    rest.state.accept = accept
    rest.state.redis = redis
    rest.state.inbox = inbox
    rest.state.seal = Seal(settings.security.seal_keys, "expectation")

    def app(scope: Any, receive: Any, send: Any) -> Awaitable[None]:
        if scope["type"] == "http" and scope["raw_path"].startswith(b"/notify/"):
            return notify(scope, receive, send)
        if scope["type"] == "http" and scope["raw_path"].startswith(PREFIX):
            return returns(scope, receive, send)
        if scope["type"] == "http":
            # As sent, undecoded, as for the others: a rule of a proxy for /expect/ holds for all that gets there.
            return rest({**scope, "path": scope["raw_path"].decode("latin-1")}, receive, send)
        return rest(scope, receive, send)

    def use(settings: Settings) -> None:
        metrics.begin(settings.endpoint)
        notify.use(settings)
        returns.use(settings)
        inbox.use(Seal(settings.security.seal_keys, "batch"))
        seen.use(Seal(settings.security.seal_keys, "returns"))
        uses.use(settings)
        rest.state.settings = settings
        rest.state.seal = Seal(settings.security.seal_keys, "expectation")

    return Application(app, use)


def _with_traces(settings: Settings, inbox: Inbox) -> tuple[Tracing | None, Commits]:
    """Where spans go, and the inbox that leaves them. Nothing of the extra is loaded where it is not asked for."""
    if settings.tracing.endpoint is None:
        return None, inbox
    from receiver.tracing import Tracing

    tracing = Tracing(settings, "serve")
    from receiver.traced import TracedInbox

    return tracing, TracedInbox(inbox, tracing.tracer)


def _traced(accept: Accept, tracing: Tracing | None, settings: Settings) -> Accept | TracedAccept:
    if tracing is None:
        return accept
    from receiver.traced import TracedAccept

    return TracedAccept(accept, tracing.tracer, settings)


class Application:
    """The ASGI application. `use` gives it other endpoints, secrets, API keys and seal keys while it runs; all other
    settings count from the start."""

    def __init__(self, app: Callable[[Any, Any, Any], Awaitable[None]], use: Callable[[Settings], None]) -> None:
        self._app = app
        self.use = use

    def __call__(self, scope: Any, receive: Any, send: Any) -> Awaitable[None]:
        return self._app(scope, receive, send)


async def _hand_on(accept: Accept, uses: Uses) -> None:
    """The figures of requests, once a second."""
    try:
        while True:
            await asyncio.sleep(HAND_ON_EVERY)
            accept.tally.hand_on()
            uses.hand_on()
    finally:
        accept.tally.hand_on()
        uses.hand_on()


async def expect(request: Request) -> Response:
    """``POST /expect/{provider}/{facility}``: 201 when the expectation is durable."""
    state = request.app.state
    _require_api_key(request.headers.getlist("authorization"), state.settings)
    endpoint = state.settings.endpoints.get((request.path_params["provider"], request.path_params["facility"]))
    if endpoint is None:
        raise Refused(Reason.UNKNOWN_ENDPOINT, "There is no such endpoint.")
    try:
        async with asyncio.timeout(state.settings.receive.body_timeout):
            body = await _read(request)
    except TimeoutError:
        raise Refused(Reason.BODY_TOO_SLOW, "The body did not arrive in time.") from None
    except ClientDisconnect:
        return Response(status_code=400)
    expectation = expected.expectation_from(body, endpoint)
    if state.inbox.not_durable:
        raise NotStored("Redis is not durable.")
    confirm, copies = state.inbox.confirm_each, state.settings.queue.replicas
    await asyncio.to_thread(expected.register, state.redis, state.seal, expectation, confirm, copies)
    log.info("expectation_registered", provider=endpoint.provider, facility=endpoint.facility)
    return JSONResponse({"status": "registered", "reference": expectation.reference}, 201)


async def _read(request: Request) -> bytes:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_EXPECTATION:
            raise Refused(Reason.BODY_TOO_LARGE, f"The body may have at most {MAX_EXPECTATION} bytes.")
    return body


def _require_api_key(authorization: list[str], settings: Settings) -> None:
    if not authorization:
        raise Refused(Reason.CREDENTIALS_MISSING, "The Authorization header is missing.")
    if len(authorization) > 1:
        raise Refused(Reason.REQUEST_MALFORMED, "The authorization header occurs twice.")
    scheme, _, key = authorization[0].partition(" ")
    found = matches(key.strip().encode("latin-1"), settings.security.api_keys)
    if found is None or scheme.lower() != "bearer":
        raise Refused(Reason.CREDENTIALS_REFUSED, "The API key is not known.")
    found.used += 1


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    judged: Refused = await request.app.state.accept.refused(request.scope, Visit(), error)
    headers = {"www-authenticate": "Bearer"} if judged.reason is Reason.CREDENTIALS_MISSING else {}
    if judged.reason is Reason.ATTEMPTS_FULL:
        headers = {"retry-after": "60"}
    return JSONResponse({"error": judged.reason, "detail": judged.detail}, judged.status, headers)


async def _not_stored(request: Request, error: Exception) -> Response:
    assert isinstance(error, NotStored)
    log.error("expectation_not_stored", detail=error.detail)
    detail = "The expectation could not be stored. Send it again."
    return JSONResponse({"error": error.reason, "detail": detail}, 503, {"retry-after": "5"})


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    reason, detail = Reason.UNKNOWN_ENDPOINT, "There is no such page."
    if error.status_code == 405:
        reason, detail = Reason.METHOD_REFUSED, "This page has another method."
    return JSONResponse({"error": reason, "detail": detail}, error.status_code, error.headers)
