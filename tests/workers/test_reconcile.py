"""Settlement files against the ledger, on both databases: every finding, every order, and nothing entered twice."""

from __future__ import annotations

import itertools
from datetime import UTC, date, datetime
from typing import Any

import pytest
from sqlalchemy import Engine

from receiver import metrics
from receiver.providers.quickstream_settlement import HEADINGS
from tests.support import SAMPLES
from tests.workers.material import repeated, rows
from tests.workers.settlement import Desk, Step, bank_row, refund, row
from workers import audit
from workers.ledger import reconciliations as kept
from workers.ledger.database import open_engine
from workers.ledger.ledger import Ledger
from workers.ledger.queries import Filter, reading
from workers.ledger.tables import findings, notifications, payments, reconciliations
from workers.reconcile.overdue import days_without_file
from workers.reconcile.reader import Busy, Unreadable
from workers.simulator.cash_applied import file_of

SHORT = ["Settlement Date", "Receipt Number", "Payment Amount"]


@pytest.fixture
def desk(ledger: Ledger) -> Desk:
    return Desk(ledger)


def paid(engine: Engine) -> dict[str, tuple[str, int | None, int]]:
    """State, amount and refunded amount of every payment by its id."""
    return {each.payment_id: (each.state, each.amount, each.amount_refunded) for each in rows(engine, payments)}


def everything(engine: Engine) -> list[Any]:
    """All that a repeated file must leave as it is."""
    return [rows(engine, notifications), repeated(engine), rows(engine, payments)]


# -- agreement


def test_matched(desk: Desk, engine: Engine) -> None:
    desk.notified()
    desk.debited()
    before = everything(engine)
    result = desk.reconcile([row(), bank_row()])
    assert (result.rows, result.matched, result.entered, result.findings, desk.found) == (2, 2, 0, 0, [])
    assert (result.first_day, result.last_day) == (date(2025, 3, 7), date(2025, 3, 7))
    assert everything(engine) == before


def test_declined_and_rejected_rows_agree_with_their_notifications(desk: Desk) -> None:
    declined = {"responseCode": "05", "summaryCode": "1", "successFlag": "false"}
    desk.notified(**declined)
    desk.notified("2", **declined | {"responseCode": "Q3", "summaryCode": "3"})
    assert desk.kinds([row(Response_Code="05", Summary_Code="1"), row("2", Response_Code="Q3", Summary_Code="3")]) == []


# -- missing here


def test_a_payment_that_only_the_file_has_exists_from_then_on(desk: Desk, engine: Engine) -> None:
    desk.notified("1")
    result = desk.reconcile([row("1"), row("2", Payment_Amount="95.40", Surcharge_Amount="")])
    (finding,) = desk.found
    assert finding.as_object() == {
        "kind": "missing_here",
        "line": 3,
        "receipt_number": "2",
        "payment_id": "ACMECOMM:2",
        "here": None,
        "in_file": "95.40",
        "entered": True,
        "detail": "",
    }
    assert result.entered == 1
    payment = next(each for each in rows(engine, payments) if each.receipt_number == "2")
    assert payment._asdict() | {"updated_at": None, "custom": None} == {
        "provider": "quickstream",
        "facility": "acme",
        "payment_id": "ACMECOMM:2",
        "receipt_number": "2",
        "state": "captured",
        "amount": 9540,
        "currency": "AUD",
        "exponent": 2,
        "surcharge": None,
        "amount_refunded": 0,
        "reference": "INV-58213",
        "customer_reference": "MEMBER-2041",
        "card_scheme": "VISA",
        "response_code": "00",
        "response_description": "Approved",
        "summary_code": "0",
        "soft_decline": False,
        "settlement_date": date(2025, 3, 7),
        "occurred_at": datetime(2025, 3, 7, 3, 22, tzinfo=UTC),
        "updated_at": None,
        "custom": None,
        "mismatch": False,
    }
    entry = next(each for each in rows(engine, notifications) if each.event_type == "settlement_file")
    assert (entry.state, entry.source, entry.verified, entry.content_type) == (
        "processed",
        "settlement file",
        True,
        "text/csv",
    )
    assert '"file-name":"caf.csv"' in entry.headers
    assert '"line":"3"' in entry.headers


