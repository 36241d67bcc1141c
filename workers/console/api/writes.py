"""What the API does: replays, and settling what needs attention, by the same functions as pages and commands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from receiver.errors import NotDone, Reason
from workers.attention import Subject, Verdict
from workers.audit import Actor
from workers.console.api import asked
from workers.console.api.operation import Answer, Call
from workers.console.api.problems import Declined
from workers.replay import Chosen, Preview

_FILTER = ("state", "provider", "facility", "search")


def create_replay(call: Call) -> Answer | Preview:
    chosen = _chosen(call.body)
    if call.body.dry_run:
        return call.site.replays.preview(chosen)
    made = call.site.replays.create(call.actor, chosen, call.body.reason, call.idempotency_key)
    return Answer(made, 201, {"location": f"/api/v1/replays/{made['id']}"})


def approve_replay(call: Call) -> dict[str, Any]:
    return _change(call, call.site.replays.approve)


def pause_replay(call: Call) -> dict[str, Any]:
    return _change(call, call.site.replays.pause)


def resume_replay(call: Call) -> dict[str, Any]:
    return _change(call, call.site.replays.resume)


def cancel_replay(call: Call) -> dict[str, Any]:
    return _change(call, call.site.replays.cancel)


def acknowledge_alarm(call: Call) -> dict[str, Any]:
    return call.site.alarms.acknowledge(call.actor, call.body.alarm, call.body.reason)


def resolve(call: Call) -> dict[str, int]:
    return _settle(call, Verdict.RESOLVED)


def ignore(call: Call) -> dict[str, int]:
    return _settle(call, Verdict.IGNORED)


def reopen(call: Call) -> dict[str, int]:
    subjects = _subjects(call)
    call.site.attention.reopen(call.actor, subjects, call.body.reason)
    return {"reopened": len(subjects)}


def _change(call: Call, change: Callable[[Actor, str, str], dict[str, Any]]) -> dict[str, Any]:
    return change(call.actor, call.path["id"], call.body.reason)


def _settle(call: Call, verdict: Verdict) -> dict[str, int]:
    subjects = _subjects(call)
    call.site.attention.settle(call.actor, subjects, verdict, call.body.reason)
    return {"settled": len(subjects)}


def _subjects(call: Call) -> list[Subject]:
    """Each once."""
    kind = call.body.kind
    named = (
        Subject(kind, each.subject, asked.given(each.provider), asked.given(each.facility))
        for each in call.body.subjects
    )
    return list(dict.fromkeys(named))


def _chosen(body: asked.NewReplay) -> Chosen:
    chosen = Chosen(
        ids=tuple(body.ids),
        since=asked.moment(body.since, "since"),
        until=asked.moment(body.until, "until"),
        **{name: asked.given(getattr(body, name)) for name in _FILTER},
    )
    filtered = chosen != Chosen(ids=chosen.ids)
    if chosen.ids and filtered:
        raise Declined(Reason.REQUEST_MALFORMED, "Choose by ids or by a filter, not by both.")
    if not chosen.ids and not filtered:
        raise NotDone(Reason.NOTHING_CHOSEN, "Nothing is chosen: name ids, or filter.")
    return chosen
