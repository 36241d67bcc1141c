"""Signing in and out."""

from __future__ import annotations

import secrets
from contextlib import suppress
from datetime import UTC, datetime
from math import ceil

import anyio
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from receiver import logs
from receiver.errors import LedgerAway
from receiver.settings import Role
from workers.audit import Action, Actor
from workers.console import site as pages
from workers.console.guessing import TooManyTries
from workers.console.operators import Operator
from workers.console.passwords import LONGEST
from workers.console.site import Site, Trouble, Visit
from workers.ledger.database import away_when_it_fails

log = logs.get("workers.console.signin")

_AT_ONCE = 2
_WAITING = 16
"""A try takes a quarter of a second of a processor: a flood of them must not keep anybody else from working."""


class Door:
    """The sign-in form. One for the process, since it counts how many are being looked at."""

    def __init__(self) -> None:
        self._limiter: anyio.CapacityLimiter | None = None

    def routes(self) -> list[Route]:
        return [
            Route("/sign-in", self.ask, methods=["GET"]),
            Route("/sign-in", self.enter, methods=["POST"]),
            pages.form("/sign-out", leave, Role.VIEWER),
        ]

    async def ask(self, request: Request) -> Response:
        return _form(request, pages.own_path(request.query_params.get("next", "/")))

    async def enter(self, request: Request) -> Response:
        site: Site = request.app.state.site
        fields = await pages.read_form(request)
        name, password, wish, token = (fields.get(field, [""])[0] for field in ("name", "password", "next", "token"))
        wish = pages.own_path(wish)
        visit = request.cookies.get(site.visit_cookie, "")
        if not visit or not site.sessions.proves(token, f"visit:{visit}"):
            return _form(request, wish, "The form was too old. Please try again.", 403, name)
        address = pages.client(request)
        try:
            site.guesses.attempt(name, address)
        except TooManyTries as error:
            log.warning("sign_in_locked", source=str(address))
            response = _form(request, wish, f"Too many tries. Wait {_wait(error.seconds)}, then try again.", 429, name)
            response.headers["retry-after"] = str(ceil(error.seconds))
            return response
        operator = await self._proven(site, name, password)
        if operator is None:
            # Without the name: people type their password there.
            log.warning("sign_in_refused", source=str(address))
            response = _form(request, wish, "Name or password is not right.", 403, name)
            if known := site.operators.configured(name):
                # After the answer, so that its time says nothing of who is an operator.
                actor = Actor(known.name, str(address))
                response.background = BackgroundTask(_record, site, actor, Action.SIGN_IN_REFUSED)
            return response
        site.guesses.succeeded(name, address)
        await run_in_threadpool(_entered, site, Actor(operator.name, str(address)))
        return _welcome(site, operator, wish, str(address))

    async def _proven(self, site: Site, name: str, password: str) -> Operator | None:
        if self._limiter is None:
            self._limiter = anyio.CapacityLimiter(_AT_ONCE)
        if self._limiter.statistics().tasks_waiting >= _WAITING:
            raise Trouble(429, "Too many sign-ins at once", "Please try again in a moment.")
        if len(password) > LONGEST:
            return None
        async with self._limiter:
            return await run_in_threadpool(site.operators.proven, name, password)


def _entered(site: Site, actor: Actor) -> None:
    with suppress(LedgerAway):
        site.operators.chosen.renew(actor.name)
    _record(site, actor, Action.SIGNED_IN)


def _welcome(site: Site, operator: Operator, wish: str, address: str) -> Response:
    # A session of its own for each sign-in: nobody can give a browser one that he knows.
    session = site.sessions.begin(operator, "password")
    log.info("signed_in", operator=operator.name, role=operator.role.value, source=address)
    response = pages.redirect(wish)
    pages.set_cookie(site, response, site.session_cookie, site.sessions.cookie(session))
    response.delete_cookie(site.visit_cookie, path="/", secure=site.secure, httponly=True, samesite="lax")
    return response


def leave(visit: Visit) -> Response:
    site = visit.site
    response = pages.redirect("/sign-in")
    expires = site.sessions.expires(visit.session)
    try:
        site.ended.add(visit.session.id, expires)
    except LedgerAway:
        log.warning("session_end_not_recorded", operator=visit.operator.name)
        response = _not_everywhere(site, expires)
    _record(site, visit.actor, Action.SIGNED_OUT)
    log.info("signed_out", operator=visit.operator.name, source=str(visit.address))
    response.delete_cookie(site.session_cookie, path="/", secure=site.secure, httponly=True, samesite="lax")
    response.headers["clear-site-data"] = '"cache"'
    return response


def _not_everywhere(site: Site, expires: int) -> Response:
    sentence = (
        "This browser is signed out, and this console takes the session no more. The ledger does not answer, so other"
        " consoles could not be told yet: they are as soon as it is back. If this console is stopped before, a copy of"
        f" your cookie would be good until {datetime.fromtimestamp(expires, UTC):%Y-%m-%d %H:%M} UTC."
    )
    return site.renderer.page(
        "message.html", 503, visit=None, title="Signed out here, not yet everywhere", sentence=sentence, sign_in=True
    )


def _record(site: Site, actor: Actor, action: Action) -> None:
    """In the audit trail; while the ledger is away there is nothing to see and nothing to do, and the log has it."""
    with suppress(LedgerAway), away_when_it_fails(), site.engine.begin() as connection:
        site.audit.add(connection, actor, action)


def _form(request: Request, wish: str, message: str = "", status: int = 200, name: str = "") -> Response:
    """With a token for this visit: nobody can sign another's browser in to an account of his own."""
    site: Site = request.app.state.site
    known = request.cookies.get(site.visit_cookie, "")
    visit = known if 20 <= len(known) <= 64 and known.isascii() else secrets.token_urlsafe(24)
    response = site.renderer.page(
        "sign_in.html",
        status,
        visit=None,
        message=message,
        token=site.sessions.form_token(f"visit:{visit}"),
        next=wish,
        name=name[:64],
        nobody=not site.operators,
    )
    if visit != known:
        pages.set_cookie(site, response, site.visit_cookie, visit)
    return response


def _wait(seconds: float) -> str:
    return f"{ceil(seconds)} seconds" if seconds < 120 else f"{ceil(seconds / 60)} minutes"
