"""Amounts: exact in both directions, and nothing but plain decimals within a 64-bit column."""

from __future__ import annotations

from decimal import localcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.errors import Quarantined, Reason
from receiver.money import minor_from_text, text_from_minor


@pytest.mark.parametrize(
    ("text", "exponent", "minor"),
    [
        ("624.00", 2, 62400),
        ("624", 2, 62400),
        ("624.5", 2, 62450),
        ("0.00", 2, 0),
        ("-0.00", 2, 0),
        ("-301.20", 2, -30120),
        ("+1.15", 2, 115),
        ("007.10", 2, 710),
        ("1.005", 3, 1005),
        ("1.0000", 2, 100),
        ("500", 0, 500),
        ("500.00", 0, 500),
        ("0.01", 2, 1),
        # A float would make 28 of it, or 29.000000000000004.
        ("0.29", 2, 29),
        ("999999999999999.99", 2, 99999999999999999),
    ],
)
def test_reads_plain_decimals(text: str, exponent: int, minor: int) -> None:
    assert minor_from_text(text, exponent, "paymentAmount") == minor


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "624.00 ",
        "624.00\n",
        "1,015.00",
        "1e2",
        "1E+400",
        "NaN",
        "sNaN",
        "Infinity",
        "-",
        ".",
        ".50",
        "5.",
        "--1",
        "1.2.3",
        "0x10",
        "1_000",
        "$5.00",
        "٦٢٤",  # Arabic digits: int() would read them
        "６２４.００",  # noqa: RUF001 - wide digits, for the same reason
        "1" * 16,
        "1." + "0" * 7,
        "9" * 1_000_000,
        "\x00",
    ],
)
def test_refuses_everything_else(text: str) -> None:
    with pytest.raises(Quarantined) as caught:
        minor_from_text(text, 2, "paymentAmount")
    assert caught.value.reason is Reason.UNREADABLE_BODY
    assert caught.value.detail == "paymentAmount is not a decimal amount"


@pytest.mark.parametrize(("text", "exponent"), [("1.001", 2), ("1.5", 0), ("0.0001", 3), ("-1.999", 2)])
def test_refuses_more_decimals_than_the_currency_has(text: str, exponent: int) -> None:
    with pytest.raises(Quarantined, match=f"amount has more than {exponent} decimals"):
        minor_from_text(text, exponent, "amount")


@pytest.mark.parametrize("text", ["999999999999999.99", "-999999999999999"])
def test_refuses_what_no_64_bit_column_holds(text: str) -> None:
    with pytest.raises(Quarantined, match="amount is too large"):
        minor_from_text(text, 6, "amount")


def test_errors_name_the_field_and_never_the_value() -> None:
    with pytest.raises(Quarantined) as caught:
        minor_from_text("4111111111111111x", 2, "paymentAmount")
    assert "4111" not in str(caught.value)


def test_does_not_follow_the_precision_of_others() -> None:
    with localcontext() as context:
        context.prec = 3
        assert minor_from_text("123456.78", 2, "amount") == 12345678


@pytest.mark.parametrize(
    ("minor", "exponent", "text"),
    [
        (62400, 2, "624.00"),
        (0, 2, "0.00"),
        (5, 2, "0.05"),
        (-5, 2, "-0.05"),
        (-30120, 2, "-301.20"),
        (500, 0, "500"),
        (-500, 0, "-500"),
        (1, 3, "0.001"),
        (2**63 - 1, 2, "92233720368547758.07"),
    ],
)
def test_writes_all_decimals_of_the_currency(minor: int, exponent: int, text: str) -> None:
    assert text_from_minor(minor, exponent) == text


@given(minor=st.integers(-(10**15) + 1, 10**15 - 1), exponent=st.integers(0, 4))
def test_what_is_written_reads_the_same(minor: int, exponent: int) -> None:
    assert minor_from_text(text_from_minor(minor, exponent), exponent, "amount") == minor


@given(text=st.text(max_size=30), exponent=st.integers(0, 4))
def test_any_text_is_an_integer_or_quarantined(text: str, exponent: int) -> None:
    try:
        minor = minor_from_text(text, exponent, "amount")
    except Quarantined:
        return
    assert type(minor) is int
    assert abs(minor) < 2**63