def test_an_entry_holds_no_card_number_and_keeps_what_tells_payments_apart(desk: Desk, engine: Engine) -> None:
    typed, receipt = "4111 1111 1111 1111", "5555555555554444"
    desk.notified("1")
    desk.reconcile([row("1"), row(receipt, Customer_Reference_Number=typed)])
    entry = next(each for each in rows(engine, notifications) if each.event_type == "settlement_file")
    assert typed.encode() not in entry.body
    assert b"4111 11** **** 1111" in entry.body
    payment = next(each for each in rows(engine, payments) if each.receipt_number == receipt)
    assert (payment.payment_id, payment.customer_reference) == (f"ACMECOMM:{receipt}", "4111 11** **** 1111")
    # Nor does the same file tell anything new.
    desk.found.clear()
    assert desk.reconcile([row("1"), row(receipt, Customer_Reference_Number=typed)]).entered == 0


def test_repeating_a_file_changes_nothing(desk: Desk, engine: Engine) -> None:
    desk.notified("1")
    desk.debited("2")
    file = [row("1"), bank_row("2", Response_Code="6", Summary_Code="1"), row("3"), refund("4", "1"), refund("5", "9")]
    assert desk.reconcile(file).entered == 4
    before = everything(engine)
    again = desk.reconcile(file)
    assert (again.entered, again.matched, desk.found) == (0, 5, [])
    assert everything(engine) == before


def test_a_later_notification_of_the_receipt_is_no_second_payment(desk: Desk, engine: Engine) -> None:
    desk.notified("1")
    desk.reconcile([row("1"), row("2")])
    desk.notified("2")
    assert paid(engine) == {"ACMECOMM:1": ("captured", 62400, 0), "ACMECOMM:2": ("captured", 62400, 0)}
    assert desk.kinds([row("1"), row("2")]) == []


RETURNED = {"Response_Code": "6", "Response_Description": "Refer to Customer", "Summary_Code": "1"}
ORDERS: list[Step] = [
    lambda desk: desk.debited("2"),
    lambda desk: desk.reconcile([bank_row("2")]),
    lambda desk: desk.reconcile([bank_row("2", **RETURNED)]),
    lambda desk: desk.reconcile([refund("3", "2", "-24.00")]),
]


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_a_returned_direct_debit_is_declined_in_any_order(desk: Desk, engine: Engine, order: tuple[int, ...]) -> None:
    desk.notified("1")
    for step in order:
        ORDERS[step](desk)
    assert paid(engine)["ACMECOMM:2"] == ("declined", 62400, 0)
    assert len(paid(engine)) == 2
    # Neither file has anything new to say.
    assert desk.kinds([bank_row("2", **RETURNED)]) == []
    assert "debit_returned" not in desk.kinds([bank_row("2")])


@pytest.mark.parametrize("order", list(itertools.permutations([0, 1, 3])))
def test_a_refund_counts_once_in_any_order(desk: Desk, engine: Engine, order: tuple[int, ...]) -> None:
    desk.notified("1")
    for step in (*order, 3):
        ORDERS[step](desk)
    assert paid(engine)["ACMECOMM:2"] == ("partially_refunded", 62400, 2400)


def test_rows_become_a_payment_again_from_what_is_stored(desk: Desk, engine: Engine) -> None:
    """As a replay and a rebuild of the payments do it."""
    desk.notified("1")
    desk.reconcile([row("1"), bank_row("2"), refund("3", "1"), bank_row("4", **RETURNED)])
    for stored in rows(engine, notifications):
        again = desk.pipeline.interpret_again(stored)
        assert (again.state, again.envelope.dedupe_key) == ("processed", stored.dedupe_key)
        assert again.payment_id == stored.payment_id


