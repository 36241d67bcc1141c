"""Notifications and settlement files for the tests of the reconciliation."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

import msgspec

from receiver.providers.base import Endpoint, Message
from receiver.providers.quickstream import PROVIDER, QuickStreamEndpoint
from receiver.providers.quickstream_settlement import HEADINGS
from receiver.signing import Secret
from tests.support import QUICKSTREAM
from tests.workers.material import SEAL, envelope
from workers.audit import Actor, Audit
from workers.ledger.ledger import Ledger
from workers.pipeline import Pipeline
from workers.reconcile.findings import Finding, Result
from workers.reconcile.run import Books, reconcile
from workers.simulator.cash_applied import FileRow, file_of

ACTOR = Actor("jane", "a test")
NOW = datetime(2025, 3, 7, 9, tzinfo=UTC)
"""The evening of the file, 8 pm in Sydney."""

CARD = {
    "sourceCode": "Net",
    "receiptNumber": "7004100001",
    "communityCode": "ACMECOMM",
    "supplierBusinessCode": "ACME",
    "customerReferenceNumber": "MEMBER-2041",
    "paymentReference": "INV-58213",
    "paymentAmount": "624.00",
    "surchargeAmount": "24.00",
    "cardScheme": "VISA",
    "settlementDate": "20250307",
    "createdDateTime": "07 Mar 2025 14:22:09",
    "responseCode": "00",
    "responseDescription": "Approved",
    "summaryCode": "0",
    "successFlag": "true",
}
ROW = dict.fromkeys(HEADINGS, "") | {
    "Settlement Date": "07-Mar-2025",
    "Receipt Number": "7004100001",
    "Supplier Business Code": "ACME",
    "Reference Number": "INV-58213",
    "Customer Reference Number": "MEMBER-2041",
    "Payment Amount": "624.00",
    "Surcharge Amount": "24.00",
    "Response Code": "00",
    "Response Description": "Approved",
    "Summary Code": "0",
    "Card Scheme": "VISA",
    "Account Holder Name": "Jo Sample",
    "Masked Card Number": "456471xxxxxxx004",
    "Created Date Time": "07-Mar-2025 14:22",
    "Source Product": "QuickWeb",
}
BY_BANK = {
    "Response Code": "G",
    "Card Scheme": "UNKNOWN",
    "Masked Card Number": "",
    "BSB Number": "032-xxx",
    "Account Number": "xxx465",
}


def row(receipt: str = "7004100001", **values: str) -> FileRow:
    """A row that agrees with `notified` of the same receipt; keys are headings with underscores."""
    return ROW | {"Receipt Number": receipt} | {name.replace("_", " "): value for name, value in values.items()}


def bank_row(receipt: str = "7004100002", **values: str) -> FileRow:
    return row(receipt) | BY_BANK | {name.replace("_", " "): value for name, value in values.items()}


def refund(receipt: str, parent: str, amount: str = "-100.00", **values: str) -> FileRow:
    return row(receipt, Payment_Amount=amount, Surcharge_Amount="-0.00", Parent_Receipt_Number=parent, **values)


@dataclass
class Desk:
    """One endpoint with a ledger: what a sender notified, and files that are reconciled with it."""

    ledger: Ledger
    endpoint: QuickStreamEndpoint = QUICKSTREAM
    found: list[Finding] = field(default_factory=list)

    @property
    def pipeline(self) -> Pipeline:
        endpoints: dict[tuple[str, str], Endpoint] = {("quickstream", self.endpoint.facility): self.endpoint}
        return Pipeline(endpoints, self.ledger, SEAL)

    @property
    def books(self) -> Books:
        return Books(self.ledger, self.pipeline, Audit([Secret(b"seal")]))

    def notified(self, receipt: str = "7004100001", **fields: str | None) -> None:
        """A notification of a card payment of 624.00, unless `fields` says otherwise; None leaves a field out."""
        values = {
            name: value for name, value in (CARD | {"receiptNumber": receipt} | fields).items() if value is not None
        }
        body = urlencode(values).encode()
        message = Message("application/x-www-form-urlencoded", {}, body)
        identity = PROVIDER.identify(message, self.endpoint)
        came = envelope(
            identity.dedupe_key,
            provider="quickstream",
            facility=self.endpoint.facility,
            content_type=message.content_type,
            body=body,
            event_type=identity.event_type,
            fingerprint=identity.fingerprint,
        )
        self.pipeline.record([came])

    def debited(self, receipt: str = "7004100002", **fields: str | None) -> None:
        """A notification of an accepted direct debit."""
        self.notified(receipt, **{"cardScheme": None, "responseCode": "G", **fields})

    def reconcile(self, content: bytes | Iterable[FileRow], **options: Any) -> Result:
        if not isinstance(content, bytes):
            content = file_of(content)
        self.found = []
        given: dict[str, Any] = {"now": NOW, "tell": self.found.append} | options
        return reconcile(self.books, self.endpoint, io.BytesIO(content), "caf.csv", ACTOR, **given)

    def kinds(self, content: bytes | Iterable[FileRow], **options: Any) -> list[str]:
        """The findings' kinds, in their order."""
        self.reconcile(content, **options)
        return [finding.kind.value for finding in self.found]

    def with_settings(self, **values: Any) -> Desk:
        return Desk(self.ledger, msgspec.structs.replace(self.endpoint, **values))


Step = Callable[[Desk], object]
