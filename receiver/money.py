"""Amounts: integers in minor units inside, decimal text at the edges, never a float."""

from __future__ import annotations

import re

from receiver.errors import Quarantined, Reason

_DECIMAL_TEXT = re.compile(r"([+-]?)(\d{1,15})(?:\.(\d{1,6}))?", re.ASCII)
# Characters of an amount whose minor units fit any column.
_USUAL = 15
# What a 64-bit column holds.
_LARGEST = 2**63 - 1


def minor_from_text(text: str, exponent: int, name: str) -> int:
    """Minor units of a plain decimal text: ``("624.00", 2)`` gives 62400. Signs are kept.

    `name` is the field's name, for the error. Raises `Quarantined` for anything that is not a plain decimal
    number (so no ``1e2``, no ``NaN``, no thousands separators), that has more decimals than the currency, or whose
    minor units no 64-bit column holds.
    """
    whole, _, decimals = text.partition(".")
    if len(decimals) == exponent and len(text) <= _USUAL and text.isascii() and whole.isdigit() and decimals.isdigit():
        # As nearly every amount is written; what follows says the same of it.
        return int(whole + decimals)
    match = _DECIMAL_TEXT.fullmatch(text)
    if match is None:
        raise Quarantined(Reason.UNREADABLE_BODY, f"{name} is not a decimal amount")
    # Digits are moved, not multiplied: Decimal would round to the precision that its context has at the moment.
    sign, whole, decimals = match.groups(default="")
    if decimals[exponent:].strip("0"):
        raise Quarantined(Reason.UNREADABLE_BODY, f"{name} has more than {exponent} decimals")
    minor = int(sign + whole + decimals[:exponent].ljust(exponent, "0"))
    if abs(minor) > _LARGEST:
        raise Quarantined(Reason.UNREADABLE_BODY, f"{name} is too large")
    return minor


def text_from_minor(minor: int, exponent: int) -> str:
    """Decimal text of minor units, always with all decimals of the currency: ``(62400, 2)`` gives ``"624.00"``."""
    if exponent == 0:
        return str(minor)
    sign, digits = ("-" if minor < 0 else ""), str(abs(minor)).rjust(exponent + 1, "0")
    return f"{sign}{digits[:-exponent]}.{digits[-exponent:]}"
