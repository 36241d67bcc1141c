"""QuickStream's Cash Applied File: its headings, and one row of it as an event.

Vendor: https://quickstream.westpac.com.au/docs/reporting/cash-applied-file [CAF]
        https://quickstream.support.qvalent.com/docs/reporting/csv-transaction-report (headings vary, columns are added)

A row that tells the ledger something new is kept as a notification of its own: its body is a file of two lines, the
headings and the row. So it is interpreted here, and again whenever notifications are.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime
from functools import lru_cache
from operator import itemgetter

import msgspec

from receiver.codes import table
from receiver.errors import Quarantined, Reason
from receiver.money import minor_from_text
from receiver.notification import Effect, PaymentEvent
from receiver.providers.base import Identity, Message
from receiver.providers.quickstream import (
    EFFECTS,
    JAVA_MONTHS,
    MAX_KEY,
    ROW_HEADER,
    SYDNEY,
    QuickStreamEndpoint,
    soft_decline,
)
from receiver.signing import digest

EVENT_TYPE = "settlement_file"
CONTENT_TYPE = "text/csv"

HEADINGS = (
    "Settlement Date",
    "Receipt Number",
    "Supplier Business Code",
    "Reference Number",
    "Customer Reference Number",
    "Payment Amount",
    "Surcharge Amount",
    "Response Code",
    "Response Description",
    "Summary Code",
    "Card Scheme",
    "Account Holder Name",
    "Masked Card Number",
    "BSB Number",
    "Account Number",
    "Created Date Time",
    "Source Product",
    "Parent Receipt Number",
)
REQUIRED = ("Receipt Number", "Settlement Date", "Payment Amount")
# The file has no currency; where a facility adds the column, it must not be overlooked.
_CURRENCY = frozenset({"currency", "currencycode", "paymentcurrency", "principalcurrency"})
# The vendor's own short sample says Merchant Number; the others are the names of the token request and of the API.
ALIASES = {
    "Merchant Number": "Supplier Business Code",
    "Payment Reference": "Reference Number",
    "Payment Reference Number": "Reference Number",
    "Receipt": "Receipt Number",
    "Amount": "Payment Amount",
    "Surcharge": "Surcharge Amount",
    "BSB": "BSB Number",
    "Created Date": "Created Date Time",
    "Original Receipt Number": "Parent Receipt Number",
}

_FIRST_DAY = date(2000, 1, 1)
# Years have four digits, so that a date of another century is seen as what it is.
_DAY = re.compile(r"(\d{1,2})-([A-Za-z]{3,4})-(\d{4})", re.ASCII)
_OTHER_DAY = re.compile(r"(\d{4})-?(\d{2})-?(\d{2})", re.ASCII)
_CREATED = re.compile(r"(\S+) (\d{2}):(\d{2})(?::(\d{2}))?", re.ASCII)

# A card payment has a scheme; JBC is the vendor's own spelling of JCB. A bank row says UNKNOWN.
_SCHEMES = {name: name for name in ("VISA", "MASTERCARD", "AMEX", "DINERS", "JCB", "UNIONPAY")} | {"JBC": "JCB"}
_NO_SCHEME = frozenset({"", "UNKNOWN"})
# Codes that only the table of bank accounts has.
_BANK_CODES = frozenset("123456789GRCD") | {"Zero", "No Account", "Duplicate", "New", "Success", "No"}


class Row(msgspec.Struct, frozen=True, gc=False):
    """One row that could be read. Amounts are cents; a refund is negative."""

    receipt: str
    settles_on: date
    business: str
    """"" where the file has no such column."""
    reference: str
    customer_reference: str
    amount: int
    surcharge: int | None
    response_code: str
    response_description: str
    summary_code: str
    """"" where the file does not say how it ended."""
    card_scheme: str
    by_bank: bool
    created_at: datetime | None
    parent: str
    """Of a refund: the receipt of the payment; "" where the file has no such column."""

    @property
    def is_refund(self) -> bool:
        return self.amount < 0

    @property
    def is_return(self) -> bool:
        """A direct debit that the payer's bank declined, on the day itself or on the three banking days after it."""
        return self.by_bank and self.summary_code == "1" and self.amount >= 0

    @property
    def of_payment(self) -> str:
        """The receipt of the payment that the row speaks of."""
        return self.parent if self.is_refund and self.parent else self.receipt


class Columns(msgspec.Struct, frozen=True):
    """What stands where in a file."""

    headings: tuple[str, ...]
    """As the file has them, known ones in the vendor's spelling."""
    pick: Callable[[Sequence[str]], tuple[str, ...]]
    """The values of `HEADINGS` in their order, of a row with one empty value appended."""
    known: dict[str, str]
    """What a heading may be written as, in plain letters, and the vendor's spelling of it."""
    currency_at: int | None

    @property
    def has_business(self) -> bool:
        return "Supplier Business Code" in self.headings


