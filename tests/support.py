"""What the tests share: endpoints with known secrets, and raw requests read from fixture files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from receiver.notification import Expectation
from receiver.providers import PROVIDERS
from receiver.providers.base import Message, Provider
from receiver.providers.checkout import CheckoutEndpoint
from receiver.providers.debitsuccess import DebitsuccessEndpoint
from receiver.providers.paymentz import PaymentzEndpoint
from receiver.providers.quickstream import QuickStreamEndpoint
from receiver.signing import Secret

FIXTURES = Path(__file__).parent / "fixtures"
SAMPLES = Path(__file__).parents[2] / "shared" / "samples"


def secrets(*texts: str) -> tuple[Secret, ...]:
    return tuple(Secret(text.encode()) for text in texts)


QUICKSTREAM = QuickStreamEndpoint(
    facility="acme",
    environment="test",
    username="acme",
    passwords=secrets("old:pässword", "new:pässword"),
    supplier_business_codes=("ACME",),
)
CHECKOUT = CheckoutEndpoint(facility="main", signature_keys=secrets("cko-old-key", "cko-new-key"))
DEBITSUCCESS = DebitsuccessEndpoint(facility="gym", event_tokens=secrets("event-old-token", "event-new-token"))
PAYMENTZ = PaymentzEndpoint(facility="eu", secure_keys=secrets("pz-old-key", "pz-new-key"))

EXPECTED_CASUAL = Expectation(
    provider="debitsuccess",
    facility="gym",
    token="FormTok1",
    webhook_token="HookTok1",
    reference="MEMBER-1001",
    amount=1250,
    currency="NZD",
    exponent=2,
    registered_at=1_700_000_000_000_000,
)
"""What the merchant registered before the customer of the casual fixtures was redirected."""


@dataclass(frozen=True)
class Recorded:
    """A raw request of a fixture file: header names in lower case, as an ASGI server hands them on."""

    name: str
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def provider(self) -> Provider:
        return PROVIDERS[self.path.split("/")[2]]

    def message(self) -> Message:
        wanted = self.provider.proof_headers + self.provider.kept_headers
        return Message(
            content_type=self.headers.get("content-type", "").partition(";")[0].strip().lower(),
            headers={name: value for name, value in self.headers.items() if name in wanted},
            body=self.body,
        )


def recorded(provider: str, name: str) -> Recorded:
    """The request in ``fixtures/{provider}/{name}.http``: a request line, headers, an empty line (CRLF), the body."""
    head, _, body = (FIXTURES / provider / f"{name}.http").read_bytes().partition(b"\r\n\r\n")
    request_line, *lines = head.decode("latin-1").split("\r\n")
    method, path, _ = request_line.split(" ")
    headers = {}
    for line in lines:
        key, _, value = line.partition(":")
        headers[key.strip().lower()] = value.strip()
    return Recorded(name, method, path, headers, body)


def all_recorded(provider: str) -> list[Recorded]:
    return [recorded(provider, file.stem) for file in sorted((FIXTURES / provider).glob("*.http"))]
