"""Lists page by page on both databases: nothing twice, nothing left out, and an index for every look."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from sqlalchemy import Connection, Engine, event, text

from receiver.errors import NotDone, Reason
from receiver.notification import Effect, new_id, utc
from tests.workers import material
from tests.workers.material import MOMENT, NOW, envelope
from workers.ledger import pages, queries
from workers.ledger.ledger import Interpreted, Ledger
from workers.ledger.pages import Page
from workers.ledger.queries import Filter

ENDPOINTS = [("checkout", "main"), ("checkout", "second"), ("paymentz", "eu")]
FILTERS: list[dict[str, Any]] = [
    {},
    {"state": "failed"},
    {"state": "captured"},
    {"provider": "checkout"},
    {"facility": "main"},
    {"facility": "nowhere"},
    {"provider": "checkout", "facility": "second", "state": "processed"},
    {"provider": "checkout", "facility": "second", "state": "declined"},
    {"since": MOMENT + timedelta(milliseconds=5), "until": MOMENT + timedelta(milliseconds=30)},
    {"provider": "checkout", "until": MOMENT + timedelta(milliseconds=30)},
    {"provider": "checkout", "facility": "second"},
    {"mismatch": True},
    {"mismatch": True, "provider": "checkout"},
    {"search": "R"},
    {"search": "R", "provider": "checkout"},
    {"search": "12.00"},
]


@pytest.fixture
def forty(ledger: Ledger) -> None:
    """40 notifications, some in the same millisecond, half of a batch's payments changed at the same time."""
    items = []
    for number in range(40):
        provider, facility = ENDPOINTS[number % 3]
        received_at = NOW + number // 3 * 1000
        came = envelope(
            f"k{number}", id=new_id(received_at), provider=provider, facility=facility, received_at=received_at
        )
        if number % 7 == 3:
            items.append(Interpreted(came, "failed", "interpretation_failed"))
            continue
        effect = Effect.DECLINED if number % 5 == 0 else Effect.CAPTURED
        partial = number % 4 == 1
        said = material.event(effect, payment_id=f"p{number}", reference=f"R{number % 4}", amount=1200, partial=partial)
        items.append(Interpreted(came, "processed", event=said))
    for start in range(0, 40, 20):
        ledger.record(items[start : start + 20])


def walk(engine: Engine, page: Callable[..., Page], wanted: Filter) -> Iterator[Page]:
    cursor = None
    while True:
        with queries.reading(engine) as connection:
            found = page(connection, wanted, cursor)
        yield found
        if (cursor := found.next) is None:
            return


@pytest.mark.parametrize("wanted", FILTERS, ids=str)
@pytest.mark.parametrize(
    ("page", "every"),
    [(pages.page_notifications, pages.every_notification), (pages.page_payments, pages.every_payment)],
    ids=["notifications", "payments"],
)
@pytest.mark.usefixtures("forty")
def test_pages_together_are_the_whole_list(
    engine: Engine, page: Callable[..., Page], every: Callable[..., Iterator[Any]], wanted: dict[str, Any]
) -> None:
    with queries.reading(engine) as connection:
        whole = list(every(connection, Filter(**wanted)))
        for size in (1, 7, 40):
            found = list(walk(engine, page, Filter(**wanted, limit=size)))
            assert list(itertools.chain.from_iterable(each.items for each in found)) == whole
            assert all(len(each.items) == size for each in found[:-1])
            assert not any(each.cut for each in found)
        assert list(every(connection, Filter(**wanted, limit=5))) == whole[:5]


@pytest.mark.usefixtures("forty")
def test_the_lists_are_what_the_filters_say(engine: Engine) -> None:
    with queries.reading(engine) as connection:
        everything = list(pages.every_notification(connection, Filter()))
        assert len(everything) == 40
        assert everything == sorted(everything, key=lambda each: str(each["id"]), reverse=True)
        for wanted in FILTERS:
            if "search" in wanted:
                continue
            span = (wanted.get("since", MOMENT), wanted.get("until", MOMENT + timedelta(days=1)))
            expected = [
                each
                for each in everything
                if all(each[name] == wanted[name] for name in ("state", "provider", "facility") if name in wanted)
                and span[0] <= each["received_at"] < span[1]
            ]
            assert list(pages.every_notification(connection, Filter(**wanted))) == expected


