"""The second pass over a file: its rows against the ledger, batch by batch, and entries for what is new here."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, Engine

from receiver import cards, logs, metrics
from receiver.notification import Envelope, new_id, now_us
from receiver.providers import PROVIDERS
from receiver.providers import quickstream_settlement as settlement
from receiver.providers.base import Message
from receiver.providers.quickstream import ROW_HEADER, QuickStreamEndpoint
from receiver.providers.quickstream_settlement import Columns, Row
from workers.ledger.queries import reading
from workers.ledger.reconciliations import known_keys, payments_by_receipt
from workers.pipeline import Pipeline
from workers.reconcile.compare import STATE_OF, Difference, Kind, Known, changes_the_ledger, compare, compare_refund
from workers.reconcile.findings import Finding, Findings, Result
from workers.reconcile.reader import Line
from workers.reconcile.seen import Seen

log = logs.get("workers.reconcile")

BATCH = 2000
SOURCE = "settlement file"
"""Of an entry, in the place of a sender's address."""

_ENTRIES = 500
_NO_COMMUNITY = "Not entered: no payment here names one community, and community_code is not set."
_ENTERED_BEFORE = "The row was entered before."


class Rows:
    """`community` is the one that rows of unknown receipts belong to; None when nothing says which."""

    def __init__(
        self,
        engine: Engine,
        pipeline: Pipeline,
        endpoint: QuickStreamEndpoint,
        community: str | None,
        result: Result,
        findings: Findings,
        seen: Seen,
        *,
        write: bool,
    ) -> None:
        self._engine = engine
        self._pipeline = pipeline
        self._endpoint = endpoint
        self._community = community
        self._result = result
        self._findings = findings
        self._seen = seen
        self._write = write

    @property
    def entered(self) -> int:
        return self._result.entered

    def batch(self, lines: Sequence[Line], where: Columns) -> None:
        """Findings are kept before their rows are entered: there is never an entry that nobody was told of."""
        self._result.rows += len(lines)
        ours = [(line, line.row) for line in lines if line.row is not None and self._is_ours(line.row)]
        fresh = self._seen.add([(row.receipt, f"{row.summary_code}:{row.response_code}") for _, row in ours])
        repeated = {line.number for (line, _), new in zip(ours, fresh, strict=True) if not new}
        entries: list[Envelope] = []
        with reading(self._engine) as connection:
            ledger = _Ledger(connection, self._endpoint, self._community, [row for _, row in ours])
            for line in lines:
                row = line.row
                if row is None:
                    detail = f"{line.fault[:1].upper()}{line.fault[1:]}."
                    self._findings.add(Finding(Kind.ROW_MALFORMED, line.number, None, detail=detail))
                elif not self._is_ours(row):
                    self._findings.add(Finding(Kind.OTHER_BUSINESS, line.number, row.receipt, in_file=row.business))
                elif line.number in repeated:
                    self._findings.add(Finding(Kind.ROW_REPEATED, line.number, row.receipt))
                elif self._differs(line, row, ledger):
                    entries.append(self._envelope(line, row, ledger.community_of(row), where))
                    ledger.enter(row)
        self._findings.keep()
        self._result.entered += len(entries)
        for start in range(0, len(entries), _ENTRIES):
            self._pipeline.record(entries[start : start + _ENTRIES])

    def _is_ours(self, row: Row) -> bool:
        return not row.business or row.business in self._endpoint.supplier_business_codes

    def _differs(self, line: Line, row: Row, ledger: _Ledger) -> bool:
        """Tells what differs; says whether the row is to be entered."""
        differences = ledger.differences(row)
        if not differences:
            self._result.matched += 1
            return False
        enter, detail = False, ""
        if any(map(changes_the_ledger, differences)):
            if ledger.has_entered(row):
                detail = _ENTERED_BEFORE
            elif ledger.payment_id(row) is None:
                detail = _NO_COMMUNITY
            else:
                enter = self._write
        for each in differences:
            self._findings.add(
                Finding(
                    each.kind,
                    line.number,
                    row.receipt,
                    ledger.payment_id(row),
                    each.here,
                    each.in_file,
                    enter and changes_the_ledger(each),
                    detail,
                )
            )
        return enter

    def _envelope(self, line: Line, row: Row, community: str, where: Columns) -> Envelope:
        identity = settlement.identity_of(row, community)
        received_at = now_us()
        headers = {
            ROW_HEADER: community,
            "reconciliation": self._result.id or "",
            "file-name": self._result.file_name,
            "line": str(line.number),
        }
        message = Message(settlement.CONTENT_TYPE, headers, settlement.stored_body(line.values, where))
        kept, numbers = cards.masked_message(message, PROVIDERS[self._endpoint.provider], self._endpoint)
        for number in numbers.values():
            metrics.CARDS_MASKED.labels(self._endpoint.provider, self._endpoint.facility, "settlement file").inc(number)
            log.warning("card_number_masked", facility=self._endpoint.facility, line=line.number, numbers=number)
        return Envelope(
            id=new_id(received_at),
            provider=self._endpoint.provider,
            facility=self._endpoint.facility,
            received_at=received_at,
            source=SOURCE,
            content_type=kept.content_type,
            headers=headers,
            body=kept.body,
            verified=True,
            dedupe_key=identity.dedupe_key,
            event_type=identity.event_type,
            fingerprint=identity.fingerprint,
            quarantine="",
            detail="",
        )


