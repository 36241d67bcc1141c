"""Card numbers, which do not belong here: masked to their first six and last four digits before anything is kept.

The rule. A card number is 13 to 19 digits with a prefix and length that an issuer uses and a right check digit (Luhn),
in one run or in groups between spaces or dashes, escaped as forms, JSON and XML do it or not. It begins and ends with
a group. It is none

- in a longer run of digits, in a UUID, or in a hexadecimal word of 32 characters and more: those are names;
- in what tells payments apart or is signed (`keep`, of which each provider names its own): one in thirty ids of 16
  digits looks like a card number, and with its middle gone it would be the id of other payments too;
- in the fraction of a bare JSON number.

A masked body has its length, and reads as it did but for the digits: ``*`` stands for itself in forms, JSON strings and
XML. A bare JSON number gets other digits, so that it stays a number.
"""

from __future__ import annotations

import itertools
import re
from bisect import bisect, bisect_left
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import msgspec

from receiver.digits import LONGEST, SHORTEST, Digits, is_right

if TYPE_CHECKING:
    from receiver.providers.base import Endpoint, Message, Provider

_FIRST, _LAST = 6, 4
_TURNS_WITH_DIGITS = 3
_FEW = 1000
"""Characters in which a number is looked for plainly."""

# From the issuers' published ranges, as (from, to, lengths). UATP (1, 15 digits) is left out: nearly every long number
# that begins with 1 is a time.
_LONG = range(16, 20)
_RANGES: tuple[tuple[str, str, Sequence[int]], ...] = (
    ("4", "4", (13, 16, 19)),  # Visa
    ("51", "55", (16,)),  # Mastercard
    ("2221", "2720", (16,)),
    ("34", "34", (15,)),  # American Express
    ("37", "37", (15,)),
    ("300", "305", range(14, 20)),  # Diners Club
    ("3095", "3095", range(14, 20)),
    ("36", "36", range(14, 20)),
    ("38", "39", range(14, 20)),
    ("3528", "3589", _LONG),  # JCB
    ("6011", "6011", _LONG),  # Discover
    ("644", "649", _LONG),
    ("65", "65", _LONG),
    ("62", "62", _LONG),  # UnionPay
    ("81", "81", _LONG),
    ("5018", "5018", range(13, 20)),  # Maestro
    ("5020", "5020", range(13, 20)),
    ("5038", "5038", range(13, 20)),
    ("5893", "5893", range(13, 20)),
    ("6304", "6304", range(13, 20)),
    ("6759", "6759", range(13, 20)),
    ("6761", "6763", range(13, 20)),
    ("5610", "5610", (16,)),  # Bankcard and eftpos, Australia
    ("560221", "560225", (16,)),
    ("508500", "508999", (16,)),  # RuPay
    ("606985", "608500", (16,)),
    ("82", "82", (16,)),
    ("2200", "2204", _LONG),  # Mir
    ("636", "636", _LONG),  # InterPayment
)


def _by_prefix(width: int, entries: Iterable[tuple[str, str, Sequence[int]]]) -> dict[str, tuple[int, ...]]:
    """Lengths of the card numbers that begin so, the longest first, by that many digits."""
    found: dict[str, set[int]] = {}
    for low, high, lengths in entries:
        for prefix in range(int(f"{low:0<{width}}"), int(f"{high:9<{width}}") + 1):
            found.setdefault(str(prefix), set()).update(lengths)
    return {prefix: tuple(sorted(lengths, reverse=True)) for prefix, lengths in found.items()}


# No range of six digits lies within one of four or fewer.
_BY_FOUR = _by_prefix(4, [entry for entry in _RANGES if len(entry[0]) <= 4])
_BY_SIX = _by_prefix(6, [entry for entry in _RANGES if len(entry[0]) > 4])
_BEGINS = {length: bytearray(256) for length in range(SHORTEST, LONGEST + 1)}
"""For each length, the first two digits of its card numbers."""
for _prefix, _its_lengths in (*_BY_FOUR.items(), *_BY_SIX.items()):
    for _length in _its_lengths:
        _BEGINS[_length][int(_prefix[:2])] = 1

# For the quick look: digits and what may stand between them become one byte, all others another.
_JOINTS = b" +-\t\x00\x10\x11\x12\x13\x14\x15" + bytes(range(0x80, 0x100))
_MARKS = bytes(0x30 if byte in b"0123456789" + _JOINTS else 0x78 for byte in range(256))
_RUN = b"0" * SHORTEST
_PERCENT_JOINT = re.compile(rb"%(?:3[0-9]|20|2[bBdD]|09|[cC]2|[aA]0|[eE]2|80|9[0-5])")
_PERCENT_DIGIT = re.compile(rb"%3[0-9]")
_PERCENT = re.compile(rb"%[0-9a-fA-F]{2}")
_JSON_ESCAPE = re.compile(rb"\\(?:u00[023aA]|u201|t)")
_CANDIDATE = re.compile(rb"[2-68](?<![0-9].)(?:[ +\-\t\x00\x10-\x15\x80-\xff]*+[0-9]){12}", re.DOTALL)

