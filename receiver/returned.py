"""What a browser return says: the query of the redirect from a payment page, proven where its sender proves it.

Vendor: https://quickstream.westpac.com.au/docs/quickconnect/ and .../docs/general/validating-the-hmac
        https://debitsuccess.atlassian.net/wiki/pages/viewpage.action?pageId=2367685305

Display only. A proven return can be loaded again by anybody who has its address, and an unproven one can be written by
anybody, so that of the latter only words and numbers that we know are used.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from receiver import cards
from receiver.errors import Quarantined, Reason, Refused
from receiver.money import minor_from_text
from receiver.notification import BrowserReturn, ReturnOutcome, new_id, now_us
from receiver.providers.base import ReturnEndpoint
from receiver.providers.debitsuccess import DebitsuccessEndpoint
from receiver.providers.quickstream import MAX_KEY, QuickStreamEndpoint, payment_id_of
from receiver.reading import Fields, form
from receiver.signing import digest, require_return_hmac

MAX_QUERY = 8 << 10
"""Bytes. A return has some twenty parameters of at most 100 characters each."""

# The vendor's advice is to decide on summaryCode: 2 is "Error" for cards and "Processing" for bank accounts, so that
# the outcome is unknown.
_OUTCOMES = {
    "0": ReturnOutcome.APPROVED,
    "1": ReturnOutcome.DECLINED,
    "2": ReturnOutcome.PENDING,
    "3": ReturnOutcome.FAILED,
}
CONFIRMATIONS = ("acceptSurcharge", "ignoreDuplicate")
ERROR_FIELDS = frozenset(
    {
        *CONFIRMATIONS,
        *("cardholderName", "creditCardNumber", "expiryDateMonth", "expiryDateYear", "cvn"),
        *("bsb", "accountNumber", "accountName", "acceptDDR"),
    }
)
# Of these, a return without hmac has none: no payment was attempted.
_OF_A_PAYMENT = ("receiptNumber", "summaryCode", "responseCode")
_CONTEXT_ID = re.compile(r"[A-Za-z0-9._~+/=-]{1,200}", re.ASCII)

# Letter case is not confirmed for the sender's other product either.
REPORTED = {
    word.lower(): word for word in ("Success", "Declined", "Error", "Failure", "ContractPrefixInvalid", "TokenExpired")
}
_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,100}", re.ASCII)
_MAX_TEXT = 255


def read(query: bytes, endpoint: ReturnEndpoint) -> BrowserReturn | None:
    """What the query of a return to `endpoint` says; None where it could only be believed and must not be: a
    QuickStream endpoint without `hmac_passwords`.

    Raises `Refused`: `query_too_long`, `request_malformed`, `signature_missing` or `signature_refused`.
    """
    if len(query) > MAX_QUERY:
        raise Refused(Reason.QUERY_TOO_LONG, f"The query may have at most {MAX_QUERY} bytes.")
    try:
        fields = form(query)
        if isinstance(endpoint, QuickStreamEndpoint):
            return _quickstream(fields, endpoint) if endpoint.hmac_passwords else None
        assert isinstance(endpoint, DebitsuccessEndpoint)
        return _debitsuccess(fields, endpoint)
    except Quarantined as doubt:
        detail = doubt.detail.replace("the form", "The query")
        raise Refused(Reason.REQUEST_MALFORMED, f"{detail}.") from None


def _quickstream(fields: Fields, endpoint: QuickStreamEndpoint) -> BrowserReturn:
    # Of one name the values are in their order, and the sort by name is stable: that is all the proof needs.
    pairs = [(name, value) for name, values in fields.values.items() for value in values]
    failed = fields.get("action") == "Error"
    unproven = failed and "hmac" not in fields.values and not any(map(fields.get, _OF_A_PAYMENT))
    if not unproven:
        require_return_hmac(pairs, endpoint.hmac_passwords)
    if fields.get("supplierBusinessCode") not in endpoint.supplier_business_codes:
        # Several businesses of a community share the password.
        raise Refused(Reason.REQUEST_MALFORMED, "supplierBusinessCode is not one of this endpoint's.")
    receipt = fields.get("receiptNumber")
    if len(receipt) > MAX_KEY:
        raise Refused(Reason.REQUEST_MALFORMED, "receiptNumber is too long.")
    errors = tuple(dict.fromkeys(name for name in fields.values.get("errorField", ()) if name in ERROR_FIELDS))
    context_id = fields.get("actionContextId")
    return BrowserReturn(
        **_begun(endpoint, pairs),
        verified=not unproven,
        outcome=_failure(errors) if failed else _OUTCOMES.get(fields.get("summaryCode"), ReturnOutcome.PENDING),
        payment_id=payment_id_of(fields) if receipt else None,
        receipt_number=receipt or None,
        reference=_text(fields, "paymentReference"),
        customer_reference=_text(fields, "customerReferenceNumber"),
        amount=_amount(fields, "paymentAmount"),
        surcharge=_amount(fields, "surchargeAmount"),
        currency=endpoint.currency,
        response_code=None if unproven else fields.get("responseCode")[:16] or None,
        summary_code=None if unproven else fields.get("summaryCode")[:16] or None,
        error_fields=errors if failed else (),
        action_context_id=context_id if failed and _CONTEXT_ID.fullmatch(context_id) else None,
    )


def _debitsuccess(fields: Fields, endpoint: DebitsuccessEndpoint) -> BrowserReturn:
    token = fields.get("Token")
    if not _TOKEN.fullmatch(token):
        raise Refused(Reason.REQUEST_MALFORMED, "Token is missing or is none.")
    reported = REPORTED.get(fields.get("Status").lower())
    return BrowserReturn(
        **_begun(endpoint, [("Token", token), ("Status", reported or "")]),
        verified=False,
        outcome=ReturnOutcome.UNCONFIRMED,
        payment_id=token,
        reported=reported,
    )


def _begun(endpoint: ReturnEndpoint, pairs: list[tuple[str, str]]) -> dict[str, Any]:
    now = now_us()
    return {
        "id": new_id(now),
        "provider": endpoint.provider,
        "facility": endpoint.facility,
        "returned_at": now,
        "digest": digest(*(part.encode() for pair in sorted(pairs) for part in pair)),
    }


def _failure(errors: tuple[str, ...]) -> ReturnOutcome:
    return ReturnOutcome.CONFIRM if errors and set(errors) <= set(CONFIRMATIONS) else ReturnOutcome.ERROR


def without_cards(said: BrowserReturn, endpoint: ReturnEndpoint) -> tuple[BrowserReturn, int]:
    """What may be shown and kept of a return, and how many of its texts had a card number."""
    texts = {"reference": "paymentReference", "customer_reference": "customerReferenceNumber"}
    changes = {
        name: masked
        for name, field in texts.items()
        if field not in endpoint.own_numbers
        and (text := getattr(said, name))
        and (masked := cards.masked_text(text)) != text
    }
    if changes and not said.verified:
        # Without the hmac among its parts, the digest could be tried out for what was masked.
        changes["digest"] = digest(said.id.encode())
    return msgspec.structs.replace(said, **changes), len(changes.keys() & texts.keys())


def _text(fields: Fields, name: str) -> str | None:
    return fields.get(name)[:_MAX_TEXT] or None


def _amount(fields: Fields, name: str) -> int | None:
    try:
        amount = minor_from_text(fields.get(name), 2, name)
    except Quarantined as doubt:
        if doubt.reason is Reason.CONTRADICTORY_FIELDS:
            raise
        return None
    return amount if amount >= 0 else None
