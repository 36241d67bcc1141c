"""What was refused, and by which check."""

from __future__ import annotations

from collections import Counter

from starlette.responses import Response

from receiver import refusals
from receiver.errors import STATUS_OF
from workers.console.site import Trouble, Visit

SHOWN = 200


def listed(visit: Visit) -> Response:
    """The last 10,000 refusals, counted by reason and endpoint; of those chosen, the newest are shown."""
    reason, endpoint = visit.asked("reason"), visit.asked("endpoint")
    if reason and reason not in list(STATUS_OF):
        raise Trouble(400, "There is no such reason", "Choose one of the list.")
    found = refusals.listed(visit.site.redis)
    for refusal in found:
        refusal["endpoint"] = f"{refusal['provider']}/{refusal['facility']}".strip("/")
    counted = Counter((refusal["reason"], refusal["endpoint"]) for refusal in found)
    chosen = [each for each in found if reason in ("", each["reason"]) and endpoint in ("", each["endpoint"])]
    return visit.page(
        "refused.html",
        found=chosen[:SHOWN],
        chosen=len(chosen),
        total=len(found),
        counted=counted.most_common(50),
        reason=reason,
        endpoint=endpoint,
    )
