"""Notifications as a file."""

from __future__ import annotations

from starlette.responses import Response

from workers.console.api import asked
from workers.console.api.operation import Call
from workers.console.exporting import file_of
from workers.export import Format


def export(call: Call) -> Response:
    query = call.query
    form = Format(query.format)
    return file_of(call.site.engine, call.site.audit, call.actor, asked.wanted(query), form, query.reason)