@pytest.mark.usefixtures("forty")
def test_what_comes_meanwhile_moves_nothing(engine: Engine, ledger: Ledger) -> None:
    walking = walk(engine, pages.page_notifications, Filter(limit=30))
    first = next(walking)
    came = envelope("new", id=new_id(NOW + 10_000_000), received_at=NOW + 10_000_000)
    ledger.record([Interpreted(came, "failed", "x")])
    second = next(walking)
    assert len({each["id"] for each in first.items + second.items}) == 40
    assert came.id not in {each["id"] for each in second.items}


def packed(value: Any) -> str:
    return base64.urlsafe_b64encode(msgspec.msgpack.encode(value)).decode().rstrip("=")


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "x",
        "é",
        "!!!!",
        packed(["n"]),
        packed(["p", 1, "a", "b", "c", "d"]),
        packed(["p", 2**62, "a", "b", "c"]),
        packed(["p", "soon", "a", "b", "c"]),
        packed(["n", "\x00"]),
        packed(["x", "a"]),
        packed({"id": "a"}),
        "A" * 100_000,
    ],
)
@pytest.mark.parametrize("page", [pages.page_notifications, pages.page_payments])
def test_a_bad_cursor_is_one_clear_error(engine: Engine, page: Callable[..., Page], cursor: str) -> None:
    with queries.reading(engine) as connection, pytest.raises(NotDone) as refused:
        page(connection, Filter(), cursor)
    assert (refused.value.reason, refused.value.status) == (Reason.CURSOR_MALFORMED, 400)


def test_a_cursor_of_another_list_is_refused(engine: Engine, ledger: Ledger) -> None:
    ledger.record([material.processed(f"k{n}", material.event(payment_id=f"p{n}")) for n in range(2)])
    with queries.reading(engine) as connection:
        cursor = pages.page_payments(connection, Filter(limit=1)).next
        assert cursor is not None
        with pytest.raises(NotDone, match="none of this list"):
            pages.page_notifications(connection, Filter(), cursor)


@pytest.mark.usefixtures("forty")
def test_a_search_that_matches_too_much_says_so(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "SEARCHED", 10)
    monkeypatch.setattr(pages, "SEARCHED_BY_ALL", 20)
    with queries.reading(engine) as connection:
        for page in (pages.page_notifications, pages.page_payments):
            assert page(connection, Filter(search="R")).cut
            assert not page(connection, Filter(search="R1")).cut
        for every in (pages.every_notification, pages.every_payment):
            assert len(list(every(connection, Filter(search="R1")))) == 9
            with pytest.raises(NotDone) as refused:
                list(every(connection, Filter(search="R")))
            assert refused.value.reason == Reason.TOO_MANY_FOUND


@contextmanager
def plans(engine: Engine, connection: Connection) -> Iterator[list[str]]:
    """How the database would run each statement, when it is over."""
    seen: list[tuple[str, Any]] = []

    def note(_: Any, __: Any, statement: str, parameters: Any, *___: Any) -> None:
        seen.append((statement, parameters))

    found: list[str] = []
    event.listen(engine, "before_cursor_execute", note)
    try:
        yield found
    finally:
        event.remove(engine, "before_cursor_execute", note)
    explain = "EXPLAIN QUERY PLAN " if engine.dialect.name == "sqlite" else "EXPLAIN "
    for statement, parameters in seen:
        if statement.startswith("SELECT"):
            rows = connection.exec_driver_sql(explain + statement, parameters)
            found.append(" | ".join(str(row[-1]) for row in rows) + " <- " + statement)


@pytest.mark.parametrize("page", [pages.page_notifications, pages.page_payments], ids=["notifications", "payments"])
@pytest.mark.usefixtures("forty")
def test_every_look_uses_an_index(engine: Engine, page: Callable[..., Page]) -> None:
    sought = [*FILTERS, {"search": "12"}, {"search": pages.first_id(MOMENT)}, {"search": "R3", "state": "failed"}]
    with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            # Of forty rows it would read all.
            connection.execute(text("SET LOCAL enable_seqscan = off"))
        with plans(engine, connection) as found:
            for wanted in sought:
                first = page(connection, Filter(**wanted, limit=2))
                if first.next is not None:
                    page(connection, replace(Filter(**wanted), limit=2), first.next)
    assert len(found) > 30
    for plan in found:
        assert "Seq Scan" not in plan, plan
        assert "SCAN" not in plan.partition(" <- ")[0].replace("USING", "") or " INDEX " in plan, plan


def test_ids_and_times_tell_the_same(engine: Engine) -> None:
    moment = utc(NOW)
    assert new_id(NOW).startswith(pages.first_id(moment))
    assert pages.first_id(moment - timedelta(milliseconds=1)) < new_id(NOW)
