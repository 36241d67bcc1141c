"""Where fuzzing begins: the fixtures, and what the readers beside the providers are sent."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec

from receiver.notification import ENVELOPE_VERSION, Envelope
from receiver.providers import PROVIDERS
from receiver.providers.quickstream_settlement import HEADINGS
from receiver.signing import return_digest
from tests.support import FIXTURES, secrets
from workers.ledger.pages import NotificationPlace, PaymentPlace, cursor_of

FINDINGS = Path(__file__).parent / "findings"
"""What fuzzing once found, by target: run for ever by the tests, and where each new run begins."""

_EXPECTATIONS = (
    {"reference": "ORDER-1", "amount": "12.50", "currency": "AUD", "merchant": "ACME"},
    {
        "token": "FormTok1",
        "webhook_token": "HookTok1",
        "reference": "MEMBER-1001",
        "amount": "12.50",
        "currency": "NZD",
        "valid_to": "2026-11-22TT10:00:00.000+13:00",
    },
    {"reference": "R", "amount": "100", "currency": "JPY", "valid_to": "2026-11-22T10:00:00Z"},
)
_RETURNS = (
    "action=Payment&receiptNumber=7004100001&communityCode=ACMECOMM&supplierBusinessCode=ACME&paymentAmount=624.00"
    "&surchargeAmount=24.00&summaryCode=0&responseCode=00&paymentReference=INV-1&customerReferenceNumber=M%2F1+%C3%AB",
    "action=Error&supplierBusinessCode=ACME&errorField=acceptSurcharge&errorField=creditCardNumber&actionContextId=x.y",
    "Token=FormTok1&Status=Success",
)
_FORWARDED = (
    b"203.0.113.7",
    b"198.51.100.1, 203.0.113.7:4711, 10.0.0.2",
    b"[2001:db8::7]:443,::ffff:203.0.113.7\n10.0.0.3",
    b"unknown, fe80::1%eth0",
    b'For="[2001:db8::7]:443";proto=https;by=_x, for=203.0.113.7\nfor="::ffff:10.0.0.3"',
)
_ON_A_CONNECTION = (
    b"POST /a/b?c=1 HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nx=1GET /livez HTTP/1.1\r\nHost: h\r\n\r\n",
    b"POST http://u@[::1]:1/a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nx=1\r\n0\r\nX-One: a\r\n\r\n",
    b"POST /a HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: A\r\nContent-Length: "
    b"1\r\n\r\nxGET / HTTP/1.1\r\nConnection: close\r\n\r\nGET / HTTP/1.1\r\n\r\n",
    b"HEAD / HTTP/1.0\r\nConnection: keep-alive\r\n\r\nOPTIONS * HTTP/1.1\r\nExpect: 100-continue\r\n\r\n",
    b"GET / HTTP/1.1\r\n\r\n" * 80,
    b"CONNECT h:1 HTTP/1.1\r\nX-One: a\r\n b\r\n\r\n",
    b"PROXY TCP4 203.0.113.7 127.0.0.1 4711 8080\r\nGET / HTTP/1.1\r\n\r\n",
)
_CARDS = (
    b"customRef=4111111111111111&x=1",
    b"a=4111%201111%201111%201111&b=5500-0000-0000-0004",
    b'{"a":"4111\\u00201111\\u002d1111 1111","b":378282246310005,"c":1.4111111111111111,"d":"\\u0034111111111111111"}',
    b"<a>4111&#32;1111&#x20;1111-1111</a>",
    b"4111-1111\xc2\xa01111 1111 6011000990139424 30569309025904",
)
_UPLOAD = (
    b'--x\r\nContent-Disposition: form-data; name="token"\r\n\r\nabc\r\n'
    b'--x\r\nContent-Disposition: form-data; name="file"; filename="c:\\caf.csv"\r\nContent-Type: text/csv\r\n'
    b"Content-Transfer-Encoding: base64\r\n\r\na,b\r\n1,2\r\n--x--\r\n"
)
_QUERIES = (
    b'state=failed&limit=10&search=ORDER\n{"state":"failed","reason":"currency set right","dry_run":true}',
    b'since=2026-11-24T10%3A00%3A00Z&until=2026-11-25T00:00:00%2B11:00\n{"ids":["a","b"],"reason":"x"}',
    b'kind=failed&settled=true\n{"kind":"failed","subjects":[{"subject":"a","provider":"checkout"}],"reason":"x"}',
    b"operator=jane&subject=S&cursor=AAAA\n",
)


def seeds(target: str) -> list[bytes]:
    """Whole requests for providers, bodies for readers. What was found before is among them."""
    found = sorted((FINDINGS / target).glob("*")) if (FINDINGS / target).is_dir() else []
    return [*_made(target), *(file.read_bytes() for file in found)]


def _made(target: str) -> list[bytes]:
    provider = target.partition("_")[2]
    if provider in PROVIDERS:
        return _requests(provider)
    return {
        "form": [body for body in _bodies() if b"=" in body[:40]],
        "xml": [body for body in _bodies() if body.lstrip()[:1] == b"<"],
        "json_object": [body for body in _bodies() if body[:1] == b"{"],
        "json_pairs": [body for body in _bodies() if body[:1] == b"{"],
        "settlement_file": _settlement_files(),
        "envelope": [msgspec.msgpack.encode((ENVELOPE_VERSION, _envelopes())), msgspec.msgpack.encode((2, []))],
        "expectation": [json.dumps(given).encode() for given in _EXPECTATIONS],
        "connection": [
            *_ON_A_CONNECTION,
            *(request for provider in PROVIDERS for request in _requests(provider)[::20]),
        ],
        "forwarded_for": list(_FORWARDED),
        "card_numbers": [*_CARDS, *_bodies()[::20]],
        "return_query": _returns(),
        "console_form": [b"token=abc&reason=currency+set+right&id=1&id=2", b"name=ops&password=p%C3%A4ss%26"],
        "console_upload": [_UPLOAD, _UPLOAD.replace(b"\r\n", b"\n")],
        "api_request": list(_QUERIES),
        "cursor": [
            cursor_of(NotificationPlace("0193d0c0-0000-7000-8000-000000000000")).encode(),
            cursor_of(PaymentPlace(1_764_000_000_000_000, "checkout", "main", "pay_1")).encode(),
        ],
    }[target]


def _requests(provider: str) -> list[bytes]:
    return [file.read_bytes() for file in sorted((FIXTURES / provider).glob("*.http"))]


def _bodies() -> list[bytes]:
    return [request.partition(b"\r\n\r\n")[2] for provider in PROVIDERS for request in _requests(provider)]


def _envelopes() -> list[Envelope]:
    return [
        Envelope(
            id="0193d0c0-0000-7000-8000-000000000000",
            provider="quickstream",
            facility="acme",
            received_at=1_764_000_000_000_000,
            source="203.0.113.7",
            content_type="application/xml",
            headers={"x-traceid": "1"},
            body=body,
            verified=True,
            dedupe_key="1",
            event_type="payment",
            fingerprint="f",
            quarantine="",
            detail="",
        )
        for body in (b"a=1", b"<a/>")
    ]


def _settlement_files() -> list[bytes]:
    row = ["07-Mar-2025", "7004100001", "ACME", "INV-58213", "MEMBER-2041", "624.00", "24.00", "00", "Approved", "0"]
    card = [*row, "VISA", "Jo Sample", "456471xxxxxxx004", "", "", "07-Mar-2025 14:22", "QuickWeb"]
    refund = [*card[:1], "8004100001", *card[2:5], "-624.00", "-24.00", *card[7:]]
    lines = [list(HEADINGS), card[: len(HEADINGS)], refund[: len(HEADINGS)], ['say "so"', "two\nlines"]]
    padded = [[*line, *[""] * (len(HEADINGS) - len(line))] for line in lines]
    quoted = "\r\n".join(",".join('"' + value.replace('"', '""') + '"' for value in line) for line in padded)
    plain = "\n".join(",".join(line) for line in padded[:3])
    return [quoted.encode(), b"\xef\xbb\xbf" + plain.encode()]


def _returns() -> list[bytes]:
    pairs = [("receiptNumber", "7004100001"), ("summaryCode", "0"), ("supplierBusinessCode", "ACME")]
    signature = return_digest(pairs, secrets("token-password")[0])
    signed = "&".join(f"{name}={value}" for name, value in pairs) + f"&hmac={signature}"
    return [query.encode() for query in (*_RETURNS, signed)]
