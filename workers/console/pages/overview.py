"""The first page: is all well, and what came in the last day."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from redis.exceptions import RedisError
from starlette.responses import Response

from receiver.errors import LedgerAway
from workers.alarms import desk
from workers.console.charts import Hour
from workers.console.site import Visit, redirect

_OPEN = ("failed", "quarantined", "held", "conflicts", "mismatches")


def overview(visit: Visit) -> Response:
    """Also when Redis or the ledger is away: then it says so, and shows the rest."""
    site = visit.site
    charts: dict[tuple[str, str], list[Hour]] = {}
    with suppress(LedgerAway, RedisError):
        charts = site.activity.charts()
    health = site.health.now()
    silent = {
        (each["provider"], each["facility"]): each["silent_seconds"] for each in health["database"].get("endpoints", ())
    }
    rows = [
        {"provider": provider, "facility": facility, "hours": charts.get(key), "silent": silent.get(key)}
        for provider, facility in site.settings.endpoints
        for key in [(provider, facility)]
    ]
    waiting = sum(health["database"].get(name, 0) for name in _OPEN)
    return visit.page("overview.html", waiting=waiting, health=health, alarms=_alarms(visit, health), endpoints=rows)


def _alarms(visit: Visit, health: dict[str, Any]) -> list[dict[str, Any]]:
    """While the ledger is away: what this machine knows of them; nobody can acknowledge one then."""
    try:
        with visit.ledger() as connection:
            return desk.listed(connection)
    except LedgerAway:
        return [each | {"means": "", "do": "", "acknowledged_by": None, "fixed": True} for each in health["alarms"]]


def acknowledged(visit: Visit) -> Response:
    visit.site.alarms.acknowledge(visit.actor, visit.given("alarm"), visit.given("reason"))
    return redirect("/")
