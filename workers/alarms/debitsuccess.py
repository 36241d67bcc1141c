"""Is Debitsuccess about to disable the webhook?

An event is tried four times, every 180 s; after the last it disables the webhook, and nothing comes until its support
enables it again. So what was refused of its events is an alarm at the first try, when the address is one that proved
itself before, and at the second, when the pause between two tries gives the sender away. The alarm stays until an event
is accepted, as the next one shows that the webhook lives.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from itertools import pairwise

from sqlalchemy import Connection, select

from receiver.errors import Reason
from receiver.notification import microseconds, utc
from receiver.providers.base import Endpoint
from receiver.providers.debitsuccess import CASUAL
from receiver.refusals import Refusal
from workers.alarms.kinds import AlarmKind, Problem
from workers.ledger.pages import first_id
from workers.ledger.tables import notifications

BUDGET = timedelta(minutes=9)
"""From the first try of an event to the last."""
TRIES = 4
PAUSE = (timedelta(seconds=150), timedelta(seconds=240))
"""Between two tries: 180 s, and what answer and network take."""
LOOK_BACK = timedelta(days=1)
_LOOKED_THROUGH = 500
# Somebody who looks with a browser, and what is said only of casual payments, which come once whatever we answer.
_OF_OTHERS = (Reason.METHOD_REFUSED, Reason.UNKNOWN_ENDPOINT, Reason.HELD_FULL)
_OF_TOKENS = (Reason.TOKEN_MISSING, Reason.TOKEN_REFUSED)


def may_be_an_event(refusal: Refusal) -> bool:
    if refusal.reason in _OF_TOKENS:
        return "X-Token header" in refusal.detail
    return refusal.reason not in _OF_OTHERS


def disabling(
    endpoint: Endpoint, refusals: Iterable[Refusal], proven: set[str], accepted: datetime | None
) -> Problem | None:
    """`proven` are addresses from which genuine notifications came, `accepted` is when the last event did."""
    since = microseconds(accepted) if accepted is not None else 0
    tries: dict[str, list[datetime]] = {}
    reasons: dict[str, str] = {}
    for refusal in refusals:
        here = (refusal.provider, refusal.facility) == (endpoint.provider, endpoint.facility)
        if here and refusal.at > since and may_be_an_event(refusal):
            tries.setdefault(refusal.source, []).append(utc(refusal.at))
            reasons[refusal.source] = refusal.reason
    told = [(min(at), source) for source, at in tries.items() if source in proven or _repeated(sorted(at))]
    if not told:
        return None
    first, source = min(told)
    said = (
        f"Debitsuccess was refused at {endpoint.path} ({reasons[source]}), first at {first:%Y-%m-%d %H:%M} UTC, and"
        f" nothing of its events was accepted since. After {TRIES} tries, {BUDGET.seconds // 60} minutes after the"
        " first, it disables the webhook."
    )
    return Problem(AlarmKind.WEBHOOK_DISABLING, said, endpoint.path)


def _repeated(at: Sequence[datetime]) -> bool:
    """A pause of that length and nothing in it: who floods, or tries out tokens, does not wait."""
    return any(PAUSE[0] <= later - earlier <= PAUSE[1] for earlier, later in pairwise(at))


def not_stored(endpoint: Endpoint, since: datetime) -> Problem:
    """Nothing could be kept, and it was answered 503."""
    said = (
        f"Notifications to {endpoint.path} could not be stored since {since:%Y-%m-%d %H:%M} UTC. Where they are events,"
        f" Debitsuccess disables the webhook {BUDGET.seconds // 60} minutes after the first."
    )
    return Problem(AlarmKind.WEBHOOK_DISABLING, said, endpoint.path)


def proven_sources(connection: Connection, endpoint: Endpoint) -> set[str]:
    """From where the last genuine notifications came."""
    n = notifications.c
    latest = (
        select(n.source, n.verified)
        .where(n.provider == endpoint.provider, n.facility == endpoint.facility)
        .order_by(n.id.desc())
        .limit(_LOOKED_THROUGH)
    )
    return {row.source for row in connection.execute(latest) if row.verified}


def last_event(connection: Connection, endpoint: Endpoint, now: datetime) -> datetime | None:
    """When the last event of the last day was accepted."""
    n = notifications.c
    query = select(n.received_at).where(
        n.provider == endpoint.provider,
        n.facility == endpoint.facility,
        n.id >= first_id(now - LOOK_BACK),
        n.event_type != CASUAL,
        n.verified,
    )
    return connection.scalar(query.order_by(n.id.desc()).limit(1))
