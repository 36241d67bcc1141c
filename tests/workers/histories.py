"""Whole histories of payments, as their senders would post them, each with the payment that it must give.

The right payment is not taken from the fold: it is written down while the history is told in its order, step by step,
by the rules of the provider pages.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any
from urllib.parse import urlencode

from receiver.notification import Expectation, PaymentEvent
from receiver.providers import PROVIDERS
from receiver.providers.base import Endpoint, Message
from tests.support import DEBITSUCCESS, PAYMENTZ, QUICKSTREAM
from tests.workers.material import ENDPOINTS

BEGIN = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
FORM, JSON, XML = "application/x-www-form-urlencoded", "application/json", "application/xml"


@dataclass
class History:
    """The notifications of one payment in the order in which they happened."""

    provider: str
    messages: list[Message] = field(default_factory=list)
    state: str | None = None
    """None where nothing was ever said of a payment."""
    amount: int | None = None
    refunded: int = 0
    expectation: Expectation | None = None

    def events(self) -> list[PaymentEvent]:
        """What the provider reads in them."""
        return [PROVIDERS[self.provider].interpret(message, endpoint_of(self.provider)) for message in self.messages]


def endpoint_of(provider: str) -> Endpoint:
    return next(endpoint for (name, _), endpoint in ENDPOINTS.items() if name == provider)


# -- Checkout.com


class CheckoutPayment:
    """A payment as Checkout.com keeps it: its balances, and one event for everything that happens to it."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.history = History("checkout")
        # The previous platform states no balances.
        self.balances = random.random() < 0.6
        self.id = f"pay_{random.getrandbits(60):026x}"
        self.asked = random.randrange(20, 500) * 10
        self.authorised = self.captured = self.refunded = self.voided = 0
        self.serial = 0
        self.now = BEGIN

    def post(self, event_type: str, amount: int | None = None, **data: Any) -> None:
        self.serial += 1
        self.now += timedelta(minutes=self.random.randrange(1, 90))
        dispute = event_type.startswith("dispute_") or event_type == "request_for_information_received"
        body: dict[str, Any] = {"currency": "EUR", "reference": "ORDER-1"}
        if not dispute:
            body |= {
                "id": self.id,
                "action_id": f"act_{self.serial}",
                "amount": self.asked if amount is None else amount,
            }
            body["processed_on"] = self.stamp(0)
        if self.balances and event_type in _WITH_BALANCES:
            body["balances"] = {
                "total_authorized": self.authorised,
                "total_captured": self.captured,
                "total_refunded": self.refunded,
                "total_voided": self.voided,
            }
        event = {
            "id": f"evt_{self.id}_{self.serial}",
            "type": event_type,
            "created_on": self.stamp(1),
            "data": body | data,
        }
        self.history.messages.append(Message(JSON, {}, json.dumps(event).encode()))

    def stamp(self, seconds: int) -> str:
        """With as many fractional digits as it happens to be: none, or up to seven."""
        moment = self.now + timedelta(seconds=seconds)
        digits = self.random.choice(("", ".5", ".034", ".169651", ".7132933"))
        return f"{moment:%Y-%m-%dT%H:%M:%S}{digits}{self.random.choice(('Z', '+00:00'))}"

    def say(self, chance: float, event_type: str, **data: Any) -> None:
        """Something that changes nothing, now and then."""
        if self.random.random() < chance:
            self.post(event_type, **data)

    def approve(self) -> None:
        self.authorised = self.asked
        self.post("payment_approved", response_code="10000")
        self.history.state, self.history.amount = "authorised", self.asked
        # Without balances an increment states the sum of nothing.
        if self.balances and self.random.random() < 0.2:
            more = self.random.randrange(1, 20) * 10
            self.authorised += more
            self.post("payment_authorization_incremented", more)
            self.history.amount = self.authorised

    def capture(self) -> None:
        for _ in range(self.random.randrange(1, 4)):
            part = min(self.authorised - self.captured, self.random.randrange(1, self.authorised + 1))
            if part > 0:
                self.captured += part
                self.post("payment_captured", part, response_code="10000")
                self.say(0.1, "payment_capture_declined", amount=1)
        self.history.state, self.history.amount = "captured", self.captured
        if self.balances and self.captured < self.authorised and self.random.random() < 0.3:
            self.voided = self.authorised - self.captured
            self.post("payment_voided", self.voided)
        # Late ones of the kind that never undo a capture.
        for late in ("payment_declined", "payment_expired", "payment_canceled", "payment_pending"):
            self.say(0.1, late)

    def refund(self) -> None:
        for _ in range(self.random.randrange(1, 4)):
            part = min(self.captured - self.refunded, self.random.randrange(1, self.captured + 1))
            if part > 0:
                self.say(0.2, "payment_refund_pending", amount=part)
                self.refunded += part
                # Code 10000 stands in refunds as well.
                self.post("payment_refunded", part, response_code="10000")
        self.say(0.2, "payment_refund_declined", amount=1)
        self.history.refunded = self.refunded
        self.history.state = "refunded" if self.refunded >= self.captured else "partially_refunded"

    def dispute(self, number: int) -> None:
        dispute: dict[str, Any] = {"id": f"dsp_{self.id}_{number}", "payment_id": self.id, "amount": self.captured}
        if self.random.random() < 0.3:
            self.post("request_for_information_received", **dispute)
        for step in ("dispute_received", "dispute_evidence_required", "dispute_evidence_submitted"):
            self.post(step, **dispute)
            if self.random.random() < 0.2:
                break
        end = self.random.choice((None, *_WON, *_LOST, "dispute_resolved"))
        if end == "dispute_resolved":
            reason = self.random.choice(("already_refunded", "rapid_dispute_resolution"))
            self.post(end, **dispute, resolved_reason=reason)
            # Rapid: the scheme has paid the customer back, so that the money is gone.
            over = reason == "already_refunded"
        else:
            if end is not None:
                self.post(end, **dispute)
            over = end in _WON
        if not over:
            self.history.state = "disputed"


