"""How results are shown: JSON Lines for programs, a table for people."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

_PIPE_WIDTH = 240


def json_lines(objects: Iterable[dict[str, Any]]) -> None:
    import msgspec

    encoder = msgspec.json.Encoder()
    for item in objects:
        sys.stdout.buffer.write(encoder.encode(item) + b"\n")
    sys.stdout.flush()


def table(objects: Iterable[dict[str, Any]], columns: Sequence[str], *, empty: str) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    rows = list(objects)
    if not rows:
        print(empty)
        return
    # What a sender wrote is data: never markup of ours, never a control sequence of the terminal.
    # Into a file or a pipe nothing is folded.
    console = Console() if sys.stdout.isatty() else Console(width=_PIPE_WIDTH)
    shown = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        shown.add_column(column.replace("_", " "), overflow="fold")
    for row in rows:
        shown.add_row(*(escape(readable(row.get(column))) for column in columns))
    console.print(shown)


def details(item: dict[str, Any]) -> None:
    """One object, a line per field."""
    width = max(len(name) for name in item)
    for name, value in item.items():
        print(f"{name.replace('_', ' '):{width}}  {readable(value)}")


def readable(value: Any) -> str:
    from datetime import datetime

    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(value, dict | list):
        import msgspec

        value = msgspec.json.encode(value).decode()
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in str(value))


@contextmanager
def bar(total: int, what: str, *, hidden: bool = False) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error, when that is a terminal; called with how much is done."""
    if hidden or not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.update(task, completed=done)
