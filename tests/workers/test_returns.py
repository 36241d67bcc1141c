"""What customers saw, in the ledger: kept once, bounded where nothing proves it, beside what the bank said."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from sqlalchemy import Engine

from receiver.errors import LedgerAway
from receiver.notification import BrowserReturn, Effect, ReturnOutcome, new_id, now_us, utc
from tests.support import EXPECTED_CASUAL, QUICKSTREAM, recorded, secrets
from tests.workers import material
from tests.workers.material import (
    NOW,
    delivered,
    expected,
    held_up,
    never_judged,
    pipeline,
    processed,
    rows,
    sealed,
)
from workers.ledger import queries
from workers.ledger.ledger import Ledger
from workers.ledger.returns import MOST_UNPROVEN
from workers.ledger.tables import browser_returns, notifications, payments

FORM = recorded("quickstream", "payment__form")


def seen(digest: str = "d1", **fields: Any) -> BrowserReturn:
    values: dict[str, Any] = {
        "id": new_id(now_us()),
        "provider": "checkout",
        "facility": "main",
        "returned_at": NOW,
        "digest": digest,
        "verified": True,
        "outcome": ReturnOutcome.APPROVED,
        "payment_id": "p1",
    }
    return BrowserReturn(**(values | fields))


def error(digest: str = "d1", **fields: Any) -> BrowserReturn:
    values: dict[str, Any] = {
        "verified": False,
        "outcome": ReturnOutcome.ERROR,
        "payment_id": None,
        "reference": "R1",
        "error_fields": ("cvn",),
    }
    return seen(digest, **(values | fields))


def of_payment(engine: Engine, payment_id: str = "p1", reference: str | None = None) -> list[dict[str, Any]]:
    with queries.reading(engine) as connection:
        return queries.returns_of_payment(connection, "checkout", "main", payment_id, reference)


def test_what_the_customer_saw_stands_beside_what_the_bank_said(ledger: Ledger, engine: Engine) -> None:
    walk = pipeline(ledger)
    walk.process(sealed(delivered(FORM, "acme")))
    (payment,) = rows(engine, payments)
    walk.note_returns(
        [
            seen(
                provider="quickstream", facility="acme", payment_id=payment.payment_id, amount=100115, surcharge=115,
                currency="AUD", receipt_number=payment.receipt_number, reference=payment.reference, summary_code="0",
                response_code="08", customer_reference="C1", action_context_id="not kept",
            ),
            error(
                "d2", provider="quickstream", facility="acme", reference=payment.reference, returned_at=NOW + 1
            ),
        ]
    )  # fmt: skip
    with queries.reading(engine) as connection:
        (shown,) = queries.show_payment(connection, payment.payment_id)
    assert shown["returns"][0] == {
        "returned_at": utc(NOW),
        "verified": True,
        "outcome": "approved",
        "amount": "1001.15",
        "surcharge": "1.15",
        "currency": "AUD",
        "reference": payment.reference,
        "receipt_number": payment.receipt_number,
        "response_code": "08",
        "summary_code": "0",
        "reported": None,
        "error_fields": [],
    }
    assert [(each["outcome"], each["error_fields"]) for each in shown["returns"][1:]] == [("error", ["cvn"])]


def test_a_return_never_makes_or_changes_a_payment(ledger: Ledger, engine: Engine) -> None:
    ledger.note_returns([seen(amount=1)])
    assert rows(engine, payments) == rows(engine, notifications) == []
    ledger.record([processed("k1", material.event(Effect.DECLINED, amount=1000))])
    before = rows(engine, payments)
    ledger.note_returns([seen("d2", amount=1)])
    assert rows(engine, payments) == before


def test_the_same_return_is_kept_once(ledger: Ledger, engine: Engine) -> None:
    first = seen()
    ledger.note_returns([first, seen()])
    ledger.note_returns([first])
    ledger.note_returns([seen(), seen("d2")])
    assert [row.digest for row in rows(engine, browser_returns)] == ["d1", "d2"]
    assert of_payment(engine, "p2") == []
    assert len(of_payment(engine)) == 2


def test_the_same_return_at_another_endpoint_is_another(ledger: Ledger, engine: Engine) -> None:
    ledger.note_returns([seen(), seen(facility="second")])
    assert len(rows(engine, browser_returns)) == 2
    assert len(of_payment(engine)) == 1


def known_by_expectation(ledger: Ledger) -> None:
    ledger.expect([expected("R1")], never_judged)


def known_by_payment(ledger: Ledger) -> None:
    ledger.record([processed("k1", material.event(reference="R1"))])


@pytest.mark.parametrize("known", [known_by_expectation, known_by_payment])
def test_an_unproven_return_is_kept_only_for_what_is_known(
    ledger: Ledger, engine: Engine, known: Callable[[Ledger], None]
) -> None:
    ledger.note_returns([error("d1"), error("d2", reference=None)])
    assert rows(engine, browser_returns) == []
    known(ledger)
    ledger.note_returns([error("d3"), error("d4", reference="R2"), error("d5", facility="second")])
    assert [row.digest for row in rows(engine, browser_returns)] == ["d3"]
    assert [each["verified"] for each in of_payment(engine, "p1", "R1")] == [False]


@pytest.mark.parametrize("how", ["registered", "held"])
def test_a_token_is_known_when_it_was_registered_or_its_notification_came(
    ledger: Ledger, engine: Engine, how: str
) -> None:
    walk = pipeline(ledger)
    came = seen(provider="debitsuccess", facility="gym", payment_id="FormTok1", verified=False, reported="Success")
    walk.note_returns([came])
    assert rows(engine, browser_returns) == []
    if how == "registered":
        walk.expect(EXPECTED_CASUAL)
    else:
        walk.process(sealed(delivered(recorded("debitsuccess", "casual_payment"), verified=False)))
    walk.note_returns([came])
    assert [row.reported for row in rows(engine, browser_returns)] == ["Success"]


def test_unproven_returns_are_bounded_and_leave_room_for_the_proven(ledger: Ledger, engine: Engine) -> None:
    known_by_payment(ledger)
    for number in range(3):
        ledger.note_returns([error(f"{number}-{n}") for n in range(7)])
    assert len(rows(engine, browser_returns)) == MOST_UNPROVEN
    ledger.note_returns([seen("proven", reference="R1")])
    assert [each["verified"] for each in of_payment(engine, "p1", "R1")].count(True) == 1


def test_proven_returns_take_no_room_from_the_others(ledger: Ledger, engine: Engine) -> None:
    known_by_payment(ledger)
    ledger.note_returns([seen(f"d{n}", reference="R1") for n in range(MOST_UNPROVEN)])
    ledger.note_returns([error("last")])
    assert "last" in [row.digest for row in rows(engine, browser_returns)]


def test_another_attempt_of_the_same_order_is_another_payments(ledger: Ledger, engine: Engine) -> None:
    ledger.note_returns([seen("d1", reference="R1"), seen("d2", payment_id="p2", reference="R1")])
    assert len(of_payment(engine, "p1", "R1")) == len(of_payment(engine, "p2", "R1")) == 1


def test_any_text_can_be_stored(ledger: Ledger, engine: Engine) -> None:
    odd = "x\x00\ud800" * 200
    ledger.note_returns([seen(reference=odd, receipt_number=odd, payment_id=odd, response_code=odd, summary_code=odd)])
    (row,) = rows(engine, browser_returns)
    assert row.payment_id.startswith("long:")
    assert len(row.reference) == 255


def test_a_ledger_that_is_away_is_said_and_a_fault_of_ours_is_not_tried_for_ever(
    ledger: Ledger, engine: Engine, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    walk = pipeline(ledger)
    if engine.dialect.name == "sqlite":
        with held_up(database_url), pytest.raises(LedgerAway):
            walk.note_returns([seen()])

    def fails(*arguments: Any) -> Any:
        raise KeyError("x")

    monkeypatch.setattr(ledger, "note_returns", fails)
    walk.note_returns([seen()])
    assert rows(engine, browser_returns) == []


def test_an_endpoint_keeps_its_passwords_to_itself() -> None:
    endpoint = msgspec.structs.replace(QUICKSTREAM, hmac_passwords=secrets("hunter2"), result_keys=secrets("hunter2"))
    assert "hunter2" not in repr(endpoint)
