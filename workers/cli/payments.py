"""`postback payments`: one true record per payment."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from workers.cli import options, output

app = typer.Typer(help="One true record per payment.", no_args_is_help=True)

COLUMNS = ("updated_at", "provider", "facility", "payment_id", "state", "amount", "currency", "reference", "mismatch")


@app.command("list")
def list_(
    state: Annotated[str | None, typer.Option(help="captured, declined, refunded, ...")] = None,
    provider: options.Provider = None,
    facility: options.Facility = None,
    since: options.Since = None,
    until: options.Until = None,
    search: options.Search = None,
    mismatch: Annotated[bool, typer.Option("--mismatch", help="Only those that are not as expected.")] = False,
    limit: options.Limit = None,
    as_json: options.AsJson = False,
    config: options.Config = None,
) -> None:
    """List payments, last changed first."""
    from workers.cli.ledger import opened
    from workers.ledger import pages, queries

    wanted = options.wanted(queries.PAYMENT_STATES, state, provider, facility, since, until, search, limit)
    wanted = replace(wanted, mismatch=mismatch)
    with opened(config) as connection:
        if as_json:
            output.json_lines(pages.every_payment(connection, wanted))
        else:
            page = pages.page_payments(connection, wanted)
            output.table(page.items, COLUMNS, empty="No payments.")
            options.tell_of_more(page)


@app.command()
def show(payment_id: str, as_json: options.AsJson = False, config: options.Config = None) -> None:
    """Show the payments with this id or receipt number, with their notifications and what the customer saw."""
    from workers.cli.ledger import opened
    from workers.ledger import queries

    with opened(config) as connection:
        found = queries.show_payment(connection, payment_id)
    if not found:
        raise typer.BadParameter("there is no payment with this id or receipt number.")
    if as_json:
        output.json_lines(found)
        return
    for payment in found:
        events, response = payment.pop("notifications"), payment.pop("response") or {}
        returns = payment.pop("returns")
        if expected := payment.pop("expected"):
            payment["expected"] = f"{expected['amount']} {expected['currency']} {expected['merchant'] or ''}".rstrip()
        # The code itself stands in the payment.
        explained = {f"response_{name}": value for name, value in response.items() if name != "code"}
        output.details(payment | explained)
        output.table(events, ("received_at", "event_type", "state", "deliveries", "conflicts", "id"), empty="")
        if returns:
            print("\nThe customer saw")
            output.table(returns, ("returned_at", "outcome", "amount", "currency", "reported", "verified"), empty="")
