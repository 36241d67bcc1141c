"""Many rows in one statement keep what they say, on both databases."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Engine

from tests.workers.material import MOMENT, envelope, rows
from workers.ledger.bodies import Bodies
from workers.ledger.documents import insert_new, update_each
from workers.ledger.rows import Interpreted, notification_row
from workers.ledger.tables import expectations, notifications

ODD = "a 'quote', a \"double\", a back\\slash, \\u0041, %s, :name, \r\n\t, \x01, \u00e9 \u4e2d \U0001f600, {} []"


def stored(number: int, body: bytes) -> dict[str, Any]:
    item = Interpreted(envelope(f"k{number}", id=f"{number:036}", body=body), "processed", detail=ODD)
    return notification_row(item, Bodies())


def test_what_is_inserted_is_what_was_given(engine: Engine) -> None:
    given = [stored(1, bytes(range(256))), stored(2, b"")]
    with engine.begin() as connection:
        assert [row.id for row in insert_new(connection, notifications, given)] == [row["id"] for row in given]
        assert insert_new(connection, notifications, given) == []
    assert [dict(row._mapping) | {"purged_at": None} for row in rows(engine, notifications)] == [
        each | {"purged_at": None} for each in given
    ]


def test_each_row_gets_its_own_values_and_keeps_the_others(engine: Engine) -> None:
    with engine.begin() as connection:
        insert_new(connection, notifications, [stored(number, b"body") for number in range(3)])
    before = {row.id: dict(row._mapping) for row in rows(engine, notifications)}
    values = {"verified": False, "processed_at": MOMENT, "deliveries": 2_000_000_000, "detail": ODD * 2}
    changed = [
        {"id": f"{0:036}", **values, "event": None},
        {"id": f"{2:036}", **values, "event": "{}"},
        {"id": f"{9:036}", **values, "event": "is not there"},
    ]
    with engine.begin() as connection:
        update_each(connection, notifications, changed)
        update_each(connection, notifications, [])
    after = {row.id: dict(row._mapping) for row in rows(engine, notifications)}
    assert after == {key: before[key] | next((c for c in changed if c["id"] == key), {}) for key in before}


def test_a_key_of_several_columns_finds_one_row(engine: Engine) -> None:
    key = {"provider": "checkout", "facility": "main"}
    expected = {"reference": "R", "amount": 1, "currency": "AUD", "exponent": 2, "registered_at": MOMENT}
    with engine.begin() as connection:
        insert_new(connection, expectations, [{**key, "key": each, **expected} for each in ("ref:A", "ref:B")])
        update_each(connection, expectations, [{**key, "key": "ref:B", "amount": 2**62, "valid_to": MOMENT}])
    found = {row.key: (row.amount, row.valid_to, row.registered_at) for row in rows(engine, expectations)}
    assert found == {"ref:A": (1, None, MOMENT), "ref:B": (2**62, MOMENT, MOMENT)}
