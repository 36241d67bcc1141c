"""One right payment from its events: a pure fold over the set of them, whatever their order of arrival.

The state follows from what the events say together, by rank and by the senders' own times; nothing here knows when
an event arrived. What is captured stays captured: a late approval, decline or expiry never undoes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, date, datetime
from operator import attrgetter
from typing import Any, TypeVar

import msgspec

from receiver.notification import Effect, Expectation, PaymentEvent, PaymentState

_NEVER = datetime.min.replace(tzinfo=UTC)
_ALWAYS = datetime.max.replace(tzinfo=UTC)
_ENCODER = msgspec.json.Encoder(order="deterministic")

# Ties between events of the same time, and events without a time: the later in this list counts as the later event.
_RANK = {effect: rank for rank, effect in enumerate(Effect)}

# What ended a payment before any money moved.
_ENDED = {
    Effect.DECLINED: PaymentState.DECLINED,
    Effect.FAILED: PaymentState.FAILED,
    Effect.EXPIRED: PaymentState.EXPIRED,
    Effect.CANCELLED: PaymentState.CANCELLED,
}

# Their amount may be in the cardholder's own currency.
_DISPUTES = frozenset({Effect.DISPUTED, Effect.DISPUTE_ENDED})

# Events whose amount is that of their own action and never what was asked for.
_OF_THEIR_OWN = frozenset({Effect.VOIDED, Effect.REFUNDED, Effect.DISPUTED, Effect.DISPUTE_ENDED})
# The same, but mostly of the whole: their amount stands in where no other is known.
_STAND_IN = frozenset({Effect.CAPTURE_DECLINED, Effect.RETURNED})

# Of these fields the last event that says anything counts.
_LAST = ("surcharge", "receipt_number", "reference", "customer_reference", "card_scheme", "settlement_date", "token")

T = TypeVar("T")


class Payment(msgspec.Struct, frozen=True, gc=False):
    """What is known of one payment. Amounts are minor units with `exponent` decimals."""

    state: PaymentState
    amount: int | None
    amount_refunded: int
    currency: str | None
    exponent: int
    surcharge: int | None
    receipt_number: str | None
    reference: str | None
    customer_reference: str | None
    card_scheme: str | None
    response_code: str | None
    response_description: str | None
    summary_code: str | None
    soft_decline: bool
    settlement_date: date | None
    occurred_at: datetime | None
    custom: dict[str, Any]
    differs: tuple[str, ...]
    """What is not as expected: ``amount``, ``currency``, ``merchant``; ``part`` where only a part was approved."""

    @property
    def mismatch(self) -> bool:
        return bool(self.differs)


def fold(events: Iterable[PaymentEvent], expectation: Expectation | None = None) -> Payment | None:
    """The payment that `events` describe together; None when none of them says anything of it.

    `expectation` is what the merchant announced: it gives amount, currency and reference where the sender sends none,
    and a difference sets `mismatch`.
    """
    known = _known(events)
    if not known:
        return None
    currency, exponent = _currency(known)
    # Amounts of another currency cannot be added up with these; that there are any is a mismatch.
    counted = [event for event in known if event.currency in (None, currency)]
    captured = _total(counted, Effect.CAPTURED, "total_captured")
    refunded = _total(counted, Effect.REFUNDED, "total_refunded")
    amount = captured or _asked(counted)
    state, decisive = _state(known, amount, refunded)
    said = _together(known)
    reference = said.reference
    if expectation is not None:
        amount = expectation.amount if amount is None else amount
        exponent = expectation.exponent if currency is None else exponent
        currency = currency or expectation.currency
        reference = reference or expectation.reference
    return Payment(
        state=state,
        amount=amount,
        amount_refunded=refunded or 0,
        currency=currency,
        exponent=exponent,
        surcharge=said.surcharge,
        receipt_number=said.receipt_number,
        reference=reference,
        customer_reference=said.customer_reference,
        card_scheme=said.card_scheme,
        response_code=decisive.response_code,
        response_description=decisive.response_description,
        summary_code=decisive.summary_code,
        soft_decline=decisive.soft_decline,
        settlement_date=said.settlement_date,
        occurred_at=decisive.occurred_at,
        custom={name: value for event in known for name, value in event.custom.items()},
        differs=_differences(known, amount, currency, exponent, expectation),
    )


def expectation_key(events: Iterable[PaymentEvent]) -> str | None:
    """The key of the expectation that the payment of `events` belongs to: by its token where the sender has tokens,
    else by its reference. None where it has neither."""
    known = _known(events)
    if not known:
        return None
    said = _together(known)
    if said.token is not None:
        return token_key(said.token)
    return reference_key(said.reference) if said.reference is not None else None


def token_key(token: str) -> str:
    return f"token:{token}"


def reference_key(reference: str) -> str:
    return f"ref:{reference}"


def _known(events: Iterable[PaymentEvent]) -> list[PaymentEvent]:
    """What says anything of the payment, in the one order that depends on nothing but the events."""
    known = [event for event in events if event.effect is not Effect.NONE]
    return sorted(known, key=_order) if len(known) > 1 else known


def _together(known: Sequence[PaymentEvent]) -> PaymentEvent:
    """One event that has of each field in `_LAST` what the last of `known` says that says anything of it."""
    if len(known) == 1:
        return known[0]
    return msgspec.structs.replace(known[-1], **{name: _last(known, attrgetter(name)) for name in _LAST})


def _order(event: PaymentEvent) -> tuple[datetime, int, bytes]:
    return event.occurred_at or _NEVER, _RANK[event.effect], _ENCODER.encode(event)


def _state(
    known: Sequence[PaymentEvent], amount: int | None, refunded: int | None
) -> tuple[PaymentState, PaymentEvent]:
    """The state, and the event whose response code explains it. `amount` is what was captured, else what was asked."""
    last = {event.effect: event for event in known}
    if returned := last.get(Effect.RETURNED):
        return PaymentState.FAILED, returned
    if dishonoured := last.get(Effect.DEBIT_RETURNED):
        return PaymentState.DECLINED, dishonoured
    if Effect.DISPUTED in last and (disputed := _open_dispute(known)):
        return PaymentState.DISPUTED, disputed
    if refund := last.get(Effect.REFUNDED):
        # Without an amount nothing says that money is left.
        partly = refunded is not None and amount is not None and refunded < amount
        return (PaymentState.PARTIALLY_REFUNDED if partly else PaymentState.REFUNDED), refund
    if capture := last.get(Effect.CAPTURED):
        return PaymentState.CAPTURED, capture
    if won := last.get(Effect.DISPUTE_ENDED):
        # Only a captured payment can be disputed; its own capture was never seen here.
        return PaymentState.CAPTURED, won
    if void := _last(known, lambda event: event if event.effect is Effect.VOIDED and _voids_all(event) else None):
        return PaymentState.VOIDED, void
    ended = _last(known, lambda event: event if event.effect in _ENDED else None)
    authorised = last.get(Effect.AUTHORISED)
    if ended and (authorised is None or not _before(ended, authorised)):
        return _ENDED[ended.effect], ended
    # Only what was authorised can be voided in part; its own approval may never have been seen here.
    if authorised := authorised or last.get(Effect.VOIDED):
        return PaymentState.AUTHORISED, authorised
    if declined := last.get(Effect.CAPTURE_DECLINED):
        # Nothing was authorised before, as with Octopus: the money will not come.
        return PaymentState.FAILED, declined
    return PaymentState.PENDING, known[-1]


def _before(one: PaymentEvent, other: PaymentEvent) -> bool:
    """Whether `one` surely happened before `other`: an event without a time may have happened at any."""
    return one.occurred_at is not None and other.occurred_at is not None and one.occurred_at < other.occurred_at


def _open_dispute(known: Sequence[PaymentEvent]) -> PaymentEvent | None:
    """A payment may be disputed more than once, and the end of one dispute is not the end of another. One that is not
    named, as in a chargeback of Checkout.com's previous platform, is over with any end that came later."""
    open_ones: dict[str | None, PaymentEvent] = {}
    for event in sorted((event for event in known if event.effect in _DISPUTES), key=_order_of_disputes):
        if event.effect is Effect.DISPUTED:
            open_ones[event.action_id] = event
        else:
            open_ones.pop(event.action_id, None)
            open_ones.pop(None, None)
    return max(open_ones.values(), key=_order, default=None)


