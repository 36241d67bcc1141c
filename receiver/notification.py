"""What both sides agree on: the envelope that crosses the queue, and the event that a provider makes of it."""

from __future__ import annotations

import os
import threading
import time
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from typing import Any

import msgspec

from receiver.errors import NewerEnvelope, SealBroken
from receiver.signing import Seal

ENVELOPE_VERSION = 1

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def new_id(now_us: int) -> str:
    """A UUIDv7 (RFC 9562): its first 48 bits are the time in ms, so that ids sort by arrival; those of one process
    and one millisecond count upwards from a random number (its method 2)."""
    global _last
    at = now_us // 1000
    with _one_id_at_a_time:
        ms, beginning, number = _last
        if ms == at:
            number += 1
        else:
            random = int.from_bytes(os.urandom(10), "big")
            # The first bit of the last 62 is left free, so that counting never overflows.
            beginning, number = f"{at >> 16:08x}-{at & 0xFFFF:04x}-7{random >> 68:03x}-", random & (1 << 61) - 1
        _last = (at, beginning, number)
    end = f"{0b10 << 62 | number:016x}"
    return f"{beginning}{end[:4]}-{end[4:]}"


_last = (-1, "", 0)
"""Of the newest id the millisecond, its text up to the last 16 digits, and the 62 bits that are counted."""
_one_id_at_a_time = threading.Lock()


def now_us() -> int:
    """Microseconds since 1970 in UTC."""
    return time.time_ns() // 1000


def utc(us: int) -> datetime:
    return _EPOCH + timedelta(0, 0, us)


def microseconds(moment: datetime) -> int:
    """The inverse of `utc`, exact: a float of seconds would lose the last digits."""
    return (moment - _EPOCH) // timedelta(microseconds=1)


