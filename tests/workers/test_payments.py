"""The fold: the state tables of the providers, and that no order of arrival and no repeat ever changes the payment."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.notification import Effect, Expectation, PaymentEvent, PaymentState
from receiver.providers import checkout, debitsuccess, paymentz, quickstream
from tests.states import STATES
from tests.support import CHECKOUT, PAYMENTZ, QUICKSTREAM, recorded
from workers.ledger.payments import Payment, expectation_key, fold

BEGIN = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)


def event(effect: Effect, minute: int | None = 0, **fields: Any) -> PaymentEvent:
    """An event some minutes after the beginning; None for one without a time."""
    moment = None if minute is None else BEGIN + timedelta(minutes=minute)
    return PaymentEvent(event_type=effect.value, effect=effect, payment_id="p1", occurred_at=moment, **fields)


def money(effect: Effect, minute: int, amount: int, action: str | None = None, **totals: int) -> PaymentEvent:
    """An event with an amount in euro; `totals` as ``captured=100``."""
    stated = {f"total_{name}": total for name, total in totals.items()}
    return event(effect, minute, amount=amount, action_id=action, currency="EUR", **stated)


def folded(*events: PaymentEvent, expectation: Expectation | None = None) -> Payment:
    payment = fold(events, expectation)
    assert payment is not None
    return payment


def state_of(*effects: Effect) -> PaymentState:
    """The state after events that came one minute after the other."""
    return folded(*(event(effect, minute) for minute, effect in enumerate(effects))).state


def expected(amount: int = 1000, currency: str = "EUR", **fields: Any) -> Expectation:
    return Expectation(
        provider="checkout",
        facility="main",
        reference="R1",
        amount=amount,
        currency=currency,
        exponent=fields.pop("exponent", 2),
        registered_at=1,
        **fields,
    )


APPROVED = event(Effect.AUTHORISED, 1)
CAPTURED = event(Effect.CAPTURED, 2)


# -- states, from the tables in providers/


def test_says_nothing_without_an_event_that_does() -> None:
    assert fold([]) is None
    assert fold([event(Effect.NONE), event(Effect.NONE, 1)]) is None


@pytest.mark.parametrize(
    ("effects", "state"),
    [
        ("pending", "pending"),
        ("authorised", "authorised"),
        ("captured", "captured"),
        ("declined", "declined"),
        ("failed", "failed"),
        ("expired", "expired"),
        ("cancelled", "cancelled"),
        ("voided", "voided"),
        ("refunded", "refunded"),
        ("disputed", "disputed"),
        ("returned", "failed"),
        # Checkout.com: approved is followed by captured, by a void, by an increment.
        ("authorised captured", "captured"),
        ("authorised voided", "voided"),
        ("authorised authorised", "authorised"),
        ("authorised pending", "authorised"),
        ("authorised capture_declined", "authorised"),
        ("authorised expired", "expired"),
        ("authorised cancelled", "cancelled"),
        ("authorised declined", "declined"),
        # Scheduled again by the sender after a decline.
        ("declined authorised", "authorised"),
        ("declined captured", "captured"),
        ("failed captured", "captured"),
        ("pending declined pending", "declined"),
        # A late one never undoes the capture.
        ("captured authorised", "captured"),
        ("captured declined", "captured"),
        ("captured expired", "captured"),
        ("captured cancelled", "captured"),
        ("captured failed", "captured"),
        ("captured pending", "captured"),
        ("captured voided", "captured"),
        ("captured capture_declined", "captured"),
        ("voided authorised", "voided"),
        ("voided captured", "captured"),
        # Octopus: nothing is authorised before the capture.
        ("pending pending captured", "captured"),
        ("pending pending capture_declined", "failed"),
        ("pending capture_declined captured", "captured"),
        ("pending expired", "expired"),
        # Money that goes back.
        ("captured refunded", "refunded"),
        ("refunded captured", "refunded"),
        ("captured returned", "failed"),
        ("captured refunded returned", "failed"),
        ("returned captured", "failed"),
        # Disputes.
        ("captured disputed", "disputed"),
        ("captured disputed dispute_ended", "captured"),
        ("captured refunded disputed", "disputed"),
        ("captured refunded disputed dispute_ended", "refunded"),
        ("captured disputed dispute_ended disputed", "disputed"),
        ("disputed captured", "disputed"),
        # Its own capture was never seen.
        ("dispute_ended", "captured"),
        ("authorised disputed dispute_ended", "captured"),
        ("declined dispute_ended", "captured"),
    ],
)
def test_state_after(effects: str, state: str) -> None:
    assert state_of(*map(Effect, effects.split())) == PaymentState(state)


@pytest.mark.parametrize("effect", [Effect.DECLINED, Effect.EXPIRED, Effect.CANCELLED, Effect.FAILED])
def test_what_has_no_time_of_its_own_ends_an_authorisation_without_time(effect: Effect) -> None:
    """Paymentz states no usable time: authcancelled and capturefailed are final."""
    assert folded(event(effect, None), event(Effect.AUTHORISED, None)).state == PaymentState(effect.value)


def test_the_end_of_one_dispute_is_not_the_end_of_another() -> None:
    lost = event(Effect.DISPUTED, 3, action_id="dsp_1", response_code="lost")
    received = event(Effect.DISPUTED, 4, action_id="dsp_2")
    won = event(Effect.DISPUTE_ENDED, 5, action_id="dsp_2")
    payment = folded(CAPTURED, lost, received, won)
    assert (payment.state, payment.response_code) == (PaymentState.DISPUTED, "lost")
    assert folded(CAPTURED, received, won).state == PaymentState.CAPTURED


def test_a_dispute_ends_at_the_time_it_began_when_both_say_the_same() -> None:
    assert folded(CAPTURED, event(Effect.DISPUTE_ENDED, 5), event(Effect.DISPUTED, 5)).state == PaymentState.CAPTURED


def test_a_dispute_that_is_not_named_is_over_with_any_later_end() -> None:
    chargeback, won = event(Effect.DISPUTED, 3), event(Effect.DISPUTE_ENDED, 5, action_id="dsp_1")
    assert folded(CAPTURED, won, chargeback).state == PaymentState.CAPTURED
    again = event(Effect.DISPUTED, 6)
    assert folded(CAPTURED, again, won, chargeback).state == PaymentState.DISPUTED


def test_an_end_whose_time_cannot_be_read_still_ends_its_dispute() -> None:
    received = event(Effect.DISPUTED, 3, action_id="dsp_1")
    won = event(Effect.DISPUTE_ENDED, None, action_id="dsp_1")
    assert folded(CAPTURED, won, received).state == PaymentState.CAPTURED


@pytest.mark.parametrize("effect", [Effect.DECLINED, Effect.EXPIRED, Effect.CANCELLED, Effect.FAILED])
def test_an_end_whose_time_cannot_be_read_ends_an_authorisation_that_has_one(effect: Effect) -> None:
    assert folded(event(effect, None), APPROVED).state == PaymentState(effect.value)


@pytest.mark.parametrize("names", [("payment_chargeback",), ("request_for_information_received", "dispute_received")])
def test_every_kind_of_checkout_dispute_ends_when_it_is_won(names: tuple[str, ...]) -> None:
    won = checkout.interpret(recorded("checkout", "dispute_won").message(), CHECKOUT)
    events = [
        msgspec.structs.replace(each, action_id=each.action_id and won.action_id, occurred_at=BEGIN)
        for each in (checkout.interpret(recorded("checkout", name).message(), CHECKOUT) for name in names)
    ]
    assert folded(CAPTURED, *events).state == PaymentState.DISPUTED
    assert folded(won, CAPTURED, *events).state == PaymentState.CAPTURED


TABLES = {
    "quickstream": quickstream.EFFECTS,
    "checkout": checkout.EFFECTS,
    "debitsuccess": debitsuccess.EFFECTS,
    "paymentz": paymentz.EFFECTS,
}


@pytest.mark.parametrize(("provider", "word"), [(name, word) for name, table in TABLES.items() for word in table])
def test_the_state_after_each_word_of_each_sender(provider: str, word: str) -> None:
    """With a time, and without, as Paymentz has none that can be used."""
    for minute in (0, None):
        payment = fold([event(TABLES[provider][word], minute)])
        assert (payment and payment.state.value) == STATES[provider][word]


@pytest.mark.parametrize(
    ("name", "before", "state"),
    [
        ("payment_refund_declined", "captured", "captured"),
        ("payment_refund_pending", "captured", "captured"),
        ("payment_void_declined", "authorised", "authorised"),
        ("payment_authorization_increment_declined", "authorised", "authorised"),
        ("payment_retrieval", "captured", "captured"),
        ("fraud_reported", "captured", "captured"),
        ("payment_chargeback", "captured", "disputed"),
        ("dispute_lost", "captured", "disputed"),
        ("dispute_accepted", "captured", "disputed"),
        ("dispute_won", "captured", "captured"),
        ("dispute_resolved", "captured", "captured"),
        ("dispute_resolved__rapid", "captured", "disputed"),
        ("payment_returned", "captured", "failed"),
        ("payment_returned__payout", "captured", "captured"),
        ("payment_declined__payout", "captured", "captured"),
        ("payment_declined__bad_date", "captured", "captured"),
        ("payment_expired__octopus", "pending", "expired"),
        ("payment_capture_declined__octopus", "pending", "failed"),
        ("payment_captured__octopus", "pending", "captured"),
    ],
)
def test_checkout_notifications(name: str, before: str, state: str) -> None:
    """As they are read from the recorded bodies: a failed refund or void leaves the payment as it was."""
    came = checkout.interpret(recorded("checkout", name).message(), CHECKOUT)
    earlier = PaymentEvent(event_type="earlier", effect=Effect(before), occurred_at=datetime(2020, 1, 1, tzinfo=UTC))
    assert folded(earlier, came).state == PaymentState(state)


# -- amounts


def test_partial_captures_and_refunds_add_up_by_action() -> None:
    """Without balances, as on Checkout.com's previous platform."""
    payment = folded(
        money(Effect.AUTHORISED, 0, 9900, "act_0"),
        money(Effect.CAPTURED, 1, 4000, "act_1"),
        money(Effect.CAPTURED, 2, 4000, "act_2"),
        money(Effect.CAPTURED, 2, 4000, "act_2"),
        money(Effect.REFUNDED, 3, 1500, "act_3"),
        money(Effect.REFUNDED, 4, 1500, "act_4"),
    )
    assert (payment.state, payment.amount, payment.amount_refunded) == (PaymentState.PARTIALLY_REFUNDED, 8000, 3000)