def test_nothing_is_entered_while_nobody_says_which_community(desk: Desk, engine: Engine) -> None:
    assert desk.kinds([row("1")]) == ["missing_here"]
    assert not desk.found[0].entered
    assert "community_code" in desk.found[0].detail
    assert paid(engine) == {}
    desk.with_settings(community_code="ACMECOMM").reconcile([row("1")])
    desk.notified("1")
    assert paid(engine) == {"ACMECOMM:1": ("captured", 62400, 0)}


def test_two_communities_leave_it_open_too(desk: Desk, engine: Engine) -> None:
    desk.notified("1")
    desk.notified("1", communityCode="ACMEZZZ")
    assert desk.kinds([row("1"), row("2")]) == ["missing_here"]
    assert len(paid(engine)) == 2


# -- differences


@pytest.mark.parametrize(
    ("notified", "in_file", "kind", "here", "there"),
    [
        ({}, {"Payment_Amount": "618.00"}, "amount_differs", "624.00", "618.00"),
        ({}, {"Surcharge_Amount": "1.20"}, "surcharge_differs", "24.00", "1.20"),
        ({}, {"Settlement_Date": "06-Mar-2025"}, "settlement_date_differs", "2025-03-07", "2025-03-06"),
        ({}, {"Response_Code": "05", "Summary_Code": "1"}, "status_differs", "captured", "declined"),
        ({}, {"Response_Code": "Q3", "Summary_Code": "3"}, "status_differs", "captured", "failed"),
        ({"summaryCode": "1", "responseCode": "05"}, {}, "status_differs", "declined", "captured"),
        ({"summaryCode": "2", "responseCode": "QI"}, {}, "status_differs", "pending", "captured"),
    ],
)
def test_differences(
    desk: Desk, notified: dict[str, str], in_file: dict[str, str], kind: str, here: str, there: str
) -> None:
    if notified:
        notified["successFlag"] = "false"
    desk.notified(**notified)
    desk.reconcile([row(**in_file)])
    (finding,) = desk.found
    assert (finding.kind, finding.here, finding.in_file, finding.line) == (kind, here, there, 2)


def test_figures_that_differ_change_nothing_and_are_told_again(desk: Desk, engine: Engine) -> None:
    desk.notified()
    before = everything(engine)
    for _ in range(2):
        result = desk.reconcile([row(Payment_Amount="618.00", Surcharge_Amount="18.00", Settlement_Date="06-Mar-2025")])
        assert sorted(result.counts) == ["amount_differs", "settlement_date_differs", "surcharge_differs"]
        assert result.entered == 0
    assert everything(engine) == before


def test_the_file_settles_an_outcome_that_was_unknown(desk: Desk, engine: Engine) -> None:
    desk.notified(summaryCode="2", responseCode="QI", successFlag="false")
    assert desk.kinds([row()]) == ["status_differs"]
    assert paid(engine) == {"ACMECOMM:7004100001": ("captured", 62400, 0)}
    assert desk.kinds([row()]) == []


def test_a_decline_in_the_file_does_not_undo_a_captured_card_payment(desk: Desk, engine: Engine) -> None:
    """Both are kept, and it is told as long as it lasts: only a person can say which is right."""
    desk.notified()
    file = [row(Response_Code="05", Summary_Code="1")]
    assert (desk.reconcile(file).entered, desk.reconcile(file).entered) == (1, 0)
    assert [finding.kind for finding in desk.found] == ["status_differs"]
    assert paid(engine) == {"ACMECOMM:7004100001": ("captured", 62400, 0)}


def test_a_row_that_does_not_know_the_end_yet_agrees_with_any(desk: Desk) -> None:
    desk.debited("1")
    assert desk.kinds([bank_row("1", Response_Code="New", Summary_Code="2")]) == []