_WON = ("dispute_won", "dispute_canceled", "dispute_arbitration_won")
_LOST = ("dispute_lost", "dispute_accepted", "dispute_expired", "dispute_arbitration_lost")
_WITH_BALANCES = (
    *("payment_approved", "payment_authorization_incremented", "payment_captured", "payment_capture_declined"),
    *("payment_voided", "payment_refunded", "payment_refund_declined"),
)


def checkout(random: Random) -> History:
    payment = CheckoutPayment(random)
    history = payment.history
    if random.random() < 0.4:
        payment.post("payment_pending")
        history.state, history.amount = "pending", payment.asked
    course = random.choice(("never", "octopus", "authorised", "captured", "captured", "captured", "captured"))
    if course == "never":
        end, history.state = random.choice(_NEVER)
        payment.post(end, response_code="20051")
        history.amount = payment.asked
        return history
    if course == "octopus":
        # Nothing is ever authorised.
        payment.authorised = payment.asked
        payment.post("payment_capture_pending")
        if random.random() < 0.3:
            payment.post("payment_capture_declined")
            history.state, history.amount = "failed", payment.asked
            return history
        payment.captured = payment.asked
        payment.post("payment_captured")
        history.state, history.amount = "captured", payment.asked
    else:
        payment.say(0.2, "authentication_approved", payment_id=payment.id)
        payment.approve()
    if course == "authorised":
        _end_of_an_authorisation(payment)
        return history
    if course == "captured":
        payment.capture()
    if random.random() < 0.4:
        payment.refund()
    before = history.state
    for number in range(random.choice((0, 0, 1, 2))):
        payment.dispute(number)
    if random.random() < 0.1 and before == "captured":
        payment.post("payment_returned", response_code="10000")
        history.state = "failed"
    payment.say(0.2, "fraud_reported", payment={"id": payment.id})
    return history


_NEVER = (
    ("payment_declined", "declined"),
    ("payment_expired", "expired"),
    ("payment_canceled", "cancelled"),
)


def _end_of_an_authorisation(payment: CheckoutPayment) -> None:
    history = payment.history
    end = payment.random.choice((None, "payment_voided", "payment_void_declined", "payment_capture_declined", *_NEVER))
    if end == "payment_voided":
        payment.voided = payment.authorised
        payment.post(end, payment.authorised)
        history.state = "voided"
    elif isinstance(end, tuple):
        payment.post(end[0])
        history.state, history.amount = end[1], payment.authorised if payment.balances else payment.asked
    elif end is not None:
        payment.post(end)


# -- Paymentz


def paymentz(random: Random) -> History:
    """No usable time, no action id, and a short status that says Y also of refunds and chargebacks."""
    history = History("paymentz")
    amount, key = random.randrange(100, 90_000), PAYMENTZ.secure_keys[-1].reveal()
    common = {
        "paymentId": str(random.randrange(10**7, 10**8)),
        "merchantTransactionId": "ORDER-1",
        "amount": f"{amount // 100}.{amount % 100:02}",
        "currency": "EUR",
    }

    def post(status: str, short: str) -> None:
        signed = "|".join((common["paymentId"], common["merchantTransactionId"], common["amount"], short))
        checksum = hashlib.md5(signed.encode() + b"|" + key, usedforsecurity=False).hexdigest()
        body = {**common, "status": status, "transactionStatus": short, "checksum": checksum}
        as_form = random.random() < 0.3
        sent = urlencode(body).encode() if as_form else json.dumps(body).encode()
        history.messages.append(Message(FORM if as_form else JSON, {}, sent))

    if random.random() < 0.1:
        post(random.choice(("payoutstarted", "cancelstarted", "markedforreversal")), "P")
        return history
    for status, short in (("begun", "P"), random.choice((("authstarted", "P"), ("3D Authstarted", "3D")))):
        if random.random() < 0.7:
            post(status, short)
            history.state = "pending"
    course = random.choice(("declined", "cancelled", "authorised", "failed", "paid", "paid", "paid", "paid"))
    history.amount = amount
    if course == "declined":
        post("authfailed", "N")
        history.state = "declined"
        return history
    if course != "paid" or random.random() < 0.5:
        post("authsuccessful", "Y")
        history.state = "authorised"
    if course == "cancelled":
        post("cancelstarted", "P")
        post(random.choice(("authcancelled", "cancelled")), "C")
        history.state = "cancelled"
    elif course == "failed":
        post("capturestarted", "P")
        post("capturefailed", "N")
        history.state = "failed"
    elif course == "paid":
        # Of the two one may be missing; both are one movement of money.
        for status in random.sample(("capturesuccess", "settled"), random.randrange(1, 3)):
            post(status, "Y")
        history.state = "captured"
        if random.random() < 0.4:
            post("markedforreversal", "P")
            post("reversed", random.choice(("Y", "N", "P", "C")))
            history.state, history.refunded = "refunded", amount
        if random.random() < 0.3:
            post("chargeback", random.choice(("Y", "N", "P", "C")))
            history.state = "disputed"
    return history


