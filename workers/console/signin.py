"""Signing in and out."""

from __future__ import annotations

import secrets
from collections.abc import Callable
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
from receiver.source import Address
from workers.audit import Action, Actor
from workers.console import confirming
from workers.console import site as pages
from workers.console.guessing import TooManyTries, codes_of, wait
from workers.console.operators import Operator
from workers.console.passwords import LONGEST
from workers.console.site import Site, Trouble, Visit
from workers.ledger.database import away_when_it_fails

log = logs.get("workers.console.signin")

CODE_WITHIN = 300
"""Seconds after the password within which the code of a second factor must come."""
_AT_ONCE = 2
_TOO_OLD = "The form was too old. Please try again."
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
            Route("/sign-in/code", second, methods=["POST"]),
            pages.form("/sign-out", leave, Role.VIEWER, enrolling=True),
        ]

    async def ask(self, request: Request) -> Response:
        return _form(request, pages.own_path(request.query_params.get("next", "/")))

    async def enter(self, request: Request) -> Response:
        site: Site = request.app.state.site
        fields = await pages.read_form(request)
        name, password, wish, token = (fields.get(field, [""])[0] for field in ("name", "password", "next", "token"))
        wish = pages.own_path(wish)
        visit = _visit(request, token)
        if visit is None:
            return _form(request, wish, _TOO_OLD, 403, name)
        address = pages.client(request)
        try:
            site.guesses.attempt(name, address)
        except TooManyTries as error:
            return _held_up(error, address, lambda said: _form(request, wish, said, 429, name))
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
        if operator.device:
            proof = site.sessions.ticket("code", visit, (operator.name, operator.fingerprint))
            return _code_form(request, visit, proof, wish)
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


async def second(request: Request) -> Response:
    """The second step, for an operator who has enrolled a device: the page before has proven his password."""
    site: Site = request.app.state.site
    fields = await pages.read_form(request)
    code, proof, wish, token = (fields.get(field, [""])[0] for field in ("code", "proof", "next", "token"))
    wish = pages.own_path(wish)
    visit = _visit(request, token)
    proven = visit and site.sessions.opened(proof, "code", visit, CODE_WITHIN)
    operator = await run_in_threadpool(site.operators.named, proven[0]) if proven else None
    if not visit or not proven or operator is None or not operator.device or operator.fingerprint != proven[1]:
        return _form(request, wish, _TOO_OLD, 403)
    address = pages.client(request)
    try:
        site.guesses.attempt(codes_of(operator.name), address)
    except TooManyTries as error:
        return _held_up(error, address, lambda said: _code_form(request, visit, proof, wish, said, 429))
    if not await run_in_threadpool(_taken, site, Actor(operator.name, str(address)), code):
        log.warning("second_factor_refused", operator=operator.name, source=str(address))
        return _code_form(request, visit, proof, wish, "The code is not right, or was used before.", 403)
    site.guesses.succeeded(codes_of(operator.name), address)
    return _welcome(site, operator, wish, str(address))


def _taken(site: Site, actor: Actor, code: str) -> bool:
    """Whether a code counts; the audit trail has it either way. Raises `LedgerAway`: it is noted that a code was used,
    or nobody gets in by it."""
    with away_when_it_fails(), site.engine.begin() as connection:
        found = confirming.take(site, connection, actor, code)
        if found is None:
            site.audit.add(connection, actor, Action.SECOND_FACTOR_REFUSED, actor.name)
            return False
        site.audit.add(connection, actor, Action.SIGNED_IN)
    confirming.tell(found, actor)
    with suppress(LedgerAway):
        site.operators.chosen.renew(actor.name)
    return True


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


def _visit(request: Request, token: str) -> str | None:
    """The visit that a form proves to be sent from."""
    site: Site = request.app.state.site
    visit = request.cookies.get(site.visit_cookie, "")
    return visit if visit and site.sessions.proves(token, f"visit:{visit}") else None


def _held_up(error: TooManyTries, address: Address, form: Callable[[str], Response]) -> Response:
    log.warning("sign_in_locked", source=str(address))
    response = form(f"Too many tries. Wait {wait(error.seconds)}, then try again.")
    response.headers["retry-after"] = str(ceil(error.seconds))
    return response


def _code_form(request: Request, visit: str, proof: str, wish: str, message: str = "", status: int = 200) -> Response:
    site: Site = request.app.state.site
    token = site.sessions.form_token(f"visit:{visit}")
    return site.renderer.page(
        "sign_in_code.html", status, visit=None, message=message, token=token, proof=proof, next=wish
    )


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
