"""What was refused, and by which check."""

from __future__ import annotations

from starlette.responses import Response

from receiver import refusals
from receiver.errors import STATUS_OF
from workers.console.refusals import counted
from workers.console.site import Trouble, Visit

SHOWN = 200
MOST_COUNTED = 50


def listed(visit: Visit) -> Response:
    """The last 10,000 refusals, counted by reason and endpoint, and those chosen, a page at a time."""
    reason, endpoint, after = visit.asked("reason"), visit.asked("endpoint"), visit.asked("after")
    if reason and reason not in list(STATUS_OF):
        raise Trouble(400, "There is no such reason", "Choose one of the list.")
    try:
        before = refusals.place(after) if after else None
    except ValueError:
        raise Trouble(400, "Nothing was done", "The cursor is none of this list; start again without one.") from None
    found = [
        (place, _endpoint(each.provider, each.facility), each) for place, each in visit.site.refusals.newest_first()
    ]
    counts = counted(each for _, _, each in found).most_common(MOST_COUNTED)
    chosen = [each for each in found if reason in ("", each[2].reason) and endpoint in ("", each[1])]
    older = [each for each in chosen if before is None or each[0] < before]
    return visit.page(
        "refused.html",
        found=[refusals.shown(each) | {"endpoint": where} for _, where, each in older[:SHOWN]],
        chosen=len(chosen),
        total=len(found),
        counted=[((why, _endpoint(*where)), number) for (why, *where), number in counts],
        reason=reason,
        endpoint=endpoint,
        after=after,
        older="{}-{}".format(*older[SHOWN - 1][0]) if len(older) > SHOWN else None,
    )


def _endpoint(provider: str, facility: str) -> str:
    return f"{provider}/{facility}".strip("/")