# -- QuickStream: one receipt, one notification


def quickstream(random: Random) -> History:
    by_card = random.random() < 0.6
    code, summary, state = random.choice(_OUTCOMES_BY_CARD if by_card else _OUTCOMES_BY_ACCOUNT)
    amount, surcharge = random.randrange(500, 90_000), random.randrange(0, 500)
    fields = {
        "sourceCode": "Net",
        "receiptNumber": str(random.randrange(10**9, 10**10)),
        "communityCode": "ACMECOMM",
        "supplierBusinessCode": QUICKSTREAM.supplier_business_codes[0],
        "paymentReference": "ORDER-1",
        "customerReferenceNumber": "",
        "paymentAmount": f"{amount // 100}.{amount % 100:02}",
        "surchargeAmount": f"{surcharge // 100}.{surcharge % 100:02}",
        "settlementDate": "20250306",
        "createdDateTime": random.choice(("06 Mar 2025 14:22:09", "06 Apr 2025 02:30:00", "05 Oct 2025 02:30:00")),
        "responseCode": code,
        "summaryCode": summary,
        "successFlag": "true" if summary == "0" else "false",
    }
    if by_card:
        fields["cardScheme"] = "VISA"
    as_xml = "".join(f"<{name}>{value}</{name}>" for name, value in fields.items())
    sent = (
        Message(FORM, {}, urlencode(fields).encode()),
        Message(XML, {}, f"<PaymentResponse>{as_xml}</PaymentResponse>".encode()),
    )
    return History("quickstream", [random.choice(sent)], state, amount)


_OUTCOMES_BY_CARD = (
    *(("00", "0", "captured"), ("08", "0", "captured"), ("51", "1", "declined"), ("QI", "2", "pending")),
    *(("Q3", "3", "failed"), ("QZ", "0", "captured")),
)
_OUTCOMES_BY_ACCOUNT = (
    *(("G", "0", "captured"), ("New", "2", "pending"), ("6", "1", "declined"), ("R", "3", "failed")),
)


# -- Debitsuccess: one token, one post, and what the merchant registered


def debitsuccess(random: Random) -> History:
    word, state = random.choice(_WORDS)
    token, secret = f"T{random.getrandbits(30):08x}", f"W{random.getrandbits(30):08x}"
    amount = random.randrange(100, 100_000)
    expectation = Expectation(
        provider="debitsuccess",
        facility=DEBITSUCCESS.facility,
        token=token,
        webhook_token=secret,
        reference="MEMBER-1",
        amount=amount,
        currency="NZD",
        exponent=2,
        registered_at=1,
    )
    names = ("WebhookToken", "PaymentFormToken", "Status", "Message", "ResponseCode")
    spell: Callable[[str], str] = random.choice((str, lambda name: name[0].lower() + name[1:]))
    values = (secret, token, random.choice((word, word.upper(), word.lower())), "", "00")
    body = dict(zip(map(spell, names), values, strict=True))
    sent = Message(JSON, {}, json.dumps(body).encode())
    return History("debitsuccess", [sent], state, amount, expectation=expectation)


_WORDS = (
    *(("Success", "captured"), ("Cleared", "captured"), ("Settled", "captured"), ("Declined", "declined")),
    *(("declined_insufficient_funds", "declined"), ("Error", "failed"), ("Failure", "failed")),
    *(("TokenExpired", "expired"), ("ContractPrefixInvalid", "failed"), ("authorised", "authorised")),
    *(("authorized", "authorised"), ("Pending", "pending"), ("Processing", "pending"), ("Requires3ds", "pending")),
)

HISTORIES: dict[str, Callable[[Random], History]] = {
    "quickstream": quickstream,
    "checkout": checkout,
    "debitsuccess": debitsuccess,
    "paymentz": paymentz,
}
