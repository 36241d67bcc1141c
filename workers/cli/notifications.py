"""`postback notifications`: what came, and what became of it."""

from __future__ import annotations

from typing import Annotated

import typer

from workers.cli import options, output
from workers.cli.replays import replay

app = typer.Typer(help="What came, and what became of it.", no_args_is_help=True)

_COLUMNS = ("received_at", "provider", "facility", "event_type", "state", "reason", "deliveries", "conflicts", "id")


app.command("replay")(replay)


@app.command("list")
def list_(
    state: Annotated[str | None, typer.Option(help="processed, failed, quarantined or held.")] = None,
    provider: options.Provider = None,
    facility: options.Facility = None,
    since: options.Since = None,
    until: options.Until = None,
    search: options.Search = None,
    limit: options.Limit = None,
    as_json: options.AsJson = False,
    config: options.Config = None,
) -> None:
    """List notifications, newest first."""
    from workers.cli.ledger import opened
    from workers.ledger import pages, queries

    wanted = options.wanted(queries.NOTIFICATION_STATES, state, provider, facility, since, until, search, limit)
    with opened(config) as connection:
        if as_json:
            output.json_lines(pages.every_notification(connection, wanted))
        else:
            page = pages.page_notifications(connection, wanted)
            output.table(page.items, _COLUMNS, empty="No notifications.")
            options.tell_of_more(page)


@app.command()
def show(notification_id: str, as_json: options.AsJson = False, config: options.Config = None) -> None:
    """Show one notification: its raw body, what was made of it, every delivery."""
    from workers.cli.ledger import opened_with
    from workers.ledger import queries
    from workers.ledger.bodies import Bodies

    settings = options.settings(config)
    with opened_with(settings) as connection:
        found = queries.show_notification(connection, notification_id, Bodies(settings.security.body_keys))
    if found is None:
        raise typer.BadParameter("there is no notification with this id.")
    if as_json:
        output.json_lines([found])
    else:
        output.details(found)
