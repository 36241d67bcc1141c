"""Traps of time and money, over all senders: Sydney's two odd nights, locales, fractions, minor units, floats."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from receiver.expected import ExpectationBody, expectation_of
from receiver.money import text_from_minor
from receiver.notification import Effect, PaymentEvent
from receiver.providers import PROVIDERS, checkout, paymentz, quickstream
from receiver.providers.base import Endpoint, Message
from receiver.providers.quickstream import MONTHS, SYDNEY
from tests.providers.test_paymentz import sent as paymentz_message
from tests.support import CHECKOUT, PAYMENTZ, QUICKSTREAM
from workers.cli import options
from workers.ledger.payments import fold

ROOT = Path(__file__).parents[2]
_NAMES = {number: name for name, number in MONTHS.items()}


def from_quickstream(created: str = "06 Mar 2025 14:22:09", endpoint: Endpoint = QUICKSTREAM, **fields: str) -> Any:
    body = {
        "receiptNumber": "7004100001",
        "communityCode": "ACMECOMM",
        "supplierBusinessCode": "ACME",
        "paymentAmount": "148.75",
        "surchargeAmount": "1.75",
        "settlementDate": "20250306",
        "createdDateTime": created,
        "responseCode": "00",
        "summaryCode": "0",
        "cardScheme": "VISA",
    }
    message = Message("application/x-www-form-urlencoded", {}, urlencode(body | fields).encode())
    return PROVIDERS["quickstream"].interpret(message, endpoint)


def from_checkout(event_type: str = "payment_captured", created_on: str | None = None, **data: Any) -> PaymentEvent:
    body = {"id": "evt_1", "type": event_type, "created_on": created_on, "data": {"id": "pay_1", **data}}
    return checkout.interpret(Message("application/json", {}, json.dumps(body).encode()), CHECKOUT)


# -- Sydney


def written(local: datetime) -> str:
    return f"{local.day:02} {_NAMES[local.month]} {local.year} {local:%H:%M:%S}"


def changes() -> Iterator[datetime]:
    """The moments at which Sydney's clocks change: 16:00 UTC before the first Sunday of April and of October."""
    for year in range(2009, 2037):
        for month in (4, 10):
            first = datetime(year, month, 1, 16, tzinfo=UTC)
            yield first + timedelta(days=(6 - first.weekday()) % 7 - 1)


ANY_MOMENT = st.integers(631_152_000, 2_114_380_800).map(lambda seconds: datetime.fromtimestamp(seconds, UTC))
ODD_NIGHT = st.builds(
    lambda change, seconds: change + timedelta(seconds=seconds),
    st.sampled_from(list(changes())),
    st.integers(-10_800, 10_800),
)


@given(ANY_MOMENT | ODD_NIGHT)
def test_sydney_time_reads_as_the_moment_that_it_was_written_at(moment: datetime) -> None:
    event = from_quickstream(written(moment.astimezone(SYDNEY)))
    if event.flags:
        # Of the hour that occurs twice the first reading is taken.
        assert event.flags == ("created_time_ambiguous",)
        assert moment - event.occurred_at in (timedelta(0), timedelta(hours=1))
    else:
        assert event.occurred_at == moment


@pytest.mark.parametrize(
    ("night", "flagged"),
    [
        # Back from +11 to +10 at 3:00: 2:00 to 2:59:59 occurs twice.
        ("06 Apr 2025", True),
        ("05 Apr 2026", True),
        # On from +10 to +11 at 2:00: 2:00 to 2:59:59 never occurs.
        ("05 Oct 2025", True),
        ("04 Oct 2026", True),
        # The same nights a week later are as any other.
        ("13 Apr 2025", False),
        ("12 Oct 2025", False),
    ],
)
def test_sydney_nights_of_the_change(night: str, flagged: bool) -> None:
    for time in ("02:00:00", "02:30:00", "02:59:59"):
        event = from_quickstream(f"{night} {time}")
        assert event.effect is Effect.CAPTURED
        assert event.occurred_at is not None
        assert event.flags == (("created_time_ambiguous",) if flagged else ())
    for time in ("01:59:59", "03:00:00"):
        assert from_quickstream(f"{night} {time}").flags == ()