def test_refunds(desk: Desk, engine: Engine) -> None:
    desk.notified("1")
    desk.notified("2")
    file = [row("1"), row("2"), refund("3", "1", "-600.00"), refund("4", "1", "-24.00"), refund("5", "2")]
    result = desk.reconcile([*file, refund("6", "2", Response_Code="05", Summary_Code="1")])
    assert result.counts == {"refund_missing_here": 3}
    assert paid(engine) == {
        "ACMECOMM:1": ("refunded", 62400, 62400),
        "ACMECOMM:2": ("partially_refunded", 62400, 10000),
    }
    # The refund's own day, reference and receipt are not the payment's.
    payment = next(each for each in rows(engine, payments) if each.payment_id == "ACMECOMM:1")
    assert (payment.receipt_number, payment.settlement_date) == ("1", date(2025, 3, 7))


def test_a_payment_that_was_known_only_by_its_refund(desk: Desk, engine: Engine) -> None:
    desk.notified("1")
    assert desk.kinds([row("1"), refund("3", "2")]) == ["refund_missing_here"]
    assert paid(engine)["ACMECOMM:2"] == ("refunded", None, 10000)
    assert desk.kinds([row("1"), row("2")]) == ["missing_here"]
    assert paid(engine)["ACMECOMM:2"] == ("partially_refunded", 62400, 10000)


def test_accepted_and_returned_in_one_file(desk: Desk, engine: Engine) -> None:
    desk.notified("1")
    assert desk.kinds([row("1"), bank_row("2"), bank_row("2", **RETURNED)]) == ["missing_here", "debit_returned"]
    assert paid(engine)["ACMECOMM:2"] == ("declined", 62400, 0)


# -- missing in the file


@pytest.mark.parametrize(
    ("created", "settles", "by_bank", "missing"),
    [
        ("07 Mar 2025 15:59:59", "20250307", True, ["missing_in_file"]),
        ("07 Mar 2025 16:00:00", "20250310", True, []),
        ("07 Mar 2025 16:00:00", "20250307", True, []),
        ("07 Mar 2025 17:59:59", "20250307", False, ["missing_in_file"]),
        ("07 Mar 2025 18:00:00", "20250310", False, []),
        ("06 Mar 2025 18:00:00", "20250307", False, ["missing_in_file"]),
        # The day of yesterday, but past its cut-off.
        ("06 Mar 2025 18:00:00", "20250306", False, ["missing_in_file"]),
        ("06 Mar 2025 12:00:00", "20250306", False, []),
        # Without a settlement date the cut-off alone says it.
        ("06 Mar 2025 16:30:00", "", True, ["missing_in_file"]),
        ("07 Mar 2025 16:30:00", "", True, []),
        ("07 Mar 2025 16:30:00", "", False, ["missing_in_file"]),
        ("06 Mar 2025 16:30:00", "", False, []),
    ],
)
def test_missing_in_the_file(desk: Desk, created: str, settles: str, by_bank: bool, missing: list[str]) -> None:
    desk.notified("1")
    notify = desk.debited if by_bank else desk.notified
    notify("2", createdDateTime=created, settlementDate=settles)
    assert desk.kinds([row("1")]) == missing
    assert [finding.receipt_number for finding in desk.found] == ["2"] * len(missing)


def test_what_an_earlier_file_had_with_its_own_date_is_not_missing_later(desk: Desk) -> None:
    desk.notified("1")
    desk.notified("2")
    desk.notified("3", settlementDate="20250306", createdDateTime="06 Mar 2025 14:22:09")
    thursday = [row("2", Settlement_Date="06-Mar-2025"), row("3", Settlement_Date="06-Mar-2025")]
    assert desk.kinds(thursday) == ["settlement_date_differs"]
    assert desk.kinds([row("1")]) == []


