"""Two raw bodies side by side, line by line, for a person to see where they differ."""

from __future__ import annotations

import re
from difflib import SequenceMatcher
from typing import NamedTuple

_MOST_LINES = 400


class Row(NamedTuple):
    left: str
    right: str
    same: bool


def side_by_side(left: str, right: str) -> list[Row]:
    """The lines of both, aligned where they are the same. What is left over of very long bodies is cut."""
    one, other = _lines(left), _lines(right)
    rows = []
    for _, start, end, from_, to in SequenceMatcher(None, one, other, autojunk=False).get_opcodes():
        mine, theirs = one[start:end], other[from_:to]
        for index in range(max(len(mine), len(theirs))):
            a, b = (part[index] if index < len(part) else "" for part in (mine, theirs))
            rows.append(Row(a, b, a == b))
    return rows


def _lines(body: str) -> list[str]:
    """A form has one field a line, JSON one member, XML one element."""
    text = body.strip()
    if "\n" not in text:
        if text.startswith("<"):
            text = re.sub(r">\s*<", ">\n<", text)
        elif text.startswith(("{", "[")):
            text = re.sub(r'([{,])\s*(?=")', "\\1\n", text)
        else:
            text = text.replace("&", "\n&")
    return text.splitlines()[:_MOST_LINES]
