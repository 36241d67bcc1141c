"""Checkout.com webhooks: of the current platform (NAS, Workflows) and of the previous one (ABC), Octopus included.

Vendor: https://www.checkout.com/docs/workflows/set-up-your-webhook-receiver (12 Nov 2025) [RECV]
        https://www.checkout.com/docs/workflows/webhook-event-types [TYPES]
        https://www.checkout.com/docs/payments/accept-payments/format-the-amount-value [MONEY]
        https://www.checkout.com/docs/resources/codes/http-response-codes (22 Oct 2025) [CODES]
        https://www.checkout.com/docs/payments/add-payment-methods/octopus (30 Apr 2026) [OCTO]
        https://www.checkout.com/docs/payments/process-disputes/pre-dispute-resolution [RDR]
        https://www.checkout.com/docs/developer-resources/ip-addresses [IP]
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from receiver.errors import Quarantined, Reason, Refused
from receiver.money import minor_from_text
from receiver.notification import Effect, Expectation, PaymentEvent
from receiver.providers.base import Endpoint, Identity, Message, Provider, no_token
from receiver.reading import MAX_NAME, Json, below, json_object
from receiver.signing import Secret, digest, require_hmac_sha256, require_static

# The state follows from the type alone: code 10000 "Approved" also stands in refunds, voids and returns [TYPES].
EFFECTS = {
    "payment_pending": Effect.PENDING,
    "payment_approved": Effect.AUTHORISED,
    "payment_authorization_incremented": Effect.AUTHORISED,
    # The customer has agreed, nothing is paid yet.
    "payment_capture_pending": Effect.PENDING,
    # The only type that means paid. Octopus sends no payment_approved before it [OCTO].
    "payment_captured": Effect.CAPTURED,
    "payment_capture_declined": Effect.CAPTURE_DECLINED,
    "payment_declined": Effect.DECLINED,
    "payment_expired": Effect.EXPIRED,
    "payment_canceled": Effect.CANCELLED,
    "payment_voided": Effect.VOIDED,
    "payment_refunded": Effect.REFUNDED,
    "payment_returned": Effect.RETURNED,
    "payment_chargeback": Effect.DISPUTED,
    "request_for_information_received": Effect.DISPUTED,
    "dispute_received": Effect.DISPUTED,
    "dispute_evidence_required": Effect.DISPUTED,
    "dispute_evidence_submitted": Effect.DISPUTED,
    "dispute_evidence_acknowledged_by_scheme": Effect.DISPUTED,
    "dispute_arbitration_evidence_submitted": Effect.DISPUTED,
    "dispute_arbitration_sent_to_scheme": Effect.DISPUTED,
    # The money is gone, or no answer is possible any more: it stays disputed.
    "dispute_accepted": Effect.DISPUTED,
    "dispute_expired": Effect.DISPUTED,
    "dispute_lost": Effect.DISPUTED,
    "dispute_arbitration_lost": Effect.DISPUTED,
    # The money came back. Resolved: it had been refunded before, so that state counts again; but see RAPID.
    "dispute_canceled": Effect.DISPUTE_ENDED,
    "dispute_won": Effect.DISPUTE_ENDED,
    "dispute_arbitration_won": Effect.DISPUTE_ENDED,
    "dispute_resolved": Effect.DISPUTE_ENDED,
}

# Rapid dispute resolution means accepted, and the customer paid back by the scheme: the money is gone [RDR].
RAPID = "rapid_dispute_resolution"

# Kept without an effect, as are all types that no table names (140 and more exist).
NO_EFFECT = (
    *("payment_void_declined", "payment_refund_pending", "payment_refund_declined", "payment_paid"),
    *("payment_authorization_increment_declined", "payment_authentication_failed", "payment_compliance_review"),
    *("payment_authorized", "payment_retry_scheduled", "payment_optimized", "fraud_reported"),
    *("payment_retrieval", "payment_risk_matched", "payment_flagged", "source_updated", "source.updated"),
    *("authentication_started", "authentication_approved", "authentication_attempted"),
    *("authentication_expired", "authentication_failed", "card_verified", "card_verification_declined"),
    *("bank_account_updated", "batch_successful", "batch_unsuccessful"),
    # Issuing
    *("authorization_approved", "authorization_declined", "reversal_approved", "presentment_received"),
    *("3ds_card_enrolled", "issuing_dispute_closed"),
    # Platforms
    *("sub_entity_created", "status_changed", "payments_enabled", "payments_disabled", "transfer_status_changed"),
    *("payouts_enabled", "payouts_disabled", "payout_paid", "payout_declined"),
    *("vmss_passed", "vmss_failed", "match_passed", "match_failed", "full_dd_passed", "full_dd_failed"),
    *("payment_instrument_verification_passed", "payment_instrument_verification_failed"),
)

# Version 1.0 of the previous platform: https://docs.checkout.com/reporting-and-insights/webhooks
LEGACY = (
    *("charge.succeeded", "charge.captured", "charge.captured.deferred", "charge.captured.failed", "charge.pending"),
    *("charge.chargeback", "charge.failed", "charge.refunded", "charge.refunded.failed", "charge.retrieval"),
    *("charge.voided", "charge.voided.failed", "card.updated", "invoice.cancelled"),
)

FLAGS = {
    "fraud_reported": "fraud_reported",
    "payment_compliance_review": "compliance_review",
    # "Failure after success", as with ACH [TYPES].
    "payment_returned": "payment_returned",
    **dict.fromkeys(LEGACY, "legacy_event"),
}

# The vendor's own table [MONEY], not ISO 4217: CLP has 2 decimals here and always ends in 00; CLF has 2.
_WHOLE = ("BIF", "DJF", "GNF", "ISK", "JPY", "KMF", "KRW", "PYG", "RWF", "UGX", "VUV", "VND", "XAF", "XOF", "XPF")
_EXPONENTS = dict.fromkeys(_WHOLE, 0) | dict.fromkeys(("BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"), 3)

# Far above the nine digits of [MONEY], far below what the ledger's columns hold.
MAX_AMOUNT = 10**12

_TOTALS = {
    "authorised": "total_authorized",
    "captured": "total_captured",
    "refunded": "total_refunded",
    "voided": "total_voided",
}

_IDENTIFIERS = ("id", "payment_id", "action_id")
# What can be a key: documented ids are three letters and 26 characters.
_ID = re.compile(r"[!-~]{1,100}", re.ASCII)
_CURRENCY = re.compile(r"[A-Z]{3}", re.ASCII)


class CheckoutEndpoint(Endpoint, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="checkout"):
    signature_keys: tuple[Secret, ...] = ()
    """Keys of the webhook actions (NAS) or the account's secret key (ABC), oldest first. Old and new together for
    30 h of retries at least, better for the 91 days in which events can be sent again."""
    authorization_keys: tuple[Secret, ...] = ()
    """The static Authorization header, where one is configured: as sent, no ``Bearer`` is added."""


class _Event(NamedTuple):
    body: Json
    data: Json
    type: str
    effect: Effect
    payment_id: str | None
    payout: bool


def exponent(currency: str) -> int:
    return _EXPONENTS.get(currency.upper(), 2)


def check_headers(message: Message, endpoint: CheckoutEndpoint) -> None:
    # Says nothing about the body, so it only comes on top of the signature.
    if endpoint.authorization_keys:
        require_static(message.headers.get("authorization"), endpoint.authorization_keys, "Authorization")


def authenticate(message: Message, endpoint: CheckoutEndpoint, expected: Expectation | None) -> None:
    signature = message.headers.get("cko-signature")
    # Identity verification has the header name and another scheme, "timestamp:version:signature"
    # (https://raw.githubusercontent.com/api-evangelist/ubble/refs/heads/main/overlays/ubble-identity-verification-overlay.yaml).
    if signature and ":" in signature:
        raise Refused(Reason.SIGNATURE_REFUSED, "The Cko-Signature header is not that of a payment webhook.")
    require_hmac_sha256(signature, message.body, endpoint.signature_keys, "Cko-Signature")


def identify(message: Message, endpoint: CheckoutEndpoint) -> Identity:
    event = _read(message)
    content = digest(message.body)
    # The vendor's example of payment_authentication_failed has no id.
    return Identity(_id(event.body, "id") or f"body:{content}", event.type, content)


def identifiers(message: Message, endpoint: CheckoutEndpoint) -> list[str]:
    return _values_of(json_object(message.body).value, {*_IDENTIFIERS, *endpoint.own_numbers})


def interpret(message: Message, endpoint: CheckoutEndpoint) -> PaymentEvent:
    event = _read(message)
    data = event.data
    occurred_at, time_flags = _occurred_at(event)
    amount, currency, amount_flags = _amount(data)
    totals, total_flags = _totals(data)
    code = data.text("response_code")
    flags = [FLAGS[event.type]] if event.type in FLAGS else []
    if event.payout:
        flags.append("payout")
    return PaymentEvent(
        event_type=event.type,
        effect=event.effect,
        payment_id=event.payment_id,
        action_id=_action_id(event),
        occurred_at=occurred_at,
        amount=amount,
        currency=currency,
        exponent=exponent(currency or ""),
        total_authorised=totals["authorised"],
        total_captured=totals["captured"],
        total_refunded=totals["refunded"],
        total_voided=totals["voided"],
        # Disputes of the current platform keep the payment's reference under its own name.
        reference=data.text("payment_reference") or data.text("reference"),
        card_scheme=data.text("source", "scheme"),
        response_code=code,
        response_description=data.text("response_summary"),
        # 20xxx are the soft declines [CODES].
        soft_decline=event.effect is Effect.DECLINED and (code or "").startswith("20"),
        custom=_storable(data.object("metadata")),
        flags=(*flags, *time_flags, *amount_flags, *total_flags),
    )


def _read(message: Message) -> _Event:
    """The event, whatever the Content-Type says: no source confirms one. Raises `Quarantined` for what is not a JSON
    object, has no type, or should change a payment that it does not name."""
    body = json_object(message.body)
    event_type = (body.text("type") or "")[:100]
    if not event_type:
        raise Quarantined(Reason.MISSING_FIELD, "type is missing")
    # issuing_dispute_closed has event_data instead of data.
    data = Json(body.object("data") or body.object("event_data"))
    if _is_payout(event_type, body, data):
        return _Event(body, data, event_type, Effect.NONE, None, payout=True)
    effect = EFFECTS.get(event_type, Effect.NONE)
    if event_type == "dispute_resolved" and data.text("resolved_reason") == RAPID:
        effect = Effect.DISPUTED
    payment_id = _payment_id(event_type, data)
    if effect is not Effect.NONE and payment_id is None:
        raise Quarantined(Reason.MISSING_FIELD, "data does not name the payment")
    return _Event(body, data, event_type, effect, payment_id, payout=False)


def _is_payout(event_type: str, body: Json, data: Json) -> bool:
    """Payouts share payment_approved, payment_declined and payment_returned with payments; `destination` tells them
    apart, and so does the event source of card payouts. payment_paid is of payouts only [TYPES]."""
    return event_type == "payment_paid" or bool(data.node("destination").value) or body.text("source") == "card_payout"


def _payment_id(event_type: str, data: Json) -> str | None:
    """Disputes and authentications name the payment beside their own id, fraud reports in an object; elsewhere than in
    payment events `data.id` may also be an entity or an issuing message."""
    own = _id(data, "id")
    if own and own.startswith("pay_"):
        return own
    named = _id(data, "payment_id") or _id(data, "payment", "id")
    return named or (own if event_type.startswith("payment_") else None)


def _action_id(event: _Event) -> str | None:
    """The action; of a dispute the dispute, as a payment may be disputed more than once. The previous platform's
    chargeback names none: its action is no dispute that could ever end."""
    if event.effect not in (Effect.DISPUTED, Effect.DISPUTE_ENDED):
        return _id(event.data, "action_id")
    return None if event.type == "payment_chargeback" else _id(event.data, "id")


def _values_of(value: Any, names: set[str]) -> list[str]:
    """Texts and numbers that have one of `names`, at any depth."""
    found: list[str] = []
    level = [value]
    while level:
        objects = [each for each in level if isinstance(each, dict)]
        named = [each[name] for each in objects for name in names & each.keys()]
        found += [str(child) for child in named if isinstance(child, str | int)]
        level = below(level)
    return found


def _id(node: Json, *path: str) -> str | None:
    text = node.text(*path)
    return text if text and _ID.fullmatch(text) else None


def _occurred_at(event: _Event) -> tuple[datetime | None, list[str]]:
    """The time of the action, else of the event, else of the dispute. The vendor's declined example has a 34 June;
    times without a zone count as unreadable too."""
    flags: list[str] = []
    data, body = event.data, event.body
    candidates = (data.text("processed_on"), body.text("created_on"), body.text("timestamp"), data.text("date"))
    for text in filter(None, candidates):
        try:
            time = datetime.fromisoformat(text)
            if time.tzinfo is not None:
                return time.astimezone(UTC), flags
        except (ValueError, OverflowError):
            pass
        flags = ["occurred_time_unreadable"]
    return None, flags


def _amount(data: Json) -> tuple[int | None, str | None, list[str]]:
    """Amount and currency. Mostly integer minor units, in authentication events as text; fraud reports have an object
    with a decimal text in major units. An odd one only raises a flag."""
    flags: list[str] = []
    given = data.node("amount") if data.node("amount").value is not None else data.node("fraud", "amount")
    currency = (given.text("currency") or data.text("currency") or "").upper()
    if currency and not _CURRENCY.fullmatch(currency):
        currency, flags = "", ["currency_unreadable"]
    amount = _from_major(given, currency) if given.object() else _minor(given)
    if amount is None and given.value is not None:
        flags.append("amount_unreadable")
    if amount is not None and _unusual(amount, currency, data):
        flags.append("amount_unusual")
    return amount, currency or None, flags


def _minor(node: Json) -> int | None:
    amount = node.integer()
    return amount if amount is not None and 0 <= amount <= MAX_AMOUNT else None


def _from_major(given: Json, currency: str) -> int | None:
    try:
        amount = minor_from_text(given.text("value") or "", exponent(currency), "amount")
    except Quarantined:
        return None
    return amount if currency and 0 <= amount <= MAX_AMOUNT else None


def _unusual(amount: int, currency: str, data: Json) -> bool:
    """More than nine digits, CLP with a part of a peso, three decimals that do not end in 0 [MONEY], or Octopus with a
    part of ten cents [OCTO]."""
    octopus = data.text("source", "type") == "octopus"
    step = 100 if currency == "CLP" else 10 if octopus or exponent(currency) == 3 else 1
    return amount > 999_999_999 or amount % step != 0


def _totals(data: Json) -> tuple[dict[str, int | None], list[str]]:
    """The running totals; absent on the previous platform."""
    given = {name: data.node("balances", sent) for name, sent in _TOTALS.items()}
    totals = {name: _minor(node) for name, node in given.items()}
    unreadable = any(totals[name] is None and node.value is not None for name, node in given.items())
    return totals, ["balances_unreadable"] if unreadable else []


def _storable(value: Any) -> Any:
    """Metadata with the numbers that no store keeps exactly, fractions and those over 64 bits, as their text, and with
    names of a length that can be shown; the vendor allows 100 characters."""
    if isinstance(value, dict):
        return {name[:MAX_NAME]: _storable(child) for name, child in value.items()}
    if isinstance(value, list):
        return [_storable(child) for child in value]
    if isinstance(value, str) or (isinstance(value, int) and not -(2**63) <= value < 2**63):
        return str(value)
    return value


PROVIDER = Provider(
    name="checkout",
    display="Checkout.com",
    endpoint=CheckoutEndpoint,
    # Checkout.com sends without any key too; such a webhook is never accepted.
    required_secrets=(("signature_keys",),),
    # The vendor advises against limits by address [RECV]. Whoever sets allowed_sources from the lists in [IP] adds
    # 4.159.40.224/28 and 135.116.97.64/28 before 11 January 2027
    # (https://www.checkout.com/zh-cn/support-articles/new-ip-addresses-for-webhooks-and-the-checkout-com-api).
    sources={"test": (), "production": ()},
    proof_headers=("cko-signature", "authorization"),
    kept_headers=(),
    secret_fields=frozenset(),
    identifiers=identifiers,
    # Anything but 2xx within 10 s is sent again, eight times in 30 h: https://www.checkout.com/docs/workflows
    not_stored_status=503,
    event_types=frozenset([*EFFECTS, *NO_EFFECT, *LEGACY]),
    # Sent again for 30 h after an outage: https://www.checkout.com/docs/workflows
    answer_within=timedelta(hours=30),
    exponent=exponent,
    check_headers=check_headers,
    token_of=no_token,
    authenticate=authenticate,
    identify=identify,
    interpret=interpret,
)
