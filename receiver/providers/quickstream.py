"""Westpac QuickStream server-to-server notifications (QuickConnect, QuickWeb, QuickVault), as form or XML.

Vendor: https://quickstream.westpac.com.au/docs/general/server-to-server-notification/ [S2S]
        https://quickstream.westpac.com.au/docs/general/response-codes/ [CODES]

An Octane (Telcoinabox) facility is a QuickStream facility with Octane's supplier business code: Octane itself sends
nothing (https://octane-api.apidog.io).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from zoneinfo import ZoneInfo

import msgspec

from receiver.codes import soft_declines
from receiver.errors import Quarantined, Reason
from receiver.money import minor_from_text
from receiver.notification import Effect, PaymentEvent
from receiver.providers.base import Identity, Message, Provider, ReturnEndpoint, headers_prove_all, no_token
from receiver.reading import Fields, form, xml
from receiver.signing import Secret, digest, require_basic

# QuickStream dates carry no zone; they are Sydney time [S2S].
SYDNEY = ZoneInfo("Australia/Sydney")

# English whatever the process's locale says; strptime's %b would follow it.
_NAMES = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
MONTHS = {name: number for number, name in enumerate(_NAMES, 1)}
# What Java 17 writes for MMM in the locale en-AU, and the sender's own encoder seems to be Java's.
JAVA_MONTHS = MONTHS | {"June": 6, "July": 7, "Sept": 9}
_CREATED = re.compile(r"(\d{1,2}) ([A-Z][a-z]{2,3}) (\d{4}) (\d{2}):(\d{2}):(\d{2})", re.ASCII)
_SETTLEMENT = re.compile(r"(\d{4})(\d{2})(\d{2})", re.ASCII)

# The vendor's advice is to decide on summaryCode. 2 is "Error" for cards and "Processing" for bank accounts: the
# outcome is unknown, so it is never a failure and never a success [CODES].
EFFECTS = {"0": Effect.CAPTURED, "1": Effect.DECLINED, "2": Effect.PENDING, "3": Effect.FAILED}

# Declines that a later attempt may turn [CODES]. Card and bank codes are two tables: card 01 is not bank 1. They are
# text.
CARD_SOFT_DECLINES = soft_declines("quickstream_card")
BANK_SOFT_DECLINES = soft_declines("quickstream_bank")

# What is longer is no time, whatever it begins with. Readings are remembered, for texts of no more than that: many
# notifications name the same second, and nearly all of a day the same date of settlement.
_LONGEST_TIME = 32
_REMEMBERED = 512

# What makes two deliveries of one receipt say the same.
_CONTENT = (
    "summaryCode",
    "responseCode",
    "paymentAmount",
    "surchargeAmount",
    "supplierBusinessCode",
    "customerReferenceNumber",
    "paymentReference",
)
# Of these, two different values cannot both be right.
_CORE = frozenset(
    {
        *_CONTENT,
        "sourceCode",
        "receiptNumber",
        "communityCode",
        "cardScheme",
        "settlementDate",
        "createdDateTime",
        "responseDescription",
        "successFlag",
    }
)
# What tells payments apart: of two, even of two that say the same, another program may read another one.
_ONCE = ("receiptNumber", "communityCode")
_BELIEVED = ("receiptNumber", "communityCode", "supplierBusinessCode", "summaryCode", "successFlag", "surchargeAmount")
_TOLD = (
    *("receiptNumber", "supplierBusinessCode", "paymentReference", "customerReferenceNumber", "cardScheme"),
    *("responseCode", "responseDescription", "summaryCode", "createdDateTime", "settlementDate"),
)
_IDENTIFIERS = ("receiptNumber", "communityCode", "paymentAmount", "surchargeAmount")
# A row of the settlement file is kept with this header. `kept_headers` has no such name, so that no request brings it.
ROW_HEADER = "community-code"
# Receipts have ten digits. Longer keys than an index takes must not reach the ledger.
MAX_KEY = 100


class QuickStreamEndpoint(ReturnEndpoint, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="quickstream"):
    username: str
    passwords: tuple[Secret, ...]
    hmac_passwords: tuple[Secret, ...] = ()
    """Secure token request passwords: keys of the browser return only, as a notification has no signature. Without one
    a return shows no result."""
    supplier_business_codes: tuple[str, ...]
    """A notification for another business is quarantined."""
    community_code: str = ""
    """A notification for another community is quarantined. The settlement file names none, and its rows belong to this
    one; without it, to that of the payments that are known."""
    currency: str = "AUD"
    """The notification names no currency: AUD, or NZD where the token request said so."""
    settlement_folder: Path | None = None
    """Where the bank's Cash Applied Files arrive; `postback reconcile --watch` takes them from there."""
    settlement_headings: Mapping[str, str] = msgspec.field(default_factory=dict)
    """Headings that this facility's files have instead of the vendor's."""
    settlement_split: bool = False
    """Card payments, bank accounts or business groups come in files of their own: what a file has no row of is not
    missing in it."""


