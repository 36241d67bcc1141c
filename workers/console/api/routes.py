"""The table of all operations, and the application that answers them."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence

import msgspec
from starlette.applications import Starlette
from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route

from receiver.errors import Reason
from receiver.settings import Role
from workers.console.api import asked, exporting, objects, reads, settlement, writes
from workers.console.api.openapi import document
from workers.console.api.operation import Operation, Streamed, respond, tagged
from workers.console.api.problems import HANDLERS
from workers.console.site import Site
from workers.replay import Preview

_CURSOR = (Reason.CURSOR_MALFORMED,)
_ID = (Reason.UNKNOWN_ID,)
_CHANGE = (Reason.UNKNOWN_ID, Reason.REASON_MISSING)

OPERATIONS: Sequence[Operation] = (
    Operation(
        "GET", "/notifications", reads.notifications, objects.NotificationPage, asked.Notifications, reasons=_CURSOR
    ),
    Operation(
        "GET",
        "/notifications/export",
        exporting.export,
        Streamed("text/csv", "application/jsonl"),
        asked.Export,
        reasons=(Reason.TOO_MANY_FOUND,),
    ),
    Operation("GET", "/notifications/{id}", reads.notification, objects.NotificationDetail, reasons=_ID),
    Operation("GET", "/payments", reads.payments, objects.PaymentPage, asked.Payments, reasons=_CURSOR),
    # A payment's id is whatever its sender wrote: a slash in it is part of it.
    Operation(
        "GET",
        "/payments/{provider}/{facility}/{payment_id:any}",
        reads.payment,
        objects.PaymentDetail,
        reasons=_ID,
    ),
    Operation("GET", "/refusals", reads.refusals, objects.RefusalPage, asked.Refusals, reasons=_CURSOR),
    Operation("GET", "/attention", reads.attention, objects.AttentionPage, asked.Attention, reasons=_CURSOR),
    Operation("GET", "/alarms", reads.alarms, objects.AlarmList, asked.Alarms),
    Operation("GET", "/replays", reads.replays, objects.ReplayPage, asked.Replays, reasons=_CURSOR),
    Operation("GET", "/replays/{id}", reads.replay, objects.ReplayDetail, asked.Results, reasons=_CURSOR + _ID),
    Operation("GET", "/audit", reads.audit, objects.AuditPage, asked.Audit, reasons=_CURSOR),
    Operation("GET", "/audit/verify", reads.audit_verdict, objects.AuditVerdict),
    Operation(
        "GET",
        "/reconciliations",
        reads.reconciliations,
        objects.ReconciliationPage,
        asked.Reconciliations,
        reasons=_CURSOR,
    ),
    Operation(
        "POST",
        "/reconciliations",
        settlement.reconcile,
        objects.Upload,
        asked.Settlement,
        file=("text/csv", "application/octet-stream"),
        role=Role.OPERATOR,
        created=objects.Upload,
        accepted=objects.Upload,
        idempotent=True,
        reasons=(
            Reason.FILE_REFUSED,
            Reason.ALREADY_RECONCILING,
            Reason.IDEMPOTENCY_KEY_REUSED,
            Reason.STOPPING,
        ),
    ),
    Operation("GET", "/reconciliations/uploads/{id}", settlement.upload, objects.Upload, reasons=_ID),
    Operation("GET", "/reconciliations/{id}", reads.reconciliation, objects.ReconciliationDetail, reasons=_ID),
    Operation(
        "POST",
        "/replays",
        writes.create_replay,
        Preview,
        body=asked.NewReplay,
        role=Role.OPERATOR,
        created=objects.Replay,
        idempotent=True,
        reasons=(
            *_CHANGE,
            Reason.NOTHING_CHOSEN,
            Reason.TOO_MANY_FOUND,
            Reason.ALREADY_IN_REPLAY,
            Reason.IDEMPOTENCY_KEY_REUSED,
        ),
    ),
    Operation(
        "POST",
        "/replays/{id}/approve",
        writes.approve_replay,
        objects.Replay,
        body=asked.Why,
        role=Role.APPROVER,
        reasons=(*_CHANGE, Reason.SECOND_OPERATOR_NEEDED, Reason.STATE_CHANGED),
    ),
    *(
        Operation(
            "POST",
            f"/replays/{{id}}/{word}",
            handler,
            objects.Replay,
            body=asked.Why,
            role=Role.OPERATOR,
            reasons=(*_CHANGE, Reason.STATE_CHANGED),
        )
        for word, handler in (
            ("pause", writes.pause_replay),
            ("resume", writes.resume_replay),
            ("cancel", writes.cancel_replay),
        )
    ),
    *(
        Operation(
            "POST",
            f"/attention/{word}",
            handler,
            answer,
            body=asked.Resolution,
            role=Role.OPERATOR,
            reasons=(*_CHANGE, Reason.STATE_CHANGED),
        )
        for word, handler, answer in (
            ("resolve", writes.resolve, objects.Settled),
            ("ignore", writes.ignore, objects.Settled),
            ("reopen", writes.reopen, objects.Reopened),
        )
    ),
    Operation(
        "POST",
        "/alarms/acknowledge",
        writes.acknowledge_alarm,
        objects.Alarm,
        body=asked.Acknowledgement,
        role=Role.OPERATOR,
        reasons=(*_CHANGE, Reason.STATE_CHANGED),
    ),
    Operation("GET", "/activity", reads.activity, objects.Activity),
    Operation("GET", "/health", reads.health, objects.Health),
)


class _Anything(Convertor[str]):
    """Line ends and slashes included."""

    regex = "(?s:.+)"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("any", _Anything())


def mounted(site: Site) -> Mount:
    """All that is below ``/api``: no address there is one of the pages, also none with a line end in it."""
    mount = Mount("/api", application(site))
    mount.path_regex = re.compile(r"^/api/(?P<path>(?s:.*))$")
    return mount


def application(site: Site) -> Starlette:
    """What answers below ``/api``."""
    by_path: dict[str, dict[str, Operation]] = {}
    for operation in OPERATIONS:
        by_path.setdefault(operation.path, {})[operation.method] = operation
    described = msgspec.json.encode(document(OPERATIONS)) + b"\n"

    async def openapi(request: Request) -> Response:
        return tagged(request, described)

    app = Starlette(
        routes=[
            Route("/openapi.json", openapi, methods=["GET"]),
            *(Route(f"/v1{path}", _endpoint(some), methods=list(some)) for path, some in by_path.items()),
        ],
        exception_handlers=dict(HANDLERS),
    )
    app.router.redirect_slashes = False
    app.state.site = site
    return app


def _endpoint(operations: dict[str, Operation]) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        return await respond(request, operations["GET" if request.method == "HEAD" else request.method])

    return endpoint
