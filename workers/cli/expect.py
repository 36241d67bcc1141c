"""`postback expect`: payments that the merchant announces before the customer pays."""

from __future__ import annotations

from typing import Annotated

import typer

from workers.cli import options, output

app = typer.Typer(help="Payments announced before the customer pays.", no_args_is_help=True)

_COLUMNS = ("registered_at", "provider", "facility", "reference", "amount", "currency", "token", "due_at", "answered")
_SHOWN = 50


@app.command()
def add(
    provider: Annotated[str, typer.Option(help="The provider.")],
    facility: Annotated[str, typer.Option(help="The facility.")],
    reference: Annotated[str, typer.Option(help="Your own reference.")],
    amount: Annotated[str, typer.Option(help="Such as 12.50.")],
    currency: Annotated[str, typer.Option(help="Such as NZD.")],
    token: Annotated[str | None, typer.Option(help="Debitsuccess: the payment form token.")] = None,
    webhook_token: Annotated[
        str | None, typer.Option(help="Debitsuccess: its webhook token; - reads it from standard input.")
    ] = None,
    valid_to: Annotated[str | None, typer.Option(help="Such as 2026-11-22T10:00:00Z.")] = None,
    merchant: Annotated[str | None, typer.Option(help="QuickStream: the supplier business code to be paid.")] = None,
    config: options.Config = None,
) -> None:
    """Register an expected payment or a Debitsuccess token."""
    import sys

    from receiver.connection import connect, durability
    from receiver.errors import NotStored, Refused
    from receiver.expected import ExpectationBody, expectation_of, register
    from receiver.signing import Seal

    settings = options.settings(config)
    endpoint = settings.endpoints.get((provider, facility))
    if endpoint is None:
        raise typer.BadParameter("there is no such endpoint in the configuration.")
    if webhook_token == "-":  # noqa: S105
        webhook_token = sys.stdin.readline().strip()
    try:
        body = ExpectationBody(reference, amount, currency, token, webhook_token, valid_to, merchant)
        expectation = expectation_of(body, endpoint)
    except Refused as refused:
        raise typer.BadParameter(refused.detail) from None
    redis = connect(settings)
    fault, confirm_each = durability(redis)
    if fault and settings.queue.durability == "strict":
        raise NotStored(f"Redis is not durable: {fault}.")
    seal = Seal(settings.security.seal_keys, "expectation")
    register(redis, seal, expectation, confirm_each, settings.queue.replicas)
    print("Registered.")


@app.command("list")
def list_(
    provider: options.Provider = None,
    facility: options.Facility = None,
    since: options.Since = None,
    until: options.Until = None,
    overdue: Annotated[
        bool, typer.Option("--overdue", help="Only those whose notification should have come by now.")
    ] = False,
    limit: options.Limit = None,
    as_json: options.AsJson = False,
    config: options.Config = None,
) -> None:
    """List expected payments, newest first."""
    from datetime import UTC, datetime

    from workers.cli.ledger import opened
    from workers.ledger import queries

    wanted = queries.Filter(
        provider=options.provider_name(provider),
        facility=facility,
        since=options.moment(since, "--since"),
        until=options.moment(until, "--until"),
        limit=limit or (None if as_json else _SHOWN),
    )
    with opened(config) as connection:
        found = queries.list_expectations(connection, wanted, datetime.now(UTC) if overdue else None)
        if as_json:
            output.json_lines(found)
        else:
            output.table(found, _COLUMNS, empty="Nothing is overdue." if overdue else "Nothing is expected.")
