"""What monitoring asks the console. Nothing here is signed in: it names endpoints and figures, never a payment."""

from __future__ import annotations

from sqlalchemy import text
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from receiver import metrics
from receiver.errors import LedgerAway
from receiver.health import measure_queue
from workers.console.site import Site, json
from workers.ledger import queries


async def healthz(request: Request) -> Response:
    """``GET /healthz``: one JSON object, 200 or 503."""
    state = await run_in_threadpool(request.app.state.site.health.now)
    return json(state, 200 if state["status"] == "ok" else 503)


async def livez(request: Request) -> Response:
    return json({"status": "ok"})


async def readyz(request: Request) -> Response:
    """200 while the pages have something to show: the ledger answers."""
    site: Site = request.app.state.site
    try:
        await run_in_threadpool(_ask_ledger, site)
    except LedgerAway as error:
        return json({"status": "not ready", "fault": str(error)}, 503)
    return json({"status": "ready"})


def _ask_ledger(site: Site) -> None:
    with queries.reading(site.engine) as connection:
        connection.execute(text("SELECT 1 FROM ended_sessions LIMIT 1"))


async def metrics_page(request: Request) -> Response:
    """The figures of this machine's processes, as the accept side shows them, and those of the ledger."""
    page = await run_in_threadpool(_figures, request.app.state.site)
    return Response(page, media_type="text/plain; version=0.0.4; charset=utf-8")


def _figures(site: Site) -> bytes:
    measure_queue(site.redis)
    return metrics.expose() + site.ledger_figures.now()


ROUTES = [
    Route("/livez", livez, methods=["GET"]),
    Route("/readyz", readyz, methods=["GET"]),
    Route("/metrics", metrics_page, methods=["GET"]),
    Route("/healthz", healthz, methods=["GET"]),
]
