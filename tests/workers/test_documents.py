"""Many rows in one statement keep what they say, on both databases."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime, tzinfo
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import DateTime, Engine, create_engine, delete, select

from receiver.notification import utc
from tests.workers import material
from tests.workers.material import MOMENT, envelope, rows
from workers.ledger.bodies import Bodies
from workers.ledger.documents import insert_new, update_each
from workers.ledger.payments import fold
from workers.ledger.rows import Interpreted, notification_row, payment_row
from workers.ledger.tables import UtcTime, expectations, notifications, payments

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


def arrived(*keys: str) -> list[dict[str, Any]]:
    return [notification_row(material.processed(key, material.event()), Bodies()) for key in keys]


def inserted(engine: Engine, rows: Sequence[dict[str, Any]]) -> list[str]:
    with engine.begin() as connection:
        return [row.id for row in insert_new(connection, notifications, rows)]


def test_gives_the_keys_of_what_is_new(engine: Engine) -> None:
    first, second, third, again = arrived("k1", "k2", "k3", "k2")
    assert inserted(engine, []) == []
    assert inserted(engine, [second]) == [second["id"]]
    # One that was there, in the middle; one twice in the same batch.
    assert sorted(inserted(engine, [first, again, third, third])) == sorted([first["id"], third["id"]])
    assert inserted(engine, [first, second, third, again]) == []


def test_what_was_removed_is_new_again(engine: Engine) -> None:
    rows = arrived("k1", "k2", "k3")
    inserted(engine, rows)
    with engine.begin() as connection:
        connection.execute(delete(notifications).where(notifications.c.dedupe_key.in_(["k1", "k3"])))
    assert sorted(inserted(engine, rows)) == sorted([rows[0]["id"], rows[2]["id"]])


def test_every_value_is_read_as_it_was_given(engine: Engine) -> None:
    """A whole second and none at all, a date, a missing one, a truth, a large number, bytes that are no text."""
    event = material.event(amount=2**53 + 1, settlement_date=date(2026, 2, 28), card_scheme="VISA", currency="EUR")
    payment = fold([event])
    assert payment is not None
    whole, exact = datetime(2026, 2, 28, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, 999_999, UTC)
    rows = [
        payment_row(("checkout", "eu", "pay_1"), payment, whole, exact) | {"occurred_at": whole, "soft_decline": True},
        payment_row(("checkout", "eu", "pay_2"), payment, whole, exact) | {"settlement_date": None, "amount": None},
    ]
    notification = arrived("k1")[0] | {"body": b"\x00\xff\\x", "received_at": whole, "processed_at": exact}
    with engine.begin() as connection:
        assert [tuple(key) for key in insert_new(connection, payments, rows)] == [
            ("checkout", "eu", "pay_1"),
            ("checkout", "eu", "pay_2"),
        ]
        insert_new(connection, notifications, [notification])
        read = [row._asdict() for row in connection.execute(select(payments).order_by(payments.c.payment_id))]
        told = connection.execute(select(notifications)).one()._asdict()
    assert read == rows
    assert told == notification | {"purged_at": None}


@given(st.integers(0, 7_900_000_000_000_000), st.timezones())
def test_sqlite_stores_a_time_as_sqlalchemy_does(us: int, zone: tzinfo) -> None:
    """Its text is compared with those that are there."""
    time = utc(us)
    dialect = create_engine("sqlite://").dialect
    text_of, as_ever = (kind.dialect_impl(dialect).bind_processor(dialect) for kind in (UtcTime(), DateTime()))
    assert text_of is not None
    assert as_ever is not None
    assert text_of(time) == text_of(time.astimezone(zone)) == as_ever(time.replace(tzinfo=None))
    assert text_of(None) is None
