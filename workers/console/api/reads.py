"""What the API tells: the same functions as the pages and the commands have."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from receiver import refusals as refused
from receiver.errors import NotDone, Reason
from workers import attention as needing
from workers import audit as trail
from workers import showing
from workers.alarms import desk
from workers.console.api import asked
from workers.console.api.operation import Call
from workers.console.refusals import counted
from workers.ledger import pages
from workers.ledger import replays as replaying
from workers.ledger.pages import NotificationPlace, Page
from workers.ledger.reconciliations import list_reconciliations, show_reconciliation
from workers.ledger.rows import storable

_HIGHEST_NUMBER = 15
"""Digits of the number of an audit entry."""


def notifications(call: Call) -> dict[str, Any]:
    with call.ledger() as connection:
        return _page(pages.page_notifications(connection, asked.wanted(call.query), asked.given(call.query.cursor)))


def notification(call: Call) -> dict[str, Any]:
    with call.ledger() as connection:
        found = showing.notification(connection, call.path["id"], call.site.bodies)
    if found is None:
        raise NotDone(Reason.UNKNOWN_ID, "There is no notification with this id.")
    return found


def payments(call: Call) -> dict[str, Any]:
    with call.ledger() as connection:
        return _page(pages.page_payments(connection, asked.wanted(call.query), asked.given(call.query.cursor)))


def payment(call: Call) -> dict[str, Any]:
    path = call.path
    with call.ledger() as connection:
        found = showing.payment(connection, path["provider"], path["facility"], path["payment_id"])
    if found is None:
        raise NotDone(Reason.UNKNOWN_ID, "No payment of this endpoint has this id.")
    return found


def refusals(call: Call) -> dict[str, Any]:
    wanted = {name: asked.given(getattr(call.query, name)) for name in ("provider", "facility", "reason")}
    cursor = _place(call.query.cursor)
    try:
        before = refused.place(cursor) if cursor is not None else None
    except ValueError:
        raise _no_cursor() from None
    kept = call.site.refusals.newest_first()
    found = [
        {"place": "{}-{}".format(*place), "refusal": refusal}
        for place, refusal in kept
        if (before is None or place < before)
        and all(value is None or getattr(refusal, name) == value for name, value in wanted.items())
    ]
    page = _cut(found, call.query.limit, "place")
    counts = [
        {"reason": reason, "provider": provider, "facility": facility, "refused": number}
        for (reason, provider, facility), number in counted(each for _, each in kept).most_common()
    ]
    items = [refused.shown(each["refusal"]) for each in page["items"]]
    return {"total": len(kept), "counts": counts, "items": items, "next": page["next"]}


def activity(call: Call) -> dict[str, Any]:
    return {
        "endpoints": [
            {"provider": provider, "facility": facility, "hours": [hour._asdict() for hour in hours]}
            for (provider, facility), hours in call.site.activity.charts().items()
        ]
    }


def attention(call: Call) -> dict[str, Any]:
    query = call.query
    with call.ledger() as connection:
        found = needing.page(
            connection,
            query.kind,
            provider=asked.given(query.provider),
            facility=asked.given(query.facility),
            settled=query.settled,
            cursor=asked.given(query.cursor),
            limit=query.limit,
        )
        meaning = asdict(needing.MEANINGS[query.kind])
        return {"counts": needing.counts(connection), **meaning, "items": found.items, "next": found.next}


def alarms(call: Call) -> dict[str, Any]:
    with call.ledger() as connection:
        return {"items": desk.listed(connection, cleared=call.query.cleared)}


def replays(call: Call) -> dict[str, Any]:
    query = call.query
    with call.ledger() as connection:
        found = replaying.listed(connection, asked.given(query.state), _place(query.cursor), query.limit + 1)
    return _cut(found, query.limit, "id")


def replay(call: Call) -> dict[str, Any]:
    query = call.query
    found = call.site.replays.show(call.path["id"])
    with call.ledger() as connection:
        after = _place(query.cursor) or ""
        results = replaying.results(connection, found["id"], asked.given(query.outcome), after, query.limit + 1)
    page = _cut(results, query.limit, "notification_id")
    return found | {"results": page["items"], "next": page["next"]}


def audit(call: Call) -> dict[str, Any]:
    query = call.query
    before = _place(query.cursor)
    if before is not None and not (before.isascii() and before.isdigit() and len(before) <= _HIGHEST_NUMBER):
        raise _no_cursor()
    with call.ledger() as connection:
        found = trail.listed(
            connection,
            int(before) if before is not None else None,
            query.limit + 1,
            asked.given(query.operator),
            asked.given(query.subject) or "",
        )
    return _cut(found, query.limit, "number")


def audit_verdict(call: Call) -> dict[str, Any]:
    """Walks the whole chain, which may take a while."""
    with call.ledger() as connection:
        return asdict(call.site.audit.verify(connection))


def reconciliations(call: Call) -> dict[str, Any]:
    wanted = asked.wanted(call.query)
    if not all(storable(text) for text in (wanted.provider or "", wanted.facility or "")):
        return {"items": [], "next": None}
    before = _place(call.query.cursor)
    with call.ledger() as connection:
        found = list(list_reconciliations(connection, replace(wanted, limit=call.query.limit + 1), before))
    return _cut(found, call.query.limit, "id")


def reconciliation(call: Call) -> dict[str, Any]:
    id_ = call.path["id"]
    with call.ledger() as connection:
        found = show_reconciliation(connection, id_) if storable(id_) else None
    if found is None:
        raise NotDone(Reason.UNKNOWN_ID, "There is no reconciliation with this id.")
    return found


def health(call: Call) -> dict[str, Any]:
    return call.site.health.now()


def _page(found: Page) -> dict[str, Any]:
    return {"items": found.items, "next": found.next, "cut": found.cut}


def _place(cursor: Any) -> str | None:
    place = pages.place_of(asked.given(cursor), NotificationPlace)
    return place.id if place is not None else None


def _no_cursor() -> NotDone:
    return NotDone(Reason.CURSOR_MALFORMED, "The cursor is none of this list; start again without one.")


def _cut(found: list[dict[str, Any]], limit: int, key: str) -> dict[str, Any]:
    """A page of what was asked for with one more than `limit`."""
    more = pages.cursor_of(NotificationPlace(str(found[limit - 1][key]))) if len(found) > limit else None
    return {"items": found[:limit], "next": more}
