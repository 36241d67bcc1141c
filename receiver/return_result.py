"""The result that a customer's browser carries on to the merchant: signed, short-lived, for display only.

README shows how the merchant verifies it. It names its endpoint, so that a result of one facility is none of another.
"""

from __future__ import annotations

import hashlib
from typing import Any

from itsdangerous import URLSafeTimedSerializer
from itsdangerous.encoding import base64_encode, want_bytes

from receiver.money import text_from_minor
from receiver.notification import BrowserReturn
from receiver.providers.base import ReturnEndpoint
from receiver.returned import CONFIRMATIONS

SALT = "postback.result"
PARAMETER = "result"


class _Results(URLSafeTimedSerializer):
    """Never compressed, so that the result can be read in any language: base64url of JSON, of the time, of the HMAC."""

    def dump_payload(self, obj: Any, *args: Any, **kwargs: Any) -> bytes:
        return base64_encode(want_bytes(self.serializer.dumps(obj, **self.serializer_kwargs)))


def serializer(endpoint: ReturnEndpoint) -> URLSafeTimedSerializer:
    """Signs with the newest of the endpoint's keys and verifies with all of them."""
    return _Results(
        [key.reveal() for key in endpoint.result_keys],
        salt=SALT,
        signer_kwargs={"key_derivation": "hmac", "digest_method": hashlib.sha256},
    )


def result(returned: BrowserReturn) -> dict[str, Any]:
    """The result as a JSON object. Names without a value are left out; free text that nobody proved never goes in."""

    def money(minor: int | None) -> str | None:
        return None if minor is None else text_from_minor(minor, 2)

    proven = returned.verified
    values: dict[str, Any] = {
        "provider": returned.provider,
        "facility": returned.facility,
        "verified": proven,
        "outcome": returned.outcome,
        "payment_id": returned.payment_id,
        "receipt_number": returned.receipt_number,
        "reference": returned.reference,
        "customer_reference": returned.customer_reference if proven else None,
        "amount": money(returned.amount),
        "surcharge": money(returned.surcharge),
        "currency": returned.currency,
        "response_code": returned.response_code,
        "summary_code": returned.summary_code,
        "reported": returned.reported,
        "error_fields": list(returned.error_fields) or None,
        "confirm": [name for name in returned.error_fields if name in CONFIRMATIONS] or None,
        "action_context_id": returned.action_context_id,
    }
    return {name: value for name, value in values.items() if value is not None}


def location(returned: BrowserReturn, endpoint: ReturnEndpoint) -> str:
    """The merchant's own address with the signed result."""
    url = endpoint.return_url or ""
    signed = want_bytes(serializer(endpoint).dumps(result(returned))).decode("ascii")
    return f"{url}{'&' if '?' in url else '?'}{PARAMETER}={signed}"