def check_headers(message: Message, endpoint: QuickStreamEndpoint) -> None:
    require_basic(message.headers.get("authorization"), endpoint.username, endpoint.passwords)


def identify(message: Message, endpoint: QuickStreamEndpoint) -> Identity:
    if ROW_HEADER in message.headers:
        # It reads with the tables of this module.
        from receiver.providers import quickstream_settlement

        return quickstream_settlement.identify(message, endpoint)
    fields = _read(message)
    return Identity(_believed(fields, endpoint)[0], "payment", digest(*fields.texts(_CONTENT)))


def identifiers(message: Message, endpoint: QuickStreamEndpoint) -> list[str]:
    if ROW_HEADER in message.headers:
        from receiver.providers import quickstream_settlement

        return quickstream_settlement.identifiers(message, endpoint)
    fields = _read(message)
    return [value for name in (*_IDENTIFIERS, *endpoint.own_numbers) for value in fields.all(name)]


def interpret(message: Message, endpoint: QuickStreamEndpoint) -> PaymentEvent:
    if ROW_HEADER in message.headers:
        from receiver.providers import quickstream_settlement

        return quickstream_settlement.interpret(message, endpoint)
    fields = _read(message)
    payment_id, amount, surcharge = _believed(fields, endpoint)
    receipt, business, reference, customer, scheme, code, description, summary, created, settles = fields.texts(_TOLD)
    created_at, flags = _created_at(created[:_LONGEST_TIME])
    settles_on = _settlement_date(settles[:_LONGEST_TIME])
    if settles_on is None and settles:
        flags = (*flags, "settlement_date_unreadable")
    return PaymentEvent(
        event_type="payment",
        effect=EFFECTS[summary],
        payment_id=payment_id,
        receipt_number=receipt,
        occurred_at=created_at,
        amount=amount,
        surcharge=surcharge,
        currency=endpoint.currency,
        reference=reference or None,
        customer_reference=customer or None,
        merchant=business,
        card_scheme=scheme or None,
        response_code=code or None,
        response_description=description or None,
        summary_code=summary,
        soft_decline=soft_decline(code, by_card=bool(scheme), effect=EFFECTS[summary]),
        settlement_date=settles_on,
        custom=_custom(fields),
        partial=bool(scheme) and code == "10",
        flags=flags,
    )


def soft_decline(code: str, *, by_card: bool, effect: Effect) -> bool:
    """Whether the payer may try again later. Summary 2 may still be paid, as with QI, which the table flags too: a
    retry on that could charge twice."""
    return effect in (Effect.DECLINED, Effect.FAILED) and code in (
        CARD_SOFT_DECLINES if by_card else BANK_SOFT_DECLINES
    )


def _read(message: Message) -> Fields:
    if message.content_type == "application/x-www-form-urlencoded":
        return form(message.body)
    if message.content_type in ("application/xml", "text/xml"):
        root, fields = xml(message.body)
        if root != "PaymentResponse":
            raise Quarantined(Reason.UNKNOWN_DOCUMENT, "the XML root is not PaymentResponse")
        return fields
    raise Quarantined(Reason.UNREADABLE_BODY, "the content type is neither a form nor XML")