def test_what_was_never_captured_is_not_missing(desk: Desk) -> None:
    desk.notified("1")
    for receipt, summary in (("2", "1"), ("3", "2"), ("4", "3")):
        desk.notified(receipt, summaryCode=summary, responseCode="X", successFlag="false")
    assert desk.kinds([row("1")]) == []


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf", b"\r\n\r\n", file_of([]), file_of([], byte_order_mark=True)])
def test_an_empty_file_covers_no_day(desk: Desk, content: bytes) -> None:
    desk.notified("1")
    result = desk.reconcile(content)
    assert (result.rows, result.findings, result.first_day) == (0, 0, None)
    friday = date(2025, 3, 7)
    assert desk.kinds(content, days=(friday, friday)) == ["missing_in_file"]


def test_the_morning_file_of_returns_covers_no_day(desk: Desk) -> None:
    desk.notified("1")
    desk.debited("2")
    assert desk.kinds([bank_row("2", **RETURNED)]) == ["debit_returned"]


def test_files_of_cards_banks_and_business_groups_apart(desk: Desk) -> None:
    apart = desk.with_settings(settlement_split=True, supplier_business_codes=("ACME", "ACME2"))
    apart.notified("1")
    apart.debited("2")
    apart.notified("3", supplierBusinessCode="ACME2")
    apart.notified("4")
    assert apart.kinds([row("1")]) == ["missing_in_file"]
    assert apart.found[0].receipt_number == "4"
    assert len(desk.kinds([row("1")])) == 3


# -- files that cannot be taken


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR", "not UTF-8"),
        (b"PK\x03\x04\x00\x00", "not a CSV file"),
        (file_of([row()]).decode().encode("utf-16"), "not UTF-8"),
        (file_of([row(Account_Holder_Name="José")]).decode().encode("latin-1"), "not UTF-8 text"),
        (b'"Code","Description"\r\n"00","Approved"\r\n', "no heading Receipt Number"),
        (b"x" * 100_000, "not a CSV file"),
        (b'"Receipt Number","receiptNumber","Settlement Date","Payment Amount"\r\n', "occurs twice"),
        (file_of([row("2", Supplier_Business_Code="OTHER")]), "of another facility"),
        (file_of([row("1")]) + file_of([row("2")]), "two files at once: line 3"),
        (file_of([row("2", Settlement_Date="11-Mar-2025")]), "from the future: see line 2"),
        (file_of([row("1"), row("2", Created_Date_Time="08-Mar-2025 14:22")]), "from the future: see line 3"),
        (
            file_of([row("2")], ["Settlement Date", "Receipt Number", "Payment Amount"]),
            "seems to be of another facility",
        ),
    ],
)
def test_what_cannot_be_taken_is_one_sentence_and_nothing_is_written(
    desk: Desk, engine: Engine, content: bytes, sentence: str
) -> None:
    desk.notified("1")
    before = everything(engine)
    with pytest.raises(Unreadable, match=sentence) as raised:
        desk.reconcile(content)
    assert str(raised.value).endswith(".")
    assert everything(engine) == before
    assert rows(engine, reconciliations) == []


def test_what_settles_on_monday_is_not_from_the_future_on_friday_evening(desk: Desk) -> None:
    desk.notified(createdDateTime="07 Mar 2025 18:22:09", settlementDate="20250310")
    assert desk.kinds([row(Settlement_Date="10-Mar-2025", Created_Date_Time="07-Mar-2025 18:22")]) == []


def test_without_business_codes_one_known_receipt_is_enough(desk: Desk) -> None:
    desk.notified("1")
    assert desk.kinds(file_of([row("1"), row("2")], SHORT)) == ["missing_here"]


def test_rows_of_another_business_are_told_and_left(desk: Desk, engine: Engine) -> None:
    desk.notified("1")
    assert desk.kinds([row("1"), row("2", Supplier_Business_Code="OTHER")]) == ["other_business"]
    assert len(paid(engine)) == 1


