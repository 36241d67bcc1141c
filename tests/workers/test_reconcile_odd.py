"""Settlement files that are odd, damaged or half written: each fault ends in one clear word, and costs no other row."""

from __future__ import annotations

import io
from datetime import date
from typing import Any

import pytest
from sqlalchemy import Engine

from receiver.providers.quickstream_settlement import HEADINGS
from tests.workers.material import rows
from tests.workers.settlement import ACTOR, NOW, Desk, bank_row, refund, row
from workers.ledger.ledger import Ledger
from workers.ledger.tables import findings, notifications, payments, reconciliations
from workers.reconcile.reader import Changed, Unreadable
from workers.reconcile.run import reconcile
from workers.simulator.cash_applied import FileRow, file_of


@pytest.fixture
def desk(ledger: Ledger) -> Desk:
    desk = Desk(ledger)
    desk.notified("1")
    return desk


def damaged(*given: FileRow, line: int, old: bytes, new: bytes) -> bytes:
    """A file in which one line was altered."""
    lines = file_of(given).split(b"\r\n")
    assert old in lines[line - 1]
    lines[line - 1] = lines[line - 1].replace(old, new, 1)
    return b"\r\n".join(lines)


def told(desk: Desk, content: Any) -> list[tuple[str, int | None, str]]:
    desk.reconcile(content)
    return [(finding.kind.value, finding.line, finding.detail) for finding in desk.found]


# -- quotes


@pytest.mark.parametrize(
    ("old", "new", "kind", "why"),
    [
        # One within a value is a part of it.
        (b'"Jo Sample"', b'Jo "Sample', "missing_here", ""),
        # One that opens the last value; and the same with an even number of quotes in the line.
        (b'"QuickWeb",""', b'"QuickWeb","', "row_malformed", "A quote is not closed."),
        (b'"QuickWeb",""', b'Quick"Web,"x', "row_malformed", "A quote is not closed."),
    ],
)
def test_an_open_quote_costs_its_own_row_only(desk: Desk, old: bytes, new: bytes, kind: str, why: str) -> None:
    content = damaged(row("2"), row("1"), row("3"), line=2, old=old, new=new)
    assert told(desk, content) == [(kind, 2, why), ("missing_here", 4, "")]


def test_an_open_quote_takes_no_part_of_a_value_for_the_whole(desk: Desk, engine: Engine) -> None:
    content = damaged(row("1"), refund("2", "7004100001"), line=3, old=b'"7004100001"', new=b'"7004')
    assert told(desk, content) == [("row_malformed", 3, "A quote is not closed.")]
    assert len(rows(engine, payments)) == 1


def test_line_ends_within_values(desk: Desk) -> None:
    assert told(desk, [row("1", Account_Holder_Name="Jo\nSample"), row("2", Parent_Receipt_Number="\n")])[0][:2] == (
        "missing_here",
        4,
    )


def test_a_damaged_heading(desk: Desk) -> None:
    with pytest.raises(Unreadable, match="in line 1, a quote is not closed"):
        desk.reconcile(b'Receipt" Number,"Settlement Date\r\n')


# -- headings


def test_a_second_file_with_its_columns_in_another_order(desk: Desk, engine: Engine) -> None:
    other = file_of([row("2")], list(reversed(HEADINGS)))
    for second in (other, b"\xef\xbb\xbf" + other, other.replace(b"Receipt Number", b"RECEIPT_NUMBER")):
        with pytest.raises(Unreadable, match="two files at once: line 3 has the headings again"):
            desk.reconcile(file_of([row("1")]) + second)
    assert rows(engine, reconciliations) == []


def test_business_codes_that_are_all_empty_prove_nothing(desk: Desk, engine: Engine) -> None:
    with pytest.raises(Unreadable, match="seems to be of another facility"):
        desk.reconcile([row("2", Supplier_Business_Code="")])
    assert len(rows(engine, payments)) == 1


@pytest.mark.parametrize("heading", ["Currency", "currencyCode"])
def test_another_currency_is_not_taken_for_that_of_the_endpoint(desk: Desk, engine: Engine, heading: str) -> None:
    given = [row(receipt) | {heading: value} for receipt, value in (("1", "aud"), ("2", ""), ("3", "NZD"))]
    assert told(desk, file_of(given, [*HEADINGS, heading])) == [
        ("missing_here", 3, ""),
        ("row_malformed", 4, "Its currency is not that of the endpoint."),
    ]
    assert len(rows(engine, payments)) == 2


# -- values


