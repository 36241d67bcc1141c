"""Reads a settlement file row by row, in one pass and a few kilobytes: what cannot be read is told with its line.

The file is UTF-8, with or without a byte order mark, its lines end as they like. A quoted value may run over some
lines; a quote that is never closed costs its own row only, as each row is taken apart by itself.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, BinaryIO

import msgspec

from receiver.errors import Quarantined
from receiver.providers.quickstream_settlement import Columns, Row, columns, is_heading, read_row

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

LONGEST_LINE = 1 << 16
LONGEST_RECORD = 8
"""Lines over which one row may run."""


class Unreadable(Exception):
    """The file as a whole cannot be taken; the text is one sentence. Nothing of it was written."""

    @property
    def sentences(self) -> str:
        """With what was written of it."""
        return f"{self} Nothing was written."


class Busy(Unreadable):
    """It can be taken later: another file is being reconciled."""


class Changed(Unreadable):
    """The file became another one while it was read. What was entered until then stays, and the text says so."""

    @property
    def sentences(self) -> str:
        return str(self)


class Line(msgspec.Struct, frozen=True, gc=False):
    """One row with the number of its first line. `fault` says why it could not be read."""

    number: int
    values: list[str]
    row: Row | None
    fault: str = ""


class Reader:
    """One pass over a file. `digest` is that of its bytes, once the pass is over."""

    def __init__(self, content: BinaryIO, aliases: Mapping[str, str], currency: str) -> None:
        """A row that names another currency than `currency` is malformed: its amount would be taken for that."""
        content.seek(0)
        self._bytes = _Hashed(content)
        self._aliases = aliases
        self._currency = currency
        self.columns: Columns | None = None
        """None for a file without headings, which is an empty file."""

    @property
    def digest(self) -> str:
        """SHA-256 in hex."""
        return self._bytes.digest.hexdigest()

    @property
    def position(self) -> int:
        """Bytes that were read."""
        return self._bytes.read_so_far

    def __iter__(self) -> Iterator[Line]:
        """Raises `Unreadable`."""
        for number, text in self._records():
            try:
                values = _values(text)
            except ValueError as fault:
                if self.columns is None:
                    raise Unreadable(f"This is not a Cash Applied File: in line {number}, {fault}.") from None
                yield Line(number, [], None, str(fault))
                continue
            if not any(values):
                continue
            if self.columns is None:
                self.columns = self._headings(values)
                continue
            yield self._line(number, values, self.columns)

    def _headings(self, values: list[str]) -> Columns:
        try:
            return columns(values, self._aliases)
        except Quarantined as doubt:
            raise Unreadable(f"This is not a Cash Applied File: {doubt.detail}.") from None

    def _line(self, number: int, values: list[str], where: Columns) -> Line:
        try:
            row = read_row(values, where)
            if where.currency_at is not None and values[where.currency_at].strip().upper() not in ("", self._currency):
                return Line(number, values, None, "its currency is not that of the endpoint")
            return Line(number, values, row)
        except Quarantined as doubt:
            if is_heading(values, where):
                raise Unreadable(f"These are two files at once: line {number} has the headings again.") from None
            return Line(number, values, None, doubt.detail)

    def _records(self) -> Iterator[tuple[int, str]]:
        """Texts of one row each, with the number of its first line."""
        lines = _lines(self._bytes)
        waiting: list[tuple[int, str]] = []
        while True:
            number, text = waiting.pop(0) if waiting else next(lines, (0, ""))
            if not number:
                return
            if text.count('"') % 2 == 0:
                yield number, text
                continue
            ahead = [(number, text)]
            while len(ahead) < LONGEST_RECORD and sum(part.count('"') for _, part in ahead) % 2:
                following = waiting.pop(0) if waiting else next(lines, (0, ""))
                if not following[0]:
                    break
                ahead.append(following)
            together = "".join(part for _, part in ahead)
            if together.count('"') % 2 == 0 and self._fits(together):
                yield number, together
            else:
                waiting[:0] = ahead[1:]
                yield number, text

    def _fits(self, record: str) -> bool:
        try:
            values = _values(record)
        except ValueError:
            return False
        return self.columns is None or len(values) == len(self.columns.headings)


def _values(record: str) -> list[str]:
    """The values of one row. Raises `ValueError` with a sentence."""
    try:
        # The comma ends up in a value of its own, unless a quote before it is open.
        *values, after = next(csv.reader((record.rstrip("\r\n") + ",",)))
    except csv.Error:
        raise ValueError("it is not comma-separated text") from None
    if after:
        raise ValueError("a quote is not closed")
    return values


def _lines(content: io.RawIOBase) -> Iterator[tuple[int, str]]:
    """Line numbers from 1 on, and the lines with their ends. Raises `Unreadable`."""
    text = io.TextIOWrapper(io.BufferedReader(content, LONGEST_LINE), "utf-8-sig", newline="")
    number = 0
    try:
        while line := text.readline(LONGEST_LINE):
            number += 1
            if "\0" in line:
                raise Unreadable(f"This is not a CSV file: line {number} is no text.")
            if len(line) == LONGEST_LINE:
                raise Unreadable(f"This is not a CSV file: line {number} has {LONGEST_LINE} characters or more.")
            yield number, line
    except UnicodeDecodeError:
        raise Unreadable(f"This is not UTF-8 text (near line {number + 1}).") from None


class _Hashed(io.RawIOBase):
    """Hands bytes through and keeps their digest. Closing it leaves the content open."""

    def __init__(self, content: BinaryIO) -> None:
        self._content = content
        self.digest = hashlib.sha256()
        self.read_so_far = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer)
        data = self._content.read(len(view))
        view[: len(data)] = data
        self.digest.update(data)
        self.read_so_far += len(data)
        return len(data)