def test_two_runs_at_once(desk: Desk, database_url: str, engine: Engine) -> None:
    other = open_engine(database_url)
    with kept.Reconciliations(other).alone("quickstream", "acme") as alone:
        assert alone
        with pytest.raises(Busy, match="at the moment"):
            desk.reconcile([row("1")])
    assert rows(engine, reconciliations) == []
    other.dispose()
    desk.reconcile([row("1")])


# -- rows that cannot be read


def test_malformed_rows_are_told_by_their_line_and_the_rest_is_read(desk: Desk) -> None:
    desk.notified("1")
    desk.notified("2")
    bad = [
        row("3", Payment_Amount="1,000.00"),
        row("", Payment_Amount="1.00"),
        row("4", Settlement_Date="31-Feb-2025"),
        row("5", Summary_Code="7"),
        row("6", Payment_Amount="1.005"),
        row("7", Payment_Amount="-1.00", Surcharge_Amount="1.00"),
    ]
    lines = file_of([row("1"), *bad, row("2")]).split(b"\r\n")
    lines[1:1] = [b'"one","two"', b'"07-Mar-2025","8","an open quote', b""]
    result = desk.reconcile(b"\r\n".join(lines))
    assert [(finding.kind, finding.line) for finding in desk.found] == [
        ("row_malformed", line) for line in (2, 3, 6, 7, 8, 9, 10, 11)
    ]
    assert result.matched == 2
    assert "3" not in "".join(finding.detail for finding in desk.found if finding.line == 6)


def test_a_row_that_stands_twice_is_told(desk: Desk, engine: Engine) -> None:
    desk.notified("1")
    assert desk.kinds([row("1"), row("2"), row("1"), row("2")]) == ["missing_here", "row_repeated", "row_repeated"]
    assert [finding.line for finding in desk.found] == [3, 4, 5]


# -- how the file is written


@pytest.mark.parametrize("line_end", ["\r\n", "\n", "\r"])
@pytest.mark.parametrize("byte_order_mark", [True, False])
def test_any_line_end_with_and_without_a_byte_order_mark(desk: Desk, line_end: str, byte_order_mark: bool) -> None:
    desk.notified("1")
    desk.debited("2")
    file = file_of([row("1"), bank_row("2")], line_end=line_end, byte_order_mark=byte_order_mark)
    for content in (file, file.rstrip(b"\r\n"), file.replace(b'"', b"")):
        assert desk.reconcile(content).matched == 2


def test_columns_in_any_order_more_of_them_and_fewer(desk: Desk) -> None:
    desk.notified("1")
    assert desk.kinds(file_of([row("1")], [*reversed(HEADINGS), "Branch", ""])) == []
    optional = {"Reference Number", "Customer Reference Number", "Card Scheme", "Surcharge Amount", "Summary Code"}
    assert desk.kinds(file_of([row("1")], [name for name in HEADINGS if name not in optional])) == []


def test_other_names_of_the_headings(desk: Desk) -> None:
    renamed = desk.with_settings(settlement_headings={"Belegnummer": "Receipt Number"})
    desk.notified("1")
    content = file_of([row("1")]).replace(b"Receipt Number", b"Belegnummer", 1)
    assert renamed.kinds(content) == []
    assert desk.kinds(file_of([row("1")]).replace(b"Supplier Business Code", b"Merchant Number")) == []
    assert desk.kinds(file_of([row("1")]).replace(b"Receipt Number", b"receiptNumber", 1)) == []


def test_values_with_quotes_commas_and_line_ends(desk: Desk, engine: Engine) -> None:
    desk.notified("1")
    strange = 'Jo "the\r\nSample", Ms'
    assert desk.kinds([row("2", Account_Holder_Name=strange), row("1")]) == ["missing_here"]
    entry = next(each for each in rows(engine, notifications) if each.event_type == "settlement_file")
    assert desk.pipeline.interpret_again(entry).state == "processed"


