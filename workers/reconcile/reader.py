"""Reads a settlement file row by row, in one pass and a few kilobytes: what cannot be read is told with its line.

The file is UTF-8, with or without a byte order mark, its lines end as they like. A quoted value may run over some
lines; a quote that is never closed costs its own row only.
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


class Busy(Unreadable):
    """It can be taken later: another file is being reconciled."""


class Line(msgspec.Struct, frozen=True, gc=False):
    """One row with the number of its first line. `fault` says why it could not be read."""

    number: int
    values: list[str]
    row: Row | None
    fault: str = ""


class Reader:
    """One pass over a file. `digest` is that of its bytes, once the pass is over."""

    def __init__(self, content: BinaryIO, aliases: Mapping[str, str]) -> None:
        content.seek(0)
        self._bytes = _Hashed(content)
        self._aliases = aliases
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
        numbers: list[int] = []
        rows = csv.reader(self._records(numbers))
        while True:
            try:
                values = next(rows)
            except StopIteration:
                return
            except csv.Error:
                yield Line(numbers[-1], [], None, "it is not comma-separated text")
                continue
            if not any(values):
                continue
            if self.columns is None:
                self.columns = self._headings(values)
                continue
            yield self._line(numbers[-1], values, self.columns)

    def _headings(self, values: list[str]) -> Columns:
        try:
            return columns(values, self._aliases)
        except Quarantined as doubt:
            raise Unreadable(f"This is not a Cash Applied File: {doubt.detail}.") from None

    def _line(self, number: int, values: list[str], where: Columns) -> Line:
        try:
            return Line(number, values, read_row(values, where))
        except Quarantined as doubt:
            if is_heading(values, where):
                raise Unreadable(f"These are two files at once: line {number} has the headings again.") from None
            return Line(number, values, None, doubt.detail)

    def _records(self, numbers: list[int]) -> Iterator[str]:
        """Texts of one row each. Before each, `numbers` is the number of its first line."""
        lines = _lines(self._bytes)
        waiting: list[tuple[int, str]] = []
        while True:
            number, text = waiting.pop(0) if waiting else next(lines, (0, ""))
            if not number:
                return
            numbers[:] = [number]
            if text.count('"') % 2 == 0:
                yield text
                continue
            ahead = [(number, text)]
            while len(ahead) < LONGEST_RECORD and sum(part.count('"') for _, part in ahead) % 2:
                following = waiting.pop(0) if waiting else next(lines, (0, ""))
                if not following[0]:
                    break
                ahead.append(following)
            together = "".join(part for _, part in ahead)
            if together.count('"') % 2 == 0 and self._fits(together):
                yield together
            else:
                waiting[:0] = ahead[1:]
                # Closed, so that the row is told by its number of values and nothing else is taken into it.
                yield text.rstrip("\r\n") + '"'

    def _fits(self, record: str) -> bool:
        try:
            (values,) = csv.reader(io.StringIO(record, newline=""))
        except (ValueError, csv.Error):
            return False
        return self.columns is None or len(values) == len(self.columns.headings)


def _lines(content: io.RawIOBase) -> Iterator[tuple[int, str]]:
    """Line numbers from 1 on, and the lines with their ends. Raises `Unreadable`."""
    text = io.TextIOWrapper(io.BufferedReader(content, LONGEST_LINE), "utf-8-sig", newline="")
    number = 0
    try:
        while line := text.readline(LONGEST_LINE):
            number += 1
            if "\0" in line or len(line) == LONGEST_LINE:
                raise Unreadable(f"This is not a CSV file: line {number} is no text.")
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
