"""Notifications as a file, as long as they are many: what a page and the API answer."""

from __future__ import annotations

from sqlalchemy import Engine
from starlette.responses import Response, StreamingResponse

from workers.audit import Actor, Audit
from workers.export import MEDIA_TYPES, Format, export
from workers.ledger.queries import Filter


def file_of(engine: Engine, audit: Audit, actor: Actor, wanted: Filter, form: Format, reason: str) -> Response:
    """In the audit trail like the command's. Raises `NotDone` (`too_many_found`) and `LedgerAway`."""
    headers = {"content-disposition": f'attachment; filename="notifications.{form}"'}
    return StreamingResponse(export(engine, audit, actor, wanted, form, reason), 200, headers, MEDIA_TYPES[form])