def test_partial_refunds_become_a_full_one() -> None:
    refunds = [money(Effect.REFUNDED, 3 + number, 2500, f"act_{number}") for number in range(4)]
    capture = money(Effect.CAPTURED, 1, 10_000, "act_9")
    assert folded(capture, *refunds[:3]).state == PaymentState.PARTIALLY_REFUNDED
    assert folded(capture, *refunds).state == PaymentState.REFUNDED
    assert folded(capture, *refunds).amount_refunded == 10_000


def test_running_totals_make_up_for_events_that_never_came() -> None:
    payment = folded(
        money(Effect.CAPTURED, 2, 4000, "act_2", authorised=9900, captured=8000, refunded=0),
        money(Effect.REFUNDED, 5, 100, "act_5", authorised=9900, captured=8000, refunded=300),
    )
    assert (payment.amount, payment.amount_refunded) == (8000, 300)
    assert payment.state == PaymentState.PARTIALLY_REFUNDED


def test_a_void_of_a_part_leaves_the_rest_authorised() -> None:
    approved = money(Effect.AUTHORISED, 0, 9900, "act_0", authorised=9900)
    part = money(Effect.VOIDED, 1, 900, "act_1", authorised=9900, voided=900)
    rest = money(Effect.VOIDED, 1, 9000, "act_2", authorised=9900, voided=9900)
    assert folded(approved, part).state == PaymentState.AUTHORISED
    assert folded(part).state == PaymentState.AUTHORISED
    assert folded(approved, part, rest).state == PaymentState.VOIDED
    assert folded(approved, part).amount == 9900


