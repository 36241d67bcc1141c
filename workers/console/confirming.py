"""An operator who is signed in proves anew that it is he, before what he proves himself by is changed."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from typing import Any, TypeVar

from sqlalchemy import Connection
from starlette.responses import Response

from receiver import logs
from receiver.errors import SealBroken
from workers.audit import Action, Actor
from workers.console import passwords
from workers.console.factors import Taken
from workers.console.guessing import TooManyTries, codes_of, wait
from workers.console.operators import Operator
from workers.console.site import Site, Trouble, Visit
from workers.ledger.database import away_when_it_fails

log = logs.get("workers.console.confirming")

T = TypeVar("T")


class Unproven(Exception):
    """What was given did not prove it: the page says so again."""

    def __init__(self, status: int, said: str, seconds: float = 0.0) -> None:
        super().__init__(said)
        self.status, self.said, self.seconds = status, said, seconds

    def page(self, visit: Visit, template: str, **values: Any) -> Response:
        response = visit.page(template, self.status, said=self.said, **values)
        if self.seconds:
            response.headers["retry-after"] = str(ceil(self.seconds))
        return response


def own(visit: Visit) -> Operator:
    """The operator as configured. Raises `Trouble` for one who has no password here."""
    operator = visit.site.operators.configured(visit.operator.name)
    if operator is None or operator.password_hash is None or visit.session.via != "password":
        raise Trouble(404, "There is no password to change", "The proxy in front has signed you in.")
    return operator


def by_password(visit: Visit, given: str) -> Operator:
    """The operator as he is now, after his password. Raises `Unproven`."""
    site, name = visit.site, visit.operator.name
    _require_patience(visit, name)
    operator = site.operators.proven(name, given) if len(given) <= passwords.LONGEST else None
    if operator is None:
        log.warning("sign_in_refused", source=str(visit.address))
        _record(visit, Action.SIGN_IN_REFUSED)
        raise Unproven(403, "The current password is not right.")
    site.guesses.succeeded(name, visit.address)
    return operator


def by_code(visit: Visit, given: str, do: Callable[[Connection], T]) -> T:
    """What `do` gives, in the transaction in which a code of the operator's device counts. Raises `Unproven`."""
    site, name = visit.site, codes_of(visit.operator.name)
    _require_patience(visit, name)
    try:
        with away_when_it_fails(), site.engine.begin() as connection:
            found = take(site, connection, visit.actor, given)
            if found is None:
                raise Unproven(403, "The current code is not right, or was used before.")
            done = do(connection)
    except Unproven:
        log.warning("second_factor_refused", operator=visit.operator.name, source=str(visit.address))
        _record(visit, Action.SECOND_FACTOR_REFUSED, visit.operator.name)
        raise
    site.guesses.succeeded(name, visit.address)
    tell(found, visit.actor)
    return done


def _require_patience(visit: Visit, name: str) -> None:
    try:
        visit.site.guesses.attempt(name, visit.address)
    except TooManyTries as error:
        log.warning("sign_in_locked", source=str(visit.address))
        raise Unproven(429, f"Too many tries. Wait {wait(error.seconds)}.", error.seconds) from None


def take(site: Site, connection: Connection, actor: Actor, code: str) -> Taken | None:
    """Lets a code of the operator count, within this transaction; None for one that does not."""
    try:
        found = site.operators.factors.take(connection, actor.name, code)
    except SealBroken:
        log.error("second_factor_seal_unfit", operator=actor.name)
        return None
    if found is not None and found.recovery:
        facts = {"recovery_codes_left": found.left}
        site.audit.add(connection, actor, Action.RECOVERY_CODE_USED, actor.name, facts=facts)
    return found


def tell(found: Taken | None, actor: Actor) -> None:
    """Logs what a code was that counted, once the ledger has it."""
    if found is not None and found.recovery:
        log.warning("recovery_code_used", operator=actor.name, source=actor.origin, left=found.left)


def sign_in_anew(visit: Visit) -> None:
    """Other sessions have ended, as their cookies speak of what was before; this one goes on as another."""
    visit.operator = visit.site.operators.named(visit.operator.name) or visit.operator
    visit.session, visit.new = visit.site.sessions.begin(visit.operator, "password"), True


def _record(visit: Visit, action: Action, subject: str = "") -> None:
    with away_when_it_fails(), visit.site.engine.begin() as connection:
        visit.site.audit.add(connection, visit.actor, action, subject)
