"""A row of QuickStream's Cash Applied File, read alone: headings, values, and the event that it becomes."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.errors import Quarantined, Reason
from receiver.notification import Effect, PaymentEvent
from receiver.providers.base import Message
from receiver.providers.quickstream import PROVIDER, ROW_HEADER
from receiver.providers.quickstream_settlement import (
    HEADINGS,
    Row,
    columns,
    read_row,
    row_key,
    stored_body,
)
from tests.support import QUICKSTREAM
from tests.workers.settlement import bank_row, refund, row

WHERE = columns(HEADINGS, {})


def read(**values: str) -> Row:
    return read_row(list(row(**values).values()), WHERE)


def stored(values: dict[str, str], community: str = "COM") -> Message:
    return Message("text/csv", {ROW_HEADER: community}, stored_body(list(values.values()), WHERE))


def event_of(values: dict[str, str]) -> PaymentEvent:
    return PROVIDER.interpret(stored(values), QUICKSTREAM)


def fault_of(**values: str) -> Reason:
    with pytest.raises(Quarantined) as raised:
        read(**values)
    return raised.value.reason


# -- values


@pytest.mark.parametrize(
    ("text", "day"),
    [
        ("20-Jun-2012", date(2012, 6, 20)),
        ("1-JAN-2025", date(2025, 1, 1)),
        ("05-Sept-2025", date(2025, 9, 5)),
        ("07-June-2025", date(2025, 6, 7)),
        ("20250307", date(2025, 3, 7)),
        ("2025-03-07", date(2025, 3, 7)),
    ],
)
def test_settlement_dates(text: str, day: date) -> None:
    assert read(Settlement_Date=text).settles_on == day


@pytest.mark.parametrize(
    "text", ["", "31-Feb-2025", "07/03/2025", "07-Mrz-2025", "7 Mar 2025", "0000-00-00", "07-Mar-25"]
)
def test_what_is_no_settlement_date(text: str) -> None:
    assert fault_of(Settlement_Date=text) is Reason.UNREADABLE_BODY


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("20-Jun-2012 15:04", datetime(2012, 6, 20, 5, 4, tzinfo=UTC)),
        ("10-Jan-2017 01:11", datetime(2017, 1, 9, 14, 11, tzinfo=UTC)),
        ("10-Jan-2017 01:11:31", datetime(2017, 1, 9, 14, 11, 31, tzinfo=UTC)),
        # Twice in the night in which daylight saving ends: the first reading; never in the one in which it begins.
        ("02-Apr-2017 02:30", datetime(2017, 4, 1, 15, 30, tzinfo=UTC)),
        ("01-Oct-2017 02:30", datetime(2017, 9, 30, 16, 30, tzinfo=UTC)),
        ("10-Jan-2017 24:00", None),
        ("10-Jan-2017", None),
        ("", None),
    ],
)
def test_created_times_lose_no_payment(text: str, moment: datetime | None) -> None:
    assert read(Created_Date_Time=text).created_at == moment


@pytest.mark.parametrize(
    ("values", "by_bank", "scheme"),
    [
        ({}, False, "VISA"),
        ({"Card_Scheme": "JBC"}, False, "JCB"),
        ({"Card_Scheme": "jcb"}, False, "JCB"),
        ({"Card_Scheme": "ELO"}, False, "ELO"),
        ({"Card_Scheme": "UNKNOWN"}, False, ""),
        ({"Card_Scheme": "UNKNOWN", "Masked_Card_Number": ""}, True, ""),
        ({"Card_Scheme": "", "Masked_Card_Number": "", "Account_Number": "xxx465"}, True, ""),
        ({"Card_Scheme": "", "Masked_Card_Number": "", "Response_Code": "G"}, True, ""),
        ({"Card_Scheme": "", "Masked_Card_Number": "", "Response_Code": "00"}, False, ""),
    ],
)
def test_cards_and_bank_accounts(values: dict[str, str], by_bank: bool, scheme: str) -> None:
    found = read(**values)
    assert (found.by_bank, found.card_scheme) == (by_bank, scheme)


@pytest.mark.parametrize("amount", ["", "1,000.00", "$5.00", "1e2", "NaN", "1.005", "--1", "9" * 30])
def test_what_is_no_amount(amount: str) -> None:
    assert fault_of(Payment_Amount=amount) is Reason.UNREADABLE_BODY


def test_other_faults_of_a_row() -> None:
    assert fault_of(Receipt_Number=" ") is Reason.MISSING_FIELD
    assert fault_of(Receipt_Number="1" * 101) is Reason.UNREADABLE_BODY
    assert fault_of(Summary_Code="9") is Reason.CONTRADICTORY_FIELDS
    assert fault_of(Surcharge_Amount="-1.00") is Reason.CONTRADICTORY_FIELDS
    with pytest.raises(Quarantined, match="17 values where there are 18"):
        read_row(list(row().values())[:-1], WHERE)


@pytest.mark.parametrize(
    ("code", "by_bank", "summary"),
    [("00", False, "0"), ("05", False, "1"), ("QI", False, "2"), ("G", True, "0"), ("6", True, "1"), ("ZZ", False, "")],
)
def test_without_a_summary_code_the_table_of_codes_says_it(code: str, by_bank: bool, summary: str) -> None:
    values = bank_row() if by_bank else row()
    found = read_row(list((values | {"Summary Code": "", "Response Code": code}).values()), WHERE)
    assert found.summary_code == summary


@given(st.lists(st.text(), min_size=18, max_size=18))
def test_any_values_are_a_row_or_one_fault(values: list[str]) -> None:
    try:
        found = read_row(values, WHERE)
    except Quarantined:
        return
    assert found.receipt


@given(st.permutations(HEADINGS), st.lists(st.sampled_from(["Branch", "", "Fee"]), max_size=3))
def test_columns_in_any_order(headings: list[str], more: list[str]) -> None:
    values = row()
    where = columns([*headings, *more], {})
    assert read_row([*(values[name] for name in headings), *more], where) == read()


# -- the event


def test_a_payment_becomes_what_its_notification_says() -> None:
    assert event_of(row("7")) == PaymentEvent(
        event_type="settlement_file",
        effect=Effect.CAPTURED,
        payment_id="COM:7",
        receipt_number="7",
        occurred_at=datetime(2025, 3, 7, 3, 22, tzinfo=UTC),
        amount=62400,
        surcharge=2400,
        currency="AUD",
        reference="INV-58213",
        customer_reference="MEMBER-2041",
        merchant="ACME",
        card_scheme="VISA",
        response_code="00",
        response_description="Approved",
        summary_code="0",
        settlement_date=date(2025, 3, 7),
    )


@pytest.mark.parametrize(
    ("values", "effect"),
    [
        (row(Summary_Code="1", Response_Code="05"), Effect.DECLINED),
        (row(Summary_Code="2", Response_Code="QI"), Effect.PENDING),
        (row(Summary_Code="3", Response_Code="Q3"), Effect.FAILED),
        (row(Summary_Code="", Response_Code=""), Effect.PENDING),
        (bank_row(), Effect.CAPTURED),
        (bank_row(Summary_Code="1", Response_Code="6"), Effect.DEBIT_RETURNED),
        (bank_row(Summary_Code="2", Response_Code="New"), Effect.PENDING),
        (bank_row(Summary_Code="3", Response_Code="R"), Effect.FAILED),
        (refund("2", "1"), Effect.REFUNDED),
        (refund("2", "1", Summary_Code="1"), Effect.NONE),
        (refund("2", "1", Summary_Code="", Response_Code=""), Effect.NONE),
    ],
)
def test_effects(values: dict[str, str], effect: Effect) -> None:
    event = event_of(values)
    assert event.effect is effect
    assert event.event_type in PROVIDER.event_types


def test_a_refund_belongs_to_its_payment_and_says_nothing_else_of_it() -> None:
    event = event_of(refund("2", "1", "-301.20"))
    assert (event.payment_id, event.action_id, event.amount) == ("COM:1", "2", 30120)
    assert (event.settlement_date, event.surcharge, event.reference, event.card_scheme) == (None, None, None, None)
    assert event_of(refund("2", "")).flags == ("refund_without_parent",)


def test_a_returned_debit_has_no_settlement_date() -> None:
    event = event_of(bank_row(Summary_Code="1", Response_Code="6"))
    assert (event.settlement_date, event.soft_decline) == (None, True)


def test_the_key_is_receipt_and_outcome() -> None:
    accepted, returned = bank_row("7"), bank_row("7", Summary_Code="1", Response_Code="6")
    first, later = (PROVIDER.identify(stored(values), QUICKSTREAM) for values in (accepted, returned))
    assert first.dedupe_key == row_key(read_row(list(accepted.values()), WHERE), "COM")
    assert first.dedupe_key != later.dedupe_key
    other = PROVIDER.identify(stored(accepted | {"Payment Amount": "1.00"}), QUICKSTREAM)
    assert other.dedupe_key == first.dedupe_key
    assert other.fingerprint != first.fingerprint


@pytest.mark.parametrize("body", [b"", b"one line", b"\xff\n\n", b"a\nb\nc", b"Receipt Number\n1\n"])
def test_a_stored_row_that_is_none(body: bytes) -> None:
    message = Message("text/csv", {ROW_HEADER: "COM"}, body)
    for look in (PROVIDER.identify, PROVIDER.interpret):
        with pytest.raises(Quarantined):
            look(message, QUICKSTREAM)


def test_no_request_can_be_a_row() -> None:
    """The accept side keeps no header for QuickStream, and without it a CSV body is unreadable."""
    assert PROVIDER.kept_headers == ()
    with pytest.raises(Quarantined) as raised:
        PROVIDER.identify(msgspec.structs.replace(stored(row()), headers={}), QUICKSTREAM)
    assert raised.value.reason is Reason.UNREADABLE_BODY


def test_a_notification_of_another_community() -> None:
    own: Any = msgspec.structs.replace(QUICKSTREAM, community_code="COM")
    body = b"receiptNumber=1&communityCode=OTHER&supplierBusinessCode=ACME&summaryCode=0&paymentAmount=1.00"
    message = Message("application/x-www-form-urlencoded", {}, body)
    assert PROVIDER.identify(message, QUICKSTREAM).dedupe_key == "OTHER:1"
    with pytest.raises(Quarantined) as raised:
        PROVIDER.identify(message, own)
    assert raised.value.reason is Reason.OTHER_BUSINESS
