"""Notifications: searched and paged, and one with all that is known of it."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from receiver.money import text_from_minor
from workers import showing
from workers.console import compare
from workers.console.asking import asked, given, wanted
from workers.console.exporting import file_of
from workers.console.site import Trouble, Visit
from workers.export import Format
from workers.ledger import details, pages, queries

SHOWN = 50
_AMOUNTS = frozenset({"amount", "surcharge", "total_authorised", "total_captured", "total_refunded", "total_voided"})


def listed(visit: Visit) -> Response:
    ask = asked(visit, queries.NOTIFICATION_STATES)
    with visit.ledger() as connection:
        found = pages.page_notifications(connection, wanted(ask, SHOWN), visit.asked("after") or None)
    return visit.page("notifications.html", ask=ask, found=found, after=visit.asked("after"))


def exported(visit: Visit) -> Response:
    """All that fits, as a file; a form, as the audit trail notes it."""
    form = visit.given("format")
    if form not in list(Format):
        raise Trouble(400, "There is no such format", f"It is one of {', '.join(Format)}.")
    fits = wanted(given(visit, queries.NOTIFICATION_STATES), None)
    return file_of(visit.site.engine, visit.site.audit, visit.actor, fits, Format(form), visit.given("reason"))


def shown(visit: Visit) -> Response:
    with visit.ledger() as connection:
        found = showing.notification(connection, visit.request.path_params["id"], visit.site.bodies)
        if found is None:
            raise Trouble(404, "There is no such notification", "No notification and no repeat has this id.")
        payment = details.payment_alone(connection, found["provider"], found["facility"], found["payment_id"])
    conflicts = [
        {**repeat, "rows": compare.side_by_side(found["body"] or "", repeat["body"] or "")}
        for repeat in found["repeats"]
        if repeat["kind"] == "conflict"
    ]
    return visit.page(
        "notification.html",
        notification=found,
        payment=payment,
        conflicts=conflicts,
        made=_made(found["event"]),
    )


def _made(event: dict[str, Any] | None) -> list[tuple[str, Any]]:
    """What was made of a body, for people: amounts as decimal text, and each custom field by itself."""
    made: list[tuple[str, Any]] = []
    for name, value in (event or {}).items():
        if name in _AMOUNTS and isinstance(value, int):
            made.append((name, text_from_minor(value, (event or {}).get("exponent", 2))))
        elif name == "custom" and isinstance(value, dict):
            made += [(f"custom: {inner}", said) for inner, said in value.items()]
        elif name != "exponent":
            made.append((name, value))
    return made
