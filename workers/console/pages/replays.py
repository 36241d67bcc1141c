"""Replays: choose, try, ask for, approve, watch, stop. All of it is `workers.replay`; here it has pages."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

import msgspec
from starlette.responses import Response

from receiver.errors import NotDone
from receiver.settings import Role
from workers.console.asking import Asked, asked, given, wanted
from workers.console.site import Trouble, Visit, redirect
from workers.ledger import queries, replays
from workers.ledger.replays import State
from workers.replay import Chosen, Preview
from workers.rerun import Outcome, Result

SHOWN = 50
_NO_RESULT: dict[str, Any] = dict.fromkeys(Result.__struct_fields__)
"""What was cancelled before its turn has none."""
_LONGEST_ADDRESS = 8000
REFRESH = 2
"""Seconds between two looks at a replay that runs."""


def listed(visit: Visit) -> Response:
    state = visit.asked("state")
    if state and state not in list(State):
        raise Trouble(400, "There is no such state", f"It is one of {', '.join(State)}.")
    before = visit.asked("after")
    with visit.ledger() as connection:
        found = replays.listed(connection, state or None, before or None, SHOWN + 1)
    older = found[SHOWN - 1]["id"] if len(found) > SHOWN else None
    return visit.page("replays.html", found=found[:SHOWN], older=older, state=state, after=before, states=list(State))


def tried(visit: Visit) -> Response:
    """What a replay would do, before anybody asks for it."""
    ask = asked(visit, queries.NOTIFICATION_STATES)
    ids = tuple(dict.fromkeys(visit.request.query_params.getlist("id")))
    if not ids and not ask.anything:
        raise Trouble(400, "Nothing is chosen", "Mark some notifications in the list, or search for those to replay.")
    preview = visit.site.replays.preview(_chosen(ids, ask), SHOWN)
    return _preview(visit, preview, ids, ask)


def asked_for(visit: Visit) -> Response:
    ids = tuple(visit.form.get("id", ()))
    ask = given(visit, queries.NOTIFICATION_STATES)
    chosen = _chosen(ids, ask)
    try:
        created = visit.site.replays.create(visit.actor, chosen, visit.given("reason"))
    except NotDone as refusal:
        preview = visit.site.replays.preview(chosen, SHOWN)
        return _preview(visit, preview, ids, ask, refusal.detail, refusal.status)
    return redirect(f"/replays/{created['id']}")


def shown(visit: Visit) -> Response:
    """It looks again by itself while something is done, until it is told not to."""
    replay_id, outcome, after = visit.request.path_params["id"], visit.asked("outcome"), visit.asked("after")
    if outcome and outcome not in list(Outcome):
        raise Trouble(400, "There is no such outcome", f"It is one of {', '.join(Outcome)}.")
    replay = visit.site.replays.show(replay_id)
    with visit.ledger() as connection:
        results = replays.results(connection, replay_id, outcome or None, after, SHOWN + 1)
    trial = _trial(replay["chosen"]) if replay["state"] == State.WAITING and visit.may(Role.OPERATOR) else None
    live = replay["state"] == State.RUNNING and not visit.asked("still")
    values: dict[str, Any] = {
        "replay": replay,
        "results": [_NO_RESULT | each for each in results[:SHOWN]],
        "more": results[SHOWN - 1]["notification_id"] if len(results) > SHOWN else None,
        "outcome": outcome,
        "live": live,
        "trial": trial,
    }
    response = visit.page("replay.html", **values)
    if live:
        # A header, as no script may run; only this page, so that reading a further one is not interrupted.
        response.headers["refresh"] = f"{REFRESH}; url=/replays/{replay_id}?live=1"
    return response


def approved(visit: Visit) -> Response:
    return _changed(visit, visit.site.replays.approve)


def paused(visit: Visit) -> Response:
    return _changed(visit, visit.site.replays.pause)


def resumed(visit: Visit) -> Response:
    return _changed(visit, visit.site.replays.resume)


def cancelled(visit: Visit) -> Response:
    return _changed(visit, visit.site.replays.cancel)


def _preview(
    visit: Visit, preview: Preview, ids: tuple[str, ...], ask: Asked, refused: str = "", status: int = 200
) -> Response:
    results = [msgspec.to_builtins(each) for each in preview.results]
    values = {"ids": ids, "ask": ask, "refused": refused, "reason": visit.given("reason")}
    return visit.page("replay_new.html", status, preview=preview, results=results, **values)


def _changed(visit: Visit, change: Any) -> Response:
    replay = change(visit.actor, visit.request.path_params["id"], visit.given("reason"))
    return redirect(f"/replays/{replay['id']}")


def _trial(chosen: dict[str, Any]) -> str | None:
    """Where a person sees what a replay would do: the same choice, tried. None for what no address says."""
    fields = {name: value for name, value in chosen.items() if name not in ("ids", "provider", "facility")}
    if "provider" in chosen:
        fields["endpoint"] = "/".join(chosen[name] for name in ("provider", "facility") if name in chosen)
    elif "facility" in chosen:
        return None
    address = f"/replays/new?{urlencode([*(('id', each) for each in chosen.get('ids', ())), *fields.items()])}"
    return address if len(address) <= _LONGEST_ADDRESS else None


def _chosen(ids: tuple[str, ...], ask: Asked) -> Chosen:
    if ids:
        return Chosen(ids=ids)
    filter_ = wanted(ask, 1)
    return Chosen(
        state=filter_.state,
        provider=filter_.provider,
        facility=filter_.facility,
        since=filter_.since,
        until=filter_.until,
        search=filter_.search,
    )