def test_sydney_hour_that_occurs_twice_is_read_as_daylight_saving_time() -> None:
    assert from_quickstream("06 Apr 2025 02:30:00").occurred_at == datetime(2025, 4, 5, 15, 30, tzinfo=UTC)
    assert from_quickstream("06 Apr 2025 03:00:00").occurred_at == datetime(2025, 4, 5, 17, 0, tzinfo=UTC)


def test_sydney_hour_that_never_occurs_is_read_by_the_offset_before() -> None:
    assert from_quickstream("05 Oct 2025 01:59:59").occurred_at == datetime(2025, 10, 4, 15, 59, 59, tzinfo=UTC)
    assert from_quickstream("05 Oct 2025 02:30:00").occurred_at == datetime(2025, 10, 4, 16, 30, tzinfo=UTC)
    assert from_quickstream("05 Oct 2025 03:00:00").occurred_at == datetime(2025, 10, 4, 16, 0, tzinfo=UTC)


@pytest.mark.parametrize("settles", ["20250406", "20251005", "20250101", "20241231", "20240229"])
@pytest.mark.parametrize("created", ["06 Apr 2025 02:30:00", "05 Oct 2025 02:30:00", "31 Dec 2024 23:59:59"])
def test_a_settlement_date_is_a_date_and_belongs_to_no_zone(settles: str, created: str) -> None:
    event = from_quickstream(created, settlementDate=settles)
    wanted = date(int(settles[:4]), int(settles[4:6]), int(settles[6:]))
    assert type(event.settlement_date) is date
    assert event.settlement_date == wanted
    payment = fold([event])
    assert payment is not None
    assert payment.settlement_date == wanted


# -- locales

_FORMATS = re.compile("%[-_0^#E]*[aAbBhcpPrxX]")
_CONSULTS = {"strptime", "setlocale", "month_abbr", "month_name", "day_abbr", "day_name", "nl_langinfo", "localeconv"}


def sources() -> Iterator[tuple[str, ast.AST]]:
    for package in ("receiver", "workers"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                yield path.name, node


def formats(node: ast.AST) -> Iterator[str]:
    """Texts by which a time may be written or read."""
    if isinstance(node, ast.FormattedValue) and isinstance(node.format_spec, ast.JoinedStr):
        yield from (str(each.value) for each in node.format_spec.values if isinstance(each, ast.Constant))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "strftime":
        yield from (str(each.value) for each in node.args if isinstance(each, ast.Constant))


def test_no_code_of_ours_asks_the_locale() -> None:
    for name, node in sources():
        if isinstance(node, ast.Attribute | ast.Name):
            called = node.attr if isinstance(node, ast.Attribute) else node.id
            assert called not in _CONSULTS, f"{name}:{node.lineno} {called}"
        for text in formats(node):
            assert not _FORMATS.search(text), f"{name} writes {text}"


def test_months_are_english_under_every_locale_that_is_installed() -> None:
    """In a process of its own, whose environment sets it; C.UTF-8 at least is everywhere."""
    read = """
import locale, sys
sys.path.insert(0, sys.argv[1])
locale.setlocale(locale.LC_ALL, "")
from tests.providers.test_time_and_money import MONTHS, from_quickstream
assert [from_quickstream(f"15 {m} 2025 12:00:00").occurred_at.month for m in MONTHS] == list(range(1, 13))
print(locale.setlocale(locale.LC_TIME))
"""
    tried = {}
    for name in ("C.UTF-8", "de_DE.UTF-8", "fr_FR.UTF-8", "ja_JP.UTF-8", "tr_TR.UTF-8", "ar_SA.UTF-8"):
        done = subprocess.run(
            [sys.executable, "-c", read, str(ROOT)],
            env=os.environ | {"LC_ALL": name},
            capture_output=True,
            text=True,
            timeout=60,
        )
        if "unsupported locale setting" not in done.stderr:
            tried[name] = (done.returncode, done.stderr)
    assert set(tried.values()) == {(0, "")}


# -- Checkout.com's times


@pytest.mark.parametrize("zone", ["Z", "+00:00"])
@pytest.mark.parametrize("fraction", ["", ".5", ".03", ".034", ".1696", ".16965", ".169651", ".7132933", ".9999999"])
def test_fractions_of_a_second_have_up_to_seven_digits(fraction: str, zone: str) -> None:
    micro = int(fraction[1:7].ljust(6, "0")) if fraction else 0
    event = from_checkout(processed_on=f"2022-12-31T23:59:59{fraction}{zone}")
    # The seventh digit is cut and never rounded, or the year would change.
    assert event.occurred_at == datetime(2022, 12, 31, 23, 59, 59, micro, UTC)
    assert event.flags == ()


def test_other_offsets_are_read_as_they_say() -> None:
    for text in ("2026-03-02T21:00:00+10:00", "2026-03-02T05:30:00.0000000-05:30"):
        assert from_checkout(processed_on=text).occurred_at == datetime(2026, 3, 2, 11, 0, tzinfo=UTC)


IMPOSSIBLE = [
    "2023-06-34T15:24:56.9871232Z",
    "2023-02-29T00:00:00Z",
    "2023-13-01T00:00:00Z",
    "2023-06-30T24:30:00Z",
    "2023-06-30T23:59:60Z",
    "0000-01-01T00:00:00Z",
    "0001-01-01T00:00:00+14:00",
    "9999-12-31T23:59:59-14:00",
    "2023-06-30T15:24:56",
    "2023-06-30",
    "yesterday",
    "1688137496",
]


@pytest.mark.parametrize("text", IMPOSSIBLE)
def test_an_impossible_date_never_loses_the_event(text: str) -> None:
    event = from_checkout(created_on="2026-03-02T11:30:55Z", processed_on=text, amount=500, currency="EUR")
    assert (event.effect, event.amount) == (Effect.CAPTURED, 500)
    assert event.occurred_at == datetime(2026, 3, 2, 11, 30, 55, tzinfo=UTC)
    assert event.flags == ("occurred_time_unreadable",)
    nowhere = from_checkout(created_on=text, processed_on=text, amount=500, currency="EUR")
    assert (nowhere.effect, nowhere.occurred_at, nowhere.flags) == (
        Effect.CAPTURED,
        None,
        ("occurred_time_unreadable",),
    )
    payment = fold([nowhere, from_checkout("payment_approved", "2026-03-02T11:30:55Z", amount=500, currency="EUR")])
    assert payment is not None
    assert (payment.state.value, payment.amount) == ("captured", 500)


@pytest.mark.parametrize("text", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "2026-02-30", "x"])
def test_a_time_that_no_calendar_has_is_wrong_use(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="--since must be a time"):
        options.moment(text, "--since")


