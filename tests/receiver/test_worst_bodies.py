"""That no body takes long: whatever stands in 256 KiB, no step calls functions of ours for each two bytes of it.

The accept side reads bodies between two requests, some of them before they are proven. Calls are counted, not time.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import sys
from base64 import b64encode
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from receiver import cards
from receiver.errors import Quarantined, Refused
from receiver.providers import PROVIDERS
from receiver.providers.base import Message
from tests.support import CHECKOUT, DEBITSUCCESS, EXPECTED_CASUAL, PAYMENTZ, QUICKSTREAM

LARGE = 256 << 10
FORM, XML, JSON = "application/x-www-form-urlencoded", "application/xml", "application/json"
ENDPOINTS = {endpoint.provider: endpoint for endpoint in (QUICKSTREAM, CHECKOUT, DEBITSUCCESS, PAYMENTZ)}

PAYMENT = {"supplierBusinessCode": "ACME", "paymentAmount": "1.00", "summaryCode": "0", "receiptNumber": "7000000001"}
AS_FORM = "&".join(f"{name}={value}" for name, value in PAYMENT.items()).encode() + b"&customA="
AS_XML = b"<PaymentResponse>" + b"".join(
    b"<%b>%b</%b>" % (n.encode(), v.encode(), n.encode()) for n, v in PAYMENT.items()
)
EVENT = b'{"id":"evt_1","type":"payment_captured","data":{"id":"pay_1","amount":100,"currency":"AUD","metadata":'
CASUAL = b'{"PaymentFormToken":"FormTok1","WebhookToken":"HookTok1","Status":"Success","x":'
CALLBACK = {
    "paymentId": "1",
    "merchantTransactionId": "2",
    "amount": "1.00",
    "transactionStatus": "Y",
    "currency": "AUD",
}
checksum = hashlib.md5(b"1|2|1.00|Y|pz-new-key", usedforsecurity=False)
CALLBACK |= {"status": "capturesuccess", "checksum": checksum.hexdigest()}
CALLBACK_AS_FORM = "&".join(f"{name}={value}" for name, value in CALLBACK.items()).encode() + b"&x="
CALLBACK_AS_JSON = json.dumps(CALLBACK).encode()[:-1] + b',"x":'


def filled(start: bytes, unit: bytes, end: bytes = b"") -> bytes:
    return start + unit * ((LARGE - len(start) - len(end)) // len(unit)) + end


def listed(start: bytes, unit: bytes, end: bytes) -> bytes:
    return filled(start + b"[" + unit, b"," + unit, b"]" + end)


FORMS = (b"&", b"&a=b", b"+", b"%41", b"%", b"%C3%A9", b"%e9", b"\xe9", b"4+", b"=", b"%34", b"a\xe9")
VALUES = (
    b"{}",
    b"[]",
    b"1",
    b"1.5",
    b'""',
    b"1e99",
    b'{"a":1}',
    b'{"id":4}',
    b'{"a":' * 28 + b"1" + b"}" * 28,
    b'"\\\\u0000"',
)
BODIES = [
    *(("quickstream", FORM, filled(AS_FORM, unit)) for unit in FORMS),
    *(
        ("quickstream", XML, filled(AS_XML + start, unit, end + b"</PaymentResponse>"))
        for start, unit, end in (
            (b"", b"<a/>", b""),
            (b"<a>", b"<b/>", b"</a>"),
            (b"<a>", b"&#65;", b"</a>"),
            (b"<a>", b"a<!---->", b"</a>"),
            (b"<a>", b"<![CDATA[a]]>", b"</a>"),
            (b"", b"<a>", b""),
        )
    ),
    *(("checkout", JSON, listed(EVENT, unit, b"}}")) for unit in VALUES),
    *(("debitsuccess", JSON, listed(CASUAL, unit, b"}")) for unit in VALUES),
    ("debitsuccess", JSON, filled(CASUAL + b'"', b"\xe9", b'"}')),
    *(("paymentz", JSON, listed(CALLBACK_AS_JSON, unit, b"}")) for unit in VALUES),
    *(("paymentz", FORM, filled(CALLBACK_AS_FORM, unit)) for unit in FORMS),
]


@pytest.mark.parametrize(
    ("provider", "content_type", "body"), [pytest.param(*body, id=f"{body[0]}-{n}") for n, body in enumerate(BODIES)]
)
def test_no_body_is_looked_at_piece_by_piece(provider: str, content_type: str, body: bytes) -> None:
    steps = _steps(provider, Message(content_type, proof(provider, body), body))
    while (calls := _calls_of(steps)) is not None:
        assert calls < LARGE // 2


def proof(provider: str, body: bytes) -> dict[str, str]:
    if provider == "quickstream":
        return {"authorization": "Basic " + b64encode("acme:new:pässword".encode()).decode()}
    if provider == "checkout":
        return {"cko-signature": hmac.digest(b"cko-new-key", body, "sha256").hex()}
    return {}


def _steps(name: str, message: Message) -> Iterator[None]:
    provider, endpoint = PROVIDERS[name], ENDPOINTS[name]
    try:
        provider.check_headers(message, endpoint)
        token = provider.token_of(message)
        provider.authenticate(message, endpoint, EXPECTED_CASUAL if token else None)
    except Refused:
        # A proof that stands in the body, and cannot be read. This took its time as well.
        assert not message.headers
        yield
        return
    yield
    message, _ = cards.masked_message(message, provider, endpoint)
    yield
    for step in (provider.identify, provider.interpret):
        with suppress(Quarantined):
            step(message, endpoint)
        yield


def _calls_of(steps: Iterator[None]) -> int | None:
    """How many functions the next one calls; None when there is none."""
    calls, ended = 0, object()

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        done = next(steps, ended)
    finally:
        sys.setprofile(None)
    return None if done is ended else calls