def _believed(fields: Fields, endpoint: QuickStreamEndpoint) -> tuple[str, int, int | None]:
    """The payment's id, its amount and the surcharge in it, in minor units. Raises `Quarantined` unless this is a
    payment of this endpoint's business that does not contradict itself."""
    for name in fields.repeated:
        if name in _ONCE:
            raise Quarantined(Reason.CONTRADICTORY_FIELDS, f"{name} occurs more than once")
        if name in _CORE:
            fields.get(name)  # raises for two different values
    receipt, community, business, summary, success, charged = fields.texts(_BELIEVED)
    if not receipt:
        # Registrations are notified too, with fields that no page confirms.
        raise Quarantined(Reason.UNKNOWN_DOCUMENT, "receiptNumber is missing: not a payment")
    payment_id = payment_id_of(fields)
    if len(payment_id) > MAX_KEY:
        raise Quarantined(Reason.UNREADABLE_BODY, "communityCode and receiptNumber are too long for a key")
    if (business or fields.need("supplierBusinessCode")) not in endpoint.supplier_business_codes:
        raise Quarantined(Reason.OTHER_BUSINESS, "supplierBusinessCode is not one of this endpoint's")
    if endpoint.community_code and community != endpoint.community_code:
        raise Quarantined(Reason.OTHER_BUSINESS, "communityCode is not this endpoint's")
    if (summary or fields.need("summaryCode")) not in EFFECTS:
        raise Quarantined(Reason.CONTRADICTORY_FIELDS, "summaryCode is none of 0, 1, 2 and 3")
    if success and success.lower() != ("true" if summary == "0" else "false"):
        raise Quarantined(Reason.CONTRADICTORY_FIELDS, "successFlag and summaryCode disagree")
    amount = minor_from_text(fields.need("paymentAmount"), 2, "paymentAmount")
    surcharge = minor_from_text(charged, 2, "surchargeAmount") if charged else None
    if amount < 0 or (surcharge is not None and surcharge < 0):
        # Only refunds in the Cash Applied File are negative; a notification of one is nowhere described.
        raise Quarantined(Reason.CONTRADICTORY_FIELDS, "an amount is negative")
    return payment_id, amount, surcharge


def payment_id_of(fields: Fields) -> str:
    """The payment's id, in a notification as in a browser return."""
    # No page confirms that receipts are unique across communities.
    community, receipt = fields.get("communityCode"), fields.get("receiptNumber")
    return f"{community}:{receipt}" if community else receipt


@lru_cache(maxsize=_REMEMBERED)
def _created_at(text: str) -> tuple[datetime | None, tuple[str, ...]]:
    """``10 Jan 2017 01:11:31`` in Sydney, as UTC. An unreadable date never loses the payment: it only raises a flag."""
    if not text:
        return None, ()
    match = _CREATED.fullmatch(text)
    try:
        if match is None:
            raise ValueError
        day, month, year, hour, minute, second = match.groups()
        local = datetime(int(year), JAVA_MONTHS[month], int(day), int(hour), int(minute), int(second), tzinfo=SYDNEY)
        created_at = local.astimezone(UTC)
    except (ValueError, KeyError, OverflowError):
        return None, ("created_time_unreadable",)
    # At the end of daylight saving an hour occurs twice, at its start one never occurs. The first reading is taken.
    unclear = local.utcoffset() != local.replace(fold=1).utcoffset()
    return created_at, ("created_time_ambiguous",) if unclear else ()


@lru_cache(maxsize=_REMEMBERED)
def _settlement_date(text: str) -> date | None:
    match = _SETTLEMENT.fullmatch(text)
    try:
        return date(*map(int, match.groups())) if match else None
    except ValueError:
        return None


def _custom(fields: Fields) -> dict[str, str | list[str]]:
    """The merchant's own parameters: ``custom`` and a capital letter. A repeated one keeps all its values."""
    return {
        name: values[0] if len(values := fields.all(name)) == 1 else values
        for name in fields.names
        if name.startswith("custom") and name[6:7].isupper()
    }


PROVIDER = Provider(
    name="quickstream",
    display="Westpac QuickStream",
    endpoint=QuickStreamEndpoint,
    required_secrets=(("passwords",),),
    sources={"test": ("203.39.159.31/32",), "production": ("192.170.86.153/32",)},
    proof_headers=("authorization",),
    kept_headers=(),
    secret_fields=frozenset(),
    identifiers=identifiers,
    # Anything but 200 is a failure; 500 is the vendor's own word for "could not be saved" [S2S].
    not_stored_status=500,
    event_types=frozenset({"payment", "settlement_file"}),
    # The customer may take the day; the vendor's own example sends for half an hour [S2S].
    answer_within=timedelta(days=1),
    exponent=lambda currency: 2,
    check_headers=check_headers,
    token_of=no_token,
    authenticate=headers_prove_all,
    identify=identify,
    interpret=interpret,
)
