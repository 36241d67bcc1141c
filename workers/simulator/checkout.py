"""A Checkout.com account: card payments that are approved and captured, Octopus payments that are captured at once."""

from __future__ import annotations

import hmac
import json
from base64 import b32encode
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

from receiver.providers.checkout import CheckoutEndpoint
from workers.simulator.base import Outgoing, RetryRule, Sender

CARD, OCTOPUS = "card", "octopus"
CARD_PAID = ("payment_approved", "payment_captured")
# No payment_approved: https://www.checkout.com/docs/payments/add-payment-methods/octopus
OCTOPUS_PAID = ("payment_pending", "payment_capture_pending", "payment_captured")

# Method and events of a payment, and how often, in percent.
COURSES = (
    ((CARD, CARD_PAID), 42),
    ((CARD, (*CARD_PAID, "payment_refunded")), 8),
    ((CARD, ("payment_declined",)), 10),
    ((OCTOPUS, OCTOPUS_PAID), 28),
    ((OCTOPUS, (*OCTOPUS_PAID, "payment_refunded")), 4),
    ((OCTOPUS, ("payment_pending", "payment_declined")), 4),
    ((OCTOPUS, ("payment_pending", "payment_expired")), 4),
)
DECLINES = (("20051", "Insufficient Funds"), ("20005", "Declined - Do Not Honour"), ("30004", "Pick up card"))
SCHEMES = ("VISA", "VISA", "MASTERCARD", "AMEX")
CURRENCIES = ("EUR", "USD", "GBP", "JPY", "KWD")


def payment(endpoint: CheckoutEndpoint, random: Random, serial: int, format: str | None = None) -> list[Outgoing]:
    """The events of one invented payment. `format` does not apply: Checkout.com sends JSON."""
    ((method, types),) = random.choices([course for course, _ in COURSES], [weight for _, weight in COURSES])
    facts = {
        "id": _id("pay", random, serial),
        # Whole tens: KWD asks for them, and so does Octopus.
        "amount": random.randrange(100, 30_000) * 10,
        "currency": "HKD" if method == OCTOPUS else random.choice(CURRENCIES),
        "metadata": {"order_id": f"SIM-{random.getrandbits(32):08x}x{serial}"},
    }
    source = {"id": _id("src", random, serial), "type": method}
    if method == CARD:
        # Recorded events of redirect wallets have no reference.
        facts["reference"] = f"SHOP-{random.randrange(10_000, 100_000)}-{serial}"
        source["scheme"] = random.choice(SCHEMES)
    began = datetime.now(UTC) - timedelta(seconds=len(types))
    return [
        _event(
            endpoint, random, serial, {**facts, "source": source}, types[: step + 1], began + timedelta(seconds=step)
        )
        for step in range(len(types))
    ]


def _event(
    endpoint: CheckoutEndpoint, random: Random, serial: int, data: dict[str, Any], types: tuple[str, ...], at: datetime
) -> Outgoing:
    """The last of `types`, signed; the earlier ones show in its balances."""
    name, amount = types[-1], data["amount"]
    data["processed_on"] = _time(at)
    if name != "payment_pending":
        data["action_id"] = _id("act", random, serial)
    if name in ("payment_approved", "payment_captured", "payment_refunded"):
        captured = amount if "payment_captured" in types else 0
        refunded = amount // 20 * 10 if name == "payment_refunded" else 0
        data |= {"amount": refunded or amount, "response_code": "10000", "response_summary": "Approved"}
        data["balances"] = {
            "total_authorized": amount,
            "total_voided": 0,
            "available_to_void": amount - captured,
            "total_captured": captured,
            "available_to_capture": amount - captured,
            "total_refunded": refunded,
            "available_to_refund": captured - refunded,
        }
    elif name == "payment_declined":
        data["response_code"], data["response_summary"] = random.choice(DECLINES)
    event = {
        "id": _id("evt", random, serial),
        "type": name,
        "version": "1.0.33",
        "created_on": _time(at + timedelta(milliseconds=random.randrange(20, 900))),
        "data": data,
    }
    body = json.dumps(event, separators=(",", ":")).encode()
    signature = hmac.digest(endpoint.signature_keys[-1].reveal(), body, "sha256").hex()
    headers = {"Content-Type": "application/json", "Cko-Signature": signature}
    if endpoint.authorization_keys:
        headers["Authorization"] = endpoint.authorization_keys[-1].reveal().decode("latin-1")
    return Outgoing(path=f"/notify/{endpoint.path}", headers=headers, body=body)


def _id(prefix: str, random: Random, serial: int) -> str:
    """Three letters and 26 characters; the serial keeps ids apart within a run, chance one run from the next."""
    return f"{prefix}_{b32encode(serial.to_bytes(5, 'big') + random.randbytes(11)).decode().rstrip('=').lower()}"


def _time(at: datetime) -> str:
    """With seven fractional digits, as most recorded events have."""
    return f"{at:%Y-%m-%dT%H:%M:%S.%f}0Z"


SENDER = Sender(
    name="checkout",
    # After 5, 10, 15 and 30 minutes, 1, 4, 12 and 12 hours; any 2xx within 10 s: https://www.checkout.com/docs/workflows
    retry=RetryRule(
        delays=(300.0, 600.0, 900.0, 1800.0, 3600.0, 14400.0, 43200.0, 43200.0),
        successes=frozenset(range(200, 300)),
        timeout=10.0,
    ),
    payment=payment,
)
