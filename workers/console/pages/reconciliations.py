"""The runs over the bank's settlement files, what each found, and the form that gives a file."""

from __future__ import annotations

from datetime import date
from typing import Any

from starlette.responses import Response

from receiver.errors import NotDone, Reason
from workers import audit
from workers.console import uploads
from workers.console.receiving import Attached
from workers.console.site import Trouble, Visit, redirect
from workers.console.uploads import FINDINGS_SHOWN, Upload
from workers.ledger.pages import NotificationPlace, cursor_of, place_of
from workers.ledger.queries import Filter
from workers.ledger.reconciliations import list_reconciliations, of_same_file, show_reconciliation
from workers.ledger.rows import storable

SHOWN = 100
REFRESH = 2
"""Seconds between two looks at a run that goes on."""

_DAYS = ("since", "until")


def listed(visit: Visit) -> Response:
    return _list(visit)


def given(visit: Visit, file: Attached | None) -> Response:
    """Reconciles a file, or only looks with `dry_run`. A file that cannot be taken: 422, another in hand: 409."""
    try:
        endpoint = visit.site.uploads.endpoint(visit.given("endpoint"))
        days = _day(visit, "since", "The first day"), _day(visit, "until", "The last day")
        if file is None:
            raise NotDone(Reason.REQUEST_MALFORMED, "Choose a file first.")
        write = not visit.given("dry_run")
        upload = visit.site.uploads.begin(endpoint, file.content, file.name, visit.actor, write=write, days=days)
    except NotDone as doubt:
        return _list(visit, doubt.status, f"{doubt.detail} Nothing was done.")
    upload.ended.wait(uploads.ANSWER_WITHIN)
    if upload.refused is not None:
        return _list(visit, upload.refused.status, f"{upload.file_name}: {upload.refused.detail}")
    return redirect(_place(upload))


def uploading(visit: Visit) -> Response:
    """How far the run over a file that was given is; then where its result is, or the result of a dry run itself."""
    upload = visit.site.uploads.get(visit.request.path_params["id"])
    if upload is None:
        sentence = "The console was started again, or it was long ago. What was begun is among the reconciliations."
        raise Trouble(404, "This upload is not known any more", sentence)
    ended = upload.ended.is_set()
    if upload.result is None or not ended:
        live = not ended and not visit.asked("still")
        response = visit.page("uploading.html", upload=upload, ended=ended, live=live)
        if live:
            # A header, as no script may run.
            response.headers["refresh"] = f"{REFRESH}; url=/reconciliations/uploads/{upload.id}?live=1"
        return response
    if upload.result.id is not None:
        return redirect(_place(upload))
    run = upload.result.as_object() | {"finished_at": None}
    return visit.page("reconciliation.html", run=run, dry_run=True, by=upload.by, same=[], findings=upload.findings)


def shown(visit: Visit) -> Response:
    id_ = visit.request.path_params["id"]
    with visit.ledger() as connection:
        found = show_reconciliation(connection, id_) if storable(id_) else None
        if found is None:
            raise Trouble(404, "There is no such reconciliation", "No run has this id.")
        by = [each["operator"] for each in audit.listed(connection, limit=1, subject=found["id"])]
        same = of_same_file(connection, found)
    findings = found["found"][:FINDINGS_SHOWN]
    return visit.page(
        "reconciliation.html", run=found, dry_run=False, by=by[0] if by else None, same=same, findings=findings
    )


def _place(upload: Upload) -> str:
    if upload.result is None or upload.result.id is None:
        return f"/reconciliations/uploads/{upload.id}"
    return f"/reconciliations/{upload.result.id}"


def _list(visit: Visit, status: int = 200, refused: str = "") -> Response:
    after = visit.asked("after")
    place = place_of(after or None, NotificationPlace)
    with visit.ledger() as connection:
        found = list(list_reconciliations(connection, Filter(limit=SHOWN + 1), place.id if place else None))
    older = cursor_of(NotificationPlace(found[SHOWN - 1]["id"])) if len(found) > SHOWN else None
    written: dict[str, Any] = {name: visit.given(name) for name in _DAYS} | {"chosen": visit.given("endpoint")}
    written |= {"endpoints": visit.site.uploads.paths, "refused": refused}
    return visit.page("reconciliations.html", status, found=found[:SHOWN], after=after, older=older, **written)


def _day(visit: Visit, name: str, label: str) -> date | None:
    """Raises `NotDone` (`parameter_refused`)."""
    text = visit.given(name)
    try:
        return date.fromisoformat(text) if text else None
    except ValueError:
        raise NotDone(Reason.PARAMETER_REFUSED, f"{label} must be a day such as 2026-11-24.") from None
