"""A line of `postback doctor`."""

from __future__ import annotations

from typing import NamedTuple


class Finding(NamedTuple):
    check: str
    verdict: str
    """``ok``, ``note`` or ``fault``."""
    detail: str
