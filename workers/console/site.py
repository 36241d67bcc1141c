"""What every page needs: who asks, whether they may, and what is proven of the form that they send.

A page is a plain function of a `Visit`; it runs in a thread, since the ledger is asked there. `page` and `form`, and
`receiving.upload` for a form with a file, are the only ways to make a route of one, so that none is without a check.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, quote

import msgspec
from redis import Redis
from sqlalchemy import Connection, Engine
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from receiver.errors import Refused
from receiver.settings import Role, Settings
from receiver.source import Address, TrustedProxies
from workers.alarms.desk import Desk
from workers.attention import Attention
from workers.audit import Actor, Audit
from workers.console import headers
from workers.console.activity import Activity
from workers.console.guessing import Guesses
from workers.console.health import Health
from workers.console.latest import Latest
from workers.console.operators import Operator, Operators
from workers.console.refusals import Refusals
from workers.console.render import Renderer
from workers.console.sessions import Ended, Session, Sessions
from workers.console.uploads import Uploads
from workers.ledger import queries
from workers.ledger.bodies import Bodies
from workers.replay import Replays

LARGEST_FORM = 128 << 10
MOST_FIELDS = 2000
SEE_OTHER = 303


class Trouble(Exception):
    """What a person did wrong, or cannot have: answered with a page that says so."""

    def __init__(self, status: int, title: str, sentence: str) -> None:
        super().__init__(title)
        self.status, self.title, self.sentence = status, title, sentence


@dataclass(frozen=True, slots=True)
class Site:
    """What the console's process has, made once."""

    settings: Settings
    engine: Engine
    redis: Redis
    operators: Operators
    sessions: Sessions
    ended: Ended
    guesses: Guesses
    proxies: TrustedProxies
    bodies: Bodies
    audit: Audit
    attention: Attention
    alarms: Desk
    replays: Replays
    uploads: Uploads
    refusals: Refusals
    activity: Activity
    health: Health
    ledger_figures: Latest[bytes]
    renderer: Renderer

    @property
    def secure(self) -> bool:
        return headers.secure(self.settings.console)

    @property
    def session_cookie(self) -> str:
        # The prefix makes browsers refuse one that was not set by this very host over TLS.
        return "__Host-postback-session" if self.secure else "postback-session"

    @property
    def visit_cookie(self) -> str:
        return "__Host-postback-visit" if self.secure else "postback-visit"


Fields = dict[str, list[str]]


@dataclass(slots=True)
class Visit:
    """One request of an operator."""

    site: Site
    request: Request
    operator: Operator
    session: Session
    address: Address
    new: bool = False
    """Whether the browser does not have the session's cookie yet."""
    form: Fields = field(default_factory=dict)

    @property
    def actor(self) -> Actor:
        """As the audit trail names who asks."""
        return Actor(self.operator.name, str(self.address))

    @property
    def token(self) -> str:
        return self.site.sessions.form_token(self.session.id)

    @property
    def must_enrol(self) -> bool:
        """Whether he may do nothing before he has a second factor. A proxy that signs operators in asks for its own."""
        required = self.site.settings.console.second_factor == "required"
        return required and self.session.via == "password" and not self.operator.device

    def may(self, role: str) -> bool:
        return self.operator.role.includes(Role(role))

    def asked(self, name: str) -> str:
        """A parameter of the address, without the blanks around it; "" when absent."""
        return self.request.query_params.get(name, "").strip()

    def given(self, name: str) -> str:
        """A field of the form; "" when absent."""
        return self.form.get(name, [""])[0].strip()

    def take(self, fields: Fields) -> None:
        """The fields of a form. Raises `Trouble` when they have no token of this session."""
        self.form = fields
        if not self.site.sessions.proves(self.given("token"), self.session.id):
            raise Trouble(403, "This form is not from your session", "Nothing was done. Load the page and try again.")

    def page(self, template: str, status: int = 200, **values: Any) -> Response:
        return self.site.renderer.page(template, status, visit=self, **values)

    @contextmanager
    def ledger(self) -> Iterator[Connection]:
        """The ledger, to read. Raises `LedgerAway`."""
        with queries.reading(self.site.engine) as connection:
            yield connection


Handler = Callable[[Visit], Response]


def page(path: str, handler: Handler, role: Role = Role.VIEWER, enrolling: bool = False) -> Route:
    """A page to look at: GET changes nothing. `enrolling` says that it serves to set up a second factor, so that it is
    there for operators who must have one and do not yet."""

    async def endpoint(request: Request) -> Response:
        visit = await run_in_threadpool(identified, request)
        if visit is None:
            return redirect(f"/sign-in?next={quote(_wish(request), safe='')}")
        if visit.must_enrol and not enrolling:
            return redirect("/second-factor")
        return await answer(require_permitted(request, visit, role, enrolling), handler)

    return Route(path, endpoint, methods=["GET"], name=handler.__name__)


def form(path: str, handler: Handler, role: Role, enrolling: bool = False) -> Route:
    """A form that does something: POST, with a token of this session. `enrolling` as for `page`."""

    async def endpoint(request: Request) -> Response:
        fields = await read_form(request)
        visit = require_permitted(request, await run_in_threadpool(identified, request), role, enrolling)
        visit.take(fields)
        return await answer(visit, handler)

    return Route(path, endpoint, methods=["POST"], name=handler.__name__)