# -- minor units


def shown(event: PaymentEvent) -> str:
    payment = fold([event])
    assert payment is not None
    assert payment.amount is not None
    return f"{text_from_minor(payment.amount, payment.exponent)} {payment.currency}"


@pytest.mark.parametrize(
    ("currency", "minor", "text"),
    [
        ("JPY", 1000, "1000 JPY"),
        ("KRW", 999_999_999, "999999999 KRW"),
        ("ISK", 1500, "1500 ISK"),
        ("UGX", 1, "1 UGX"),
        ("VND", 150_000, "150000 VND"),
        ("KWD", 12_340, "12.340 KWD"),
        ("BHD", 10, "0.010 BHD"),
        ("TND", 1_000, "1.000 TND"),
        # ISO 4217 gives CLP none and CLF four.
        ("CLP", 1_250_000, "12500.00 CLP"),
        ("CLF", 1_250, "12.50 CLF"),
        ("HKD", 4450, "44.50 HKD"),
        ("AUD", 5, "0.05 AUD"),
    ],
)
def test_minor_units_by_checkouts_own_table(currency: str, minor: int, text: str) -> None:
    assert shown(from_checkout(amount=minor, currency=currency)) == text
    assert shown(from_checkout(amount=str(minor), currency=currency.lower())) == text
    # Six decimals whatever the currency, as in the vendor's fraud reports.
    whole, _, decimals = text.split()[0].partition(".")
    major = {"value": f"{whole}.{decimals:0<6}", "currency": currency}
    assert shown(from_checkout(amount=major)) == text


