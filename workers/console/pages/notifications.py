"""Notifications: searched and paged, and one with all that is known of it."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Connection
from starlette.responses import Response

from receiver.money import text_from_minor
from workers import attention
from workers.attention import Kind
from workers.console import compare, words
from workers.console.asking import asked, wanted
from workers.console.site import Trouble, Visit
from workers.ledger import details, pages, queries, replays

SHOWN = 50
_AMOUNTS = frozenset({"amount", "surcharge", "total_authorised", "total_captured", "total_refunded", "total_voided"})


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
        replayed = replays.of_notification(connection, found["id"])
        open_ = _open(connection, found)
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
        timeline=_timeline(found, replayed),
        made=_made(found["event"]),
        open=open_,
    )


def _open(connection: Connection, found: dict[str, Any]) -> dict[str, dict[str, Any] | None]:
    """Why it needs attention, each with how it was settled; None while it is not."""
    kinds = [kind for kind in (Kind.FAILED, Kind.QUARANTINED, Kind.HELD) if kind == found["state"]]
    kinds += [Kind.CONFLICT] if found["conflicts"] else []
    conflicts = [each["received_at"] for each in found["repeats"] if each["kind"] == "conflict"]
    open_: dict[str, dict[str, Any] | None] = {}
    for kind in kinds:
        known = attention.of(connection, kind, found["provider"], found["facility"], found["id"])
        # A conflict that came after it was settled needs attention again.
        again = known is not None and kind is Kind.CONFLICT and any(at > known["at"] for at in conflicts)
        open_[kind.value] = None if again else known
    return open_


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


def _timeline(found: dict[str, Any], replayed: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What happened to it, oldest first."""
    happened = [
        _step(found["received_at"], "received", "received", f"from {found['source']}"),
        _step(found["processed_at"], found["state"], found["state"], ""),
    ]
    for each in found["repeats"]:
        happened.append(_step(each["received_at"], each["kind"], each["kind"], f"from {each['source']}"))
    for each in replayed:
        link = f"/replays/{each['replay_id']}"
        said = f"by {each['created_by']}: {each['reason']}"
        happened.append(_step(each["created_at"], "replay", "replay asked for", said, link))
        if each["done_at"] is not None:
            what = f"replayed: {words.spaced(each['outcome'])}"
            happened.append(_step(each["done_at"], each["outcome"], what, each.get("now") or "", link))
    return sorted(happened, key=lambda each: each["at"])


def _step(at: datetime, kind: str, what: str, more: str, link: str = "") -> dict[str, Any]:
    return {"at": at, "kind": kind, "what": what, "more": more, "link": link}
