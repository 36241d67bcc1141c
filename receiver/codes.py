"""What a sender's response code means, and what to tell the customer: tables from the vendors' pages, as data files.

Codes are text, and every table is its own: "08" is not "8", and card "01" is not bank account "1". A code that no row
and no range of its table names is kept and reported as not known; nothing is concluded from its neighbours.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

import msgspec

# Of a summary code of QuickStream: 2 means another thing for cards than for bank accounts.
_CARD_SUMMARIES = {"0": "approved", "1": "declined", "2": "error", "3": "rejected"}
_BANK_SUMMARIES = _CARD_SUMMARIES | {"2": "processing"}
_NOT_FAILED = ("approved", "error", "processing")

# "45-50" names all codes of two digits from the first to the last.
_SPAN = re.compile(r"(\d\d)-(\d\d)", re.ASCII)
_FIVE = re.compile(r"[0-9A-Z]{5}", re.ASCII)


class Response(msgspec.Struct, frozen=True, gc=False):
    """A response code, explained."""

    code: str
    known: bool
    """Whether the vendor's table has it. What is not known is None."""
    meaning: str | None
    summary: str | None
    """In one word: approved, declined, error, processing or rejected (QuickStream); approved, soft_decline,
    hard_decline, risk or declined_by_checkout (Checkout.com)."""
    soft_decline: bool | None
    """Whether the same may succeed later. Never for what may have succeeded already, as with QuickStream's QI."""
    advice: str | None
    """What to tell the customer."""


class _Row(NamedTuple):
    summary: str
    soft: bool
    meaning: str
    advice: str


def explain(payment: Mapping[str, Any]) -> Response | None:
    """The response code of a payment object, explained; None without a code, and for senders that publish no table.

    Reads `provider`, `response_code`, `summary_code` and `card_scheme`: QuickStream has one table for cards and one for
    bank accounts, and only a card has a scheme.
    """
    provider, code = payment["provider"], payment["response_code"]
    if not code:
        return None
    if provider == "quickstream":
        by_card = bool(payment["card_scheme"])
        words = _CARD_SUMMARIES if by_card else _BANK_SUMMARIES
        # The vendor's advice is to decide on the summary code that came with it, not on the code.
        return _explained(
            code, table("quickstream_card" if by_card else "quickstream_bank").get(code), words, payment["summary_code"]
        )
    if provider == "checkout":
        return _explained(code, _checkout(code), {}, None)
    return None


def soft_declines(name: str) -> frozenset[str]:
    """The codes of a table of QuickStream after which the same may succeed later: of what is declined or rejected, and
    not of what may have succeeded already."""
    return frozenset(code for code, row in table(name).items() if row.soft and row.summary in ("1", "3"))


@cache
def table(name: str) -> Mapping[str, _Row]:
    """The rows of ``tables/{name}.csv`` by code."""
    found: dict[str, _Row] = {}
    for code, summary, soft, meaning, advice in _rows(name):
        row = _Row(summary, soft == "yes", meaning, _advice()[advice])
        for each in _span(code):
            found[each] = row
    return found


def _explained(code: str, row: _Row | None, words: Mapping[str, str], summary: str | None) -> Response:
    if summary is None and row is not None:
        summary = row.summary
    word = words.get(summary, summary) if summary else None
    if row is None:
        return Response(code, known=False, meaning=None, summary=word, soft_decline=None, advice=None)
    soft = row.soft and word not in _NOT_FAILED
    return Response(code, known=True, meaning=row.meaning, summary=word, soft_decline=soft, advice=row.advice)


def _checkout(code: str) -> _Row | None:
    if not _FIVE.fullmatch(code):
        return None
    rows = table("checkout")
    return rows.get(code) or rows.get(f"{code[:2]}xxx")


def _span(code: str) -> Iterator[str]:
    if match := _SPAN.fullmatch(code):
        yield from (f"{number:02}" for number in range(int(match[1]), int(match[2]) + 1))
    else:
        yield code


@cache
def _advice() -> dict[str, str]:
    return {advice: text for advice, text in _rows("advice")}  # noqa: C416


def _rows(name: str) -> Iterator[list[str]]:
    """The rows below the heading; lines that begin with # say where they are from."""
    text = (files("receiver") / "tables" / f"{name}.csv").read_text(encoding="utf-8")
    rows = csv.reader(line for line in text.splitlines() if not line.startswith("#"))
    next(rows)
    yield from rows
