"""What happened to one notification, in its order: received, repeated, in conflict, processed, replayed, settled."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, select

from workers.ledger import replays
from workers.ledger.tables import audit, notifications, repeats

_SETTLED = ("resolved", "ignored", "reopened")


def timeline(connection: Connection, notification_id: str) -> list[dict[str, Any]]:
    """Oldest first, each ``at, what, by, source, detail, id``: `by` an operator, `id` that of a delivery or a replay.

    `what` is ``received``, ``duplicate``, ``conflict``, a state (``processed``, ``failed``, ...), ``replay_asked_for``
    until that is done, then ``replayed``, ``resolved``, ``ignored`` or ``reopened``. Empty for an unknown id.
    """
    c = notifications.c
    row = connection.execute(
        select(c.id, c.received_at, c.processed_at, c.source, c.state, c.reason).where(c.id == notification_id)
    ).first()
    if row is None:
        return []
    happened = [_happened(row.received_at, "received", source=row.source, of=row.id)]
    for repeat in connection.execute(
        select(repeats.c.id, repeats.c.received_at, repeats.c.conflict, repeats.c.source).where(
            repeats.c.notification_id == row.id
        )
    ):
        what = "conflict" if repeat.conflict else "duplicate"
        happened.append(_happened(repeat.received_at, what, source=repeat.source, of=repeat.id))
    known = replays.of_notification(connection, row.id)
    done = [each for each in known if each["done_at"] is not None]
    if not any(each.get("was") != each.get("now") for each in done):
        # Else it was last written by a replay.
        happened.append(_happened(row.processed_at, row.state, detail=row.reason or None))
    for each in known:
        if each["done_at"] is None:
            by, of = each["created_by"], each["replay_id"]
            happened.append(_happened(each["created_at"], "replay_asked_for", by=by, detail=each["reason"], of=of))
    for each in done:
        change = f"{each['was']} → {each['now']}, " if each.get("was") != each.get("now") else ""
        detail = f"{change}{each['outcome'].replace('_', ' ')}: {each['reason']}"
        happened.append(
            _happened(each["done_at"], "replayed", by=each["created_by"], detail=detail, of=each["replay_id"])
        )
    for entry in connection.execute(
        select(audit.c.at, audit.c.action, audit.c.operator, audit.c.reason)
        .where(audit.c.subject == row.id, audit.c.action.in_(_SETTLED))
        .order_by(audit.c.number)
    ):
        happened.append(_happened(entry.at, entry.action, by=entry.operator, detail=entry.reason))
    return sorted(happened, key=lambda each: each["at"])


def _happened(
    at: Any, what: str, *, by: str | None = None, source: str | None = None, detail: str | None = None, of: str = ""
) -> dict[str, Any]:
    return {"at": at, "what": what, "by": by, "source": source, "detail": detail, "id": of or None}
