"""`postback payments rebuild`: all payments again, from what is stored, as today's code understands it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workers.cli import options, output

if TYPE_CHECKING:
    from workers.rebuild import Finding, Rebuild

_COLUMNS = ("kind", "verdict", "provider", "facility", "id", "changes", "detail")
_SHOWN = 50


def register(app: typer.Typer) -> None:
    app.command()(rebuild)


def rebuild(
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit 1 when anything would be different.")
    ] = False,
    provider: options.Provider = None,
    facility: options.Facility = None,
    as_json: options.AsJson = False,
    config: options.Config = None,
) -> None:
    """Interpret every stored notification with today's code, and fold all payments again."""
    from receiver.signing import Seal
    from workers.cli.ledger import opened_with
    from workers.ledger.bodies import Bodies
    from workers.ledger.database import open_engine, url
    from workers.ledger.revision import Revision
    from workers.pipeline import Pipeline
    from workers.rebuild import Rebuild

    settings = options.settings(config)
    options.provider_name(provider)
    with opened_with(settings):
        pass  # or it says that there is none
    ledger = Revision(open_engine(url(settings)), Bodies(settings.security.body_keys))
    pipeline = Pipeline(settings.endpoints, ledger, Seal(settings.security.seal_keys, "batch"))
    run = Rebuild(ledger, pipeline, write=not check, provider=provider, facility=facility)
    try:
        unsettled = _told(run, check, as_json)
    finally:
        ledger.engine.dispose()
    sys.exit(1 if unsettled else 0)


def _told(run: Rebuild, check: bool, as_json: bool) -> int:
    """Shows the findings while they come. Gives how many are not put right: all of a check, else what is left."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    of = dict(zip(("notification", "payment"), run.counts(), strict=True))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    first: list[dict[str, Any]] = []
    differing = kept = written = 0
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        tasks = {kind: progress.add_task(f"{kind}s", total=total) for kind, total in of.items()}

        def advance(kind: str, count: int) -> None:
            progress.advance(tasks[kind], count)

        for finding in run.findings(advance):
            kept += not finding.differs
            differing += finding.differs
            written += finding.settled and not check
            if as_json:
                output.json_lines([_as_json(finding, check)])
            elif len(first) < _SHOWN:
                first.append({name: getattr(finding, name) for name in _COLUMNS} | {"changes": _in_words(finding)})
    if not as_json:
        if first:
            output.table(first, _COLUMNS, empty="")
        if gone := run.purged():
            print(f"The raw bodies of {gone} notifications were purged; what was read of them before counts.")
        for sentence in _summary(of, differing, kept, written, check, len(first)):
            print(sentence)
    return differing - written


def _summary(of: dict[str, int], differing: int, kept: int, written: int, check: bool, shown: int) -> Iterator[str]:
    if differing + kept > shown:
        yield f"... and {differing + kept - shown} more; --json shows all."
    yield f"{of['notification']} notifications interpreted again, {of['payment']} payments folded again."
    if kept:
        yield f"{kept} could not be proven a second time (a key or an endpoint is gone); what was made of them stands."
    if not differing:
        yield "Nothing differs."
    elif check:
        yield f"{differing} differ. Nothing was written."
    else:
        yield (
            f"{differing} differed; {written} put right."
            if written == differing
            else (f"{differing} differed; {written} put right, {differing - written} left.")
        )


def _as_json(finding: Finding, check: bool) -> dict[str, Any]:
    return {
        "kind": finding.kind,
        "verdict": finding.verdict,
        "provider": finding.provider,
        "facility": finding.facility,
        "id": finding.id,
        "changes": {name: {"before": before, "after": after} for name, (before, after) in finding.changes.items()},
        "detail": finding.detail or None,
        "written": finding.settled and not check,
    }


def _in_words(finding: Finding) -> str:
    def word(value: Any) -> str:
        return output.readable(value) or "-"

    return ", ".join(f"{name} {word(before)} -> {word(after)}" for name, (before, after) in finding.changes.items())