def columns(headings: Sequence[str], aliases: Mapping[str, str]) -> Columns:
    """Where the known columns are, in any order, among any others. `aliases` gives headings that this file has instead
    of the vendor's. Raises `Quarantined` when this is no Cash Applied File."""
    known = {_plain(name): name for name in HEADINGS}
    known |= {_plain(name): ours for name, ours in (*ALIASES.items(), *aliases.items())}
    found = tuple(known.get(_plain(heading), heading.strip()) for heading in headings)
    for name in HEADINGS:
        if found.count(name) > 1:
            raise Quarantined(Reason.CONTRADICTORY_FIELDS, f"the heading {name} occurs twice")
    for name in REQUIRED:
        if name not in found:
            raise Quarantined(Reason.UNKNOWN_DOCUMENT, f"there is no heading {name}")
    pick = itemgetter(*(found.index(name) if name in found else len(found) for name in HEADINGS))
    currency_at = next((at for at, heading in enumerate(found) if _plain(heading) in _CURRENCY), None)
    return Columns(found, pick, known, currency_at)


def _plain(heading: str) -> str:
    """``Receipt Number``, ``receiptNumber`` and ``RECEIPT_NUMBER`` are one heading."""
    return "".join(character for character in heading.casefold() if character.isalnum())


def is_heading(values: Sequence[str], where: Columns) -> bool:
    """Whether a row is one of headings, in whatever order and words, as when two files were put together."""
    return {where.known.get(_plain(value)) for value in values}.issuperset(REQUIRED)


def read_row(values: Sequence[str], where: Columns) -> Row:
    """Raises `Quarantined`, with a sentence that quotes no value."""
    if len(values) != len(where.headings):
        sentence = f"it has {len(values)} values where there are {len(where.headings)} headings"
        raise Quarantined(Reason.UNREADABLE_BODY, sentence)
    settles, receipt, business, reference, customer, amount, surcharge, code, description, summary, scheme, *rest = map(
        str.strip, where.pick((*values, ""))
    )
    _, card, bsb, account, created, _, parent = rest
    if not receipt:
        raise Quarantined(Reason.MISSING_FIELD, "Receipt Number is empty")
    if max(len(receipt), len(parent)) > MAX_KEY:
        raise Quarantined(Reason.UNREADABLE_BODY, "a receipt number is too long")
    if summary and summary not in EFFECTS:
        raise Quarantined(Reason.CONTRADICTORY_FIELDS, "Summary Code is none of 0, 1, 2 and 3")
    day = _day(settles)
    if day is None:
        raise Quarantined(Reason.UNREADABLE_BODY, "Settlement Date is not a date")
    if day < _FIRST_DAY:
        raise Quarantined(Reason.CONTRADICTORY_FIELDS, "Settlement Date is of another century")
    cents = _cents(amount, "Payment Amount")
    if cents == 0 and (parent or amount.startswith("-")):
        raise Quarantined(Reason.CONTRADICTORY_FIELDS, "it refunds nothing")
    fee = _cents(surcharge, "Surcharge Amount") if surcharge else None
    if fee is not None and fee * cents < 0:
        raise Quarantined(Reason.CONTRADICTORY_FIELDS, "Payment Amount and Surcharge Amount have different signs")
    by_bank = _by_bank(scheme.upper(), card, bsb or account, code)
    return Row(
        receipt,
        day,
        business,
        reference,
        customer,
        cents,
        fee,
        code,
        description,
        summary or _summary_of(code, by_bank),
        _SCHEMES.get(scheme.upper(), scheme) if scheme.upper() not in _NO_SCHEME else "",
        by_bank,
        _created(created),
        parent,
    )


def _by_bank(scheme: str, card: str, account: str, code: str) -> bool:
    if account or card or scheme not in _NO_SCHEME:
        return bool(account) and not card
    return scheme == "UNKNOWN" or code in _BANK_CODES


def _summary_of(code: str, by_bank: bool) -> str:
    """Where the file has no summary code, the vendor's table says it; "" for a code that it does not have."""
    known = table("quickstream_bank" if by_bank else "quickstream_card").get(code)
    return known.summary if known is not None else ""


# The same few amounts, days and minutes come again and again in a file.
@lru_cache(1 << 14)
def _cents(text: str, name: str) -> int:
    return minor_from_text(text, 2, name)


@lru_cache(1024)
def _day(text: str) -> date | None:
    """``20-Jun-2012`` by default, which a facility may change; two ways without doubt are read as well."""
    try:
        if match := _DAY.fullmatch(text):
            return date(int(match[3]), JAVA_MONTHS[match[2].title()], int(match[1]))
        if match := _OTHER_DAY.fullmatch(text):
            return date(int(match[1]), int(match[2]), int(match[3]))
    except (ValueError, KeyError):
        pass
    return None


