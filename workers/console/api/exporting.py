"""Notifications as a file, as long as they are many; in the audit trail like the command's."""

from __future__ import annotations

from starlette.responses import Response, StreamingResponse

from workers import export as exports
from workers.console.api import asked
from workers.console.api.operation import Call
from workers.export import MEDIA_TYPES, Format


def export(call: Call) -> Response:
    form = Format(call.query.format)
    wanted = asked.wanted(call.query)
    parts = exports.export(call.site.engine, call.site.audit, call.actor, wanted, form, call.query.reason)
    headers = {"content-disposition": f'attachment; filename="notifications.{form}"'}
    return StreamingResponse(parts, 200, headers, MEDIA_TYPES[form])
