"""A simulated Debitsuccess: casual payments, and suspension events where the endpoint has an event token."""

from __future__ import annotations

import json
import string
from random import Random
from urllib.parse import quote, urlencode

from receiver.providers.debitsuccess import DebitsuccessEndpoint
from workers.simulator.base import Outgoing, RetryRule, Sender

# Mostly paid; an expired token has neither message nor code.
OUTCOMES = (
    *[{"Status": "Success", "Message": "", "ResponseCode": "00"}] * 7,
    {"Status": "Declined", "Message": "DO NOT HONOUR", "ResponseCode": "05"},
    {"Status": "Declined", "Message": "INSUFFICIENT FUNDS", "ResponseCode": "51"},
    {"Status": "TokenExpired", "Message": ""},
)
EVENTS = ("Customer.Schedule.Suspension.Added", "Customer.Schedule.Suspension.Updated")
_ALPHABET = string.ascii_letters + string.digits


def payment(endpoint: DebitsuccessEndpoint, random: Random, serial: int, format: str | None = None) -> list[Outgoing]:
    """One casual payment, and now and then an event behind it. `format` does not apply: both products send JSON."""
    sent = [_casual(endpoint, random, serial)]
    if endpoint.event_tokens and random.random() < 0.1:
        sent.append(_event(endpoint, random, serial))
    return sent


def _casual(endpoint: DebitsuccessEndpoint, random: Random, serial: int) -> Outgoing:
    # 16 characters as in the vendor's table; unique by the serial within a run, by the letters between runs.
    token, webhook_token = f"{_letters(random, 10)}{serial:06d}", _letters(random, 16)
    outcome = random.choice(OUTCOMES)
    body = {"WebhookToken": webhook_token, "PaymentFormToken": token, **outcome}
    return Outgoing(
        path=f"/notify/{endpoint.path}",
        headers={"Content-Type": "application/json"},
        body=json.dumps(body).encode(),
        expect={
            "token": token,
            "webhook_token": webhook_token,
            "reference": f"MEMBER-{_letters(random, 6)}-{serial}",
            "amount": f"{random.randint(5, 250)}.{random.choice(('00', '50', '95'))}",
            "currency": "NZD",
        },
        back=f"/return/{endpoint.path}?"
        + urlencode({"Status": outcome["Status"], "Token": token, "Message": outcome["Message"]}, quote_via=quote),
    )


def _event(endpoint: DebitsuccessEndpoint, random: Random, serial: int) -> Outgoing:
    month = random.randint(1, 11)
    body = {
        "FacilityNo": "SIM1",
        "ScheduleId": str(400_000 + serial),
        "AccountId": f"SIM1{serial:06d}",
        "SuspensionFee": "5.00",
        "StartDate": f"2026-{month:02d}-01",
        "EndDate": f"2026-{month + 1:02d}-01",
        "Frequency": "Weekly",
        "ScheduleDescription": "Weekly membership",
    }
    return Outgoing(
        path=f"/notify/{endpoint.path}",
        headers={
            "Content-Type": "application/json",
            "X-EventName": random.choice(EVENTS),
            "X-Token": endpoint.event_tokens[-1].reveal().decode("latin-1"),
            "X-TraceId": f"{random.getrandbits(64):016x}-{serial}",
        },
        body=json.dumps(body).encode(),
    )


def _letters(random: Random, count: int) -> str:
    return "".join(random.choices(_ALPHABET, k=count))


SENDER = Sender(
    name="debitsuccess",
    # A casual payment is posted once. Events would be sent three times more, every 180 s, but one rule serves the
    # sender, and a casual payment that came twice would hide what a loss is.
    retry=RetryRule(delays=(), successes=frozenset({200}), timeout=10.0),
    payment=payment,
)
