"""An operator's own password, changed by whoever knows the one before."""

from __future__ import annotations

from starlette.responses import Response

from receiver import logs
from workers.audit import Action
from workers.console import confirming, passwords
from workers.console.confirming import Unproven
from workers.console.operators import Operator
from workers.console.site import Visit
from workers.ledger.database import away_when_it_fails

log = logs.get("workers.console.pages.password")


def asked(visit: Visit) -> Response:
    confirming.own(visit)
    return visit.page("password.html", said="")


def changed(visit: Visit) -> Response:
    """Ends all other sessions of this operator, as their cookies speak of the password before."""
    operator, site = confirming.own(visit), visit.site
    # As typed: a blank at an end belongs to a password.
    current, new, again = (visit.form.get(name, [""])[0] for name in ("current", "new", "again"))
    if new != again:
        return visit.page("password.html", 422, said="The new password was not typed the same twice.")
    if said := passwords.fault(new, operator.name, site.settings.console.breached_passwords):
        return visit.page("password.html", 422, said=said)
    if new == current:
        return visit.page("password.html", 422, said="The new password is the one that you have.")
    try:
        confirming.by_password(visit, current)
    except Unproven as error:
        return error.page(visit, "password.html")
    _choose(visit, operator, passwords.make(new))
    log.info("password_changed", operator=operator.name, source=str(visit.address))
    confirming.sign_in_anew(visit)
    sentence = "It counts from now on, in every console. Your other sessions have ended."
    return visit.page("message.html", title="Your password is changed", sentence=sentence, sign_in=False)


def _choose(visit: Visit, operator: Operator, password_hash: str) -> None:
    site = visit.site
    assert operator.password_hash is not None
    with away_when_it_fails(), site.engine.begin() as connection:
        site.operators.chosen.choose(connection, operator.name, operator.password_hash, password_hash)
        site.audit.add(connection, visit.actor, Action.PASSWORD_CHANGED, operator.name)
