"""Does Checkout.com try again what was answered 200?

It tries for 30 hours, first after 5 minutes, until a 2xx reaches it. A repeat that comes sooner has another cause, such
as a second workflow with the same address; a later one is resent by hand.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import Connection, false, select

from receiver.providers.base import Endpoint
from workers.alarms.kinds import AlarmKind, Problem
from workers.ledger.pages import first_id
from workers.ledger.tables import notifications, repeats

FIRST_RETRY = timedelta(minutes=4)
LAST_RETRY = timedelta(hours=31)
LOOK_BACK = timedelta(hours=2)
SEVERAL = 2
"""One answer may be lost on the way; two have a cause."""
_LOOKED_THROUGH = 1000


def answers_lost(connection: Connection, endpoint: Endpoint, now: datetime) -> Problem | None:
    r, n = repeats.c, notifications.c
    latest = (
        select(r.received_at, n.received_at.label("first_at"))
        .join(notifications, n.id == r.notification_id)
        .where(
            r.provider == endpoint.provider,
            r.facility == endpoint.facility,
            r.conflict == false(),
            r.id >= first_id(now - LOOK_BACK),
        )
        .order_by(r.id.desc())
        .limit(_LOOKED_THROUGH)
    )
    again = [
        row.received_at
        for row in connection.execute(latest)
        if FIRST_RETRY <= row.received_at - row.first_at <= LAST_RETRY
    ]
    if len(again) < SEVERAL:
        return None
    said = (
        f"Checkout.com repeats to {endpoint.path} what was answered 200: {len(again)} times within"
        f" {LOOK_BACK.seconds // 3600} hours."
    )
    return Problem(AlarmKind.ANSWERS_LOST, said, endpoint.path)