_QUOTE = re.compile(b'"')
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+(?:"|\Z)', re.DOTALL)
# From its first dash on: there are far fewer of them than of digits.
_UUID = re.compile(rb"(?<=[0-9a-fA-F]{8})-(?=(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12})")
_UUID_LENGTH = 36
_HEXADECIMAL = re.compile(rb"[0-9a-fA-F]{32,}+")
_AROUND = 128
_LETTER = re.compile(rb"[a-fA-F]")
_NO_DIGITS = bytes(byte for byte in range(256) if byte not in b"0123456789")


def may_hold(body: bytes) -> bool:
    """Whether a closer look is worth its time: False for nearly every body, within a microsecond."""
    probe = body
    # Most forms escape nothing but the colons of a time.
    if b"%" in body and body.count(b"%") > body.count(b"%3A") and _PERCENT_JOINT.search(body):
        if _PERCENT_DIGIT.search(body):
            return True
        probe = _PERCENT_JOINT.sub(b"", body)
    # One byte is found far sooner than two of which the first is in every form.
    if (b"\\" in body and _JSON_ESCAPE.search(body)) or (b"#" in body and b"&#" in body):
        return True
    at = probe.translate(_MARKS).find(_RUN)
    if at < 0:
        return False
    # Bank references and scheme ids are long too, in most Checkout.com events. Nothing begins before the first of them.
    first = at if probe is body else 0
    return bool(_CANDIDATE.search(body, first) or (b"%" in body and _CANDIDATE.search(_PERCENT.sub(b" ", body))))


def masked(body: bytes, keep: Iterable[str] = ()) -> tuple[bytes, int]:
    """`body` without card numbers, and how many there were. Those within a value of `keep` are left as they are."""
    if not may_hold(body):
        return body, 0
    kept, texts = _Kept(keep), _Texts(body)
    # In JSON "%41" is no escape, so what has escapes is looked at once more as it stands.
    readings = (True, False) if b"%" in body or b"\\" in body or b"&#" in body else (False,)
    changed, count = bytearray(body), 0
    for turn in itertools.count():
        # Other digits may make another number with those around them. Asterisks do not: so this ends.
        with_digits = turn < _TURNS_WITH_DIGITS
        found = sum(_mask_all(changed, escaped, kept, texts, with_digits) for escaped in readings)
        if not found:
            break
        count += found
    return bytes(changed), count


def masked_message(message: Message, provider: Provider, endpoint: Endpoint) -> tuple[Message, dict[str, int]]:
    """`message` as it may be kept, and how many card numbers there were in its ``body`` and ``header``s."""
    try:
        keep = provider.identifiers(message, endpoint)
    except Exception:
        # Nothing tells payments apart in what cannot be read; `identify` says why.
        keep = []
    body, in_body = masked(message.body, keep)
    headers = dict(message.headers)
    in_headers = 0
    for name in set(provider.kept_headers) & headers.keys():
        value, found = masked(headers[name].encode("latin-1", "replace"), keep)
        headers[name] = value.decode("latin-1") if found else headers[name]
        in_headers += found
    content_type, found = masked(message.content_type.encode("latin-1", "replace"))
    places = {"body": in_body, "header": in_headers + found}
    kept_type = content_type.decode("latin-1") if found else message.content_type
    changed = msgspec.structs.replace(message, content_type=kept_type, headers=headers, body=body)
    return changed, {place: numbers for place, numbers in places.items() if numbers}


def masked_text(text: str) -> str:
    """The same for a text that people read: a log line, a traceback, a sentence."""
    if len(text) < SHORTEST:
        return text
    body, count = masked(text.encode("utf-8", "surrogatepass"))
    return body.decode("utf-8", "surrogatepass") if count else text


def is_card_number(digits: str) -> bool:
    """Whether plain digits have an issuer's prefix and length and a right check digit."""
    return len(digits) in _lengths(digits) and is_right(digits)


def _lengths(digits: str) -> tuple[int, ...]:
    """Lengths of the card numbers that begin as `digits` do, the longest first."""
    return _BY_FOUR.get(digits[:4]) or _BY_SIX.get(digits[:_FIRST], ())


def _mask_all(body: bytearray, escaped: bool, kept: _Kept, texts: _Texts, with_digits: bool) -> int:
    """Masks all in one reading. Bare JSON numbers get other digits if `with_digits`, all others asterisks."""
    as_found = bytes(body)
    digits = Digits(as_found, escaped=escaped)
    if not digits.any_long:
        return 0
    names = _Names(as_found)

    def is_none(first: int, end: int) -> bool:
        start, stop = digits.places[first], digits.stop(end - 1)
        return (
            kept.has(digits.text[first:end])
            or (as_found[start - 1 : start] == b"." and texts.is_bare(start))
            or names.meet(start, stop)
        )

    found = _cards(digits, is_none)
    for first, end in found:
        start, stop = digits.places[first], digits.stop(end - 1)
        if stop - start == end - first:
            # A JSON number has neither separators nor escapes.
            bare = with_digits and texts.is_bare(start)
            hidden = _other_digits(digits.text[first:end]) if bare else b"*" * (end - first - _FIRST - _LAST)
            body[start + _FIRST : stop - _LAST] = hidden
        elif escaped:
            for number in range(first + _FIRST, end - _LAST):
                start, stop = digits.places[number], digits.stop(number)
                body[start:stop] = _star(as_found[start:stop])
        else:
            for place in digits.places[first + _FIRST : end - _LAST]:
                body[place] = 0x2A
    return len(found)


def _cards(digits: Digits, is_none: Callable[[int, int], bool]) -> list[tuple[int, int]]:
    """The card numbers, as (number of the first digit, of the first after it)."""
    groups = digits.groups(_BEGINS)
    text, is_right = digits.text, digits.is_right

    def longest(start: int) -> int | None:
        for length in _lengths(text[start : start + _FIRST]):
            end = start + length
            if digits.ends_group(end) and is_right(start, length) and not is_none(start, end):
                return end
        return None

    def up_to(head: int) -> int | None:
        for start in range(max(visible, 0, head - LONGEST), head - SHORTEST + 1):
            if (
                (start == visible or digits.begins_group(start))
                and head - start in _lengths(text[start : start + _FIRST])
                and is_right(start, head - start)
                and not is_none(start, head)
            ):
                return start
        return None

    found: list[tuple[int, int]] = []
    visible = -1
    """Where what stays of the last one begins: it may begin another, although no group begins there."""
    start = groups.next(0)
    while start >= 0:
        end = longest(start)
        if end is None:
            start = groups.next(start + 1)
            continue
        found.append((start, end))
        # What stays of it may be part of another: its first six at the end of one, its last four at the start.
        first: int | None = start
        while first is not None:
            head = first + _FIRST
            first = up_to(head)
            if first is not None:
                found.append((first, head))
        start = visible = end - _LAST
    return found


def _other_digits(number: str) -> bytes:
    """Digits for those between the first six and the last four, so that it is no card number."""
    head, hidden, tail = number[:_FIRST], len(number) - _FIRST - _LAST, number[-_LAST:]
    return next(d * hidden for d in "0123456789" if not is_right(head + d * hidden + tail)).encode()


def _star(token: bytes) -> bytes:
    """An asterisk, escaped as the digit was."""
    if len(token) == 1:
        return b"*"
    return {b"%": b"%2A", b"\\": b"\\u002a"}.get(token[:1]) or (b"&#x2a;" if b"x" in token else b"&#42;")


class _Kept:
    """Numbers that are left as they are: those within some values."""

    def __init__(self, values: Iterable[str]) -> None:
        plain = (value.encode("ascii", "ignore").translate(None, _NO_DIGITS) for value in values)
        self._values = b"\n".join(value for value in plain if len(value) >= SHORTEST)
        self._text = self._values.decode()
        self._by_length: dict[int, set[str]] = {}

    def has(self, number: str) -> bool:
        """`number` has a right check digit."""
        if len(self._text) < _FEW:
            return number in self._text
        length = len(number)
        if length not in self._by_length:
            self._by_length[length] = self._digits.all_right(length)
        return number in self._by_length[length]

    @cached_property
    def _digits(self) -> Digits:
        return Digits(self._values, escaped=False)


class _Texts:
    """Where the texts of a JSON document stand."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._is_json = body.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"[")

    def is_bare(self, place: int) -> bool:
        """Whether a digit of a JSON document stands in no text."""
        return self._is_json and bisect(self._quotes, place) % 2 == 0

    @cached_property
    def _quotes(self) -> list[int]:
        """Where texts begin and end."""
        if b"\\" in self._body:
            return [quote for text in _STRING.finditer(self._body) for quote in text.span()]
        return [quote.start() for quote in _QUOTE.finditer(self._body)]


class _Names:
    """UUIDs and hexadecimal words of 32 characters and more, of which 128 characters on each side are looked at."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def meet(self, start: int, end: int) -> bool:
        """Whether a number has a part of one in it."""
        if not self._uuids and not self._words:
            return False
        low, high = max(0, start - _AROUND), end + _AROUND
        # As they follow one another: two that overlap are one.
        index = bisect_left(self._uuids, low)
        while index < len(self._uuids) and self._uuids[index] < end:
            stop = self._uuids[index] + _UUID_LENGTH
            if start < stop:
                return True
            index = bisect_left(self._uuids, stop)
        index = bisect(self._stops, start)
        while index < len(self._words) and self._words[index][0] < end:
            first, stop = max(low, self._words[index][0]), min(high, self._words[index][1])
            if _LETTER.search(self._body, first, stop):
                return True
            index += 1
        return False

    @cached_property
    def _uuids(self) -> list[int]:
        """Where they begin, those that overlap as well."""
        return [found.start() - 8 for found in _UUID.finditer(self._body)]

    @cached_property
    def _words(self) -> list[tuple[int, int]]:
        return [word.span() for word in _HEXADECIMAL.finditer(self._body)]

    @cached_property
    def _stops(self) -> list[int]:
        return [stop for _, stop in self._words]
