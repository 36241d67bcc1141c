"""Payments: searched and paged, and one with everything that led to it."""

from __future__ import annotations

from starlette.responses import Response

from workers import showing
from workers.console.asking import asked, wanted
from workers.console.site import Trouble, Visit
from workers.ledger import pages, queries

SHOWN = 50


def listed(visit: Visit) -> Response:
    ask = asked(visit, queries.PAYMENT_STATES)
    with visit.ledger() as connection:
        found = pages.page_payments(connection, wanted(ask, SHOWN), visit.asked("after") or None)
    return visit.page("payments.html", ask=ask, found=found, after=visit.asked("after"))


def shown(visit: Visit) -> Response:
    """Its id is a parameter, since senders put anything into it."""
    path = visit.request.path_params
    with visit.ledger() as connection:
        id_ = visit.request.query_params.get("id", "")
        found = showing.payment(connection, path["provider"], path["facility"], id_)
    if found is None:
        raise Trouble(404, "There is no such payment", "No payment of this endpoint has this id.")
    return visit.page("payment.html", payment=found)
