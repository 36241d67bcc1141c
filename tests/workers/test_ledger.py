"""The ledger on both databases: each notification counts once, whoever delivers it how often and in whatever order."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, event
from sqlalchemy.exc import DataError, DBAPIError

from receiver.notification import Effect, Envelope, Expectation, PaymentEvent, microseconds, utc
from receiver.signing import digest
from tests.servers import eventually
from tests.support import EXPECTED_CASUAL, recorded
from tests.workers import material
from tests.workers.material import (
    MOMENT,
    NOW,
    counted,
    delivered,
    envelope,
    expected,
    never_judged,
    only_payment,
    pipeline,
    processed,
    repeated,
    rows,
    states,
    waits_for_a_lock,
)
from workers.ledger import database
from workers.ledger.ledger import Interpreted, Ledger, Recorded, events_of
from workers.ledger.payments import fold
from workers.ledger.tables import expectations, notifications, payments, repeats

on_postgresql = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


def captured(amount: int = 1000, minute: int = 0, action: str = "act_1", **fields: Any) -> PaymentEvent:
    return material.event(Effect.CAPTURED, minute, amount=amount, action_id=action, currency="EUR", **fields)


# -- one notification


def test_keeps_every_field_of_a_notification(ledger: Ledger, engine: Engine) -> None:
    came = envelope(
        "evt_1", headers={"x-traceid": "é"}, body=b"\x00\xff", content_type="application/json", source="2001:db8::7"
    )
    said = captured(reference="R1", custom={"a": ["b", 1]})
    before = datetime.now(UTC)
    recorded_now = ledger.record([Interpreted(came, "processed", event=said)])
    (row,) = rows(engine, notifications)
    assert recorded_now == Recorded(new=[Interpreted(came, "processed", event=said)])
    assert before <= row.processed_at <= datetime.now(UTC)
    assert row._asdict() | {"processed_at": None} == {
        "id": came.id,
        "provider": "checkout",
        "facility": "main",
        "dedupe_key": "evt_1",
        "fingerprint": "f1",
        "event_type": "payment_captured",
        "state": "processed",
        "reason": "",
        "detail": "",
        "received_at": MOMENT,
        "processed_at": None,
        "source": "2001:db8::7",
        "content_type": "application/json",
        "headers": '{"x-traceid":"é"}',
        "body": b"\x00\xff",
        "body_key": None,
        "purged_at": None,
        "verified": True,
        "deliveries": 1,
        "conflicts": 0,
        "payment_id": "p1",
        "event": msgspec.json.encode(said).decode(),
    }


def test_folds_a_payment_of_all_its_fields(ledger: Ledger, engine: Engine) -> None:
    said = material.event(
        receipt_number="1003548481",
        amount=62400,
        currency="AUD",
        surcharge=2400,
        reference="PAYMENT1",
        customer_reference="CUSTOMER1",
        card_scheme="VISA",
        response_code="08",
        response_description="Approved",
        summary_code="0",
        settlement_date=MOMENT.date(),
        custom={"customTitle": "Mx"},
    )
    ledger.record([processed("k1", said)])
    row = only_payment(engine)
    assert row._asdict() | {"updated_at": None} == {
        "provider": "checkout",
        "facility": "main",
        "payment_id": "p1",
        "receipt_number": "1003548481",
        "state": "captured",
        "amount": 62400,
        "currency": "AUD",
        "exponent": 2,
        "surcharge": 2400,
        "amount_refunded": 0,
        "reference": "PAYMENT1",
        "customer_reference": "CUSTOMER1",
        "card_scheme": "VISA",
        "response_code": "08",
        "response_description": "Approved",
        "summary_code": "0",
        "soft_decline": False,
        "settlement_date": MOMENT.date(),
        "occurred_at": MOMENT,
        "updated_at": None,
        "custom": '{"customTitle":"Mx"}',
        "mismatch": False,
    }


def test_a_payment_without_a_time_occurred_when_its_first_notification_came(ledger: Ledger, engine: Engine) -> None:
    ledger.record([processed("late", material.event(minute=None), received_at=NOW + 1)])
    ledger.record([processed("early", material.event(Effect.PENDING, minute=None), received_at=NOW)])
    ledger.record([processed("silent", material.event(Effect.NONE, minute=None), received_at=NOW - 1)])
    assert only_payment(engine).occurred_at == utc(NOW)


@pytest.mark.parametrize("said", [material.event(Effect.NONE), material.event(payment_id=None)])
def test_what_says_nothing_of_a_payment_makes_none(ledger: Ledger, engine: Engine, said: PaymentEvent) -> None:
    ledger.record([processed("k1", said)])
    assert states(engine) == {"k1": "processed"}
    assert rows(engine, payments) == []


@given(st.integers(0, 250_000_000_000_000_000))
def test_times_are_exact_to_the_microsecond(moment: int) -> None:
    assert microseconds(utc(moment)) == moment


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_the_events_of_a_payment_are_found_by_its_id(engine: Engine) -> None:
    """And by no index that makes SQLite read all that was ever processed, however it guesses."""
    statements: list[tuple[str, Any]] = []
    with engine.connect() as connection:
        event.listen(connection, "before_cursor_execute", lambda *given: statements.append(given[2:4]))
        events_of(connection, [("checkout", "main", f"p{number}") for number in range(300)])
        statement, parameters = statements[-1]
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all()
    assert "ix_notifications_provider_facility_payment_id" in plan[0].detail
    assert "payment_id=?" in plan[0].detail


# -- repeats


def test_a_repeat_raises_deliveries_and_is_kept_without_its_body(ledger: Ledger, engine: Engine) -> None:
    ledger.record([processed("k1", captured())])
    again = processed("k1", captured())
    assert ledger.record([again]) == Recorded(duplicates=[again.envelope])
    assert counted(engine) == [("k1", 2, 0)]
    assert repeated(engine) == [(again.envelope.id, False, None)]
    assert only_payment(engine).amount == 1000


def test_a_repeat_with_other_content_is_a_conflict_and_changes_no_payment(ledger: Ledger, engine: Engine) -> None:
    ledger.record([processed("k1", captured())])
    other = processed("k1", captured(9), fingerprint="f2", body=b"other")
    assert ledger.record([other]) == Recorded(conflicts=[other.envelope])
    assert counted(engine) == [("k1", 2, 1)]
    assert repeated(engine) == [(other.envelope.id, True, b"other")]
    assert only_payment(engine).amount == 1000


def test_an_empty_batch_is_nothing(ledger: Ledger, engine: Engine) -> None:
    assert ledger.record([]) == Recorded()
    assert pipeline(ledger).process(material.sealed()) == Recorded()
    assert rows(engine, notifications) == []


def test_the_same_key_three_times_in_one_batch(ledger: Ledger, engine: Engine) -> None:
    first, same = processed("k1", captured()), processed("k1", captured())
    other = processed("k1", captured(9), fingerprint="f2", body=b"other")
    recorded_now = ledger.record([first, same, other])
    assert recorded_now == Recorded(new=[first], duplicates=[same.envelope], conflicts=[other.envelope])
    assert counted(engine) == [("k1", 3, 1)]
    assert only_payment(engine).amount == 1000


def test_a_batch_that_runs_again_counts_nothing_twice(ledger: Ledger, engine: Engine) -> None:
    """As when its worker is killed between the commit and the removal of the job."""
    ledger.record([processed("k1", captured())])
    batch = [
        processed("k1", captured()),
        processed("k1", captured(9), fingerprint="f2"),
        processed("k2", captured(500, 1, "act_2")),
        processed("k2", captured(500, 1, "act_2")),
    ]
    ledger.record(batch)
    before = [rows(engine, table) for table in (notifications, repeats, payments)]
    assert ledger.record(batch) == Recorded()
    assert [rows(engine, table) for table in (notifications, repeats, payments)] == before
    assert counted(engine) == [("k1", 3, 1), ("k2", 2, 0)]
    assert only_payment(engine).amount == 1500


def test_a_batch_that_runs_again_in_part_is_completed(ledger: Ledger, engine: Engine) -> None:
    first, second = processed("k1", captured()), processed("k2", captured(500, 1, "act_2"))
    ledger.record([first])
    assert ledger.record([first, second]) == Recorded(new=[second])
    assert counted(engine) == [("k1", 1, 0), ("k2", 1, 0)]
    assert only_payment(engine).amount == 1500


@pytest.mark.parametrize("state", ["held", "failed", "quarantined"])
def test_repeats_of_what_was_not_processed(ledger: Ledger, engine: Engine, state: str) -> None:
    token = "T1" if state == "held" else None
    ledger.record([Interpreted(envelope("k1"), state, "some_reason", "Some sentence.", token=token)], never_judged)
    batch = [processed("k1", captured()), Interpreted(envelope("k1", fingerprint="f2"), state, token=token)]
    recorded_now = ledger.record(batch, never_judged)
    assert recorded_now == Recorded(duplicates=[batch[0].envelope], conflicts=[batch[1].envelope])
    assert states(engine) == {"k1": state}
    assert counted(engine) == [("k1", 3, 1)]
    assert rows(engine, payments) == []


# -- two facilities side by side


def test_facilities_and_providers_do_not_see_each_others_keys(ledger: Ledger, engine: Engine) -> None:
    places = [("quickstream", "acme"), ("quickstream", "octane"), ("paymentz", "acme")]
    for amount, (provider, facility) in enumerate(places, 1):
        came = processed("1003548481", captured(amount), provider=provider, facility=facility)
        assert ledger.record([came]).new == [came]
    assert counted(engine) == [("1003548481", 1, 0)] * 3
    found = {(row.provider, row.facility): row.amount for row in rows(engine, payments)}
    assert found == {place: amount for amount, place in enumerate(places, 1)}


def test_the_same_receipt_at_two_facilities_in_one_batch(ledger: Ledger, engine: Engine) -> None:
    form = recorded("quickstream", "payment__form")
    declined = recorded("quickstream", "payment__declined")
    walk = pipeline(ledger)
    walk.process(material.sealed(delivered(form, "acme"), delivered(form, "octane"), delivered(declined, "octane")))
    walk.process(material.sealed(delivered(form, "octane")))
    found = {(row.facility, row.payment_id, row.state) for row in rows(engine, payments)}
    receipt = next(payment_id for _, payment_id, _ in found if payment_id.endswith("7004100001"))
    assert {("acme", receipt, "captured"), ("octane", receipt, "captured")} <= found
    assert len(found) == 3
    deliveries = {(row.facility, row.dedupe_key): row.deliveries for row in rows(engine, notifications)}
    assert deliveries["acme", receipt] == 1
    assert deliveries["octane", receipt] == 2


def test_an_expectation_belongs_to_its_facility_alone(ledger: Ledger, engine: Engine) -> None:
    for facility in ("main", "second"):
        ledger.record([processed("k1", captured(reference="R1"), facility=facility)])
    ledger.expect([expected("R1", 999, facility="second")], never_judged)
    assert {row.facility: row.mismatch for row in rows(engine, payments)} == {"main": False, "second": True}


# -- what senders may put into a text or a number


def test_texts_of_any_length_are_stored(ledger: Ledger, engine: Engine) -> None:
    long = "é" * 5000
    said = captured(
        event_type=long,
        payment_id=long,
        receipt_number=long,
        reference=long,
        customer_reference=long,
        card_scheme=long,
        response_code=long,
        response_description=long,
        summary_code=long,
        custom={long: long},
    )
    ledger.record([processed(long, said, event_type=long, content_type=long, source=long)])
    (row,) = rows(engine, notifications)
    payment = only_payment(engine)
    assert row.dedupe_key == row.payment_id == payment.payment_id == f"long:{digest(long.encode())}"
    assert (len(row.event_type), len(row.content_type), len(row.source)) == (120, 200, 45)
    assert (len(payment.reference), len(payment.receipt_number), len(payment.summary_code)) == (255, 200, 16)
    assert (len(payment.customer_reference), len(payment.response_description)) == (255, 255)
    assert (len(payment.card_scheme), len(payment.response_code)) == (64, 64)
    ledger.record([processed(long, said), processed(long + "é", captured(1, 1, "act_2", payment_id=long))])
    assert only_payment(engine).amount == 1001
    assert sorted(row.deliveries for row in rows(engine, notifications)) == [1, 2]


def test_texts_that_no_database_takes_are_replaced_and_keys_stay_apart(ledger: Ledger, engine: Engine) -> None:
    said = captured(payment_id="p\x00", reference="R\x001", event_type="t\x00")
    ledger.record([processed("k\x00", said, source="1\x00", content_type="\x00"), processed("k\x00\x00", said)])
    payment = only_payment(engine)
    assert payment.payment_id == f"long:{digest(b'p' + bytes(1))}"
    assert payment.reference == "R\N{REPLACEMENT CHARACTER}1"
    assert len({row.dedupe_key for row in rows(engine, notifications)}) == 2


def test_a_reason_with_any_characters_is_stored_by_its_end(ledger: Ledger, engine: Engine) -> None:
    detail = "\x00\ud800" * 20_000 + "ValueError: \x00\ud800!"
    ledger.record([Interpreted(envelope(), "failed", "interpretation_failed", detail)])
    (row,) = rows(engine, notifications)
    assert row.detail.endswith("ValueError: \N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}!")
    assert len(row.detail) == 20_000


@pytest.mark.parametrize("amount", [2**63, -(2**63) - 1, 10**40])
def test_an_amount_that_no_column_holds_leaves_the_whole_batch_unwritten(
    ledger: Ledger, engine: Engine, amount: int
) -> None:
    batch = [processed("good", captured(payment_id="p2")), processed("bad", captured(amount))]
    with pytest.raises((OverflowError, DataError)):
        ledger.record(batch)
    assert rows(engine, notifications) == rows(engine, payments) == []


def test_the_largest_amount_is_stored(ledger: Ledger, engine: Engine) -> None:
    ledger.record([processed("k1", captured(2**63 - 1))])
    assert only_payment(engine).amount == 2**63 - 1


@pytest.mark.parametrize("moment", [datetime.max.replace(tzinfo=UTC), datetime.min.replace(tzinfo=UTC)])
def test_any_time_of_the_calendar_can_be_stored_and_read(ledger: Ledger, engine: Engine, moment: datetime) -> None:
    ledger.record([processed("k1", msgspec.structs.replace(captured(), occurred_at=moment))])
    assert only_payment(engine).occurred_at == moment


def test_errors_show_no_values(ledger: Ledger) -> None:
    with pytest.raises((OverflowError, DBAPIError)) as caught:
        ledger.record([processed("k1", captured(2**70), body=b"card 4111")])
    assert "4111" not in str(caught.value)


# -- order


@pytest.mark.parametrize("seed", range(6))
def test_any_order_and_any_batches_give_the_same_payment(ledger: Ledger, engine: Engine, seed: int) -> None:
    dice = random.Random(seed)
    effects = [effect for effect in Effect if effect is not Effect.RETURNED]
    history = [
        material.event(
            dice.choice(effects),
            dice.choice([None, 0, 1, 2, 3]),
            action_id=f"act_{dice.randrange(4)}",
            amount=dice.choice([None, 100, 250]),
            currency=dice.choice([None, "EUR"]),
            total_captured=dice.choice([None, 0, 250]),
            reference=dice.choice([None, "R1", "R2"]),
            custom={dice.choice("abc"): dice.randrange(5)},
        )
        for _ in range(12)
    ]
    items = [processed(f"k{number}", said) for number, said in enumerate(history)]
    items += dice.choices(items, k=4)
    dice.shuffle(items)
    while items:
        size = dice.randint(1, 4)
        ledger.record(items[:size])
        del items[:size]
        if dice.random() < 0.3:
            ledger.expect([expected(dice.choice(["R1", "R2"]), 250, registered_at=NOW)], never_judged)
    payment = only_payment(engine)
    known = {row.key: row for row in rows(engine, expectations)}
    expectation = known.get(f"ref:{payment.reference}")
    wanted = fold(history, expected(expectation.reference, 250) if expectation else None)
    assert wanted is not None
    assert (payment.state, payment.amount, payment.amount_refunded) == (
        wanted.state,
        wanted.amount,
        wanted.amount_refunded,
    )
    assert (payment.reference, payment.currency, payment.mismatch) == (
        wanted.reference,
        wanted.currency,
        wanted.mismatch,
    )
    assert msgspec.json.decode(payment.custom) == wanted.custom


# -- expectations


def test_the_expectation_may_come_before_or_after_the_payment(ledger: Ledger, engine: Engine) -> None:
    ledger.expect([expected("R1")], never_judged)
    ledger.record([processed("k1", captured(1000, reference="R1", payment_id="p1"))])
    ledger.record([processed("k2", captured(1000, reference="R2", payment_id="p2"))])
    ledger.expect([expected("R2")], never_judged)
    first, second = rows(engine, payments)
    assert (first.amount, first.currency, first.mismatch) == (second.amount, second.currency, second.mismatch)
    assert (second.amount, second.currency, second.mismatch) == (1000, "EUR", False)


def test_a_mismatch_is_set_and_cleared_when_the_expectation_comes_later(ledger: Ledger, engine: Engine) -> None:
    ledger.record([processed("k1", captured(reference="R1"))])
    assert not only_payment(engine).mismatch
    ledger.expect([expected("R1", 1001)], never_judged)
    assert only_payment(engine).mismatch
    ledger.expect([expected("R1", 1000, registered_at=NOW + 1)], never_judged)
    assert not only_payment(engine).mismatch


def test_an_older_expectation_that_comes_late_does_not_replace_a_newer(ledger: Ledger, engine: Engine) -> None:
    ledger.record([processed("k1", captured(reference="R1"))])
    ledger.expect([expected("R1", 1000, registered_at=NOW + 1)], never_judged)
    ledger.expect([expected("R1", 1, registered_at=NOW)], never_judged)
    assert not only_payment(engine).mismatch
    (row,) = rows(engine, expectations)
    assert (row.amount, row.registered_at) == (1000, utc(NOW + 1))


def test_an_expectation_that_runs_again_changes_nothing(ledger: Ledger, engine: Engine) -> None:
    ledger.record([processed("k1", captured(reference="R1"))])
    ledger.expect([expected("R1", 5)], never_judged)
    before = [rows(engine, table) for table in (payments, expectations)]
    ledger.expect([expected("R1", 5)], never_judged)
    assert [rows(engine, table) for table in (payments, expectations)] == before


def test_every_payment_of_a_reference_is_compared(ledger: Ledger, engine: Engine) -> None:
    """A second attempt of the same order is a payment of its own."""
    ledger.record([processed(f"k{n}", captured(n, reference="R1", payment_id=f"p{n}")) for n in (999, 1000)])
    ledger.expect([expected("R1", 1000)], never_judged)
    assert {row.payment_id: row.mismatch for row in rows(engine, payments)} == {"p999": True, "p1000": False}


def test_the_latest_reference_of_a_payment_finds_its_expectation(ledger: Ledger, engine: Engine) -> None:
    ledger.expect([expected("R1", 1)], never_judged)
    ledger.expect([expected("R2", 1000)], never_judged)
    ledger.record([processed("k2", captured(1000, 5, reference="R2"))])
    ledger.record([processed("k1", material.event(Effect.AUTHORISED, 1, reference="R1"))])
    row = only_payment(engine)
    assert (row.reference, row.mismatch) == ("R2", False)


def test_expectations_may_come_together(ledger: Ledger, engine: Engine) -> None:
    """Of several for one key the latest counts, wherever it stands among the others."""
    came = [processed(f"k{n}", captured(1000, reference=f"R{n}", payment_id=f"p{n}")) for n in (1, 2)]
    elsewhere = processed("k3", captured(7, reference="R2", payment_id="p3"), facility="second")
    ledger.record([*came, elsewhere])
    announced = [
        expected("R2", 1000, registered_at=NOW + 2),
        expected("R1", 1001),
        expected("R2", 5, registered_at=NOW + 1),
        expected("R3", 3),
        expected("R2", 7, facility="second"),
    ]
    done = ledger.expect(announced, never_judged)
    assert [(each.facility, each.reference) for each in done.mismatches] == [(announced[1].facility, "R1")]
    assert {row.payment_id: row.mismatch for row in rows(engine, payments)} == {"p1": True, "p2": False, "p3": False}
    assert sorted((row.reference, row.amount) for row in rows(engine, expectations)) == [
        ("R1", 1001),
        ("R2", 7),
        ("R2", 1000),
        ("R3", 3),
    ]
    assert ledger.expect(announced, never_judged) == Recorded()


def test_one_that_cannot_be_released_leaves_the_others_to_be_tried_alone(ledger: Ledger, engine: Engine) -> None:
    walk = pipeline(ledger)
    odd, good = expected("R1"), expected("R2")

    def broken(*arguments: object) -> object:
        raise ValueError("a fault of ours")

    walk.judge = broken  # type: ignore[method-assign, assignment]
    walk.process(material.sealed(casual()))
    with pytest.raises(ValueError, match="a fault of ours"):
        walk.expect(odd, EXPECTED_CASUAL, good)
    assert rows(engine, expectations) == []
    for expectation in (odd, EXPECTED_CASUAL, good):
        walk.expect(expectation)
    assert len(rows(engine, expectations)) == 3


# -- what is held until its token is known

CASUAL = recorded("debitsuccess", "casual_payment")


def casual(**fields: Any) -> Envelope:
    return delivered(CASUAL, verified=False, **fields)


def test_a_held_notification_is_released_when_its_token_is_registered(ledger: Ledger, engine: Engine) -> None:
    walk, came = pipeline(ledger), casual()
    walk.process(material.sealed(came))
    (held,) = rows(engine, notifications)
    assert (held.state, held.reason, held.verified, held.payment_id) == ("held", "token_unknown", False, "FormTok1")
    assert rows(engine, payments) == []
    assert walk.expect(EXPECTED_CASUAL).released == [("debitsuccess", "gym", came.id)]
    (row,) = rows(engine, notifications)
    assert (row.state, row.reason, row.detail, row.verified) == ("processed", "", "", True)
    assert row.received_at == MOMENT
    assert_casual_payment(engine)
    assert walk.expect(EXPECTED_CASUAL) == Recorded()


def test_a_notification_whose_token_was_registered_on_its_way_is_released_at_once(
    ledger: Ledger, engine: Engine
) -> None:
    walk, came = pipeline(ledger), casual()
    walk.expect(EXPECTED_CASUAL)
    recorded_now = walk.process(material.sealed(came))
    assert recorded_now.released == [("debitsuccess", "gym", came.id)]
    assert [(item.envelope.id, item.state) for item in recorded_now.new] == [(came.id, "processed")]
    assert_casual_payment(engine)
    assert walk.process(material.sealed(came)) == Recorded()


def test_a_verified_notification_has_its_amount_from_the_expectation_that_comes_later(
    ledger: Ledger, engine: Engine
) -> None:
    """The accept side knew the token; the ledger learns of it after a longer wait in the queue."""
    walk = pipeline(ledger)
    walk.process(material.sealed(delivered(CASUAL)))
    row = only_payment(engine)
    assert (row.state, row.amount, row.currency, row.reference) == ("captured", None, None, None)
    walk.expect(EXPECTED_CASUAL)
    assert_casual_payment(engine)


def assert_casual_payment(engine: Engine) -> None:
    row = only_payment(engine)
    assert (row.payment_id, row.state, row.amount, row.currency, row.exponent, row.reference, row.mismatch) == (
        "FormTok1",
        "captured",
        1250,
        "NZD",
        2,
        "MEMBER-1001",
        False,
    )


@pytest.mark.parametrize("expectation_first", [False, True])
def test_a_held_notification_with_a_wrong_token_is_quarantined(
    ledger: Ledger, engine: Engine, expectation_first: bool
) -> None:
    walk, came = pipeline(ledger), casual()
    other = msgspec.structs.replace(EXPECTED_CASUAL, webhook_token="other")
    steps: list[Callable[[], Recorded]] = [
        lambda: walk.process(material.sealed(came)),
        lambda: walk.expect(other),
    ]
    released = [step().released for step in (reversed(steps) if expectation_first else steps)]
    assert released == [[], [("debitsuccess", "gym", came.id)]]
    (row,) = rows(engine, notifications)
    assert (row.state, row.reason, row.verified, row.payment_id) == ("quarantined", "token_refused", False, "FormTok1")
    assert rows(engine, payments) == []


def test_only_what_waits_for_this_token_at_this_facility_is_released(ledger: Ledger, engine: Engine) -> None:
    walk = pipeline(ledger)
    stranger = casual(dedupe_key="other", body=CASUAL.body.replace(b"FormTok1", b"FormTok2"))
    walk.process(material.sealed(casual(), stranger))
    elsewhere = msgspec.structs.replace(casual(), facility="pool")
    ledger.record([Interpreted(elsewhere, "held", "token_unknown", token="FormTok1")])
    assert len(walk.expect(EXPECTED_CASUAL).released) == 1
    assert sorted((row.facility, row.payment_id, row.state) for row in rows(engine, notifications)) == [
        ("gym", "FormTok1", "processed"),
        ("gym", "FormTok2", "held"),
        ("pool", "FormTok1", "held"),
    ]


def test_a_late_older_expectation_releases_with_the_newer_ones_proof(ledger: Ledger, engine: Engine) -> None:
    walk = pipeline(ledger)
    older = msgspec.structs.replace(EXPECTED_CASUAL, webhook_token="other", registered_at=1)
    ledger.expect([EXPECTED_CASUAL], never_judged)
    ledger.record([Interpreted(casual(), "held", "token_unknown", token="FormTok1")])
    walk.expect(older)
    assert_casual_payment(engine)


# -- workers side by side


@contextmanager
def ledgers(url: str, count: int) -> Iterator[list[Ledger]]:
    """Ledgers with connections of their own, as different workers have them."""
    engines = [database.open_engine(url) for _ in range(count)]
    try:
        yield [Ledger(engine) for engine in engines]
    finally:
        for engine in engines:
            engine.dispose()


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    """The results of `calls`, which begin at the same moment in a thread each."""
    barrier = threading.Barrier(len(calls))

    def run(call: Callable[[], Any]) -> Any:
        barrier.wait(10)
        return call()

    with ThreadPoolExecutor(len(calls)) as threads:
        return [future.result(60) for future in [threads.submit(run, call) for call in calls]]


def test_forty_identical_notifications_at_once_are_one_with_forty_deliveries(database_url: str, engine: Engine) -> None:
    with ledgers(database_url, 8) as workers:

        def five(worker: Ledger) -> Callable[[], list[Recorded]]:
            return lambda: [worker.record([processed("k1", captured())]) for _ in range(5)]

        done = [result for results in at_once(*map(five, workers)) for result in results]
    assert sum(len(each.new) for each in done) == 1
    assert sum(len(each.duplicates) for each in done) == 39
    assert counted(engine) == [("k1", 40, 0)]
    assert len(repeated(engine)) == 39
    assert (only_payment(engine).amount, only_payment(engine).state) == (1000, "captured")


def test_two_workers_at_one_payment_lose_nothing(database_url: str, engine: Engine) -> None:
    with ledgers(database_url, 2) as workers:

        def captures(worker: Ledger, first: int) -> Callable[[], None]:
            def run() -> None:
                for number in range(first, 40, 2):
                    worker.record([processed(f"k{number}", captured(10, number, f"act_{number}"))])

            return run

        at_once(captures(workers[0], 0), captures(workers[1], 1))
    assert only_payment(engine).amount == 400


def test_batches_with_the_same_notifications_in_opposite_order_do_not_block_each_other(
    database_url: str, engine: Engine
) -> None:
    with ledgers(database_url, 2) as workers:
        for round_ in range(5):
            names = [f"{round_}-{number}" for number in range(150)]

            def batch(names: list[str]) -> list[Interpreted]:
                return [processed(name, captured(1, 0, name, payment_id=name)) for name in names]

            forwards, backwards = batch(names), batch(names[::-1])
            at_once(partial(workers[0].record, forwards), partial(workers[1].record, backwards))
    assert counted(engine) == sorted((f"{round_}-{n}", 2, 0) for round_ in range(5) for n in range(150))
    assert len(rows(engine, payments)) == 750


def test_one_batch_with_two_workers_counts_once(database_url: str, engine: Engine) -> None:
    """As when a slow worker was taken for a dead one."""
    batch = [processed(f"k{number % 30}", captured(1, number, f"act_{number % 30}")) for number in range(40)]
    with ledgers(database_url, 2) as workers:
        done = at_once(*(partial(worker.record, batch) for worker in workers))
    assert sorted(len(each.new) for each in done) == [0, 30]
    assert sum(row.deliveries for row in rows(engine, notifications)) == 40
    assert only_payment(engine).amount == 30


class Halted:
    """A ledger whose next transaction stops before its commit, or before a statement, until it is told to go on."""

    def __init__(self, url: str, before: str = "") -> None:
        self.engine = database.open_engine(url)
        self.ledger = Ledger(self.engine)
        self.reached, self.go_on = threading.Event(), threading.Event()
        self._before = before
        if before:
            event.listen(self.engine, "before_cursor_execute", self._halt_before)
        else:
            event.listen(self.engine, "commit", self._halt)

    def _halt_before(self, connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if self._before in statement:
            self._halt(connection)

    def _halt(self, connection: Any) -> None:
        self.reached.set()
        assert self.go_on.wait(20)


@contextmanager
def overtaken(
    url: str, first: Callable[[Ledger], Recorded], then: Callable[[Ledger], Recorded], before: str = ""
) -> Iterator[None]:
    """Runs `then` while `first` has written and not committed yet; leaves when both are done."""
    halted = Halted(url, before)
    with ledgers(url, 1) as (other,), ThreadPoolExecutor(2) as threads:
        try:
            ahead: Future[Recorded] = threads.submit(first, halted.ledger)
            assert halted.reached.wait(20)
            behind: Future[Recorded] = threads.submit(then, other)
            # It either waits for the first, or wrongly does not care.
            eventually(lambda: behind.done() or waits_for_a_lock(other.engine))
        finally:
            halted.go_on.set()
        ahead.result(20)
        behind.result(20)
        yield
    halted.engine.dispose()


def recorder(item: Interpreted) -> Callable[[Ledger], Recorded]:
    return lambda ledger: ledger.record([item])


def record_one(came: Envelope) -> Callable[[Ledger], Recorded]:
    return lambda ledger: pipeline(ledger).process(material.sealed(came))


def expect_one(expectation: Expectation) -> Callable[[Ledger], Recorded]:
    return lambda ledger: pipeline(ledger).expect(expectation)


@on_postgresql
@pytest.mark.parametrize("verified", [True, False])
@pytest.mark.parametrize("expectation_first", [True, False])
def test_a_token_registered_at_the_same_moment_is_not_missed(
    database_url: str, engine: Engine, verified: bool, expectation_first: bool
) -> None:
    record, expect = record_one(delivered(CASUAL, verified=verified)), expect_one(EXPECTED_CASUAL)
    with overtaken(database_url, *((expect, record) if expectation_first else (record, expect))):
        assert states(engine) == {delivered(CASUAL).dedupe_key: "processed"}
        assert_casual_payment(engine)


@on_postgresql
@pytest.mark.parametrize("expectation_first", [True, False])
def test_a_reference_announced_at_the_same_moment_is_not_missed(
    database_url: str, engine: Engine, expectation_first: bool
) -> None:
    came = delivered(recorded("checkout", "payment_captured"))
    record, expect = record_one(came), expect_one(expected("TICKET-20504", 1, "USD"))
    with overtaken(database_url, *((expect, record) if expectation_first else (record, expect))):
        assert only_payment(engine).mismatch


@on_postgresql
@pytest.mark.parametrize("before", ["", "DO UPDATE"])
def test_an_event_that_comes_while_another_is_being_folded_is_not_lost(
    database_url: str, engine: Engine, ledger: Ledger, before: str
) -> None:
    items = [processed(f"k{number}", captured(10, number, f"act_{number}")) for number in range(3)]
    ledger.record(items[:1])
    with overtaken(database_url, recorder(items[1]), recorder(items[2]), before):
        assert only_payment(engine).amount == 30


@on_postgresql
def test_two_first_events_of_one_payment_are_both_folded(database_url: str, engine: Engine) -> None:
    one, two = (processed(f"k{number}", captured(10, number, f"act_{number}")) for number in range(2))
    with overtaken(database_url, recorder(one), recorder(two)):
        assert only_payment(engine).amount == 20


@on_postgresql
def test_a_release_and_another_event_of_the_same_payment_lose_nothing(database_url: str, engine: Engine) -> None:
    with ledgers(database_url, 1) as (worker,):
        pipeline(worker).process(material.sealed(casual()))
    said = material.event(Effect.REFUNDED, None, payment_id="FormTok1")
    other = processed("back", said, provider="debitsuccess", facility="gym")
    with overtaken(database_url, recorder(other), expect_one(EXPECTED_CASUAL)):
        row = only_payment(engine)
        assert (row.state, row.amount) == ("refunded", 1250)


@on_postgresql
def test_an_expectation_of_another_reference_waits_for_nobody(database_url: str, engine: Engine) -> None:
    halted = Halted(database_url)
    ours = processed("k1", captured(reference="R1"))
    with ledgers(database_url, 1) as (other,), ThreadPoolExecutor(1) as threads:
        try:
            ahead = threads.submit(halted.ledger.record, [ours])
            assert halted.reached.wait(20)
            other.expect([expected("R2")], never_judged)
            other.record([processed("k2", captured(reference="R1", payment_id="p2"))])
        finally:
            halted.go_on.set()
        ahead.result(20)
    halted.engine.dispose()
    assert len(rows(engine, payments)) == 2


def test_a_traceback_is_kept_without_card_numbers(ledger: Ledger, engine: Engine) -> None:
    ledger.record([Interpreted(envelope("k1"), "failed", "interpretation_failed", "ValueError: 4111 1111 1111 1111")])
    assert rows(engine, notifications)[0].detail == "ValueError: 4111 11** **** 1111"