def test_a_void_without_balances_is_of_the_whole() -> None:
    assert folded(money(Effect.AUTHORISED, 0, 9900), money(Effect.VOIDED, 1, 9900)).state == PaymentState.VOIDED


def test_a_void_of_what_was_not_captured_keeps_the_capture() -> None:
    payment = folded(
        money(Effect.CAPTURED, 1, 6000, "act_1", authorised=9900, captured=6000),
        money(Effect.VOIDED, 2, 3900, "act_2", authorised=9900, captured=6000, voided=3900),
    )
    assert (payment.state, payment.amount) == (PaymentState.CAPTURED, 6000)


def test_an_increment_raises_what_is_authorised() -> None:
    """The increment's amount is its own; only the total says what is authorised. Whichever came first."""
    approved = money(Effect.AUTHORISED, 0, 1000, "act_0", authorised=1000)
    raised = money(Effect.AUTHORISED, 0, 500, "act_1", authorised=1500)
    assert folded(approved, raised).amount == folded(raised, approved).amount == 1500


@pytest.mark.parametrize("effect", [Effect.REFUNDED, Effect.VOIDED, Effect.DISPUTED, Effect.DISPUTE_ENDED])
def test_the_amount_of_a_refund_or_dispute_is_never_the_payments(effect: Effect) -> None:
    assert folded(money(effect, 0, 300)).amount is None
    assert folded(money(effect, 5, 300), money(Effect.AUTHORISED, 0, 1000)).amount == 1000