class Envelope(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One accepted delivery, as it crosses the queue. Never changed after it was made."""

    id: str
    provider: str
    facility: str
    received_at: int
    """Microseconds since 1970 in UTC."""
    source: str
    """The sender's address as the source check saw it."""
    content_type: str
    headers: dict[str, str]
    """The provider's `kept_headers`. Never credentials."""
    body: bytes
    verified: bool
    """False only for what is held: its proof could not be checked yet."""
    dedupe_key: str
    event_type: str
    fingerprint: str
    """Equal for deliveries that say the same, different for a repeat with other content."""
    quarantine: str
    """The reason slug, or "" when the body could be read and believed."""
    detail: str
    trace: str = ""
    """The W3C ``traceparent`` under which a worker goes on, where traces are asked for. Last and with a default:
    workers of another version read envelopes with and without it."""


_ENVELOPES = msgspec.msgpack.Decoder(list[Envelope])
_VERSIONED = msgspec.msgpack.Decoder(tuple[int, msgspec.Raw])
_ENCODER = msgspec.msgpack.Encoder()


def seal_batch(envelopes: list[Envelope], seal: Seal) -> bytes:
    return seal.seal(_ENCODER.encode((ENVELOPE_VERSION, envelopes)))


def open_batch(sealed: bytes, seal: Seal) -> list[Envelope]:
    """The envelopes of a batch. Raises `SealBroken`, or `NewerEnvelope` for a version after this one."""
    message = seal.open(sealed)
    try:
        version, raw = _VERSIONED.decode(message)
        if version > ENVELOPE_VERSION:
            raise NewerEnvelope(f"The batch has envelope version {version}; this worker knows {ENVELOPE_VERSION}.")
        return _ENVELOPES.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        # Sealed, yet not a batch: nothing that we wrote. As wrong as a broken seal.
        raise SealBroken("The sealed message is not a batch.") from error


class PaymentState(StrEnum):
    """The states of the payment object."""

    PENDING = "pending"
    AUTHORISED = "authorised"
    CAPTURED = "captured"
    DECLINED = "declined"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    VOIDED = "voided"
    PARTIALLY_REFUNDED = "partially_refunded"
    REFUNDED = "refunded"
    DISPUTED = "disputed"


class Effect(StrEnum):
    """What one event says about its payment. The state is folded from all of them."""

    NONE = "none"
    PENDING = "pending"
    AUTHORISED = "authorised"
    CAPTURED = "captured"
    CAPTURE_DECLINED = "capture_declined"
    DECLINED = "declined"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    VOIDED = "voided"
    REFUNDED = "refunded"
    RETURNED = "returned"
    """The money went back after it was captured, by no refund of ours."""
    DEBIT_RETURNED = "debit_returned"
    """The payer's bank returned a direct debit: it is declined, also when it was captured before."""
    DISPUTED = "disputed"
    DISPUTE_ENDED = "dispute_ended"
    """Won or withdrawn: the state before the dispute counts again."""


class PaymentEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a provider makes of one notification. Amounts are minor units with `exponent` decimals."""

    event_type: str
    effect: Effect = Effect.NONE
    payment_id: str | None = None
    """The payment that it speaks of, unique within the endpoint; None when it speaks of none."""
    action_id: str | None = None
    """The capture, refund or void that it reports; each counts once."""
    receipt_number: str | None = None
    occurred_at: datetime | None = None
    """Aware UTC, from the sender's own clock; None when it gave none that can be read."""
    amount: int | None = None
    """Of this event's action; of the whole payment where the sender knows only that."""
    currency: str | None = None
    exponent: int = 2
    surcharge: int | None = None
    total_authorised: int | None = None
    total_captured: int | None = None
    total_refunded: int | None = None
    total_voided: int | None = None
    reference: str | None = None
    customer_reference: str | None = None
    card_scheme: str | None = None
    response_code: str | None = None
    response_description: str | None = None
    summary_code: str | None = None
    soft_decline: bool = False
    settlement_date: date | None = None
    custom: dict[str, Any] = {}
    token: str | None = None
    """The token under which amount and reference were registered, for senders that send neither."""
    merchant: str | None = None
    """The business that was paid, for senders that name it."""
    partial: bool = False
    """Approved for a part only: counts as paid in full only when an expectation says so."""
    flags: tuple[str, ...] = ()
    """What a person should look at, as fixed slugs."""


class ReturnOutcome(StrEnum):
    """What the customer was told. Only a proven return may say anything of a payment."""

    APPROVED = "approved"
    DECLINED = "declined"
    PENDING = "pending"
    """The bank itself does not know yet."""
    FAILED = "failed"
    ERROR = "error"
    """Nothing was attempted: a field of the payment page was wrong."""
    CONFIRM = "confirm"
    """Nothing was attempted: the customer must accept a surcharge, or a second payment of the same amount."""
    UNCONFIRMED = "unconfirmed"
    """The sender proves nothing, so nothing was said."""


class BrowserReturn(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a customer's browser brought back from the payment page. For display: it never becomes a payment."""

    id: str
    provider: str
    facility: str
    returned_at: int
    """Microseconds since 1970 in UTC."""
    digest: str
    """The same for the same return, however often its page is loaded."""
    verified: bool
    outcome: ReturnOutcome
    payment_id: str | None = None
    receipt_number: str | None = None
    reference: str | None = None
    customer_reference: str | None = None
    amount: int | None = None
    """Minor units with two decimals, as both senders have them."""
    surcharge: int | None = None
    currency: str | None = None
    response_code: str | None = None
    summary_code: str | None = None
    reported: str | None = None
    """The status word of a sender that proves nothing."""
    error_fields: tuple[str, ...] = ()
    action_context_id: str | None = None
    """What the merchant posts back to the sender with the customer's confirmation."""


class Expectation(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A payment that the merchant announced before the customer pays."""

    provider: str
    facility: str
    reference: str
    amount: int
    currency: str
    exponent: int
    registered_at: int
    """Microseconds since 1970 in UTC."""
    token: str | None = None
    webhook_token: str | None = None
    valid_to: datetime | None = None
    merchant: str | None = None
    """The business that is to be paid, in the sender's own words; None where any of the endpoint's will do."""