def _order_of_disputes(event: PaymentEvent) -> tuple[datetime, int, bytes]:
    """As `_order`, but an end without a time of its own came last."""
    if event.effect is Effect.DISPUTE_ENDED and event.occurred_at is None:
        return _ALWAYS, _RANK[event.effect], _ENCODER.encode(event)
    return _order(event)


def _voids_all(void: PaymentEvent) -> bool:
    return void.total_voided is None or void.total_authorised is None or void.total_voided >= void.total_authorised


def _total(known: Sequence[PaymentEvent], effect: Effect, stated: str) -> int | None:
    """Each action counts once; where the sender states a running total, in the field `stated`, the largest one seen
    counts too."""
    amounts: dict[str | None, int] = {}
    totals: list[int] = []
    for event in known:
        if event.effect is effect and event.amount is not None:
            amounts[event.action_id] = event.amount
        total = getattr(event, stated)
        if total is not None:
            totals.append(total)
    if amounts:
        totals.append(sum(amounts.values()))
    return max(totals) if totals else None


def _asked(known: Sequence[PaymentEvent]) -> int | None:
    """What was asked for, while nothing is captured: the sender's own total where it states one, as an increment's or a
    void's amount is that of its action alone. A refund's or a dispute's amount is never the payment's."""
    total = max((event.total_authorised or 0 for event in known), default=0)
    asked = _last([event for event in known if event.effect not in _OF_THEIR_OWN | _STAND_IN], _amount)
    if total or asked is not None:
        return total or asked
    return _last([event for event in known if event.effect in _STAND_IN], _amount)