def test_a_declined_capture_of_a_part_does_not_change_what_was_asked() -> None:
    asked, part = money(Effect.AUTHORISED, 0, 1000), money(Effect.CAPTURE_DECLINED, 1, 600)
    assert folded(asked, part).amount == 1000
    assert folded(part).amount == 600


def test_a_failed_payment_keeps_the_amount_that_was_asked() -> None:
    assert folded(money(Effect.PENDING, 0, 0), money(Effect.DECLINED, 1, 1000)).amount == 1000
    assert folded(money(Effect.CAPTURED, 0, 0)).amount == 0


def test_paymentz_captures_and_settlements_are_one_movement() -> None:
    names = ("authsuccessful", "capturesuccess", "settled", "reversed")
    events = [paymentz.interpret(recorded("paymentz", name).message(), PAYMENTZ) for name in names]
    amount = events[1].amount
    events = [msgspec.structs.replace(each, amount=amount, currency="EUR", exponent=2) for each in events]
    paid = folded(*events[:3])
    assert (paid.state, paid.amount, paid.amount_refunded) == (PaymentState.CAPTURED, amount, 0)
    back = folded(*events)
    assert (back.state, back.amount, back.amount_refunded) == (PaymentState.REFUNDED, amount, amount)


def test_a_dispute_in_another_currency_leaves_the_payments_currency() -> None:
    dispute = event(Effect.DISPUTED, 9, amount=1200, currency="JPY", exponent=0)
    payment = folded(money(Effect.CAPTURED, 1, 1000), dispute)
    assert (payment.amount, payment.currency, payment.exponent) == (1000, "EUR", 2)
    assert (folded(dispute).currency, folded(dispute).exponent) == ("JPY", 0)


def test_a_refund_of_a_part_whose_capture_is_late_is_partial() -> None:
    """What was asked stands in for what was captured, as long as that is not known."""
    asked, back = money(Effect.AUTHORISED, 0, 9900), money(Effect.REFUNDED, 5, 1500, "act_5")
    assert folded(back, asked).state == PaymentState.PARTIALLY_REFUNDED
    assert folded(back, asked, money(Effect.CAPTURED, 3, 1500, "act_3")).state == PaymentState.REFUNDED
    assert folded(back).state == PaymentState.REFUNDED


def test_events_of_one_payment_in_two_currencies_are_a_mismatch_and_never_added_up() -> None:
    """As an altered Paymentz callback can bring about, whose currency is not signed."""
    first, second = money(Effect.CAPTURED, 1, 1000, "act_1"), money(Effect.CAPTURED, 2, 70_000, "act_2")
    other = msgspec.structs.replace(second, currency="JPY", exponent=0)
    payment = folded(other, first)
    assert (payment.amount, payment.currency, payment.exponent) == (70_000, "JPY", 0)
    assert payment.mismatch
    assert folded(other, first, expectation=expected(70_000, "JPY", exponent=0)).mismatch
    assert not folded(second, first).mismatch


