"""Paymentz platform: one white-label gateway under many brands (Transactworld, Shimotomo, PZ, Xoala and others).

Vendor: https://docs.transactworld.co.uk/integration/status.php [STAT]
        https://docs.shimotomo.com/invoice-api/get-invoice-config-details.php [PAD]
Third party, quoting the vendor: https://github.com/asciisd/cashier-core (driver Xoala) [ASC]

The proof is weak and covers little: an MD5 over paymentId, merchantTransactionId, amount and the short status. Neither
currency nor long status is signed, a replay verifies for ever, and the customer's redirect is signed by the same
formula. So money is flagged for an inquiry, and what verifies only in a variant is kept but never believed.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from datetime import timedelta
from itertools import product
from typing import Any

from receiver.errors import Quarantined, Reason, Refused
from receiver.money import minor_from_text
from receiver.notification import Effect, Expectation, PaymentEvent
from receiver.providers.base import Endpoint, Identity, Message, Provider, headers_prove_nothing, no_token
from receiver.reading import Json, form, json_object
from receiver.signing import Secret, digest

# Long statuses [STAT], lower case, spaces as underscores.
EFFECTS = {
    "begun": Effect.PENDING,
    "authstarted": Effect.PENDING,
    "3d_authstarted": Effect.PENDING,
    "capturestarted": Effect.PENDING,
    "cancelstarted": Effect.NONE,
    "markedforreversal": Effect.NONE,
    "payoutstarted": Effect.NONE,
    # Final for a pre-authorisation. For a debit it would be the capture, but the callback does not tell which it was.
    "authsuccessful": Effect.AUTHORISED,
    "capturesuccess": Effect.CAPTURED,
    "settled": Effect.CAPTURED,
    "payoutsuccessful": Effect.NONE,
    "payoutfailed": Effect.NONE,
    "authfailed": Effect.DECLINED,
    "capturefailed": Effect.FAILED,
    "failed": Effect.FAILED,
    "authcancelled": Effect.CANCELLED,
    "cancelled": Effect.CANCELLED,
    "reversed": Effect.REFUNDED,
    "chargeback": Effect.DISPUTED,
}

# These need the signed short status Y, and these exclude it. A refund or chargeback may carry any, Y included.
SUCCESSES = frozenset({"authsuccessful", "capturesuccess", "settled", "payoutsuccessful"})
FAILURES = frozenset({"authfailed", "capturefailed", "failed", "payoutfailed", "authcancelled", "cancelled"})

# Money to a customer, never the state of an order.
PAYOUTS = frozenset({"payoutstarted", "payoutsuccessful", "payoutfailed"})

# Short statuses [STAT]. Y is success, N failure, C cancelled; P and 3D are neither.
SHORT = ("Y", "N", "P", "3D", "C")

# Money moves once per payment and direction, as an altered long status verifies as well.
ACTIONS = {Effect.CAPTURED: "capture", Effect.REFUNDED: "refund"}

# The unsigned parts decide these: only an inquiry confirms them.
_CONFIRM = frozenset({Effect.CAPTURED, Effect.AUTHORISED, Effect.REFUNDED})

# ISO 4217. The samples have two decimals for JPY and VND, which ISO gives none.
_THREE_DECIMALS = frozenset({"BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"})
_ID = re.compile(r"[!-~]{1,100}", re.ASCII)
_CURRENCY = re.compile(r"[A-Z]{3}", re.ASCII)
_WHOLE = re.compile(r"(\d+)\.0+", re.ASCII)
_NOT_ASCII = re.compile(rb"%[89A-Fa-f][0-9A-Fa-f]")
_MAX_WORD = 100
_SIGNED = ("paymentId", "merchantTransactionId", "amount", "transactionStatus")
# Harmless, informational; the zone of the timestamp is not known.
_CUSTOM = ("timestamp", "paymentMode", "bankReferenceId", "terminalId")


class PaymentzEndpoint(Endpoint, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="paymentz"):
    secure_keys: tuple[Secret, ...] = ()
    """Of one merchant account, or of all that share this URL: a callback names no account."""


def exponent(currency: str) -> int:
    return 3 if currency.upper() in _THREE_DECIMALS else 2


def authenticate(message: Message, endpoint: PaymentzEndpoint, expected: Expectation | None) -> None:
    try:
        body = _read(message)
    except Quarantined:
        raise Refused(Reason.SIGNATURE_REFUSED, "The body cannot be read, so that it proves nothing.") from None
    if not body.text("checksum"):
        raise Refused(Reason.SIGNATURE_MISSING, "The checksum is missing.")
    # What verifies in a variant only is authentic enough to be kept; `identify` quarantines it.
    key = _verifies(body, endpoint) or _verifies_in_a_variant(body, endpoint)
    if key is None:
        raise Refused(Reason.SIGNATURE_REFUSED, "The checksum does not match the body.")
    key.used += 1


def identify(message: Message, endpoint: PaymentzEndpoint) -> Identity:
    body = _read(message)
    _believe(body, endpoint)
    event_type = _event_type(body)
    content = [_as_sent(body, name).encode() for name in ("amount", "currency", "merchantTransactionId")]
    return Identity(f"{body.text('paymentId')}:{_short(body)}:{event_type}", event_type, digest(*content))


def identifiers(message: Message, endpoint: PaymentzEndpoint) -> list[str]:
    # A signed field that was changed would not be believed in the worker, nor ever again.
    body = _read(message)
    return [_as_sent(body, name) for name in (*_SIGNED, "checksum", *endpoint.own_numbers)]


def interpret(message: Message, endpoint: PaymentzEndpoint) -> PaymentEvent:
    body = _read(message)
    _believe(body, endpoint)
    event_type, currency = _event_type(body), _currency(body)
    effect = EFFECTS.get(event_type, Effect.NONE)
    flags: tuple[str, ...] = ("confirm_by_inquiry",) if effect in _CONFIRM else ()
    if event_type in PAYOUTS:
        flags = ("payout",)
    elif event_type not in EFFECTS:
        flags = ("unknown_status",)
    return PaymentEvent(
        event_type=event_type,
        effect=effect,
        payment_id=None if event_type in PAYOUTS else body.text("paymentId"),
        action_id=ACTIONS.get(effect),
        # Of a refund as well: the callback repeats the payment's amount, and only the inquiry tells what went back.
        amount=_amount(body),
        currency=currency,
        exponent=exponent(currency),
        reference=body.text("merchantTransactionId"),
        card_scheme=body.text("paymentBrand"),
        response_code=body.text("result", "code") or body.text("resultCode"),
        response_description=body.text("result", "description") or body.text("resultDescription"),
        custom={name: text for name in _CUSTOM if (text := body.text(name))},
        flags=flags,
    )


def _read(message: Message) -> Json:
    """JSON, or else a form, as the documents commit to neither; UTF-8, or else Latin-1, as a name must lose nothing."""
    try:
        text = message.body.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = message.body.decode("latin-1")
    try:
        return json_object(text.encode())
    except Quarantined:
        if "json" in message.content_type:
            raise
    return Json(_form(message.body))


def _form(body: bytes) -> dict[str, str]:
    try:
        fields = form(body)
    except Quarantined:
        fields = form(_NOT_ASCII.sub(_utf8, body.decode("latin-1").encode()))
    for name in fields.values:
        fields.get(name)  # raises for a field with two values
    return {name: values[0] for name, values in fields.values.items()}


def _utf8(escape: re.Match[bytes]) -> bytes:
    # Beside escapes it reads the same unescaped.
    return chr(int(escape[0][1:], 16)).encode()


def _as_sent(body: Json, name: str) -> str:
    """The value as it was hashed: text with its white space, a number as its source text."""
    value: Any = body.node(name).value
    return value if isinstance(value, str) else body.text(name) or ""


def _verifies(body: Json, endpoint: PaymentzEndpoint) -> Secret | None:
    """The key under which the checksum fits the body as the documents say it: values as sent, in UTF-8."""
    return _fits(body, endpoint, "|".join(_as_sent(body, name) for name in _SIGNED).encode())


def _verifies_in_a_variant(body: Json, endpoint: PaymentzEndpoint) -> Secret | None:
    """The key under which it fits with a JPY amount as an integer, another short status, or hashed as Latin-1 bytes."""
    payment_id, reference, amount, short = (_as_sent(body, name) for name in _SIGNED)
    amounts = [amount]
    if (body.text("currency") or "").upper() == "JPY" and (whole := _WHOLE.fullmatch(amount)):
        amounts.append(whole[1])
    found = None
    for tried_amount, tried_short, charset in product(amounts, (short, *SHORT), ("utf-8", "latin-1")):
        text = "|".join((payment_id, reference, tried_amount, tried_short))
        found = _fits(body, endpoint, text.encode(charset, "replace")) or found
    return found


def _fits(body: Json, endpoint: PaymentzEndpoint, text: bytes) -> Secret | None:
    given = (body.text("checksum") or "").lower().encode()
    found = None
    for key in endpoint.secure_keys:
        # MD5 is the vendor's choice, not ours. Always 32 digits: the vendor pads with zeros [PAD].
        wanted = hashlib.md5(text + b"|" + key.reveal(), usedforsecurity=False).hexdigest()
        if hmac.compare_digest(given, wanted.encode()):
            found = key
    return found


def _believe(body: Json, endpoint: PaymentzEndpoint) -> None:
    """Raises `Quarantined` unless this is strictly proven, speaks of a payment and does not contradict itself."""
    if not _verifies(body, endpoint):
        # Also what was proven by a key that is configured no longer: a replay needs the key.
        raise Quarantined(Reason.WEAK_PROOF, "the checksum does not fit the body as documented")
    if any("|" in _as_sent(body, name) for name in _SIGNED):
        raise Quarantined(Reason.WEAK_PROOF, "a signed field holds the separator, so that others would verify as well")
    if not _ID.fullmatch(body.text("paymentId") or ""):
        # Whether there are callbacks for registrations is not confirmed.
        raise Quarantined(Reason.UNKNOWN_DOCUMENT, "paymentId is missing or no id: not a payment")
    status, signed_success = _event_type(body), _short(body) == "Y"
    if not status:
        raise Quarantined(Reason.MISSING_FIELD, "status is missing")
    if (status in SUCCESSES and not signed_success) or (status in FAILURES and signed_success):
        raise Quarantined(Reason.CONTRADICTORY_FIELDS, "status and transactionStatus disagree")
    _amount(body)


def _event_type(body: Json) -> str:
    return "_".join((body.text("status") or "").lower().split())[:_MAX_WORD]


def _short(body: Json) -> str:
    return (body.text("transactionStatus") or "").upper()[:_MAX_WORD]


def _currency(body: Json) -> str:
    currency = body.text("currency")
    if not currency:
        raise Quarantined(Reason.MISSING_FIELD, "currency is missing")
    if not _CURRENCY.fullmatch(currency.upper()):
        raise Quarantined(Reason.UNREADABLE_BODY, "currency is not a currency code")
    return currency.upper()


def _amount(body: Json) -> int:
    text = body.text("amount")
    if not text:
        raise Quarantined(Reason.MISSING_FIELD, "amount is missing")
    amount = minor_from_text(text, exponent(_currency(body)), "amount")
    if amount < 0:
        raise Quarantined(Reason.CONTRADICTORY_FIELDS, "amount is negative")
    return amount


PROVIDER = Provider(
    name="paymentz",
    display="Paymentz platform",
    endpoint=PaymentzEndpoint,
    required_secrets=(("secure_keys",),),
    # None published.
    sources={"test": (), "production": ()},
    proof_headers=(),
    kept_headers=(),
    # With it, anybody could send the same callback under another long status.
    secret_fields=frozenset({"checksum"}),
    identifiers=identifiers,
    # No document promises a retry.
    not_stored_status=503,
    event_types=frozenset(EFFECTS),
    # No source says how often it is sent again; the customer may take the day.
    answer_within=timedelta(days=1),
    exponent=exponent,
    check_headers=headers_prove_nothing,
    token_of=no_token,
    authenticate=authenticate,
    identify=identify,
    interpret=interpret,
)