def _currency(known: Sequence[PaymentEvent]) -> tuple[str | None, int]:
    """The currency, and the decimals of the amounts. A dispute may be in the cardholder's own currency."""
    last = None
    for event in reversed(known):
        if event.currency is None:
            continue
        if event.effect not in _OF_THEIR_OWN:
            return event.currency, event.exponent
        last = last or event
    # An event without a currency knows no exponent either.
    last = last or known[-1]
    return last.currency, last.exponent


def _differences(
    known: Sequence[PaymentEvent],
    amount: int | None,
    currency: str | None,
    exponent: int,
    expectation: Expectation | None,
) -> tuple[str, ...]:
    differs = []
    if expectation is not None and (amount, exponent) != (expectation.amount, expectation.exponent):
        differs.append("amount")
    # Two currencies are a difference whatever was expected.
    several = len({event.currency for event in known if event.currency and event.effect not in _DISPUTES}) > 1
    if several or (expectation is not None and currency != expectation.currency):
        differs.append("currency")
    # A part was approved, and nothing says that the part is all that was asked for.
    if expectation is None and [event for event in known if event.partial]:
        differs.append("part")
    if expectation is not None and expectation.merchant is not None:
        paid = {event.merchant for event in known if event.merchant is not None}
        if not paid <= {expectation.merchant}:
            differs.append("merchant")
    return tuple(differs)


def _amount(event: PaymentEvent) -> int | None:
    return event.amount


def _last(known: Sequence[PaymentEvent], said: Callable[[PaymentEvent], T | None]) -> T | None:
    """What the last event says that says anything of it."""
    for event in reversed(known):
        value = said(event)
        if value is not None:
            return value
    return None
