"""`postback reconcile`: the bank's settlement file against the ledger, once or whenever one arrives."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer
from typer.exceptions import TyperException

from workers.cli import options, output

if TYPE_CHECKING:
    from receiver.providers.quickstream import QuickStreamEndpoint
    from receiver.settings import Settings
    from workers.reconcile.findings import Finding, Result

_COLUMNS = ("line", "kind", "receipt_number", "payment_id", "here", "in_file", "entered", "detail")
_SHOWN = 200
"""Findings in the table; --json has all."""


def register(app: typer.Typer) -> None:
    app.command("reconcile")(reconcile_)


def reconcile_(
    files: Annotated[list[Path] | None, typer.Argument(metavar="FILE", help="- reads standard input.")] = None,
    provider: Annotated[str, typer.Option(help="Only quickstream has a settlement file.")] = "quickstream",
    facility: Annotated[str | None, typer.Option(help="Whose file it is; needed when there are several.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only look: enter nothing, keep no record.")] = False,
    since: Annotated[str | None, typer.Option(help="First settlement date, where the rows do not say.")] = None,
    until: Annotated[str | None, typer.Option(help="The day after the last one.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Take files from every settlement_folder.")] = False,
    as_json: options.AsJson = False,
    config: options.Config = None,
) -> None:
    """Compare the bank's settlement file with the ledger; enter what the ledger did not know."""
    from workers.cli.processes import share_metrics

    settings = options.settings(config)
    if watch == bool(files):
        raise typer.BadParameter("give a file, or --watch.")
    if files and len(files) > 1:
        raise typer.BadParameter("give one file at a time.")
    if not dry_run:
        share_metrics(settings)
    if watch:
        _watch(settings)
        return
    file = (files or [Path("-")])[0]
    endpoint = _endpoint(settings, provider, facility)
    days = first, last = _day(since, "--since"), _before(_day(until, "--until"))
    if first is not None and last is not None and first > last:
        raise typer.BadParameter("--since must be before --until.")
    shown = _Shown(as_json)
    with _opened(file) as content:
        result = _run(settings, endpoint, content, file, dry_run, days, shown)
    shown.end(result, dry_run)
    sys.exit(1 if result.findings else 0)


def _run(
    settings: Settings,
    endpoint: QuickStreamEndpoint,
    content: BinaryIO,
    file: Path,
    dry_run: bool,
    days: tuple[date | None, date | None],
    shown: _Shown,
) -> Result:
    from rich.console import Console
    from rich.progress import Progress

    from receiver import logs
    from workers.cli.acting import actor
    from workers.reconcile.reader import Unreadable
    from workers.reconcile.run import ready, reconcile

    logs.configure("reconcile", logging.WARNING)
    bar = Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())
    with ready(settings) as books, bar:
        task = bar.add_task(file.name, total=1.0)
        try:
            return reconcile(
                books,
                endpoint,
                content,
                file.name,
                actor(),
                write=not dry_run,
                days=days,
                tell=shown.tell,
                progress=lambda share: bar.update(task, completed=share),
            )
        except Unreadable as fault:
            raise TyperException(f"{file.name}: {fault.sentences}") from None


class _Shown:
    """JSON Lines as they come; the table has the first findings, and the counts of all."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._first: list[dict[str, Any]] = []

    def tell(self, finding: Finding) -> None:
        if self._as_json:
            output.json_lines([finding.as_object()])
        elif len(self._first) < _SHOWN:
            self._first.append(finding.as_object())

    def end(self, result: Result, dry_run: bool) -> None:
        if self._as_json:
            output.json_lines([{"kind": "reconciliation", **result.as_object()}])
            return
        if self._first:
            output.table(self._first, _COLUMNS, empty="")
        if result.findings > len(self._first):
            print(f"... and {result.findings - len(self._first)} more; --json shows all.")
        days = " to ".join(sorted({str(day) for day in (result.first_day, result.last_day) if day})) or "no day"
        print(
            f"{result.rows} rows, covering {days}: {result.matched} matched, {result.findings} findings, "
            f"{result.entered} entered{' (dry run: nothing was written)' if dry_run else ''}."
        )
        for kind, number in sorted(result.counts.items()):
            print(f"  {number} {kind.replace('_', ' ')}")


def _endpoint(settings: Settings, provider: str, facility: str | None) -> QuickStreamEndpoint:
    from receiver.providers.quickstream import QuickStreamEndpoint

    options.provider_name(provider)
    if provider != "quickstream":
        raise typer.BadParameter(f"{provider} has no settlement file; quickstream has.")
    found = [e for e in settings.endpoint if isinstance(e, QuickStreamEndpoint) and facility in (None, e.facility)]
    if not found:
        raise typer.BadParameter("there is no such endpoint in the configuration.")
    if len(found) > 1:
        raise typer.BadParameter(f"--facility must be one of {', '.join(e.facility for e in found)}.")
    return found[0]


@contextmanager
def _opened(file: Path) -> Iterator[BinaryIO]:
    """The file, or a copy of standard input: it is read twice."""
    import shutil
    import tempfile

    if str(file) == "-":
        with tempfile.TemporaryFile() as copy:
            shutil.copyfileobj(sys.stdin.buffer, copy)
            yield copy
        return
    try:
        with file.open("rb") as content:
            if not content.seekable():
                with tempfile.TemporaryFile() as copy:
                    shutil.copyfileobj(content, copy)
                    yield copy
                return
            yield content
    except OSError as error:
        raise TyperException(f"{file} cannot be read: {error.strerror}.") from None


def _watch(settings: Settings) -> None:
    from receiver import logs
    from workers.figures import begin_settlement
    from workers.reconcile.folder import watch, watched

    if not watched(settings):
        raise typer.BadParameter("no endpoint has a settlement_folder.")
    logs.configure("reconcile")
    begin_settlement(settings.endpoint)
    watch(settings)


def _day(text: str | None, option: str) -> date | None:
    try:
        return None if text is None else date.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{option} must be a day such as 2026-11-22.") from None


def _before(day: date | None) -> date | None:
    return None if day is None else day - timedelta(days=1)
