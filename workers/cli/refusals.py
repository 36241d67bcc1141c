"""`postback refusals`: what was refused, and by which check."""

from __future__ import annotations

import typer

from workers.cli import options, output

app = typer.Typer(help="What was refused, and by which check.", no_args_is_help=True)

_COLUMNS = ("at", "provider", "facility", "source", "reason", "status", "size", "detail")
_SHOWN = 50


@app.callback()
def group() -> None:
    """What was refused, and by which check."""


@app.command("list")
def list_(limit: options.Limit = None, as_json: options.AsJson = False, config: options.Config = None) -> None:
    """List the last 10,000 refusals, newest first."""
    from receiver.connection import connect
    from receiver.refusals import KEEP, listed

    found = listed(connect(options.settings(config)), limit or (KEEP if as_json else _SHOWN))
    if as_json:
        output.json_lines(found)
    else:
        output.table(found, _COLUMNS, empty="Nothing was refused.")
