"""`postback reconciliations`: the runs over the bank's settlement files, and what each found."""

from __future__ import annotations

from typing import Annotated

import typer

from workers.cli import options, output

app = typer.Typer(help="The runs over settlement files, and what each found.", no_args_is_help=True)

_COLUMNS = (
    *("began_at", "finished_at", "facility", "file_name", "first_day", "last_day"),
    *("rows", "matched", "entered", "findings", "id"),
)
_FINDINGS = ("line", "kind", "receipt_number", "payment_id", "here", "in_file", "entered", "detail")
_SHOWN = 50


@app.command("list")
def list_(
    provider: options.Provider = None,
    facility: options.Facility = None,
    since: options.Since = None,
    until: options.Until = None,
    limit: options.Limit = None,
    as_json: options.AsJson = False,
    config: options.Config = None,
) -> None:
    """List the runs, newest first; one without an end runs, or was interrupted."""
    from workers.cli.ledger import opened
    from workers.ledger.reconciliations import list_reconciliations

    most = limit if as_json else limit or _SHOWN
    wanted = options.wanted([], None, provider, facility, since, until, None, most)
    with opened(config) as connection:
        found = list_reconciliations(connection, wanted)
        if as_json:
            output.json_lines(found)
        else:
            output.table(found, _COLUMNS, empty="No settlement file was compared yet.")


@app.command()
def show(
    reconciliation_id: Annotated[str, typer.Argument(metavar="ID")],
    as_json: options.AsJson = False,
    config: options.Config = None,
) -> None:
    """Show one run with its findings."""
    from workers.cli.ledger import opened
    from workers.ledger.reconciliations import show_reconciliation
    from workers.ledger.rows import storable

    with opened(config) as connection:
        found = show_reconciliation(connection, reconciliation_id) if storable(reconciliation_id) else None
    if found is None:
        raise typer.BadParameter("there is no reconciliation with this id.")
    if as_json:
        output.json_lines([found])
        return
    findings = found.pop("found")
    output.details(found)
    print()
    output.table(findings, _FINDINGS, empty="The file and the ledger agree.")