# -- other fields


def test_later_values_win_and_absent_ones_keep_the_earlier() -> None:
    first = event(
        Effect.AUTHORISED,
        0,
        reference="R1",
        customer_reference="C1",
        card_scheme="VISA",
        receipt_number="1",
        surcharge=3,
        settlement_date=date(2026, 3, 3),
        custom={"a": 1, "b": 1},
    )
    second = event(Effect.CAPTURED, 1, reference="R2", response_code="00", custom={"b": 2})
    payment = folded(second, first)
    assert payment == Payment(
        state=PaymentState.CAPTURED,
        amount=None,
        amount_refunded=0,
        currency=None,
        exponent=2,
        surcharge=3,
        receipt_number="1",
        reference="R2",
        customer_reference="C1",
        card_scheme="VISA",
        response_code="00",
        response_description=None,
        summary_code=None,
        soft_decline=False,
        settlement_date=date(2026, 3, 3),
        occurred_at=BEGIN + timedelta(minutes=1),
        custom={"a": 1, "b": 2},
        differs=(),
    )


def test_the_deciding_event_explains_the_state() -> None:
    declined = event(Effect.DECLINED, 1, response_code="20005", summary_code="1", soft_decline=True)
    captured = event(Effect.CAPTURED, 2, response_code="10000", response_description="Approved")
    assert folded(declined).soft_decline
    payment = folded(declined, captured, event(Effect.EXPIRED, 9, response_code="x"))
    assert (payment.response_code, payment.response_description) == ("10000", "Approved")
    assert (payment.soft_decline, payment.summary_code) == (False, None)
    assert payment.occurred_at == captured.occurred_at


# -- expectations


def test_the_expectation_gives_what_the_sender_does_not_send() -> None:
    payment = folded(event(Effect.CAPTURED), expectation=expected(500, "KWD", exponent=3))
    assert (payment.amount, payment.currency, payment.exponent) == (500, "KWD", 3)
    assert (payment.reference, payment.mismatch) == ("R1", False)


@pytest.mark.parametrize(
    ("amount", "currency", "mismatch"), [(1000, "EUR", False), (999, "EUR", True), (1000, "USD", True)]
)
def test_a_difference_to_the_expectation_is_a_mismatch(amount: int, currency: str, mismatch: bool) -> None:
    payment = folded(money(Effect.CAPTURED, 0, 1000), expectation=expected(amount, currency))
    assert payment.mismatch is mismatch
    assert (payment.amount, payment.currency) == (1000, "EUR")


def test_other_decimals_are_a_mismatch() -> None:
    assert folded(money(Effect.CAPTURED, 0, 1000), expectation=expected(1000, exponent=3)).mismatch


def test_a_part_counts_as_paid_only_when_the_expectation_says_so() -> None:
    part = quickstream.interpret(recorded("quickstream", "payment__partial_10").message(), QUICKSTREAM)
    assert part.amount is not None
    assert folded(part).mismatch
    assert folded(part, expectation=expected(part.amount + 1, "AUD")).mismatch
    assert not folded(part, expectation=expected(part.amount, "AUD")).mismatch


def test_an_expectation_is_found_by_the_token_or_by_the_payments_own_reference() -> None:
    assert expectation_key([]) is None
    assert expectation_key([event(Effect.CAPTURED)]) is None
    assert expectation_key([event(Effect.NONE, reference="R9")]) is None
    late, early = event(Effect.CAPTURED, 5, reference="R2"), event(Effect.AUTHORISED, 1, reference="R1")
    assert expectation_key([late, early]) == expectation_key([early, late]) == "ref:R2"
    assert expectation_key([event(Effect.CAPTURED, token="T1", reference="R1")]) == "token:T1"


# -- order and repeats

