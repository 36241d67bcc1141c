"""What the contract suite needs to know of each sender: how a proven request is made, and where its proof lies.

A provider without a subject here fails the suite: adding one to `PROVIDERS` is what makes it tested.
"""

from __future__ import annotations

import hashlib
import hmac
import itertools
import json
from base64 import b64decode, b64encode
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import msgspec

from receiver.providers.base import Endpoint
from receiver.signing import Secret
from workers.simulator import SENDERS
from workers.simulator.base import Outgoing

_serials = itertools.count(1)


@dataclass(frozen=True)
class Subject:
    """`make` gives a fresh proven request; its argument is the secret's place in the list: 0 the old, -1 the new."""

    name: str
    provider: str
    path: str
    make: Callable[[int], Outgoing]
    proof: Callable[[Outgoing], str]
    with_proof: Callable[[Outgoing, str | None], Outgoing]
    """The same request with another proof; None without any."""
    unknown_type: Callable[[], Outgoing] | None
    """A proven request of a type that no page knows; None where the sender names no types."""
    tamper: Callable[[Outgoing], Outgoing] | None = None
    """A change of the body that the proof covers; None where the proof does not cover the body."""
    missing_status: int = 403
    truncated_refused: bool = False
    """Whether half a body proves nothing any more."""


def header_subject(header: str) -> dict[str, Any]:
    def proof(request: Outgoing) -> str:
        return request.headers[header]

    def with_proof(request: Outgoing, value: str | None) -> Outgoing:
        headers = {name: text for name, text in request.headers.items() if name != header}
        return replace(request, headers=headers if value is None else {**headers, header: value})

    return {"proof": proof, "with_proof": with_proof}


def body_subject(name: str) -> dict[str, Any]:
    def proof(request: Outgoing) -> str:
        return str(json.loads(request.body)[name])

    def with_proof(request: Outgoing, value: str | None) -> Outgoing:
        body = {key: text for key, text in json.loads(request.body).items() if key != name}
        return replace(request, body=json.dumps(body if value is None else {**body, name: value}).encode())

    return {"proof": proof, "with_proof": with_proof}


def simulated(endpoint: Endpoint, field: str, wanted: Callable[[Outgoing], bool]) -> Callable[[int], Outgoing]:
    """Requests of the simulator, signed with one secret of the list."""

    def make(which: int) -> Outgoing:
        signing: Endpoint = msgspec.structs.replace(endpoint, **{field: (getattr(endpoint, field)[which],)})
        while True:
            serial = next(_serials)
            for outgoing in SENDERS[endpoint.provider].payment(signing, Random(f"contract {serial}"), serial, None):
                if wanted(outgoing):
                    return outgoing

    return make


def changed_byte(request: Outgoing, old: bytes, new: bytes) -> Outgoing:
    assert old in request.body
    return replace(request, body=request.body.replace(old, new, 1))


def subjects(endpoints: dict[tuple[str, str], Any]) -> list[Subject]:
    quickstream = endpoints["quickstream", "acme"]
    checkout = endpoints["checkout", "main"]
    debitsuccess = endpoints["debitsuccess", "gym"]
    paymentz = endpoints["paymentz", "eu"]

    def unknown_checkout() -> Outgoing:
        serial = next(_serials)
        event = {"id": f"evt_unknown{serial}", "type": "payment_teleported", "data": {"id": f"pay_{serial}"}}
        body = json.dumps(event).encode()
        key = checkout.signature_keys[-1].reveal()
        signature = hmac.new(key, body, "sha256").hexdigest()
        return Outgoing("/notify/checkout/main", {"Cko-Signature": signature, "Content-Type": "application/json"}, body)

    def unknown_event() -> Outgoing:
        made = events(-1)
        return replace(made, headers={**made.headers, "X-EventName": "Customer.Schedule.Teleported"})

    def unknown_paymentz() -> Outgoing:
        return paymentz_callback(paymentz, status="teleported")

    def tampered_paymentz(request: Outgoing) -> Outgoing:
        body = json.loads(request.body)
        return replace(request, body=json.dumps({**body, "amount": "1" + body["amount"]}).encode())

    events = simulated(debitsuccess, "event_tokens", lambda outgoing: "X-EventName" in outgoing.headers)
    return [
        Subject(
            "quickstream",
            "quickstream",
            "/notify/quickstream/acme",
            simulated(quickstream, "passwords", lambda outgoing: True),
            unknown_type=None,
            missing_status=401,
            **header_subject("Authorization"),
        ),
        Subject(
            "checkout",
            "checkout",
            "/notify/checkout/main",
            simulated(checkout, "signature_keys", lambda outgoing: True),
            unknown_type=unknown_checkout,
            tamper=lambda request: changed_byte(request, b'"amount":', b'"Amount":'),
            truncated_refused=True,
            **header_subject("Cko-Signature"),
        ),
        Subject(
            "debitsuccess casual",
            "debitsuccess",
            "/notify/debitsuccess/gym",
            simulated(debitsuccess, "event_tokens", lambda outgoing: outgoing.expect is not None),
            unknown_type=None,
            truncated_refused=True,
            **body_subject("WebhookToken"),
        ),
        Subject(
            "debitsuccess event",
            "debitsuccess",
            "/notify/debitsuccess/gym",
            events,
            unknown_type=unknown_event,
            **header_subject("X-Token"),
        ),
        Subject(
            "paymentz",
            "paymentz",
            "/notify/paymentz/eu",
            simulated(paymentz, "secure_keys", lambda outgoing: b"begun" not in outgoing.body),
            unknown_type=unknown_paymentz,
            tamper=tampered_paymentz,
            truncated_refused=True,
            **body_subject("checksum"),
        ),
    ]


def paymentz_callback(endpoint: Any, **fields: str) -> Outgoing:
    serial = next(_serials)
    body = {
        "paymentId": f"77{serial:08d}",
        "merchantTransactionId": f"CONTRACT-{serial}",
        "amount": "12.50",
        "currency": "EUR",
        "status": "capturesuccess",
        "transactionStatus": "Y",
    } | fields
    signed = "|".join(body[name] for name in ("paymentId", "merchantTransactionId", "amount", "transactionStatus"))
    key: Secret = endpoint.secure_keys[-1]
    body["checksum"] = hashlib.md5(signed.encode() + b"|" + key.reveal(), usedforsecurity=False).hexdigest()
    return Outgoing("/notify/paymentz/eu", {"Content-Type": "application/json"}, json.dumps(body).encode())


def basic(user: str, password: str) -> str:
    return "Basic " + b64encode(f"{user}:{password}".encode()).decode()


def prefix(proof: str) -> str:
    """All but the end of a proof; of Basic credentials, of the password inside."""
    if proof.startswith("Basic "):
        return "Basic " + b64encode(b64decode(proof[6:])[:-1]).decode()
    return proof[:-1]
