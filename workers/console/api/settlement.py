"""Settlement files that programs give: reconciled by the same function as those of the page."""

from __future__ import annotations

from typing import Any

from receiver.errors import NotDone, Reason
from receiver.signing import digest
from workers.audit import Actor
from workers.console import uploads
from workers.console.api import asked
from workers.console.api.objects import UploadState
from workers.console.api.operation import Answer, Call
from workers.console.uploads import FINDINGS_SHOWN, Once, Upload
from workers.ledger.reconciliations import show_reconciliation

_COMPARED = ("digest", "first_day", "last_day", "rows", "matched", "entered", "findings", "counts")


def reconcile(call: Call) -> Answer:
    """200 for a dry run that ended, 201 for a run that ended, 202 for what goes on; 409, 422, 500 and 503 for a file
    that was not taken. With the same key of the same client it gives what was begun with it, as it is by then."""
    query = call.query
    endpoint = call.site.uploads.endpoint(f"{query.provider}/{query.facility}")
    days = asked.given(query.first_day), asked.given(query.last_day)
    once: Once | None = None
    if call.idempotency_key is not None and not query.dry_run:
        parts = (endpoint.path, query.file_name, call.body.digest, *map(str, days))
        once = call.idempotency_key, digest("settlement file", *parts)
        if (known := _made_with(call, once)) is not None:
            return known
    upload = call.site.uploads.begin(
        endpoint, call.body.content, query.file_name, call.actor, write=not query.dry_run, days=days, once=once
    )
    upload.ended.wait(uploads.ANSWER_WITHIN)
    if upload.refused is not None:
        # The same may have been asked twice at the same moment.
        if once is not None and (known := _made_with(call, once)) is not None:
            return known
        raise upload.refused
    return _answer(upload)


def upload(call: Call) -> dict[str, Any]:
    found = call.site.uploads.get(call.path["id"])
    if found is None:
        sentence = "No upload has this id, or the console was started again. What was begun is in /reconciliations."
        raise NotDone(Reason.UNKNOWN_ID, sentence)
    return _shown(found)


def _made_with(call: Call, once: Once) -> Answer | None:
    run_id = call.site.uploads.made_with(call.actor, once)
    if run_id is None:
        return None
    if (upload := call.site.uploads.of_run(run_id)) is not None:
        return _answer(upload)
    with call.ledger() as connection:
        run = show_reconciliation(connection, run_id)
    assert run is not None, "it was written in the transaction of the key"
    return Answer(_of_record(run, call.actor), 201, {"location": f"/api/v1/reconciliations/{run_id}"})


def _answer(upload: Upload) -> Answer:
    if not upload.ended.is_set():
        return Answer(_shown(upload), 202, {"location": f"/api/v1/reconciliations/uploads/{upload.id}"})
    if upload.run_id is None:
        return Answer(_shown(upload))
    return Answer(_shown(upload), 201, {"location": f"/api/v1/reconciliations/{upload.run_id}"})


def _shown(upload: Upload) -> dict[str, Any]:
    ended = upload.ended.is_set()
    state = UploadState.REFUSED if upload.refused else UploadState.DONE if ended else UploadState.RUNNING
    result = upload.result.as_object() if ended and upload.result is not None else None
    return {
        "id": upload.id,
        "reconciliation_id": upload.run_id,
        "provider": upload.endpoint.provider,
        "facility": upload.endpoint.facility,
        "file_name": upload.file_name,
        "by": upload.by,
        "dry_run": not upload.write,
        "began_at": upload.began_at,
        "state": state,
        "share": upload.share,
        "reason": upload.refused.reason if upload.refused else None,
        "detail": upload.refused.detail if upload.refused else None,
        "result": result and {name: result[name] for name in _COMPARED} | {"found": upload.findings},
    }


def _of_record(run: dict[str, Any], actor: Actor) -> dict[str, Any]:
    """One that this process does not know any more."""
    finished = run["finished_at"] is not None
    names = ("provider", "facility", "file_name", "began_at")
    result = {name: run[name] for name in _COMPARED} | {"found": run["found"][:FINDINGS_SHOWN]}
    return {name: run[name] for name in names} | {
        "id": None,
        "reconciliation_id": run["id"],
        "by": actor.name,
        "dry_run": False,
        "state": UploadState.DONE if finished else UploadState.UNFINISHED,
        "share": 1.0 if finished else 0.0,
        "reason": None,
        "detail": None,
        "result": result if finished else None,
    }
