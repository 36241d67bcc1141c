"""What is asked of SQLite, which has no statistics: no question reads a whole table, or all of an endpoint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event

from tests.support import EXPECTED_CASUAL, recorded
from tests.workers.material import delivered, envelope, only_payment, rows, sealed
from tests.workers.test_replay import ANNA, CAPTURED, Desk, break_
from workers import attention
from workers.ledger import database, details, pages, queries, timeline
from workers.ledger.ledger import Interpreted
from workers.ledger.queries import Filter
from workers.ledger.tables import notifications
from workers.replay import Chosen

_LARGE = ("notifications", "repeats", "payments", "browser_returns", "replay_items", "expectations")


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    url = f"sqlite:///{tmp_path / 'ledger.sqlite3'}"
    database.migrate(url)
    engine = database.open_engine(url)
    yield Desk(engine)
    engine.dispose()


@contextmanager
def planned(engine: Engine) -> Iterator[None]:
    """Fails for a statement that reads more of a table that grows than it needs."""
    slow: list[str] = []

    @event.listens_for(engine, "before_cursor_execute")
    def explain(connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
        if statement.partition(" ")[0] not in ("SELECT", "UPDATE", "DELETE"):
            return
        given = parameters[0] if many else parameters
        driver = connection.connection.driver_connection
        for *_, plan in driver.execute(f"EXPLAIN QUERY PLAN {statement}", given):
            of_large = any(plan.startswith((f"SCAN {table}", f"SEARCH {table}")) for table in _LARGE)
            whole = plan.startswith("SCAN") and "INDEX" not in plan
            if of_large and (whole or plan.endswith("(provider=? AND facility=?)")):
                slow.append(f"{plan}: {' '.join(statement.split())}")

    yield
    event.remove(engine, "before_cursor_execute", explain)
    assert slow == []


def test_a_batch_with_repeats(desk: Desk) -> None:
    came = [delivered(CAPTURED, dedupe_key=f"k{number}") for number in range(5)]
    again = [delivered(CAPTURED, dedupe_key=f"k{number}") for number in range(5)]
    with planned(desk.engine):
        desk.pipeline.process(sealed(*came))
        desk.pipeline.process(sealed(*again, delivered(CAPTURED, dedupe_key="k0", fingerprint="f2")))
    counts = [(row.deliveries, row.conflicts) for row in rows(desk.engine, notifications)]
    assert sorted(counts) == [(2, 0)] * 4 + [(3, 1)]


def test_an_expectation_and_what_was_held_for_it(desk: Desk) -> None:
    with planned(desk.engine):
        desk.pipeline.process(sealed(delivered(recorded("debitsuccess", "casual_payment"), verified=False)))
        desk.pipeline.expect(EXPECTED_CASUAL)
    assert only_payment(desk.engine).state == "captured"


def test_a_replay(desk: Desk) -> None:
    desk.pipeline.process(sealed(delivered(CAPTURED)))
    break_(desk.engine)
    with planned(desk.engine):
        replay_id = desk.replays.create(ANNA, Chosen(state="failed"), "mended")["id"]
        desk.run(replay_id)
    assert only_payment(desk.engine).state == "captured"


def test_what_pages_show(desk: Desk) -> None:
    desk.pipeline.process(sealed(delivered(CAPTURED), delivered(CAPTURED)))
    desk.ledger.record([Interpreted(envelope("bad"), "failed", "interpretation_failed", "x")])
    payment = only_payment(desk.engine)
    with planned(desk.engine), queries.reading(desk.engine) as connection:
        details.payment(connection, payment.provider, payment.facility, payment.payment_id)
        for row in rows(desk.engine, notifications):
            queries.show_notification(connection, row.id, desk.ledger.bodies)
            timeline.timeline(connection, row.id)
        for wanted in (Filter(), Filter(provider="quickstream"), Filter(provider="quickstream", facility="acme")):
            pages.page_payments(connection, replace(wanted, mismatch=True))
            pages.page_payments(connection, replace(wanted, mismatch=True, state="captured"))
        for kind in attention.Kind:
            attention.page(connection, kind)
            attention.page(connection, kind, provider="quickstream", facility="acme")
            attention.page(connection, kind, provider="quickstream", settled=True)