_SMALL = st.integers(0, 3)
_TOTALS = st.none() | st.sampled_from([0, 100, 300, 1000])
EVENTS = st.builds(
    PaymentEvent,
    event_type=st.sampled_from(["a", "b"]),
    effect=st.sampled_from(list(Effect)),
    payment_id=st.just("p1"),
    action_id=st.none() | st.sampled_from(["act_1", "act_2"]),
    receipt_number=st.none() | st.sampled_from(["1", "2"]),
    occurred_at=st.none() | _SMALL.map(lambda minute: BEGIN + timedelta(minutes=minute)),
    amount=_TOTALS,
    currency=st.none() | st.sampled_from(["EUR", "JPY"]),
    exponent=st.sampled_from([0, 2]),
    total_authorised=_TOTALS,
    total_captured=_TOTALS,
    total_refunded=_TOTALS,
    total_voided=_TOTALS,
    reference=st.none() | st.sampled_from(["R1", "R2"]),
    token=st.none() | st.sampled_from(["T1", "T2"]),
    response_code=st.none() | st.sampled_from(["00", "05"]),
    soft_decline=st.booleans(),
    settlement_date=st.none() | st.dates(date(2026, 1, 1), date(2026, 1, 3)),
    custom=st.dictionaries(st.sampled_from("abc"), st.integers(0, 2) | st.text(max_size=2), max_size=2),
    partial=st.booleans(),
)
HISTORIES = st.lists(EVENTS, min_size=1, max_size=7)
EXPECTATIONS = st.none() | st.builds(expected, st.sampled_from([100, 1000]), st.sampled_from(["EUR", "JPY"]))


@st.composite
def told_twice(draw: st.DrawFn) -> tuple[list[PaymentEvent], list[PaymentEvent]]:
    """A history, and the same in another order with any of its events repeated."""
    history = draw(HISTORIES)
    again = draw(st.lists(st.sampled_from(history), max_size=5))
    return history, draw(st.permutations(history + again))


@given(told_twice(), EXPECTATIONS)
def test_no_order_and_no_repeat_changes_the_payment(
    told: tuple[list[PaymentEvent], list[PaymentEvent]], expectation: Expectation | None
) -> None:
    history, retold = told
    assert fold(history, expectation) == fold(retold, expectation)
    assert expectation_key(history) == expectation_key(retold)


@given(HISTORIES, st.data())
def test_what_came_late_completes_a_part_to_the_same_payment(history: list[PaymentEvent], data: st.DataObject) -> None:
    first = data.draw(st.integers(0, len(history)))
    part, rest = history[:first], data.draw(st.permutations(history[first:]))
    fold(part)
    assert fold(part + rest) == fold(rest + part) == fold(history)


@given(HISTORIES, EXPECTATIONS)
def test_events_read_back_from_the_ledger_give_the_same_payment(
    history: list[PaymentEvent], expectation: Expectation | None
) -> None:
    stored = [msgspec.json.decode(msgspec.json.encode(each), type=PaymentEvent) for each in history]
    assert fold(stored, expectation) == fold(history, expectation)


def test_a_returned_direct_debit_is_declined_in_any_order() -> None:
    returned = event(Effect.DEBIT_RETURNED, 1, amount=1000, response_code="6", summary_code="1")
    for history in itertools.permutations([CAPTURED, returned, CAPTURED]):
        payment = folded(*history)
        assert (payment.state, payment.response_code, payment.amount) == (PaymentState.DECLINED, "6", 1000)


@given(HISTORIES)
def test_what_was_captured_stays_paid(history: list[PaymentEvent]) -> None:
    """Only a refund, a return or a dispute takes it away."""
    payment = folded(*history, CAPTURED)
    effects = {each.effect for each in history}
    if not effects & {Effect.REFUNDED, Effect.RETURNED, Effect.DEBIT_RETURNED, Effect.DISPUTED}:
        assert payment.state == PaymentState.CAPTURED
    else:
        assert payment.state in (
            PaymentState.CAPTURED,
            PaymentState.PARTIALLY_REFUNDED,
            PaymentState.REFUNDED,
            PaymentState.DISPUTED,
            PaymentState.FAILED,
            PaymentState.DECLINED,
        )


@given(HISTORIES)
def test_events_without_an_effect_say_nothing(history: list[PaymentEvent]) -> None:
    silent: Sequence[PaymentEvent] = [msgspec.structs.replace(each, effect=Effect.NONE) for each in history]
    assert fold([*silent, APPROVED]) == fold([APPROVED])