@pytest.mark.parametrize(
    ("currency", "sent", "text"),
    [
        # The platform's own samples have two decimals for yen.
        ("JPY", "100.00", "100.00 JPY"),
        ("JPY", "100", "100.00 JPY"),
        ("CLP", "12500", "12500.00 CLP"),
        ("ISK", "1500.00", "1500.00 ISK"),
        ("KWD", "12.345", "12.345 KWD"),
        ("KWD", "12.3", "12.300 KWD"),
        ("EUR", "156.5", "156.50 EUR"),
    ],
)
def test_minor_units_by_paymentz(currency: str, sent: str, text: str) -> None:
    assert shown(paymentz.interpret(paymentz_message(amount=sent, currency=currency), PAYMENTZ)) == text


@pytest.mark.parametrize(("currency", "text"), [("AUD", "148.75 AUD"), ("NZD", "148.75 NZD")])
def test_minor_units_of_quickstream_are_cents(currency: str, text: str) -> None:
    assert shown(from_quickstream(endpoint=replace(QUICKSTREAM, currency=currency))) == text


@pytest.mark.parametrize("currency", ["JPY", "ISK", "CLP", "CLF", "KWD", "EUR"])
@pytest.mark.parametrize("provider", ["checkout", "paymentz"])
def test_what_is_expected_is_counted_by_the_same_table(provider: str, currency: str) -> None:
    endpoint: Endpoint = CHECKOUT if provider == "checkout" else PAYMENTZ
    decimals = PROVIDERS[provider].exponent(currency)
    amount = f"12500{'.' if decimals else ''}{'0' * decimals}"
    if provider == "checkout":
        event = from_checkout(amount=int(amount.replace(".", "")), currency=currency, reference="ORDER-2001")
    else:
        event = paymentz.interpret(
            paymentz_message(amount=amount, currency=currency, merchantTransactionId="ORDER-2001"), PAYMENTZ
        )
    expectation = expectation_of(ExpectationBody("ORDER-2001", "12500", currency), endpoint)
    payment = fold([event], expectation)
    assert payment is not None
    assert (payment.amount, payment.exponent, payment.differs) == (expectation.amount, expectation.exponent, ())
    other = expectation_of(ExpectationBody("ORDER-2001", "12501", currency), endpoint)
    against = fold([event], other)
    assert against is not None
    assert against.differs == ("amount",)


def test_nine_digits_are_the_most_and_more_are_kept_and_flagged() -> None:
    assert from_checkout(amount=999_999_999, currency="JPY").flags == ()
    over = from_checkout(amount=1_000_000_000, currency="JPY")
    assert (over.amount, over.flags) == (1_000_000_000, ("amount_unusual",))
    beyond = from_checkout(amount=10**18, currency="JPY")
    assert (beyond.amount, beyond.flags) == (None, ("amount_unreadable",))
    assert beyond.effect is Effect.CAPTURED


def test_many_captures_of_nine_digits_add_up_exactly() -> None:
    events = [from_checkout(amount=999_999_999, currency="JPY", action_id=f"act_{number}") for number in range(1000)]
    payment = fold(events)
    assert payment is not None
    assert payment.amount == 999_999_999_000


@given(st.integers(0, 10**12), st.sampled_from(["JPY", "KWD", "CLP", "ISK", "EUR"]))
def test_an_amount_is_the_same_as_number_text_and_object(minor: int, currency: str) -> None:
    number = from_checkout(amount=minor, currency=currency)
    text = from_checkout(amount=str(minor), currency=currency)
    major = text_from_minor(minor, checkout.exponent(currency))
    thing = from_checkout(amount={"value": major, "currency": currency})
    assert number == text == thing
    assert number.amount == minor


MONEY = [
    *(ROOT / "receiver" / "providers").glob("*.py"),
    *(ROOT / "receiver" / name for name in ("money.py", "reading.py", "notification.py")),
    *(ROOT / "workers" / "ledger").glob("*.py"),
]


@pytest.mark.parametrize("path", MONEY, ids=lambda path: path.stem)
def test_no_float_comes_near_money(path: Path) -> None:
    """No division, no constant, no conversion: only integers are counted with."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        assert not (isinstance(node, ast.Constant) and isinstance(node.value, float))
        assert not (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and path.stem != "database")
        assert not (isinstance(node, ast.Name) and node.id in ("float", "round"))


def test_effects_of_quickstream_are_by_its_summary_alone() -> None:
    for code in ("00", "51", "QI", ""):
        for summary, effect in quickstream.EFFECTS.items():
            assert from_quickstream(responseCode=code, summaryCode=summary).effect is effect
