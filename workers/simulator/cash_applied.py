"""The Cash Applied File of what the simulator sent, with chosen differences. Every value is invented."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import date
from random import Random

from receiver.providers.quickstream import JAVA_MONTHS
from receiver.providers.quickstream_settlement import HEADINGS
from receiver.reading import form, xml
from workers.reconcile.calendar import banking_day_before
from workers.reconcile.compare import Kind
from workers.simulator.base import Outgoing, Sender

FileRow = dict[str, str]
"""The values of one row by heading."""

_MONTH_NAMES = {number: name for name, number in reversed(JAVA_MONTHS.items())}


class NoSuchRow(ValueError):
    """There is no payment left of which a difference could be made."""


def listened_to(sender: Sender, sent: list[Outgoing]) -> Sender:
    """The same sender, with all that it sends also put into `sent`."""

    def payment(*arguments: object) -> list[Outgoing]:
        notifications = sender.payment(*arguments)  # type: ignore[arg-type]
        sent.extend(notifications)
        return notifications

    return replace(sender, payment=payment)


def rows_of(sent: Iterable[Outgoing]) -> list[FileRow]:
    """A row for each notification, as the bank would write it on the evening of the day."""
    return [_row(outgoing) for outgoing in sent]


def _row(outgoing: Outgoing) -> FileRow:
    by_form = outgoing.headers["Content-Type"] == "application/x-www-form-urlencoded"
    get = (form(outgoing.body) if by_form else xml(outgoing.body)[1]).get
    scheme, settles = get("cardScheme"), get("settlementDate")
    day, month, year, clock = get("createdDateTime").split(" ")
    return dict.fromkeys(HEADINGS, "") | {
        "Settlement Date": day_text(date(int(settles[:4]), int(settles[4:6]), int(settles[6:]))),
        "Receipt Number": get("receiptNumber"),
        "Supplier Business Code": get("supplierBusinessCode"),
        "Reference Number": get("paymentReference"),
        "Customer Reference Number": get("customerReferenceNumber"),
        "Payment Amount": get("paymentAmount"),
        "Surcharge Amount": get("surchargeAmount"),
        "Response Code": get("responseCode"),
        "Response Description": get("responseDescription"),
        "Summary Code": get("summaryCode"),
        # As the vendor writes JCB.
        "Card Scheme": {"": "UNKNOWN", "JCB": "JBC"}.get(scheme, scheme),
        "Account Holder Name": 'Jo "Sample", Ms',
        "Masked Card Number": "456471xxxxxxx004" if scheme else "",
        "BSB Number": "" if scheme else "032-xxx",
        "Account Number": "" if scheme else "xxx465",
        "Created Date Time": f"{day}-{month}-{year} {clock[:5]}",
        "Source Product": "QuickWeb",
    }


def day_text(day: date) -> str:
    return f"{day.day:02}-{_MONTH_NAMES[day.month]}-{day.year}"


def with_differences(rows: Sequence[FileRow], kinds: Iterable[Kind], seed: int | None = None) -> list[FileRow]:
    """The rows with one difference of each kind, each of another payment, so that a comparison finds just these.
    Raises `NoSuchRow`."""
    changed = [dict(row) for row in rows]
    untouched = [row for row in changed if row["Summary Code"] == "0"]
    Random(seed).shuffle(untouched)
    for kind in kinds:
        by_bank = kind is Kind.DEBIT_RETURNED
        one = next((row for row in untouched if (row["Card Scheme"] == "UNKNOWN") == by_bank), None)
        if one is None:
            raise NoSuchRow(f"no {'bank account' if by_bank else 'card'} payment is left for {kind.value}")
        untouched.remove(one)
        if kind is Kind.MISSING_IN_FILE:
            changed.remove(one)
        elif kind in _CHANGED:
            one.update(_CHANGED[kind](one))
        else:
            changed.append(one | _ADDED[kind](one))
    return changed


_CHANGED: dict[Kind, Callable[[FileRow], FileRow]] = {
    Kind.AMOUNT_DIFFERS: lambda row: {"Payment Amount": f"1{row['Payment Amount']}"},
    Kind.SURCHARGE_DIFFERS: lambda row: {"Surcharge Amount": f"1{row['Surcharge Amount']}"},
    Kind.STATUS_DIFFERS: lambda row: {"Response Code": "05", "Summary Code": "1"},
    Kind.SETTLEMENT_DATE_DIFFERS: lambda row: {"Settlement Date": _banking_day_before(row["Settlement Date"])},
}
_ADDED: dict[Kind, Callable[[FileRow], FileRow]] = {
    Kind.MISSING_HERE: lambda row: {"Receipt Number": f"9{row['Receipt Number']}"},
    Kind.REFUND_MISSING_HERE: lambda row: {
        "Receipt Number": f"8{row['Receipt Number']}",
        "Parent Receipt Number": row["Receipt Number"],
        "Payment Amount": f"-{row['Payment Amount']}",
        "Surcharge Amount": f"-{row['Surcharge Amount']}",
    },
    Kind.DEBIT_RETURNED: lambda row: {"Response Code": "6", "Summary Code": "1"},
    Kind.ROW_REPEATED: lambda row: {},
    Kind.ROW_MALFORMED: lambda row: {"Receipt Number": f"7{row['Receipt Number']}", "Payment Amount": "1,000.00"},
    Kind.OTHER_BUSINESS: lambda row: {
        "Receipt Number": f"6{row['Receipt Number']}",
        "Supplier Business Code": "SOMEBODYELSE",
    },
}


def _banking_day_before(text: str) -> str:
    day, month, year = text.split("-")
    return day_text(banking_day_before(date(int(year), JAVA_MONTHS[month], int(day))))


def file_of(
    rows: Iterable[FileRow],
    headings: Sequence[str] = HEADINGS,
    *,
    line_end: str = "\r\n",
    byte_order_mark: bool = False,
) -> bytes:
    """The file. `headings` are those to write, in this order; of other names than the vendor's the column is empty."""
    written = io.StringIO()
    writer = csv.writer(written, quoting=csv.QUOTE_ALL, lineterminator=line_end)
    writer.writerow(headings)
    writer.writerows([row.get(heading, "") for heading in headings] for row in rows)
    return written.getvalue().encode("utf-8-sig" if byte_order_mark else "utf-8")