def test_card_numbers_in_a_row_are_masked_before_it_is_kept(desk: Desk, engine: Engine) -> None:
    """A receipt that looks like one stays what it is."""
    desk.notified("1")
    card, receipt = "4111111111111111", "5555555555554444"
    desk.reconcile([row("1"), row(receipt, Masked_Card_Number=card, Account_Holder_Name=f"Jo {card}")])
    entry = next(each for each in rows(engine, notifications) if each.event_type == "settlement_file")
    assert card.encode() not in entry.body
    assert b"411111******1111" in entry.body
    assert desk.pipeline.interpret_again(entry).payment_id == f"ACMECOMM:{receipt}"
    assert desk.kinds([row("1"), row(receipt)]) == []


# -- what is kept of a run


def test_every_run_leaves_its_record(desk: Desk, engine: Engine) -> None:
    desk.notified("1")
    result = desk.reconcile([row("1", Payment_Amount="1.00"), row("2"), row("x", Summary_Code="9")])
    with reading(engine) as connection:
        (listed,) = kept.list_reconciliations(connection, Filter(provider="quickstream", facility="acme"))
        shown = kept.show_reconciliation(connection, str(result.id))
        assert kept.reconciled_days(connection, "quickstream", "acme", date(2025, 3, 1)) == {date(2025, 3, 7)}
        assert kept.first_reconciled(connection, "quickstream", "acme") == date(2025, 3, 7)
        assert list(kept.list_reconciliations(connection, Filter(facility="octane"))) == []
        assert kept.show_reconciliation(connection, "nothing") is None
    assert shown is not None
    found = shown.pop("found")
    assert shown == listed
    assert found == [finding.as_object() for finding in desk.found]
    assert listed["finished_at"] is not None
    assert listed | {"finished_at": None, "began_at": None} == result.as_object() | {
        "finished_at": None,
        "began_at": None,
        "counts": {"amount_differs": 1, "missing_here": 1, "row_malformed": 1},
    }


def test_the_audit_trail_has_who_gave_which_file_and_what_came_of_it(desk: Desk, engine: Engine) -> None:
    desk.notified("1")
    result = desk.reconcile([row("1", Payment_Amount="1.00"), row("2")])
    with reading(engine) as connection:
        ended, begun = audit.every(connection)
        assert desk.books.audit.verify(connection).faults == []
    file = {"endpoint": "quickstream/acme", "file": "caf.csv", "sha256": result.digest}
    for entry, action in ((begun, "reconciliation_begun"), (ended, "reconciled")):
        assert (entry["operator"], entry["origin"], entry["action"]) == ("jane", "a test", action)
        assert entry["subject"] == result.id
        assert entry["facts"].items() >= file.items()
    assert ended["facts"] == file | {
        "rows": 2,
        "matched": 0,
        "entered": 1,
        "findings": 2,
        "counts": {"amount_differs": 1, "missing_here": 1},
    }


