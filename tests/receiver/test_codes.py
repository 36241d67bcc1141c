"""The tables of response codes: every row, what stays apart, and that nothing is concluded of an unknown code."""

from __future__ import annotations

import csv
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.codes import Response, explain, soft_declines, table
from tests.support import SAMPLES

QUICKSTREAM_SAMPLES = SAMPLES / "quickstream"
needs_samples = pytest.mark.skipif(
    not QUICKSTREAM_SAMPLES.is_dir(), reason="the shared samples are not on this machine"
)


def payment(provider: str, code: str | None, scheme: str | None = None, summary: str | None = None) -> dict[str, Any]:
    return {"provider": provider, "response_code": code, "card_scheme": scheme, "summary_code": summary}


def card(code: str, summary: str | None = None) -> Response:
    found = explain(payment("quickstream", code, "VISA", summary))
    assert found is not None
    return found


def bank(code: str, summary: str | None = None) -> Response:
    found = explain(payment("quickstream", code, None, summary))
    assert found is not None
    return found


def checkout(code: str) -> Response:
    found = explain(payment("checkout", code))
    assert found is not None
    return found


def test_a_code_is_explained_with_all_that_the_table_has() -> None:
    assert card("51", "1") == Response(
        code="51",
        known=True,
        meaning="There is not enough money",
        summary="declined",
        soft_decline=True,
        advice="The payment is more than your account or its limit allows at the moment. Please try again later, or use"
        " another card.",
    )


def test_codes_are_text() -> None:
    assert card("08").meaning == "Approved; identification was asked for"
    assert not card("8").known
    assert bank("1").meaning == "The BSB number is not valid"
    assert not bank("01").known
    assert not card("1").known
    # Which YAML would read as a boolean.
    assert card("No").known
    assert bank("No").known
    assert card("N").meaning == "The bank did not answer (New Zealand)"


def test_cards_and_bank_accounts_have_tables_of_their_own() -> None:
    assert not bank("51").known
    assert not card("G").known
    assert not card("No Account").known
    assert card("EA", "2").summary == "error"
    assert bank("New", "2").summary == "processing"


@pytest.mark.parametrize("code", ["45", "47", "50", "69", "74", "76", "88", "89"])
def test_spans_name_all_their_codes(code: str) -> None:
    assert (card(code).meaning or "").startswith("Reserved")


@pytest.mark.parametrize("code", ["100", "45-50", "4", "ZZ", "n4", " 51", "", "٤٥"])
def test_what_no_row_has_is_kept_and_flagged(code: str) -> None:
    found = explain(payment("quickstream", code, "VISA", "1"))
    if not code:
        assert found is None
        return
    # That it was declined, its summary code says.
    assert found == Response(code, known=False, meaning=None, summary="declined", soft_decline=None, advice=None)


def test_the_summary_that_came_counts_before_that_of_the_table() -> None:
    assert card("05").summary == "declined"
    assert card("05", "2").summary == "error"
    assert card("05", "7").summary == "7"


def test_what_may_have_succeeded_is_never_to_be_tried_again() -> None:
    """QI is flagged as a soft decline and has summary 2: a retry on that flag alone may charge twice."""
    assert table("quickstream_card")["QI"].soft
    assert "QI" not in soft_declines("quickstream_card")
    assert not card("QI", "2").soft_decline
    assert "do not pay again" in (card("QI", "2").advice or "")
    assert not card("05", "2").soft_decline
    assert bank("6", "1").soft_decline


@pytest.mark.parametrize(
    ("code", "summary", "soft", "meaning"),
    [
        ("10000", "approved", False, "Approved"),
        ("10010", "approved", False, "Approved for a part of the amount"),
        ("20005", "soft_decline", True, "The card's bank declined without a reason"),
        ("20199", "soft_decline", True, "Declined; a further attempt may succeed"),
        ("2005C", "soft_decline", True, "Declined; a further attempt may succeed"),
        ("30399", "hard_decline", False, "Declined; the card's bank or the cardholder has to act first"),
        ("40101", "risk", False, "Stopped by a risk rule"),
        ("43102", "risk", False, "Stopped by a risk rule of Checkout.com"),
        ("50001", "declined_by_checkout", False, "A payout or refund that Checkout.com declined"),
    ],
)
def test_checkout_ranges(code: str, summary: str, soft: bool, meaning: str) -> None:
    found = checkout(code)
    assert (found.known, found.summary, found.soft_decline, found.meaning) == (True, summary, soft, meaning)
    assert found.advice


@pytest.mark.parametrize("code", ["60001", "2005", "200511", "20xxx", "20 05", "Y", "１００００"])  # noqa: RUF001
def test_checkout_codes_outside_the_ranges_are_not_known(code: str) -> None:
    assert checkout(code) == Response(code, known=False, meaning=None, summary=None, soft_decline=None, advice=None)


@pytest.mark.parametrize("provider", ["debitsuccess", "paymentz", "another"])
def test_senders_without_a_table_have_nothing_to_explain(provider: str) -> None:
    assert explain(payment(provider, "00")) is None
    assert explain(payment("quickstream", None)) is None


@given(st.sampled_from(["quickstream", "checkout"]), st.text(min_size=1), st.none() | st.text(), st.none() | st.text())
def test_any_code_is_explained_or_not_known(provider: str, code: str, scheme: str | None, summary: str | None) -> None:
    found = explain(payment(provider, code, scheme, summary))
    assert found is not None
    assert found.code == code
    assert found.known == (found.meaning is not None) == (found.advice is not None) == (found.soft_decline is not None)


@pytest.mark.parametrize("name", ["quickstream_card", "quickstream_bank", "checkout"])
def test_every_row_is_whole(name: str) -> None:
    rows = table(name)
    for code, row in rows.items():
        assert code == code.strip()
        assert row.meaning
        assert row.advice.endswith((".", "accord."))
        if name != "checkout":
            assert re.fullmatch("[0-3]", row.summary)
    assert len(rows) > 18


def test_nobody_is_told_what_a_bank_suspects() -> None:
    suspected = [card(code).advice for code in ("34", "41", "43", "59", "04", "67")]
    suspected += [checkout(code).advice for code in ("20059", "30034", "30041", "30043")]
    assert len(set(suspected)) == 1
    assert not re.search("lost|stolen|fraud|suspect", suspected[0] or "")


def codes_of_the_vendor(name: str) -> dict[str, tuple[str, bool]]:
    """Summary code and soft decline by code; "45-50" stays as it is printed."""
    with (QUICKSTREAM_SAMPLES / f"response_codes_{name}.csv").open(encoding="utf-8", newline="") as file:
        return {row["code"]: (row["summary_code"], row["soft_decline"] == "Yes") for row in csv.DictReader(file)}


@needs_samples
@pytest.mark.parametrize("name", ["card", "bank"])
def test_the_tables_have_the_vendors_facts(name: str) -> None:
    wanted = codes_of_the_vendor(name)
    spans = {code for code in wanted if re.fullmatch(r"\d\d-\d\d", code)}
    expanded = {
        f"{number:02}": wanted[span] for span in spans for number in range(int(span[:2]), int(span[3:]) + 1)
    } | {code: facts for code, facts in wanted.items() if code not in spans}
    found = {code: (row.summary, row.soft) for code, row in table(f"quickstream_{name}").items()}
    # The newer list has one code more.
    if name == "card":
        assert found.pop("Q0") == ("3", False)
    assert found == expanded
