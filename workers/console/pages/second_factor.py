"""An operator's own second factor: a device is enrolled, replaced and taken off by whoever knows the password."""

from __future__ import annotations

from base64 import b32decode, b32encode
from typing import Any
from urllib.parse import urlsplit

from markupsafe import Markup
from sqlalchemy import Connection
from starlette.responses import Response

from receiver import logs
from workers.audit import Action
from workers.console import confirming, totp
from workers.console.confirming import Unproven
from workers.console.site import Trouble, Visit, redirect
from workers.ledger.database import away_when_it_fails

log = logs.get("workers.console.pages.second_factor")

SET_UP_WITHIN = 1800
"""Seconds: an app may have to be installed first."""
_PAGE = "second_factor.html"


def asked(visit: Visit) -> Response:
    confirming.own(visit)
    return visit.page(_PAGE, said="", **_shown(visit, totp.generate()))


def enrolled(visit: Visit) -> Response:
    """Ends all other sessions of this operator; the device before, and its recovery codes, count no more."""
    confirming.own(visit)
    site = visit.site
    known = site.sessions.opened(_field(visit, "proof"), "second_factor", visit.session.id, SET_UP_WITHIN)
    if known is None:
        said = "The page was too old. It has another secret now: enter that into your app."
        return visit.page(_PAGE, 403, said=said, **_shown(visit, totp.generate()))
    secret = b32decode(known[0])
    step = site.operators.factors.fits(secret, _field(visit, "code"))
    if step is None:
        said = "That is not the code that the app shows for this secret. Is the clock of the device right?"
        return visit.page(_PAGE, 422, said=said, **_shown(visit, secret))
    try:
        codes = _enrol(visit, secret, step)
    except Unproven as error:
        return error.page(visit, _PAGE, **_shown(visit, secret))
    log.info("second_factor_set", operator=visit.operator.name, source=str(visit.address))
    confirming.sign_in_anew(visit)
    return visit.page("recovery_codes.html", codes=codes)


def taken_off(visit: Visit) -> Response:
    confirming.own(visit)
    site, name = visit.site, visit.operator.name
    if site.settings.console.second_factor == "required":
        raise Trouble(403, "A second factor is required here", "Nothing was done. Enrol another device in its place.")
    if not visit.operator.device:
        return redirect("/second-factor")

    def take_off(connection: Connection) -> None:
        site.operators.factors.take_off(connection, name)
        site.audit.add(connection, visit.actor, Action.SECOND_FACTOR_TAKEN_OFF, name)

    try:
        confirming.by_password(visit, _field(visit, "password"))
        confirming.by_code(visit, _field(visit, "current"), take_off)
    except Unproven as error:
        return error.page(visit, _PAGE, **_shown(visit, totp.generate()))
    log.warning("second_factor_taken_off", operator=name, source=str(visit.address))
    confirming.sign_in_anew(visit)
    sentence = "Your password alone signs you in from now on. Your other sessions have ended."
    return visit.page("message.html", title="The second factor is off", sentence=sentence, sign_in=False)


def _enrol(visit: Visit, secret: bytes, step: int) -> list[str]:
    """Gives the recovery codes. Raises `Unproven`."""
    site, name = visit.site, visit.operator.name

    def enrol(connection: Connection) -> list[str]:
        codes = site.operators.factors.enrol(connection, name, secret, step)
        site.audit.add(connection, visit.actor, Action.SECOND_FACTOR_SET, name)
        return codes

    if confirming.by_password(visit, _field(visit, "password")).device:
        return confirming.by_code(visit, _field(visit, "current"), enrol)
    with away_when_it_fails(), site.engine.begin() as connection:
        return enrol(connection)


def _shown(visit: Visit, secret: bytes) -> dict[str, Any]:
    host = urlsplit(visit.site.settings.console.public_url or "").hostname
    uri = totp.uri(secret, visit.operator.name, f"Postback {host}" if host else "Postback")
    # Signed and bound to the session: the page may ask for this secret to be enrolled, and for no other.
    proof = visit.site.sessions.ticket("second_factor", visit.session.id, [b32encode(secret).decode()])
    return {
        "secret": totp.text(secret),
        "uri": uri,
        "proof": proof,
        "qr": _qr(uri),
        "required": visit.site.settings.console.second_factor == "required",
    }


def _qr(text: str) -> Markup | None:
    """As an SVG within the page, which the policy allows: it has neither a style nor an address. None without the
    extra `qr`. Black on white in a dark page as well: many apps read nothing else."""
    try:
        import segno
    except ImportError:
        return None
    # Of segno's own, which escapes nothing of ours: the text is in the squares.
    return Markup(segno.make_qr(text, error="m").svg_inline(scale=4, dark="#000", light="#fff"))  # noqa: S704


def _field(visit: Visit, name: str) -> str:
    """As typed: a blank at an end belongs to a password."""
    return visit.form.get(name, [""])[0]
