"""Notifications: searched and paged, and one with all that is known of it."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from workers.console import compare
from workers.console.asking import asked, wanted
from workers.console.site import Trouble, Visit
from workers.ledger import details, pages, queries

SHOWN = 50


def listed(visit: Visit) -> Response:
    ask = asked(visit, queries.NOTIFICATION_STATES)
    with visit.ledger() as connection:
        found = pages.page_notifications(connection, wanted(ask, SHOWN), visit.asked("after") or None)
    return visit.page("notifications.html", ask=ask, found=found, after=visit.asked("after"))


def shown(visit: Visit) -> Response:
    with visit.ledger() as connection:
        found = queries.show_notification(connection, visit.request.path_params["id"], visit.site.bodies)
        if found is None:
            raise Trouble(404, "There is no such notification", "No notification and no repeat has this id.")
        payment = details.payment_alone(connection, found["provider"], found["facility"], found["payment_id"])
    conflicts = [
        {**repeat, "rows": compare.side_by_side(found["body"] or "", repeat["body"] or "")}
        for repeat in found["repeats"]
        if repeat["kind"] == "conflict"
    ]
    return visit.page(
        "notification.html", notification=found, payment=payment, conflicts=conflicts, timeline=_timeline(found)
    )


def _timeline(found: dict[str, Any]) -> list[dict[str, Any]]:
    """What happened to it, oldest first."""
    happened = [
        {"at": found["received_at"], "what": "received", "source": found["source"]},
        {"at": found["processed_at"], "what": found["state"], "source": None},
        *({"at": each["received_at"], "what": each["kind"], "source": each["source"]} for each in found["repeats"]),
    ]
    return sorted(happened, key=lambda each: each["at"])
