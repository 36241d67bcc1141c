"""What one row of a settlement file and one payment of the ledger say of each other. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from enum import StrEnum

import msgspec

from receiver.money import text_from_minor
from receiver.notification import PaymentState
from receiver.providers.quickstream_settlement import Row


class Kind(StrEnum):
    """The findings. `matched` is none."""

    MISSING_HERE = "missing_here"
    """The file has a payment that the ledger does not have."""
    REFUND_MISSING_HERE = "refund_missing_here"
    MISSING_IN_FILE = "missing_in_file"
    """The ledger has a captured payment that should be in the file."""
    DEBIT_RETURNED = "debit_returned"
    """A direct debit that was captured here is declined."""
    STATUS_DIFFERS = "status_differs"
    AMOUNT_DIFFERS = "amount_differs"
    SURCHARGE_DIFFERS = "surcharge_differs"
    SETTLEMENT_DATE_DIFFERS = "settlement_date_differs"
    ROW_REPEATED = "row_repeated"
    """The file has the same receipt with the same outcome twice."""
    ROW_MALFORMED = "row_malformed"
    OTHER_BUSINESS = "other_business"
    """The row is for another supplier business than the endpoint's."""


class Known(msgspec.Struct, frozen=True, gc=False):
    """What the ledger has of the payment. Amounts are cents."""

    payment_id: str
    state: str
    amount: int | None
    surcharge: int | None
    settlement_date: date | None


@dataclass(frozen=True, slots=True)
class Difference:
    kind: Kind
    here: str | None
    in_file: str | None


# What a payment is after it was captured, and what a bank says of it then.
PAID = frozenset(
    {
        PaymentState.CAPTURED.value,
        PaymentState.PARTIALLY_REFUNDED.value,
        PaymentState.REFUNDED.value,
        PaymentState.DISPUTED.value,
    }
)
STATE_OF = {
    "0": PaymentState.CAPTURED.value,
    "1": PaymentState.DECLINED.value,
    "2": PaymentState.PENDING.value,
    "3": PaymentState.FAILED.value,
}


def compare(row: Row, known: Known | None) -> list[Difference]:
    """What is different; empty when they agree. Of a row without an outcome only the figures are compared.

    Refunds are no payments: `compare_refund` is for them.
    """
    outcome = STATE_OF.get(row.summary_code)
    if known is None or known.amount is None:
        # Without an amount the ledger knows of no more than a refund of it.
        return [Difference(Kind.MISSING_HERE, None, _money(row.amount))]
    if outcome is not None and not _agree(known, outcome, row.by_bank):
        returned = row.is_return and known.state in PAID
        kind = Kind.DEBIT_RETURNED if returned else Kind.STATUS_DIFFERS
        return [Difference(kind, known.state, outcome), *_figures(row, known)]
    found = _figures(row, known)
    # The day in the row of a return may be that of the return.
    settled = row.settles_on if outcome in (PaymentState.CAPTURED.value, None) else None
    if settled and known.settlement_date and known.state in PAID and known.settlement_date != settled:
        found.append(
            Difference(Kind.SETTLEMENT_DATE_DIFFERS, known.settlement_date.isoformat(), row.settles_on.isoformat())
        )
    return found


def compare_refund(row: Row, recorded: bool) -> list[Difference]:
    """A refund comes with no notification: the file is where the ledger hears of it. One that was not approved changes
    nothing."""
    if recorded or row.summary_code != "0":
        return []
    return [Difference(Kind.REFUND_MISSING_HERE, None, _money(row.amount))]


def changes_the_ledger(difference: Difference) -> bool:
    """Whether the row is entered: it says something of the payment that the ledger has not heard. Figures that differ
    are for a person to decide, and change nothing."""
    return difference.kind in (
        Kind.MISSING_HERE,
        Kind.REFUND_MISSING_HERE,
        Kind.DEBIT_RETURNED,
        Kind.STATUS_DIFFERS,
    )


def _agree(known: Known, outcome: str, by_bank: bool) -> bool:
    if outcome == PaymentState.CAPTURED:
        # A direct debit that was returned stands as accepted in the file of its first day.
        return known.state in PAID or (by_bank and known.state == PaymentState.DECLINED)
    # What the bank did not know yet when it wrote the file may be known by now.
    return outcome in (known.state, PaymentState.PENDING)


def _figures(row: Row, known: Known) -> list[Difference]:
    found = []
    if row.amount != known.amount:
        found.append(Difference(Kind.AMOUNT_DIFFERS, _money(known.amount), _money(row.amount)))
    if None not in (row.surcharge, known.surcharge) and row.surcharge != known.surcharge:
        found.append(Difference(Kind.SURCHARGE_DIFFERS, _money(known.surcharge), _money(row.surcharge)))
    return found


def _money(cents: int | None) -> str | None:
    return None if cents is None else text_from_minor(cents, 2)
