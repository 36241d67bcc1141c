"""A QuickStream facility: payments as the bank would notify them, as form or XML, with Basic credentials.

The shape is that of https://quickstream.westpac.com.au/docs/general/server-to-server-notification/; every value is
invented.
"""

from __future__ import annotations

from base64 import b64encode
from datetime import datetime
from random import Random
from urllib.parse import urlencode
from xml.sax.saxutils import escape

from receiver.providers.quickstream import MONTHS, SYDNEY, QuickStreamEndpoint
from receiver.signing import return_digest
from workers.reconcile.calendar import settles_on
from workers.simulator.base import Outgoing, RetryRule, Sender

# (responseCode, responseDescription, summaryCode) and how often, in percent.
CARD_OUTCOMES = (
    (("00", "Approved", "0"), 60),
    (("08", "Honour with identification", "0"), 25),
    (("51", "Insufficient funds", "1"), 10),
    (("05", "Do not honour", "1"), 5),
)
BANK_OUTCOME = ("G", "Released", "0")
BANK_SHARE = 0.08
CUSTOM_SHARE = 0.4
SCHEMES = ("VISA", "VISA", "MASTERCARD", "MASTERCARD", "AMEX", "DINERS", "UNIONPAY", "JCB")
TITLES = ("Ms", "Mr", "Dr", "Prof & Mrs", "Señora")

# 12:00, 12:01, 12:11, 12:21, 12:31 in the vendor's example; every facility sets its own. Only 200 is success. The
# sender's own timeout is not documented.
RETRY = RetryRule(delays=(60.0, 600.0, 600.0, 600.0), successes=frozenset({200}), timeout=10.0)

_MONTH_NAMES = {number: name for name, number in MONTHS.items()}


def payment(endpoint: QuickStreamEndpoint, random: Random, serial: int, format: str | None = None) -> list[Outgoing]:
    """The one notification of one payment."""
    fields = _fields(endpoint, random, serial)
    if format == "xml" or (format is None and serial % 2):
        content_type, body = "application/xml", _xml(fields)
    else:
        content_type, body = "application/x-www-form-urlencoded", urlencode(fields).encode()
    headers = {"Authorization": _authorization(endpoint), "Content-Type": content_type}
    return [Outgoing(path=f"/notify/{endpoint.path}", headers=headers, body=body, back=_back(endpoint, fields))]


def _back(endpoint: QuickStreamEndpoint, fields: dict[str, str]) -> str | None:
    """The redirect of the same payment, signed as the payment page signs it."""
    if not endpoint.hmac_passwords:
        return None
    # Without seconds, unlike the notification's.
    seen = fields | {"createdDateTime": fields["createdDateTime"][:-3]}
    pairs = [(name, value) for name, value in seen.items() if name not in ("sourceCode", "successFlag")]
    if "cardScheme" in fields:
        pairs += [("cardholderName", "Zoë O'Neill"), ("maskedCardNumber", "456471xxxxxxx004")]
        pairs += [("expiryDateMonth", "01"), ("expiryDateYear", "2031")]
    else:
        pairs += [("accountName", "Zoë O'Neill"), ("bsb", "xxx-000"), ("accountNumber", "xxxxxx789")]
    pairs.append(("hmac", return_digest(pairs, endpoint.hmac_passwords[-1])))
    return f"/return/{endpoint.path}?{urlencode(pairs)}"


def _fields(endpoint: QuickStreamEndpoint, random: Random, serial: int) -> dict[str, str]:
    now = datetime.now(SYDNEY)
    by_bank = random.random() < BANK_SHARE
    (card_outcome,) = random.choices([outcome for outcome, _ in CARD_OUTCOMES], [weight for _, weight in CARD_OUTCOMES])
    code, description, summary = BANK_OUTCOME if by_bank else card_outcome
    scheme = random.choice(SCHEMES)
    principal = random.randrange(500, 100_000)
    surcharge = 0 if by_bank else round(principal * 0.012)
    fields = {
        "sourceCode": random.choice(("Net", "Net", "Net", "Phone", "Adhoc")),
        # The serial keeps receipts apart within a run, the first digits one run from the next.
        "receiptNumber": f"{random.randrange(1000, 10_000)}{serial % 1_000_000:06}",
        "communityCode": endpoint.community_code or f"{endpoint.facility.upper()}COM",
        "supplierBusinessCode": endpoint.supplier_business_codes[0],
        "customerReferenceNumber": f"MEMBER-{random.randrange(1, 5000):04}",
        "paymentReference": f"INV-{random.randrange(10_000, 100_000)}-{serial}",
        "paymentAmount": _dollars(principal + surcharge),
        "surchargeAmount": _dollars(surcharge),
        "cardScheme": scheme,
        "settlementDate": f"{settles_on(now, by_bank=by_bank):%Y%m%d}",
        # Not %b, which would follow the locale.
        "createdDateTime": f"{now:%d} {_MONTH_NAMES[now.month]} {now:%Y %H:%M:%S}",
        "responseCode": code,
        "responseDescription": description,
        "summaryCode": summary,
        "successFlag": "true" if summary == "0" else "false",
    }
    if by_bank:
        del fields["cardScheme"]
    if random.random() < CUSTOM_SHARE:
        fields["customTitle"] = random.choice(TITLES)
        fields["customBranch"] = str(random.randrange(1, 40))
    return fields


def _dollars(cents: int) -> str:
    return f"{cents // 100}.{cents % 100:02}"


def _xml(fields: dict[str, str]) -> bytes:
    elements = "".join(f"  <{name}>{escape(value)}</{name}>\n" for name, value in fields.items())
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<PaymentResponse>\n{elements}</PaymentResponse>\n'.encode()


def _authorization(endpoint: QuickStreamEndpoint) -> str:
    credentials = endpoint.username.encode() + b":" + endpoint.passwords[-1].reveal()
    return f"Basic {b64encode(credentials).decode()}"


SENDER = Sender(name="quickstream", retry=RETRY, payment=payment)