@lru_cache(4096)
def _created(text: str) -> datetime | None:
    """``20-Jun-2012 15:04`` in Sydney, as UTC; None for anything else, as no payment may be lost for it."""
    match = _CREATED.fullmatch(text)
    day = _day(match[1]) if match else None
    if match is None or day is None:
        return None
    try:
        local = datetime(day.year, day.month, day.day, int(match[2]), int(match[3]), int(match[4] or 0), tzinfo=SYDNEY)
        return local.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


# The headings whose values tell payments apart, and the fields of a notification that say the same.
_IDENTIFIERS = ("Receipt Number", "Parent Receipt Number", "Payment Amount", "Surcharge Amount")
_SAME_AS = {"paymentReference": "Reference Number", "customerReferenceNumber": "Customer Reference Number"}


def identifiers(message: Message, endpoint: QuickStreamEndpoint) -> list[str]:
    """Of a stored row: values that are no card numbers, whatever they look like."""
    headings, values = _two_lines(message.body)
    named = {*_IDENTIFIERS, *(_SAME_AS.get(name, name) for name in endpoint.own_numbers)}
    return [value for heading, value in zip(headings, values, strict=True) if heading in named]


def stored_body(values: Sequence[str], where: Columns) -> bytes:
    """A file of this one row, which needs no configured alias to be read."""
    written = io.StringIO()
    writer = csv.writer(written, quoting=csv.QUOTE_ALL)
    writer.writerow(where.headings)
    writer.writerow(values)
    return written.getvalue().encode()


def payment_id(receipt: str, community: str) -> str:
    return f"{community}:{receipt}" if community else receipt


def row_key(row: Row, community: str) -> str:
    """The duplicate key of a row. A direct debit stands in one file as accepted and in a later one as returned."""
    return f"{EVENT_TYPE}:{payment_id(row.receipt, community)}:{row.summary_code}:{row.response_code}"


def identity_of(row: Row, community: str) -> Identity:
    said = (str(row.amount), str(row.surcharge), row.settles_on.isoformat(), row.business, row.parent)
    return Identity(row_key(row, community), EVENT_TYPE, digest(*(text.encode() for text in said)))


def identify(message: Message, endpoint: QuickStreamEndpoint) -> Identity:
    """Of a stored row. Raises `Quarantined`."""
    return identity_of(_stored(message, endpoint), message.headers[ROW_HEADER])


def interpret(message: Message, endpoint: QuickStreamEndpoint) -> PaymentEvent:
    """Of a stored row. Raises `Quarantined`."""
    row, community = _stored(message, endpoint), message.headers[ROW_HEADER]
    if row.is_refund:
        return _refund(row, community, endpoint)
    flags = () if row.summary_code else ("outcome_not_in_file",)
    effect = EFFECTS.get(row.summary_code, Effect.PENDING)
    return PaymentEvent(
        event_type=EVENT_TYPE,
        effect=Effect.DEBIT_RETURNED if row.is_return else effect,
        payment_id=payment_id(row.receipt, community),
        receipt_number=row.receipt,
        occurred_at=row.created_at,
        amount=row.amount,
        surcharge=row.surcharge,
        currency=endpoint.currency,
        reference=row.reference or None,
        customer_reference=row.customer_reference or None,
        merchant=row.business or None,
        card_scheme=row.card_scheme or None,
        response_code=row.response_code or None,
        response_description=row.response_description or None,
        summary_code=row.summary_code or None,
        soft_decline=soft_decline(row.response_code, by_card=not row.by_bank, effect=effect),
        # A returned debit settles no more; the day in the row may be that of its return.
        settlement_date=None if row.is_return else row.settles_on,
        partial=not row.by_bank and row.response_code == "10",
        flags=flags,
    )


def _refund(row: Row, community: str, endpoint: QuickStreamEndpoint) -> PaymentEvent:
    """Part of its payment. Whatever else the row says is the refund's own, and its body keeps it."""
    return PaymentEvent(
        event_type=EVENT_TYPE,
        effect=Effect.REFUNDED if row.summary_code == "0" else Effect.NONE,
        payment_id=payment_id(row.of_payment, community),
        action_id=row.receipt,
        receipt_number=row.parent or None,
        occurred_at=row.created_at,
        amount=-row.amount,
        currency=endpoint.currency,
        response_code=row.response_code or None,
        response_description=row.response_description or None,
        summary_code=row.summary_code or None,
        flags=() if row.parent else ("refund_without_parent",),
    )


def _stored(message: Message, endpoint: QuickStreamEndpoint) -> Row:
    headings, values = _two_lines(message.body)
    row = read_row(values, columns(headings, {}))
    if row.business and row.business not in endpoint.supplier_business_codes:
        raise Quarantined(Reason.OTHER_BUSINESS, "Supplier Business Code is not one of this endpoint's")
    return row


def _two_lines(body: bytes) -> tuple[list[str], list[str]]:
    try:
        headings, values = csv.reader(io.StringIO(body.decode(), newline=""))
    except (ValueError, csv.Error):
        raise Quarantined(Reason.UNREADABLE_BODY, "the stored row is not a file of two lines") from None
    return headings, values
