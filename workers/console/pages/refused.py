"""What was refused, and by which check."""

from __future__ import annotations

from collections import Counter

from starlette.responses import Response

from receiver import refusals
from receiver.errors import STATUS_OF
from workers.console.site import Trouble, Visit

SHOWN = 200


def listed(visit: Visit) -> Response:
    """The last 10,000 refusals, counted by reason and endpoint, and those chosen, a page at a time."""
    reason, endpoint, after = visit.asked("reason"), visit.asked("endpoint"), visit.asked("after")
    if reason and reason not in list(STATUS_OF):
        raise Trouble(400, "There is no such reason", "Choose one of the list.")
    if after and not refusals.is_place(after):
        raise Trouble(400, "Nothing was done", "The cursor is none of this list; start again without one.")
    found = refusals.numbered(visit.site.redis)
    for _, refusal in found:
        refusal["endpoint"] = f"{refusal['provider']}/{refusal['facility']}".strip("/")
    counted = Counter((refusal["reason"], refusal["endpoint"]) for _, refusal in found)
    chosen = [each for each in found if reason in ("", each[1]["reason"]) and endpoint in ("", each[1]["endpoint"])]
    older = [each for each in chosen if not after or refusals.comes_before(each[0], after)]
    return visit.page(
        "refused.html",
        found=[refusal for _, refusal in older[:SHOWN]],
        chosen=len(chosen),
        total=len(found),
        counted=counted.most_common(50),
        reason=reason,
        endpoint=endpoint,
        after=after,
        older=older[SHOWN - 1][0] if len(older) > SHOWN else None,
    )
