"""What needs a person: what it means, what can be done, and how it was settled."""

from __future__ import annotations

from starlette.responses import Response

from receiver.errors import NotDone
from workers import attention
from workers.attention import Kind, Subject, Verdict
from workers.console.site import Trouble, Visit, own_path, redirect

SHOWN = 50


def listed(visit: Visit) -> Response:
    return _list(visit, visit.asked("kind"), bool(visit.asked("settled")))


def settled(visit: Visit) -> Response:
    """Resolves or ignores what was marked, all of it or nothing."""
    verdict = visit.given("verdict")
    if verdict not in list(Verdict):
        return _refused(visit, "Say whether it is resolved or ignored.", 400)
    subjects = _subjects(visit)
    try:
        visit.site.attention.settle(visit.actor, subjects, Verdict(verdict), visit.given("reason"))
    except NotDone as refusal:
        return _refused(visit, refusal.detail, refusal.status)
    return redirect(own_path(visit.given("back") or f"/attention?kind={subjects[0].kind}&done={len(subjects)}"))


def reopened(visit: Visit) -> Response:
    subjects = _subjects(visit)
    try:
        visit.site.attention.reopen(visit.actor, subjects, visit.given("reason"))
    except NotDone as refusal:
        return _refused(visit, refusal.detail, refusal.status, settled=True)
    return redirect(own_path(visit.given("back") or f"/attention?kind={subjects[0].kind}"))


def _refused(visit: Visit, sentence: str, status: int, settled: bool = False) -> Response:
    if visit.given("back"):
        raise Trouble(status, "Nothing was done", sentence)
    return _list(visit, visit.given("kind"), settled, sentence, status)


def _list(visit: Visit, kind_: str, settled: bool, refused: str = "", status: int = 200) -> Response:
    if kind_ and kind_ not in list(Kind):
        raise Trouble(400, "There is no such kind", f"It is one of {', '.join(Kind)}.")
    after, endpoint = visit.asked("after"), visit.asked("endpoint")
    provider, _, facility = endpoint.partition("/")
    with visit.ledger() as connection:
        counts = attention.counts(connection)
        # Without a choice: the first kind of which there is any.
        kind = Kind(kind_) if kind_ else next((each for each in Kind if counts[each]), Kind.FAILED)
        found = attention.page(
            connection,
            kind,
            provider=provider or None,
            facility=facility or None,
            settled=settled,
            cursor=after or None,
            limit=SHOWN,
        )
    return visit.page(
        "attention.html",
        status,
        counts=counts,
        kind=kind.value,
        endpoint_asked=endpoint,
        meaning=attention.MEANINGS[kind],
        found=found,
        settled=settled,
        after=after,
        refused=refused,
        marked=visit.form.get("subject", []),
        reason=visit.given("reason"),
        done=visit.asked("done") if visit.asked("done").isdigit() else "",
    )


def _subjects(visit: Visit) -> list[Subject]:
    """What was marked: each a text ``provider/facility/subject``."""
    kind = visit.given("kind")
    parts = [text.split("/", 2) for text in visit.form.get("subject", [])]
    if kind not in list(Kind) or any(len(part) != 3 for part in parts):
        raise Trouble(400, "The form cannot be read", "Nothing was done.")
    return [Subject(Kind(kind), subject, provider, facility) for provider, facility, subject in parts]