@pytest.mark.parametrize(
    ("column", "value", "why"),
    [
        ("Payment Amount", "1e3", "Payment Amount is not a decimal amount."),
        ("Payment Amount", "NaN", "Payment Amount is not a decimal amount."),
        ("Payment Amount", "\uff15.00", "Payment Amount is not a decimal amount."),
        ("Payment Amount", "$5.00", "Payment Amount is not a decimal amount."),
        ("Payment Amount", "", "Payment Amount is not a decimal amount."),
        ("Payment Amount", "9" * 60_000, "Payment Amount is not a decimal amount."),
        ("Payment Amount", "-0.00", "It refunds nothing."),
        ("Parent Receipt Number", "1" * 101, "A receipt number is too long."),
        ("Receipt Number", "\u00a0", "Receipt Number is empty."),
        ("Settlement Date", "01-Jan-0001", "Settlement Date is of another century."),
        ("Settlement Date", "07-Mar-0025", "Settlement Date is of another century."),
        ("Settlement Date", "07-Mar-25", "Settlement Date is not a date."),
        ("Settlement Date", "03/07/2025", "Settlement Date is not a date."),
        ("Settlement Date", "29-Feb-2025", "Settlement Date is not a date."),
        ("Settlement Date", "\u0661\u0660-Mar-2025", "Settlement Date is not a date."),
        ("Summary Code", "00", "Summary Code is none of 0, 1, 2 and 3."),
    ],
)
def test_values_that_cannot_be_meant(desk: Desk, engine: Engine, column: str, value: str, why: str) -> None:
    assert told(desk, [row("2") | {column: value}, row("1")]) == [("row_malformed", 2, why)]
    assert len(rows(engine, payments)) == 1


def test_a_wrong_year_makes_the_file_cover_no_other_days(desk: Desk) -> None:
    desk.notified("2", createdDateTime="07 Mar 2023 14:22:09", settlementDate="20230307")
    desk.notified("3")
    result = desk.reconcile([row("1"), row("3", Settlement_Date="07-Mar-2005")])
    assert (result.first_day, result.last_day) == (date(2025, 3, 7), date(2025, 3, 7))
    assert result.counts == {"settlement_date_differs": 1}


def test_texts_of_any_length_and_kind_are_kept(desk: Desk, engine: Engine) -> None:
    """On PostgreSQL as well, where a text that is too long for its column is an error."""
    long = "x" * 5000
    told_of = told(
        desk,
        [
            row("1"),
            row("2", Supplier_Business_Code=long),
            row("3", Response_Code=long, Response_Description=long, Card_Scheme=long, Reference_Number="\x01\u202e"),
            row("4" * 100, Account_Holder_Name="\U0001f4a9" * 3000),
        ],
    )
    assert [kind for kind, _, _ in told_of] == ["other_business", "missing_here", "missing_here"]
    assert [len(each.in_file) for each in rows(engine, findings)] == [64, 6, 6]
    assert {each.state for each in rows(engine, notifications)} == {"processed"}
    assert desk.reconcile([row("1"), row("3", Response_Code=long)]).entered == 0


# -- receipts that occur twice


def test_one_receipt_twice_on_one_day(desk: Desk, engine: Engine) -> None:
    declined = {"Response_Code": "05", "Summary_Code": "1"}
    assert told(desk, [row("1"), row("2", **declined), row("2"), row("2", Payment_Amount="1.00")]) == [
        ("missing_here", 3, ""),
        ("status_differs", 4, ""),
        ("row_repeated", 5, ""),
    ]
    assert {each.receipt_number: (each.state, each.amount) for each in rows(engine, payments)} == {
        "1": ("captured", 62400),
        "2": ("captured", 62400),
    }


def test_a_refund_without_a_parent_is_part_of_no_payment(desk: Desk, engine: Engine) -> None:
    file = [row("1"), refund("2", "")]
    assert told(desk, file) == [("refund_missing_here", 3, "")]
    assert {each.receipt_number: each.amount_refunded for each in rows(engine, payments)} == {"1": 0, None: 10000}
    assert told(desk, file) == []


def test_a_refund_of_itself(desk: Desk, engine: Engine) -> None:
    assert told(desk, [row("1"), refund("2", "2"), bank_row("2")]) == [
        ("refund_missing_here", 3, ""),
        ("missing_here", 4, ""),
    ]
    assert len(rows(engine, payments)) == 2


# -- files that change while they are read


class Changing(io.BytesIO):
    """Becomes another file once it was read to its end."""

    def __init__(self, content: bytes, other: bytes) -> None:
        super().__init__(content)
        self._other = other

    def read(self, size: int | None = -1, /) -> bytes:
        found = super().read(size)
        if not found:
            self.seek(0)
            self.write(self._other)
            self.seek(0, 2)
        return found


def give(desk: Desk, content: io.BytesIO) -> Any:
    return reconcile(desk.books, desk.endpoint, content, "caf.csv", ACTOR, now=NOW)


def test_a_file_that_grows_while_it_is_read(desk: Desk, engine: Engine) -> None:
    half, whole = file_of([row("1")]), file_of([row("1"), row("2")])
    with pytest.raises(Unreadable, match="still being written") as raised:
        give(desk, Changing(half, whole))
    assert raised.value.sentences.endswith("Nothing was written.")
    assert rows(engine, reconciliations) == []


def test_a_file_that_changes_once_rows_are_entered(desk: Desk, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.reconcile.run.BATCH", 1)
    before = file_of([row("1"), row("2")])
    for changed in (before.replace(b'"624.00"', b'"625.00"', 1), before.replace(b'"00"', b'"\0\0"', 1)):
        with pytest.raises(Changed, match="of its rows were entered before that was seen") as raised:
            give(desk, Changing(before, changed))
        assert "Nothing was written" not in raised.value.sentences
    assert {each.finished_at for each in rows(engine, reconciliations)} == {None}
