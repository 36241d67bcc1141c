"""`postback audit`: who did what, and whether the trail is whole."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from workers.cli import options, output

app = typer.Typer(help="Who did what, when, from where and why.", no_args_is_help=True)

_COLUMNS = ("number", "at", "operator", "action", "subject", "reason", "origin")


@app.command("list")
def list_(
    operator: Annotated[str | None, typer.Option(help="Only what this operator did.")] = None,
    subject: Annotated[str, typer.Option(help="Only what was done to this replay, notification or payment.")] = "",
    limit: options.Limit = None,
    as_json: options.AsJson = False,
    config: options.Config = None,
) -> None:
    """List the audit trail, newest first."""
    from workers import audit
    from workers.cli.ledger import opened

    with opened(config) as connection:
        if as_json:
            output.json_lines(audit.every(connection, limit, operator, subject))
        else:
            found = audit.listed(connection, limit=limit or 50, operator=operator, subject=subject)
            output.table(found, _COLUMNS, empty="Nobody has done anything yet.")


@app.command()
def verify(as_json: options.AsJson = False, config: options.Config = None) -> None:
    """Check every entry of the trail; exit 1 when one was changed, removed or forged."""
    from workers.audit import Audit
    from workers.cli.ledger import opened_with

    settings = options.settings(config)
    with opened_with(settings) as connection:
        verdict = Audit(settings.security.seal_keys).verify(connection)
    if as_json:
        faults = [{"number": fault.number, "what": fault.what} for fault in verdict.faults]
        output.json_lines([{"entries": verdict.entries, "head": verdict.head, "faults": faults}])
    else:
        for fault in verdict.faults:
            print(f"Entry {fault.number} {fault.what}.")
        whole = "The trail is broken" if verdict.faults else "The trail is whole"
        print(f"{whole}: {verdict.entries} entries, the newest has the hash {verdict.head}.")
    sys.exit(1 if verdict.faults else 0)
