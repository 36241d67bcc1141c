"""`postback refusals`: what was refused, and by which check."""

from __future__ import annotations

from typing import Annotated

import typer

from workers.cli import options, output

app = typer.Typer(help="What was refused, and by which check.", no_args_is_help=True)

_COLUMNS = ("at", "provider", "facility", "source", "reason", "status", "size", "detail")
_SHOWN = 50


@app.callback()
def group() -> None:
    """What was refused, and by which check."""


@app.command("list")
def list_(
    reason: Annotated[str | None, typer.Option(help="Only this check, such as source_refused.")] = None,
    provider: Annotated[str | None, typer.Option(help="Only this provider, as it was written.")] = None,
    facility: options.Facility = None,
    limit: options.Limit = None,
    as_json: options.AsJson = False,
    config: options.Config = None,
) -> None:
    """List the last 10,000 refusals, newest first."""
    from receiver.connection import connect
    from receiver.errors import STATUS_OF
    from receiver.refusals import KEEP, listed

    options.one_of(reason, list(STATUS_OF), "--reason")
    wanted = {"reason": reason, "provider": provider, "facility": facility}
    wanted = {name: value for name, value in wanted.items() if value is not None}
    most = limit or (KEEP if as_json else _SHOWN)
    kept = listed(connect(options.settings(config)), KEEP if wanted else most)
    found = [each for each in kept if all(each[name] == value for name, value in wanted.items())][:most]
    if as_json:
        output.json_lines(found)
    else:
        output.table(found, _COLUMNS, empty="Nothing was refused.")
