"""The runs over the bank's settlement files, and what each found."""

from __future__ import annotations

from itertools import islice

from starlette.responses import Response

from workers.console.site import Trouble, Visit
from workers.ledger.queries import Filter
from workers.ledger.reconciliations import list_reconciliations, show_reconciliation
from workers.ledger.rows import storable

SHOWN = 100
FINDINGS_SHOWN = 500


def listed(visit: Visit) -> Response:
    with visit.ledger() as connection:
        found = list(islice(list_reconciliations(connection, Filter(limit=SHOWN)), SHOWN))
    return visit.page("reconciliations.html", found=found)


def shown(visit: Visit) -> Response:
    id_ = visit.request.path_params["id"]
    with visit.ledger() as connection:
        found = show_reconciliation(connection, id_) if storable(id_) else None
    if found is None:
        raise Trouble(404, "There is no such reconciliation", "No run has this id.")
    return visit.page("reconciliation.html", run=found, findings=found["found"][:FINDINGS_SHOWN])
