"""From where Checkout.com says that it sends, held against a list of the user's own."""

from __future__ import annotations

from datetime import date

import pytest

from receiver.providers.checkout_addresses import Difference, differences, documented
from receiver.settings import networks

IN_USE = ("34.246.107.175/32", "52.209.35.130/32", "54.246.243.142/32")
COMING = ("4.159.40.224/28", "135.116.97.64/28")
BEFORE, DUE = date(2026, 11, 24), date(2027, 1, 11)


def found(allowed: tuple[str, ...], today: date = BEFORE) -> list[Difference]:
    return list(differences(networks(allowed, "allowed_sources"), today))


def test_each_row_has_its_page_and_its_day() -> None:
    assert {str(row.network) for row in documented()} == {*IN_USE, *COMING}
    assert all(row.source.startswith("https://www.checkout.com/") and row.read < BEFORE for row in documented())
    assert {row.allow_before for row in documented()} == {None, DUE}


def test_nothing_differs() -> None:
    for today in (BEFORE, DUE):
        assert found((*IN_USE, *COMING), today) == []
        assert found(("34.246.107.175/32", "52.209.0.0/16", "54.246.243.142/32", *COMING), today) == []


def test_a_change_that_is_due() -> None:
    (difference,) = found(IN_USE)
    detail = "lacks 4.159.40.224/28, 135.116.97.64/28; Checkout.com asks to allow them before 2027-01-11"
    assert difference == Difference(False, detail)
    (difference,) = found((*IN_USE, "4.159.40.224/29", "135.116.97.64/28"))
    assert difference.detail.startswith("lacks 4.159.40.224/28;")


@pytest.mark.parametrize(("today", "urgent"), [(date(2027, 1, 10), False), (DUE, True), (date(2028, 1, 1), True)])
def test_a_change_that_was_missed_refuses_notifications(today: date, urgent: bool) -> None:
    (difference,) = found(IN_USE, today)
    assert difference.urgent is urgent


def test_what_the_documents_do_not_have() -> None:
    (difference,) = found((*IN_USE, *COMING, "203.0.113.0/24", "2001:db8::/32"))
    assert difference.detail.startswith("has 203.0.113.0/24, 2001:db8::/32, which is not in the documents")
    (difference,) = found(COMING)
    assert difference.detail == f"lacks {', '.join(IN_USE)}, documented on 2023-02-15"
