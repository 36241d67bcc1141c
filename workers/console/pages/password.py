"""An operator's own password, changed by whoever knows the one before."""

from __future__ import annotations

from math import ceil

from starlette.responses import Response

from receiver import logs
from workers.audit import Action
from workers.console import passwords
from workers.console.guessing import TooManyTries
from workers.console.operators import Operator
from workers.console.site import Trouble, Visit
from workers.ledger.database import away_when_it_fails

log = logs.get("workers.console.pages.password")


def asked(visit: Visit) -> Response:
    _own(visit)
    return visit.page("password.html", said="")


def changed(visit: Visit) -> Response:
    """Ends all other sessions of this operator, as their cookies speak of the password before."""
    operator, site = _own(visit), visit.site
    # As typed: a blank at an end belongs to a password.
    current, new, again = (visit.form.get(name, [""])[0] for name in ("current", "new", "again"))
    if new != again:
        return visit.page("password.html", 422, said="The new password was not typed the same twice.")
    if said := passwords.fault(new, operator.name, site.settings.console.breached_passwords):
        return visit.page("password.html", 422, said=said)
    if new == current:
        return visit.page("password.html", 422, said="The new password is the one that you have.")
    try:
        site.guesses.attempt(operator.name, visit.address)
    except TooManyTries as error:
        log.warning("sign_in_locked", source=str(visit.address))
        response = visit.page("password.html", 429, said=f"Too many tries. Wait {ceil(error.seconds)} seconds.")
        response.headers["retry-after"] = str(ceil(error.seconds))
        return response
    if len(current) > passwords.LONGEST or site.operators.proven(operator.name, current) is None:
        log.warning("sign_in_refused", source=str(visit.address))
        _record(visit, Action.SIGN_IN_REFUSED)
        return visit.page("password.html", 403, said="The current password is not right.")
    site.guesses.succeeded(operator.name, visit.address)
    _choose(visit, operator, passwords.make(new))
    log.info("password_changed", operator=operator.name, source=str(visit.address))
    visit.operator = site.operators.named(operator.name) or visit.operator
    visit.session, visit.new = site.sessions.begin(visit.operator, "password"), True
    sentence = "It counts from now on, in every console. Your other sessions have ended."
    return visit.page("message.html", title="Your password is changed", sentence=sentence, sign_in=False)


def _own(visit: Visit) -> Operator:
    """The operator as configured. Raises `Trouble` for one who has no password here."""
    operator = visit.site.operators.configured(visit.operator.name)
    if operator is None or operator.password_hash is None or visit.session.via != "password":
        raise Trouble(404, "There is no password to change", "The proxy in front has signed you in.")
    return operator


def _choose(visit: Visit, operator: Operator, password_hash: str) -> None:
    site = visit.site
    assert operator.password_hash is not None
    with away_when_it_fails(), site.engine.begin() as connection:
        site.operators.chosen.choose(connection, operator.name, operator.password_hash, password_hash)
        site.audit.add(connection, visit.actor, Action.PASSWORD_CHANGED, operator.name)


def _record(visit: Visit, action: Action) -> None:
    with away_when_it_fails(), visit.site.engine.begin() as connection:
        visit.site.audit.add(connection, visit.actor, action)