def test_a_run_that_cannot_be_accounted_for_does_not_begin(
    desk: Desk, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.notified("1")
    before = everything(engine)
    monkeypatch.setattr(audit.Audit, "add", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        desk.reconcile([row("1"), row("2")])
    assert everything(engine) == before
    assert rows(engine, reconciliations) == []


def test_a_missing_file_is_known_on_banking_days(desk: Desk, engine: Engine) -> None:
    def missing(now: str) -> list[str]:
        moment = datetime.fromisoformat(now).replace(tzinfo=UTC)
        with reading(engine) as connection:
            return [day.isoformat() for day in days_without_file(connection, desk.endpoint, moment)]

    desk.notified("1")
    # Who never had a file misses none.
    assert missing("2025-03-07T14:00") == []
    desk.reconcile([row("1")])
    assert missing("2025-03-10T12:59") == []
    assert missing("2025-03-10T13:00") == ["2025-03-10"]
    desk.reconcile(b"", now=datetime(2025, 3, 10, 14, tzinfo=UTC))
    desk.reconcile([bank_row("2", **RETURNED)], now=datetime(2025, 3, 11, 19, tzinfo=UTC))
    assert missing("2025-03-12T14:00") == ["2025-03-11", "2025-03-12"]
    assert missing("2025-03-30T14:00")[0] == "2025-03-17"


def test_a_dry_run_writes_nothing_and_counts_nothing(desk: Desk, engine: Engine) -> None:
    desk.notified("1")
    before, counted = everything(engine), settlement_counts()
    result = desk.reconcile([row("1"), row("2")], write=False)
    assert (result.id, result.entered, result.counts) == (None, 0, {"missing_here": 1})
    assert not desk.found[0].entered
    with pytest.raises(Unreadable):
        desk.reconcile(b"\0", write=False)
    assert settlement_counts() == counted
    assert everything(engine) == before
    assert rows(engine, reconciliations) == []
    with reading(engine) as connection:
        assert list(audit.every(connection)) == []


def settlement_counts() -> list[Any]:
    counters = (metrics.SETTLEMENT_FILES, metrics.SETTLEMENT_FINDINGS)
    return [
        sample
        for counter in counters
        for family in counter.collect()
        for sample in family.samples
        if sample.name.endswith("_total")
    ]


def test_only_the_first_findings_are_kept_and_all_are_counted(
    desk: Desk, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.reconcile.findings.KEPT_FINDINGS", 3)
    desk.notified("0")
    result = desk.reconcile([row("0"), *(row(str(number)) for number in range(1, 6))])
    assert (result.findings, result.entered, len(rows(engine, findings))) == (5, 5, 3)


def test_differences_are_counted_in_the_metrics(desk: Desk) -> None:
    def count(kind: str) -> float:
        return float(metrics.SETTLEMENT_FINDINGS.labels("quickstream", "acme", kind)._value.get())

    before = count("amount_differs"), count("missing_here")
    desk.notified("1")
    desk.reconcile([row("1", Payment_Amount="1.00")])
    assert (count("amount_differs"), count("missing_here")) == (before[0] + 1, before[1])


def test_the_progress_ends_with_the_whole(desk: Desk) -> None:
    shares: list[float] = []
    desk.reconcile([row(str(number)) for number in range(10)], progress=shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


# -- the vendor's own files


@pytest.mark.skipif(not SAMPLES.exists(), reason="the vendors' samples are not part of the project")
def test_the_file_of_the_guide(desk: Desk, engine: Engine) -> None:
    """Notified is what the guide's prose says: 618.00 where the row has 624.00, and a refund whose payment is not in
    the file. Its 'two transactions' are three rows."""
    guide = desk.with_settings(supplier_business_codes=("MERCHANT1",))
    facts = {"supplierBusinessCode": "MERCHANT1", "communityCode": "COMCODE", "settlementDate": "20170110"}
    guide.notified("1003548481", **facts, paymentAmount="618.00", createdDateTime="10 Jan 2017 01:11:31")
    guide.debited(
        "1003548482", **facts, paymentAmount="50.00", surchargeAmount="0.00", createdDateTime="10 Jan 2017 02:56:04"
    )
    result = guide.reconcile((SAMPLES / "quickstream" / "cash_applied_file_doc.csv").read_bytes())
    assert (result.rows, result.matched) == (3, 1)
    assert [(finding.kind, finding.here, finding.in_file) for finding in guide.found] == [
        ("amount_differs", "618.00", "624.00"),
        ("refund_missing_here", None, "-301.20"),
    ]
    assert paid(engine)["COMCODE:1003548480"] == ("refunded", None, 30120)
    short = guide.reconcile((SAMPLES / "quickstream" / "cash_applied_file_short_doc.csv").read_bytes())
    assert (short.rows, short.counts) == (1, {"missing_here": 1})
    # Nothing in the short file says how it ended.
    assert paid(engine)["COMCODE:9742904"] == ("pending", 10000, 0)
