"""The audit trail: who did what, when, from where and why."""

from __future__ import annotations

from starlette.responses import Response

from workers import audit
from workers.console.site import Trouble, Visit

SHOWN = 50


def listed(visit: Visit) -> Response:
    operator, subject, before = visit.asked("operator"), visit.asked("subject"), visit.asked("after")
    if before and not (before.isascii() and before.isdigit() and len(before) < 16):
        raise Trouble(400, "Nothing was done", "The cursor is none of this list; start again without one.")
    with visit.ledger() as connection:
        found = audit.listed(connection, int(before) if before else None, SHOWN + 1, operator or None, subject)
    older = found[SHOWN - 1]["number"] if len(found) > SHOWN else None
    return visit.page("audit.html", found=found[:SHOWN], older=older, operator=operator, subject=subject, after=before)


def verified(visit: Visit) -> Response:
    """Walks the whole chain, which may take a while."""
    with visit.ledger() as connection:
        verdict = visit.site.audit.verify(connection)
    return visit.page("audit_verified.html", verdict=verdict)
