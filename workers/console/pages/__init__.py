"""The pages, one file for each subject."""

from __future__ import annotations

from starlette.routing import Route

from workers.console.pages import notifications, overview, payments, refused
from workers.console.site import page


def routes() -> list[Route]:
    return [
        page("/", overview.overview),
        page("/notifications", notifications.listed),
        page("/notifications/{id}", notifications.shown),
        page("/payments", payments.listed),
        page("/payments/{provider}/{facility}", payments.shown),
        page("/refused", refused.listed),
    ]