class _Ledger:
    """What the ledger knows of the rows of one batch, in two or three questions."""

    def __init__(
        self, connection: Connection, endpoint: QuickStreamEndpoint, community: str | None, rows: Sequence[Row]
    ) -> None:
        self._connection = connection
        self._endpoint = endpoint
        self._community = community
        self._payments = known_payments(connection, endpoint, community, [row.of_payment for row in rows])
        self._asked: set[str] = set()
        self._entered: set[str] = set()
        self._ask([self._key(row) for row in rows if row.is_refund])
        differing = [row for row in rows if self._compare(row)]
        # All that will ever differ in this batch: what is entered is among them.
        self._differing = {row.receipt for row in differing}
        self._ask([self._key(row) for row in differing if not row.is_refund])

    def differences(self, row: Row) -> list[Difference]:
        return self._compare(row) if row.receipt in self._differing else []

    def _compare(self, row: Row) -> list[Difference]:
        if row.is_refund:
            return compare_refund(row, self.has_entered(row))
        return compare(row, self._payments.get(row.receipt))

    def has_entered(self, row: Row) -> bool:
        """Whether the ledger has this very row already."""
        key = self._key(row)
        if key not in self._asked:
            self._ask([key])
        return key in self._entered

    def payment_id(self, row: Row) -> str | None:
        """The payment that the row belongs to; None when nothing says of which community it is."""
        known = self._payments.get(row.of_payment)
        if known is not None:
            return known.payment_id
        return None if self._community is None else settlement.payment_id(row.of_payment, self._community)

    def community_of(self, row: Row) -> str:
        known = self._payments.get(row.of_payment)
        if known is None:
            return self._community or ""
        return known.payment_id.removesuffix(row.of_payment).removesuffix(":")

    def enter(self, row: Row) -> None:
        """From here on the row counts as known: a later row of the file may say more of its payment."""
        if not row.is_refund:
            state = STATE_OF.get(row.summary_code, STATE_OF["2"])
            settles_on = None if row.is_return else row.settles_on
            known = Known(self.payment_id(row) or "", state, row.amount, row.surcharge, settles_on)
            self._payments[row.receipt] = known

    def _key(self, row: Row) -> str:
        return settlement.row_key(row, self.community_of(row))

    def _ask(self, keys: Sequence[str]) -> None:
        self._asked.update(keys)
        if keys:
            self._entered |= known_keys(self._connection, self._endpoint.provider, self._endpoint.facility, keys)


def known_payments(
    connection: Connection, endpoint: QuickStreamEndpoint, community: str | None, receipts: Sequence[str]
) -> dict[str, Known]:
    """Payments by receipt. Where two communities have the same receipt, `community` says which is meant."""
    found: dict[str, Known] = {}
    for _, _, receipt, *known in payments_by_receipt(connection, endpoint.provider, endpoint.facility, receipts):
        if receipt not in found or known[0] == settlement.payment_id(receipt, community or ""):
            found[receipt] = Known(*known)
    return found
