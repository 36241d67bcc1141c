"""The ASGI application of ``postback console``: the operators' pages, and what monitoring asks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from redis.exceptions import RedisError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from receiver import logs
from receiver.connection import connect
from receiver.errors import LedgerAway, NotDone
from receiver.providers import PROVIDERS
from receiver.settings import Settings, networks
from receiver.source import TrustedProxies
from workers.alarms.desk import Desk
from workers.alarms.watch import Watch
from workers.attention import Attention
from workers.audit import Audit
from workers.console import monitoring, pages
from workers.console.activity import Activity
from workers.console.api import routes as api
from workers.console.chosen import ChosenPasswords
from workers.console.factors import SecondFactors
from workers.console.guessing import Guesses, codes_of
from workers.console.headers import Guard
from workers.console.health import Health
from workers.console.latest import Latest
from workers.console.operators import Operators
from workers.console.refusals import Refusals
from workers.console.render import FOLDER, Renderer
from workers.console.sessions import Ended, Sessions
from workers.console.signin import Door
from workers.console.site import Site, Trouble, Visit, seen
from workers.console.uploads import Uploads
from workers.figures import LedgerFigures, begin_settlement
from workers.ledger.bodies import Bodies
from workers.ledger.database import open_engine, url
from workers.ledger.ledger import Ledger
from workers.replay import open_replays

log = logs.get("workers.console.app")

SETTLE_EVERY = 2.0
"""Seconds after which the ledger is asked again to take what it is owed."""
_STATIC = {"console.css": "text/css; charset=utf-8", "icon.svg": "image/svg+xml"}


def build(settings: Settings) -> ASGIApp:
    """It starts although Redis and the ledger are away, and says so. Raises `ConfigurationError`."""
    begin_settlement(settings.endpoint)
    console = settings.console
    engine, redis = open_engine(url(settings)), connect(settings)
    audit, bodies = Audit(settings.security.seal_keys), Bodies(settings.security.body_keys)
    refusals = Refusals(redis)
    site = Site(
        settings=settings,
        engine=engine,
        redis=redis,
        operators=Operators(
            settings,
            ChosenPasswords(engine, settings.security.seal_keys),
            SecondFactors(engine, settings.security.seal_keys),
        ),
        sessions=Sessions(settings.security.seal_keys, console.idle_minutes * 60, console.session_hours * 3600),
        ended=Ended(engine),
        guesses=Guesses(name for each in settings.security.operators for name in (each.name, codes_of(each.name))),
        proxies=TrustedProxies(networks(console.trusted_proxies, "console.trusted_proxies")),
        audit=audit,
        attention=Attention(engine, audit),
        alarms=Desk(engine, audit),
        bodies=bodies,
        replays=open_replays(settings),
        uploads=Uploads(settings, Ledger(engine, bodies)),
        refusals=refusals,
        activity=Activity(engine, refusals, list(settings.endpoints)),
        health=Health(settings, engine),
        ledger_figures=Latest(LedgerFigures(settings, engine).page),
        renderer=Renderer(list(PROVIDERS), list(settings.endpoints)),
    )
    watch = Watch(settings)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        watch.start()
        begun = (site.activity.keep(), _settle_for_ever(site.ended), asyncio.to_thread(site.renderer.load))
        going_on: list[asyncio.Task[None]] = [asyncio.create_task(each) for each in begun]
        yield
        for task in going_on:
            task.cancel()
        await asyncio.gather(*going_on, return_exceptions=True)
        await run_in_threadpool(_settle, site.ended)
        await run_in_threadpool(site.activity.wait)
        await run_in_threadpool(watch.stop)
        site.uploads.close()
        engine.dispose()
        site.replays.close()
        redis.close()

    app = Starlette(
        routes=[
            *monitoring.ROUTES,
            Route("/static/{name}", static, methods=["GET"]),
            *Door().routes(),
            api.mounted(site),
            *pages.routes(),
        ],
        exception_handlers={
            Trouble: _trouble,
            HTTPException: _http_error,
            LedgerAway: _ledger_away,
            NotDone: _not_done,
            RedisError: _redis_away,
            Exception: _failed,
        },
        lifespan=lifespan,
    )
    # A redirect would repeat the Host header, which anybody can write.
    app.router.redirect_slashes = False
    app.state.site = site
    return Guard(app, console)


async def _settle_for_ever(ended: Ended) -> None:
    while True:
        await asyncio.sleep(SETTLE_EVERY)
        await run_in_threadpool(_settle, ended)


def _settle(ended: Ended) -> None:
    """Tells the ledger of sessions that ended while it was away."""
    try:
        if told := ended.settle():
            log.info("session_ends_recorded", sessions=told)
    except LedgerAway:
        pass  # It was said when each of them ended; the next time comes soon.
    except Exception:
        log.exception("console_failed", path="/sign-out")


async def static(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in _STATIC:
        raise HTTPException(404)
    return FileResponse(Path(FOLDER, "static", name), media_type=_STATIC[name])


def _message(request: Request, status: int, title: str, sentence: str) -> Response:
    site: Site = request.app.state.site
    visit: Visit | None = getattr(request.state, "visit", None)
    # Whoever asks for an address that does not exist may well be signed in; nobody has looked.
    sign_in = status == 401
    return site.renderer.page("message.html", status, visit=visit, title=title, sentence=sentence, sign_in=sign_in)


async def _trouble(request: Request, error: Exception) -> Response:
    assert isinstance(error, Trouble)
    if error.status == 403:
        visit: Visit | None = getattr(request.state, "visit", None)
        log.warning(
            "console_refused",
            path=request.url.path,
            why=error.title,
            operator=visit.operator.name if visit else None,
            source=seen(request),
        )
    return _message(request, error.status, error.title, error.sentence)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        response = _message(request, 405, "Not in this way", "This page has another method.")
        response.headers.update(error.headers or {})
        return response
    return _message(request, error.status_code, "There is no such page", "The address leads nowhere.")


async def _not_done(request: Request, error: Exception) -> Response:
    assert isinstance(error, NotDone)
    return _message(request, error.status, "Nothing was done", error.detail)


async def _ledger_away(request: Request, error: Exception) -> Response:
    log.warning("console_ledger_away", error=str(error))
    sentence = "Notifications are still accepted and wait in the queue. This page needs the database; try again soon."
    return _message(request, 503, "The ledger does not answer", sentence)


async def _redis_away(request: Request, error: Exception) -> Response:
    log.warning("console_redis_away", error=type(error).__name__)
    sentence = "Notifications are still accepted, into the spool. This page needs Redis; try again soon."
    return _message(request, 503, "Redis does not answer", sentence)


async def _failed(request: Request, error: Exception) -> Response:
    log.error("console_failed", path=request.url.path, exc_info=error)
    try:
        return _message(request, 500, "A fault of ours", "It is in the log of the console with its traceback.")
    except Exception as again:
        log.error("console_failed", path=request.url.path, exc_info=again)
        return PlainTextResponse("A fault of ours; it is in the log.\n", 500)
