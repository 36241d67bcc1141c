"""Card numbers one digit at a time: the rule of `receiver.cards` as it reads, for `test_cards` to hold the quick search
against. It takes up to a second for a body of 256 KiB.
"""

from __future__ import annotations

import itertools
import re
from bisect import bisect
from collections.abc import Callable, Iterable, Iterator, Sequence

from receiver.cards import _RANGES

SHORTEST, LONGEST = 13, 19
_FIRST, _LAST = 6, 4
_BY_TWO_DIGITS = {
    str(two): [entry for entry in _RANGES if f"{entry[0]:0<2}"[:2] <= str(two) <= f"{entry[1]:9<2}"[:2]]
    for two in range(10, 100)
}

# What may stand within one number: separators, and the escapes of these and of digits. In UTF-16 a dash is a space
# with a control character, and NUL, every second byte, is no separator.
_PLAIN_SEPARATOR = rb"[\x10-\x15] | [\x10-\x15]|[ +\-\t\x00]|\xc2?\xa0|\xe2\x80[\x90-\x95\xaf]"
_SEPARATOR = (
    rb"%20|%2[bBdD]|%09|%[cC]2%[aA]0|%[eE]2%80%9[0-5]|\\u00(?:09|2[0bBdD]|[aA]0)|\\u201[0-5]|\\t"
    rb"|&#(?:9|32|4[35]|160|820[89]|821[0-3]|x9|x20|x2[bBdD]|x[aA]0|x201[0-5]);|" + _PLAIN_SEPARATOR
)
_DIGIT = rb"%3[0-9]|\\u003[0-9]|&#(?:4[89]|5[0-7]|x3[0-9]);"
_OTHER = rb"%[0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}|&#[0-9a-fA-FxX]+;"
_ESCAPED = re.compile(
    b"(?P<digit>%b)|(?P<separator>%b)|(?P<other>%b)|(?P<digits>[0-9]+)" % (_DIGIT, _SEPARATOR, _OTHER)
)
_PLAIN = re.compile(b"(?P<separator>%b)|(?P<digits>[0-9]+)" % _PLAIN_SEPARATOR)
_MOST_SEPARATORS = 3
_TURNS_WITH_DIGITS = 3

