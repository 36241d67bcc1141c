"""The pages, one file for each subject."""

from __future__ import annotations

from starlette.routing import Route

from receiver.settings import Role
from workers.console.pages import (
    attention,
    audit,
    notifications,
    overview,
    password,
    payments,
    reconciliations,
    refused,
    replays,
    second_factor,
)
from workers.console.receiving import upload
from workers.console.site import form, page


def routes() -> list[Route]:
    return [
        page("/", overview.overview),
        form("/alarms/acknowledge", overview.acknowledged, Role.OPERATOR),
        page("/notifications", notifications.listed),
        form("/notifications/export", notifications.exported, Role.VIEWER),
        page("/notifications/{id}", notifications.shown),
        page("/payments", payments.listed),
        page("/payments/{provider}/{facility}", payments.shown),
        page("/refused", refused.listed),
        page("/attention", attention.listed),
        form("/attention/settle", attention.settled, Role.OPERATOR),
        form("/attention/reopen", attention.reopened, Role.OPERATOR),
        page("/replays", replays.listed),
        page("/replays/new", replays.tried, Role.OPERATOR),
        form("/replays", replays.asked_for, Role.OPERATOR),
        page("/replays/{id}", replays.shown),
        form("/replays/{id}/approve", replays.approved, Role.APPROVER),
        form("/replays/{id}/pause", replays.paused, Role.OPERATOR),
        form("/replays/{id}/resume", replays.resumed, Role.OPERATOR),
        form("/replays/{id}/cancel", replays.cancelled, Role.OPERATOR),
        page("/reconciliations", reconciliations.listed),
        upload("/reconciliations", reconciliations.given, Role.OPERATOR),
        page("/reconciliations/uploads/{id}", reconciliations.uploading),
        page("/reconciliations/{id}", reconciliations.shown),
        page("/audit", audit.listed),
        page("/password", password.asked),
        form("/password", password.changed, Role.VIEWER),
        page("/second-factor", second_factor.asked, enrolling=True),
        form("/second-factor", second_factor.enrolled, Role.VIEWER, enrolling=True),
        form("/second-factor/off", second_factor.taken_off, Role.VIEWER),
        page("/audit/verify", audit.verified),
    ]
