"""One notification or payment with all that an operator needs to know of it: pages, commands and API show the same."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection

from workers import attention
from workers.attention import Kind
from workers.ledger import details, queries
from workers.ledger.bodies import Bodies
from workers.ledger.timeline import timeline


def notification(connection: Connection, notification_id: str, bodies: Bodies) -> dict[str, Any] | None:
    """The notification object with its `timeline`, and `attention`: each kind for which it needs a person, with how
    that was settled, or None while it is open. Found by the id of any of its deliveries."""
    found = queries.show_notification(connection, notification_id, bodies)
    if found is None:
        return None
    return found | {"timeline": timeline(connection, found["id"]), "attention": _attention(connection, found)}


def payment(connection: Connection, provider: str, facility: str, payment_id: str) -> dict[str, Any] | None:
    """The payment object with `events`, `returns`, what was `expected`, and `attention` as a notification has it."""
    found = details.payment(connection, provider, facility, payment_id)
    if found is None:
        return None
    settled = attention.of(connection, Kind.MISMATCH, provider, facility, payment_id) if found["mismatch"] else None
    return found | {"attention": {Kind.MISMATCH.value: settled} if found["mismatch"] else {}}


def _attention(connection: Connection, found: dict[str, Any]) -> dict[str, dict[str, Any] | None]:
    kinds = [kind for kind in (Kind.FAILED, Kind.QUARANTINED, Kind.HELD) if kind == found["state"]]
    kinds += [Kind.CONFLICT] if found["conflicts"] else []
    conflicts = [each["received_at"] for each in found["repeats"] if each["kind"] == "conflict"]
    settled: dict[str, dict[str, Any] | None] = {}
    for kind in kinds:
        known = attention.of(connection, kind, found["provider"], found["facility"], found["id"])
        # A conflict that came after it was settled needs attention again.
        again = known is not None and kind is Kind.CONFLICT and any(at > known["at"] for at in conflicts)
        settled[kind.value] = None if again else known
    return settled
