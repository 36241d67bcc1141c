"""A simulated Paymentz gateway: intermediate callbacks, then the final one, each with its checksum."""

from __future__ import annotations

import hashlib
import json
from random import Random

from receiver.providers.paymentz import PaymentzEndpoint
from workers.simulator.base import Outgoing, RetryRule, Sender

# (long status, short status) in their order, and the result of the last.
PAID = (("begun", "P"), ("authstarted", "P"), ("capturesuccess", "Y"))
PAID_3D = (("begun", "P"), ("3D Authstarted", "3D"), ("capturesuccess", "Y"))
FAILED = (("begun", "P"), ("authstarted", "P"), ("authfailed", "N"))
COURSES = (*[PAID] * 6, PAID_3D, PAID_3D, FAILED, FAILED)
RESULTS = {
    "Y": {"code": "00001", "description": "Transaction succeeded"},
    "N": {"code": "10001", "description": "Transaction failed"},
}
PENDING = {"code": "00001", "description": "Transaction pending"}
CURRENCIES = ("EUR", "USD", "GBP", "JPY")


def payment(endpoint: PaymentzEndpoint, random: Random, serial: int, format: str | None = None) -> list[Outgoing]:
    """The callbacks of one invented payment. `format` does not apply."""
    common = {
        "paymentId": f"{random.randint(10**7, 10**8 - 1)}{serial:06d}",
        "paymentBrand": random.choice(("VISA", "MC")),
        "paymentMode": "CC",
        "firstName": random.choice(("José", "Anna", "Søren")),
        "lastName": "Sample",
        # Two decimals in every currency, as in the recorded samples.
        "amount": f"{random.randint(1, 500)}.{random.choice(('00', '50', '99'))}",
        "currency": random.choice(CURRENCIES),
        "merchantTransactionId": f"SIM-{random.getrandbits(32):08x}x{serial}",
    }
    minute = random.randint(0, 58)
    return [
        _callback(endpoint, common, status, short, f"2026-11-22 10:{minute:02d}:{10 * step:02d}")
        for step, (status, short) in enumerate(random.choice(COURSES))
    ]


def _callback(endpoint: PaymentzEndpoint, common: dict[str, str], status: str, short: str, timestamp: str) -> Outgoing:
    signed = "|".join((common["paymentId"], common["merchantTransactionId"], common["amount"], short))
    key = endpoint.secure_keys[-1].reveal()
    body = {
        **common,
        "status": status,
        "transactionStatus": short,
        "checksum": hashlib.md5(signed.encode() + b"|" + key, usedforsecurity=False).hexdigest(),
        "result": RESULTS.get(short, PENDING),
        "timestamp": timestamp,
    }
    return Outgoing(
        path=f"/notify/{endpoint.path}",
        headers={"Content-Type": "application/json"},
        body=json.dumps(body, ensure_ascii=False).encode(),
    )


SENDER = Sender(
    name="paymentz",
    # No document promises a second attempt.
    retry=RetryRule(delays=(), successes=frozenset({200}), timeout=10.0),
    payment=payment,
)
