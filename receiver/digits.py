"""The digits of a body, whatever they are escaped as, and where among them 13 to 19 have a right check digit.

Anybody who has a proof may send 256 KiB of digits, and the accept side looks through them between two requests. So
nothing here is done for one digit at a time: bodies are marked up by `bytes.replace` and `bytes.translate`, and the
sums of all numbers of one length are added up at once, in an integer that has a byte for each digit.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from itertools import compress
from typing import NamedTuple

SHORTEST, LONGEST = 13, 19

_MOST_SEPARATORS = 3

# A body is marked up in its own length: a byte of `_MARKED_DIGITS` stands for an escaped digit, `_SEPARATOR` for a
# separator that is no single character of ASCII, `_FILL` for the rest of either, and `_BREAK` for what ends a run. None
# is a part of an escape, so that no mark makes another with what stands beside it.
_MARKED_DIGITS = b"\x03\x04\x05\x06\x07\x08\x0b\x0c\x0e\x0f"
_SEPARATOR, _FILL, _BREAK = b"\x02", b"\x01", b"!"
_UNMARKED = bytes.maketrans(_MARKED_DIGITS + _SEPARATOR + _FILL, _BREAK * 12)

# In UTF-16 a dash is a space with a control character, and NUL, every second byte, is no separator.
_CONTROL = re.compile(rb"[\x10-\x15]")
_CONTROL_SEPARATOR = re.compile(rb"[\x10-\x15] | [\x10-\x15]")
_WIDE_SEPARATORS = (b"\xc2\xa0", b"\xa0", *(b"\xe2\x80%c" % last for last in (*range(0x90, 0x96), 0xAF)))

_DIGITS = b"0123456789"
_UNESCAPED = bytes.maketrans(_MARKED_DIGITS, _DIGITS)
_ESCAPED_DIGITS = {
    escape: _MARKED_DIGITS[digit : digit + 1]
    for digit in range(10)
    for escape in (b"%%3%d" % digit, rb"\u003%d" % digit, b"&#x3%d;" % digit, b"&#%d;" % (0x30 + digit))
}
_ESCAPED_SEPARATORS = (
    *(b"%20", b"%2b", b"%2B", b"%2d", b"%2D", b"%09", b"%c2%a0", b"%C2%a0", b"%c2%A0", b"%C2%A0"),
    *(b"%%%c2%%80%%9%d" % (letter, last) for letter in b"eE" for last in range(6)),
    *(rb"\t", rb"\u0009", rb"\u0020", rb"\u002b", rb"\u002B", rb"\u002d", rb"\u002D", rb"\u00a0", rb"\u00A0"),
    *(rb"\u201%d" % last for last in range(6)),
    *(b"&#%d;" % code for code in (9, 32, 43, 45, 160, *range(8208, 8214))),
    *(b"&#x%b;" % code for code in (b"9", b"20", b"2b", b"2B", b"2d", b"2D", b"a0", b"A0")),
    *(b"&#x201%d;" % last for last in range(6)),
)


def _with_fill(escapes: Iterable[tuple[bytes, bytes]], first: bytes) -> list[tuple[bytes, bytes]]:
    return [(escape, one + _FILL * (len(escape) - 1)) for escape, one in escapes if escape.startswith(first)]


_ESCAPES = {
    first: _with_fill((_ESCAPED_DIGITS | dict.fromkeys(_ESCAPED_SEPARATORS, _SEPARATOR)).items(), first)
    for first in (b"%", b"\\", b"&#")
}
_OTHER_PERCENT = re.compile(rb"%[0-9a-fA-F]{2}")
_OTHER_JSON = re.compile(rb"\\u[0-9a-fA-F]{4}")
_OTHER_REFERENCE = re.compile(rb"&#[0-9a-fA-FxX]++;")


_EVERY = range(256)
_IS_DIGIT = bytes(byte in _DIGITS for byte in _EVERY)
_KINDS = bytes(byte if byte in _DIGITS else 0x20 if byte in b" +-\t" + _SEPARATOR else _BREAK[0] for byte in _EVERY)
"""A marked body as digits, spaces for separators, and breaks."""
_RUNS = bytes(0x30 if byte in _DIGITS else byte for byte in _EVERY)
_EDGE, _END = 1, 2
_BEFORE = bytes(_EDGE if byte == 0x20 else _END if byte == _BREAK[0] else 0 for byte in _EVERY)
_EDGES = bytes(byte in (_EDGE, _END) for byte in _EVERY)
_ENDS = bytes(byte == _END for byte in _EVERY)
_PLAIN = bytes(byte - 0x30 if byte in _DIGITS else 0 for byte in _EVERY)
_DOUBLED = bytes(sum(divmod(2 * value, 10)) for value in _PLAIN)
_TENS = bytes(byte % 10 == 0 for byte in _EVERY)
_ONE = re.compile(b"\x01")


class Digits:
    """All digits of a body in one reading, numbered from 0. They stand in runs, and in groups within a run: between two
    groups are up to three separators, between two digits of a group none."""

    def __init__(self, body: bytes, *, escaped: bool) -> None:
        self._marked, self._escaped = _marked(body, escaped), escaped
        kinds = _with_short_gaps(self._marked.translate(_KINDS, b"\x00" + _FILL))
        self.any_long = b"0" * SHORTEST in kinds.translate(_RUNS, b" ")
        """Whether a run is long enough at all. Without one nothing else of this is of use."""
        self.text = kinds.translate(None, b" " + _BREAK).decode()
        # What stands before each digit: another of its group (0), separators, or nothing of its run.
        self._before = bytes(compress((_BREAK + kinds).translate(_BEFORE), kinds.translate(_IS_DIGIT)))

    @cached_property
    def places(self) -> list[int]:
        """Where each digit begins in the body."""
        return list(compress(range(len(self._marked)), self._marked.translate(_IS_DIGIT)))

    def stop(self, number: int) -> int:
        """Where that digit ends in the body: an escaped one takes several bytes."""
        stop = self.places[number] + 1
        while self._escaped and self._marked[stop : stop + 1] == _FILL:
            stop += 1
        return stop

    def begins_group(self, number: int) -> bool:
        return self._before[number] != 0

    def ends_group(self, number: int) -> bool:
        """Whether `number` is the first after a group."""
        return number == len(self._before) or (number < len(self._before) and self._before[number] != 0)

    def is_right(self, start: int, length: int) -> bool:
        """Whether so many digits from `start` are of one run and have a right check digit. `length` is 13 to 19."""
        return self._right[length][start] == 1 and _END not in self._before[start + 1 : start + length]

    def all_right(self, length: int) -> set[str]:
        """All such numbers of that length, wherever they begin and end."""
        return {
            self.text[one.start() : one.start() + length]
            for one in _ONE.finditer(self._right[length], 0, max(0, len(self.text) - length + 1))
            if _END not in self._before[one.start() + 1 : one.start() + length]
        }

    def groups(self, begins: Mapping[int, bytearray]) -> Groups:
        """Whole groups that `is_right` holds for. `begins` has for each length a table of those of the 100 pairs of
        digits, as bytes 0 to 99, that such a number may begin with."""
        count = len(self.text)
        starts = int.from_bytes(self._before.translate(_EDGES), "little")
        # A group ends where the next begins, and the last one with the last digit.
        ends = starts | 1 << 8 * count
        breaks = int.from_bytes(self._before.translate(_ENDS), "little")
        plain = int.from_bytes(self.text.encode().translate(_PLAIN), "little")
        pairs = (10 * plain + (plain >> 8)).to_bytes(count, "little")
        broken = some = 0
        whole = {}
        for length in range(2, LONGEST + 1):
            broken |= breaks >> 8 * (length - 1)
            if length >= SHORTEST:
                right = int.from_bytes(self._right[length], "little") & starts & ends >> 8 * length
                found = right & int.from_bytes(pairs.translate(begins[length]), "little")
                found = (found | broken) ^ broken
                some |= found
                whole[length] = found.to_bytes(count, "little")
        return Groups(some.to_bytes(count, "little"), whole)

    @cached_property
    def _right(self) -> dict[int, bytes]:
        """For each length and each digit, 1 where so many digits from there on have a right check digit (Luhn)."""
        values, count = self.text.encode(), len(self.text)
        plain = int.from_bytes(values.translate(_PLAIN), "little")
        doubled = int.from_bytes(values.translate(_DOUBLED), "little")
        # The sums of all numbers of one length are those of the next digits' numbers, one shorter, and the first digit:
        # counted back from the last, every second one is doubled. None is over 171, so that each keeps to its byte.
        sums, right = plain, {}
        for length in range(2, LONGEST + 1):
            sums = (sums >> 8) + (plain if length % 2 else doubled)
            if length >= SHORTEST:
                right[length] = sums.to_bytes(count, "little").translate(_TENS)
        return right


class Groups(NamedTuple):
    """For each digit, 1 where a number begins."""

    any: bytes
    by_length: Mapping[int, bytes]

    def next(self, start: int) -> int:
        """The first digit of the next one, from `start` on; -1 without one."""
        return self.any.find(1, start)


def is_right(digits: str) -> bool:
    """Whether plain digits have a right check digit (Luhn)."""
    values = digits.encode()
    return (sum(values[::-2].translate(_PLAIN)) + sum(values[-2::-2].translate(_DOUBLED))) % 10 == 0


def _marked(body: bytes, escaped: bool) -> bytes:
    marked = body.translate(_UNMARKED)
    if escaped:
        for first, escapes in _ESCAPES.items():
            if first in marked:
                for escape, mark in escapes:
                    marked = marked.replace(escape, mark)
        marked = _OTHER_PERCENT.sub(_BREAK * 3, marked)
        marked = _OTHER_JSON.sub(_BREAK * 6, marked)
        marked = _OTHER_REFERENCE.sub(lambda found: _BREAK * len(found[0]), marked)
    if not marked.isascii():
        for separator in _WIDE_SEPARATORS:
            marked = marked.replace(separator, _SEPARATOR + _FILL * (len(separator) - 1))
    if _CONTROL.search(marked):
        marked = _CONTROL_SEPARATOR.sub(_SEPARATOR + _FILL, marked)
    return marked.translate(_UNESCAPED)


def _with_short_gaps(kinds: bytes) -> bytes:
    """With one character between two groups: a space, or a break where there is one or more than three separators."""
    kinds = kinds.replace(b" " * (_MOST_SEPARATORS + 1), _BREAK)
    while b"  " in kinds:
        kinds = kinds.replace(b"  ", b" ")
    kinds = kinds.replace(b" " + _BREAK, _BREAK).replace(_BREAK + b" ", _BREAK)
    while _BREAK * 2 in kinds:
        kinds = kinds.replace(_BREAK * 2, _BREAK)
    return kinds
