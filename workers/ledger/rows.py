"""Between our objects and the ledger's rows. Every text is cut and cleaned here, so that none fails to be stored."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

import msgspec

from receiver import cards
from receiver.notification import Envelope, Expectation, PaymentEvent, microseconds, utc
from receiver.signing import digest
from workers.ledger.bodies import Bodies
from workers.ledger.payments import Payment, reference_key, token_key
from workers.ledger.tables import KEY

_JSON = msgspec.json.Encoder()
# Characters of a traceback: its end names the fault.
_LONGEST_DETAIL = 20_000
# PostgreSQL has no place for the first, and no encoder for the others.
_NOT_STORABLE = re.compile("[\x00\ud800-\udfff]")


class Interpreted(msgspec.Struct, frozen=True):
    """An envelope with what was made of it. `state` is ``processed``, ``failed``, ``quarantined`` or ``held``."""

    envelope: Envelope
    state: str
    reason: str = ""
    detail: str = ""
    event: PaymentEvent | None = None
    token: str | None = None
    """Of what is held: the token that it waits for."""

    @property
    def payment_id(self) -> str | None:
        known = self.event.payment_id if self.event is not None else self.token
        return bounded(known) if known is not None else None


def bounded(key: str) -> str:
    """A key that fits its column: a sender's text of any length and of any characters stays a key of its own."""
    return key if len(key) <= KEY and storable(key) else f"long:{digest(key_bytes(key))}"


def key_bytes(key: str) -> bytes:
    return key.encode("utf-8", "surrogatepass")


def storable(text: str) -> bool:
    """Whether every database takes `text`; what is not storable cannot even be asked for."""
    # What can be printed has none of these characters, and is what nearly all texts are.
    return text.isprintable() or not _NOT_STORABLE.search(text)


def cleaned(text: str) -> str:
    """`text` as every database takes it."""
    return text if storable(text) else _NOT_STORABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def cut(value: str | None, length: int) -> str | None:
    """The raw body has the whole text; the record is for finding it."""
    return cleaned(value[:length]) if value is not None else None


def notification_row(item: Interpreted, bodies: Bodies, now: datetime | None = None) -> dict[str, Any]:
    """`now` is when it is recorded, this moment when it is not given."""
    envelope = item.envelope
    return {
        "id": envelope.id,
        "provider": envelope.provider,
        "facility": envelope.facility,
        "dedupe_key": bounded(envelope.dedupe_key),
        "fingerprint": envelope.fingerprint,
        "received_at": utc(envelope.received_at),
        "source": cut(envelope.source, 45),
        "content_type": cut(envelope.content_type, 200),
        "headers": _JSON.encode(envelope.headers).decode(),
        **bodies.stored(envelope.body, envelope.id, envelope.provider, envelope.facility),
        "deliveries": 1,
        "conflicts": 0,
        **judgement(item, now),
    }


def judgement(item: Interpreted, now: datetime | None = None) -> dict[str, Any]:
    """The part of a notification's row that interpreting it again may change."""
    event_type = item.event.event_type if item.event else item.envelope.event_type
    return {
        "state": item.state,
        "reason": item.reason,
        "detail": cards.masked_text(cleaned(item.detail))[-_LONGEST_DETAIL:],
        "processed_at": now or datetime.now(UTC),
        "verified": item.envelope.verified,
        "event_type": cut(event_type, 120),
        "payment_id": item.payment_id,
        "event": _JSON.encode(item.event).decode() if item.event else None,
    }


def stored_envelope(row: Any, bodies: Bodies) -> Envelope:
    """The envelope of a stored notification, as it came out of the queue; what was made of it before does not count.
    The body is empty when it is gone: `purged` tells. Raises `BodyLocked` when it is encrypted and no key opens it."""
    return Envelope(
        id=row.id,
        provider=row.provider,
        facility=row.facility,
        received_at=microseconds(row.received_at),
        source=row.source,
        content_type=row.content_type,
        headers=msgspec.json.decode(row.headers, type=dict[str, str]),
        body=b"" if purged(row) else bodies.opened(row, row.provider, row.facility),
        verified=row.verified,
        dedupe_key=row.dedupe_key,
        event_type=row.event_type,
        fingerprint=row.fingerprint,
        quarantine="",
        detail="",
    )


def purged(row: Any) -> bool:
    """Whether the body is gone, as its time was over."""
    return row.purged_at is not None


def repeat_row(envelope: Envelope, notification_id: str, conflict: bool, bodies: Bodies) -> dict[str, Any]:
    body: dict[str, Any] = {"body": None, "body_key": None}
    if conflict:
        body = bodies.stored(envelope.body, envelope.id, envelope.provider, envelope.facility)
    return {
        "id": envelope.id,
        "notification_id": notification_id,
        "provider": envelope.provider,
        "facility": envelope.facility,
        "conflict": conflict,
        "received_at": utc(envelope.received_at),
        "source": cut(envelope.source, 45),
        "content_type": cut(envelope.content_type, 200),
        "headers": _JSON.encode(envelope.headers).decode(),
        **body,
    }


def payment_row(key: tuple[str, str, str], payment: Payment, first_received: datetime, now: datetime) -> dict[str, Any]:
    provider, facility, payment_id = key
    return {
        "provider": provider,
        "facility": facility,
        "payment_id": payment_id,
        "receipt_number": cut(payment.receipt_number, KEY),
        "state": payment.state.value,
        "amount": payment.amount,
        "currency": cut(payment.currency, 3),
        "exponent": payment.exponent,
        "surcharge": payment.surcharge,
        "amount_refunded": payment.amount_refunded,
        "reference": cut(payment.reference, 255),
        "customer_reference": cut(payment.customer_reference, 255),
        "card_scheme": cut(payment.card_scheme, 64),
        "response_code": cut(payment.response_code, 64),
        "response_description": cut(payment.response_description, 255),
        "summary_code": cut(payment.summary_code, 16),
        "soft_decline": payment.soft_decline,
        "settlement_date": payment.settlement_date,
        "occurred_at": payment.occurred_at or first_received,
        "updated_at": now,
        "custom": _JSON.encode(payment.custom).decode(),
        "mismatch": payment.mismatch,
    }


def expectation_from(row: Any) -> Expectation:
    return Expectation(
        provider=row.provider,
        facility=row.facility,
        reference=row.reference,
        amount=row.amount,
        currency=row.currency,
        exponent=row.exponent,
        registered_at=microseconds(row.registered_at),
        token=row.token,
        webhook_token=row.webhook_token,
        valid_to=row.valid_to,
        merchant=row.merchant,
    )


def expectation_row(expectation: Expectation) -> dict[str, Any]:
    token, reference = expectation.token, expectation.reference
    return {
        "provider": expectation.provider,
        "facility": expectation.facility,
        "key": token_key(token) if token is not None else reference_key(reference),
        "reference": reference,
        "amount": expectation.amount,
        "currency": expectation.currency,
        "exponent": expectation.exponent,
        "registered_at": utc(expectation.registered_at),
        "token": token,
        "webhook_token": expectation.webhook_token,
        "valid_to": expectation.valid_to,
        "merchant": expectation.merchant,
    }