_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+(?:"|\Z)', re.DOTALL)
_UUID = re.compile(rb"[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}")
_HEXADECIMAL = re.compile(rb"[0-9a-fA-F]{32,}")
_LETTER = re.compile(rb"[a-fA-F]")
_NO_DIGIT = re.compile(r"[^0-9]")


def masked(body: bytes, keep: Iterable[str] = ()) -> tuple[bytes, int]:
    """`body` without card numbers, and how many there were. Those within a value of `keep` are left as they are."""
    kept = [_NO_DIGIT.sub("", value) for value in keep]
    strings = _strings(body)
    # In JSON "%41" is no escape, so what has escapes is looked at once more as it stands.
    readings = (_ESCAPED, _PLAIN) if b"%" in body or b"\\" in body or b"&#" in body else (_PLAIN,)
    changed, count = bytearray(body), 0
    for turn in itertools.count():
        # Other digits may make another number with those around them. Asterisks do not: so this ends.
        numbers = strings if turn < _TURNS_WITH_DIGITS else None
        found = sum(_mask_all(changed, tokens, kept, strings, numbers) for tokens in readings)
        if not found:
            break
        count += found
    return bytes(changed), count


def is_card_number(digits: str) -> bool:
    """Whether plain digits have an issuer's prefix and length and a right check digit."""
    return len(digits) in _lengths(digits[:_FIRST]) and _luhn_sums(digits)[(len(digits) - 1) % 2][-1] % 10 == 0


class _Run:
    """Groups of digits with nothing but separators between them."""

    __slots__ = ("digits", "edges", "places")

    def __init__(self) -> None:
        self.digits = ""
        self.places: list[tuple[int, int]] = []
        """Where each digit stands in the body: an escaped one takes several bytes."""
        self.edges = {0}
        """Numbers of digits after which a group begins or ends."""


def _runs(body: bytes, tokens: re.Pattern[bytes]) -> Iterator[_Run]:
    """Every run that is long enough."""
    run, end, separators = _Run(), -1, 0
    for token in tokens.finditer(body):
        start, kind = token.start(), token.lastgroup
        if start != end or kind == "other" or separators > _MOST_SEPARATORS:
            yield from _ended(run)
            run, separators = _Run(), 0
        end = token.end()
        if kind == "separator":
            if token[0] != b"\x00":
                separators += 1
                run.edges.add(len(run.digits))
            continue
        separators = 0
        if kind == "digit":
            run.digits += _unescaped(token[0])
            run.places.append((start, end))
        elif kind == "digits":
            run.digits += token[0].decode()
            run.places += [(place, place + 1) for place in range(start, end)]
    yield from _ended(run)


def _ended(run: _Run) -> list[_Run]:
    run.edges.add(len(run.digits))
    return [run] if len(run.digits) >= SHORTEST else []


def _unescaped(token: bytes) -> str:
    """``%34``, ``\\u0034``, ``&#x34;`` and ``&#52;`` are all 4."""
    decimal = token.startswith(b"&#") and not token.startswith(b"&#x")
    return chr(int(token.strip(b"%\\u&#x;"), 10 if decimal else 16))


def _star(token: bytes) -> bytes:
    """An asterisk, escaped as the digit was."""
    if len(token) == 1:
        return b"*"
    return {b"%": b"%2A", b"\\": b"\\u002a"}.get(token[:1]) or (b"&#x2a;" if b"x" in token else b"&#42;")


def _mask_all(
    body: bytearray,
    tokens: re.Pattern[bytes],
    keep: Sequence[str],
    strings: Sequence[tuple[int, int]] | None,
    numbers: Sequence[tuple[int, int]] | None,
) -> int:
    """`numbers` are the texts beside which a number gets other digits; None where all get asterisks."""
    as_found, count = bytes(body), 0
    for run in _runs(as_found, tokens):

        def is_none(first: int, end: int, run: _Run = run) -> bool:
            number, start = run.digits[first:end], run.places[first][0]
            if any(number in value for value in keep):
                return True
            fraction = _is_bare(start, strings) and as_found[start - 1 : start] == b"."
            return fraction or _is_name(as_found, start, run.places[end - 1][1])

        for first, end in _cards(run, is_none):
            start, stop = run.places[first][0], run.places[end - 1][1]
            # A JSON number has neither separators nor escapes.
            _mask(body, run, first, end, stop - start == end - first and _is_bare(start, numbers))
            count += 1
    return count


def _cards(run: _Run, is_none: Callable[[int, int], bool]) -> list[tuple[int, int]]:
    """The card numbers in `run`, as (number of the first digit, of the first after it)."""
    digits, starts, ends = run.digits, set(run.edges), run.edges
    sums = _luhn_sums(digits)

    def longest(start: int, among: set[int]) -> int | None:
        for length in _lengths(digits[start : start + _FIRST]):
            end = start + length
            by_parity = sums[(end - 1) % 2]
            if end in among and (by_parity[end] - by_parity[start]) % 10 == 0 and not is_none(start, end):
                return end
        return None

    found: list[tuple[int, int]] = []
    start = visible = 0
    while start + SHORTEST <= len(digits):
        end = longest(start, ends) if start in starts else None
        if end is None:
            start += 1
            continue
        found.append((start, end))
        # What stays of it may be part of another: its first six at the end of one, its last four at the start.
        first: int | None = start
        while first is not None:
            head = first + _FIRST
            before = (s for s in range(max(visible, head - LONGEST), first) if s in starts)
            first = next((s for s in before if longest(s, {head})), None)
            if first is not None:
                found.append((first, head))
        start = visible = end - _LAST
        starts.add(start)
    return found


def _lengths(prefix: str) -> list[int]:
    """Lengths of the card numbers that begin so, the longest first."""
    found = [
        length
        for low, high, lengths in _BY_TWO_DIGITS.get(prefix[:2], ())
        if low <= prefix[: len(low)] <= high
        for length in lengths
    ]
    return sorted(set(found), reverse=True)


def _luhn_sums(digits: str) -> tuple[list[int], list[int]]:
    """For each place, the sum of the digits before it: for numbers whose last digit is at an even place, then for those
    at an odd one. Counted back from the last digit, every second one is doubled."""
    plain = [int(digit) for digit in digits]
    doubled = [sum(divmod(2 * value, 10)) for value in plain]
    even = [two if place % 2 else one for place, (one, two) in enumerate(zip(plain, doubled, strict=True))]
    odd = [one if place % 2 else two for place, (one, two) in enumerate(zip(plain, doubled, strict=True))]
    return [0, *itertools.accumulate(even)], [0, *itertools.accumulate(odd)]


def _mask(body: bytearray, run: _Run, first: int, end: int, bare: bool) -> None:
    hidden = range(first + _FIRST, end - _LAST)
    digit = ""
    if bare:
        head, tail = run.digits[first : first + _FIRST], run.digits[end - _LAST : end]
        digit = next(d for d in "0123456789" if not is_card_number(head + d * len(hidden) + tail))
    for start, stop in (run.places[place] for place in hidden):
        body[start:stop] = digit.encode() or _star(bytes(body[start:stop]))


def _strings(body: bytes) -> list[tuple[int, int]] | None:
    """Where the texts of a JSON document stand; None for what is no JSON."""
    if body.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] not in (b"{", b"["):
        return None
    return [text.span() for text in _STRING.finditer(body)]


def _is_bare(place: int, strings: Sequence[tuple[int, int]] | None) -> bool:
    """Whether a digit of a JSON document stands in no text."""
    if strings is None:
        return False
    index = bisect(strings, (place, place)) - 1
    return index < 0 or place >= strings[index][1]


def _is_name(body: bytes, start: int, end: int) -> bool:
    """Whether a number has a part of a UUID or of a hexadecimal word in it."""
    around = body[max(0, start - 128) : end + 128]
    start, end = start - max(0, start - 128), end - max(0, start - 128)
    words = [*_UUID.finditer(around), *(word for word in _HEXADECIMAL.finditer(around) if _LETTER.search(word[0]))]
    return any(word.start() < end and start < word.end() for word in words)