def require_permitted(request: Request, visit: Visit | None, role: Role, enrolling: bool = False) -> Visit:
    """Raises `Trouble` for somebody who is not signed in, or may not do it, or must have a second factor first."""
    if visit is None:
        raise Trouble(401, "Your session is over", "Nothing was done. Sign in and send the form again.")
    request.state.visit = visit
    if visit.must_enrol and not enrolling:
        raise Trouble(403, "A second factor is required here", "Nothing was done. Set it up under Password first.")
    if not visit.operator.role.includes(role):
        raise Trouble(403, "Your role does not allow this", f"Nothing was done. It needs the role {role}.")
    return visit


async def answer(visit: Visit, handler: Handler) -> Response:
    response = await run_in_threadpool(handler, visit)
    _keep(visit, response)
    return response


def identified(request: Request) -> Visit | None:
    """Who asks: by the session's cookie, or by the header of a trusted proxy."""
    site: Site = request.app.state.site
    address = client(request)
    session = site.sessions.read(request.cookies.get(site.session_cookie, ""))
    named = _named_by_proxy(request)
    if named is not None:
        operator = site.operators.named(named)
        if operator is None:
            raise Trouble(403, "You are not an operator", "The proxy has signed you in, but no operator has this name.")
        if session is not None and session.via == "proxy" and _belongs(session, operator):
            return Visit(site, request, operator, session, address)
        return Visit(site, request, operator, site.sessions.begin(operator, "proxy"), address, new=True)
    if session is None or session.via != "password":
        return None
    operator = site.operators.named(session.name)
    if operator is None or not _belongs(session, operator) or session.id in site.ended:
        return None
    return Visit(site, request, operator, session, address)


def _belongs(session: Session, operator: Operator) -> bool:
    return (session.name, session.fingerprint) == (operator.name, operator.fingerprint)


def _named_by_proxy(request: Request) -> str | None:
    """The operator whom a trusted proxy names; None for requests that come from elsewhere."""
    site: Site = request.app.state.site
    header = site.settings.console.sign_in_header
    if header is None or request.client is None or not site.proxies.trusts(request.client.host):
        return None
    values = request.headers.getlist(header)
    if len(values) > 1:
        raise Trouble(400, "The request is not clear", "The proxy names more than one operator.")
    return values[0].strip() if values and values[0].strip() else None


def client(request: Request) -> Address:
    """The address of whoever asks, behind trusted proxies only."""
    site: Site = request.app.state.site
    forwarded = [value for name, value in request.headers.raw if name == b"x-forwarded-for"]
    try:
        return site.proxies.client(request.client.host if request.client else None, forwarded)
    except Refused as refused:
        raise Trouble(403, "The request has no clear address", refused.detail) from None


def seen(request: Request) -> str:
    """The address of whoever asks, for a log."""
    try:
        return str(client(request))
    except Trouble:
        return request.client.host if request.client else ""


def _keep(visit: Visit, response: Response) -> None:
    """Gives the browser a newer cookie, unless the page fetched itself: that is no sign of a person."""
    if visit.asked("live") or visit.site.session_cookie in str(response.headers.getlist("set-cookie")):
        return
    session = visit.session if visit.new else visit.site.sessions.renewed(visit.session)
    if session is not None:
        set_cookie(visit.site, response, visit.site.session_cookie, visit.site.sessions.cookie(session))


def set_cookie(site: Site, response: Response, name: str, value: str) -> None:
    """For as long as the browser is open. Lax, so that a link in an alarm finds its reader signed in; what changes
    anything is a POST with a token."""
    response.set_cookie(name, value, path="/", secure=site.secure, httponly=True, samesite="lax")


def redirect(path: str) -> Response:
    """To a path of our own, never to an address: the Host header is anybody's to write."""
    return RedirectResponse(path, SEE_OTHER)


def own_path(wish: str) -> str:
    """`wish` when it is a path of ours, else the first page."""
    plain = wish.startswith("/") and not wish.startswith(("//", "/\\")) and wish.isascii() and wish.isprintable()
    return wish if plain and "\\" not in wish and len(wish) < 1000 else "/"


def _wish(request: Request) -> str:
    return request.url.path + (f"?{request.url.query}" if request.url.query else "")


def require_own_form(request: Request) -> None:
    """Raises `Trouble` for a form that a page of another site has sent."""
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise Trouble(403, "This form is not ours", "Nothing was done. It was sent by a page of another site.")


def content_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_form(request: Request) -> Fields:
    """The fields of a form that this site has sent. Raises `Trouble` for anything else."""
    require_own_form(request)
    if content_type(request) != "application/x-www-form-urlencoded":
        raise Trouble(415, "This is not a form", "Nothing was done.")
    body = b""
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > LARGEST_FORM:
                raise Trouble(413, "The form is too large", "Nothing was done.")
    except ClientDisconnect:
        raise Trouble(400, "The form did not arrive", "Nothing was done.") from None
    fields: Fields = {}
    try:
        for name, value in parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=MOST_FIELDS):
            fields.setdefault(name, []).append(value)
    except ValueError:
        raise Trouble(400, "The form cannot be read", "Nothing was done.") from None
    return fields


def json(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value) + b"\n", status, media_type="application/json")
