"""`postback notifications`: what came, and what became of it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
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
    from workers import showing
    from workers.cli.ledger import opened_with
    from workers.ledger.bodies import Bodies

    settings = options.settings(config)
    with opened_with(settings) as connection:
        found = showing.notification(connection, notification_id, Bodies(settings.security.body_keys))
    if found is None:
        raise typer.BadParameter("there is no notification with this id.")
    if as_json:
        output.json_lines([found])
        return
    happened = found.pop("timeline")
    output.details(found)
    print()
    output.table(happened, ("at", "what", "by", "source", "detail", "id"), empty="")


@app.command()
def export(
    format_: Annotated[str, typer.Option("--format", help="csv or jsonl.")] = "csv",
    to: Annotated[Path | None, typer.Option("--output", help="A file; else standard output.")] = None,
    state: Annotated[str | None, typer.Option(help="processed, failed, quarantined or held.")] = None,
    provider: options.Provider = None,
    facility: options.Facility = None,
    since: options.Since = None,
    until: options.Until = None,
    search: options.Search = None,
    limit: options.Limit = None,
    reason: Annotated[str, typer.Option(help="Why; it stays in the audit trail.")] = "",
    as_json: options.AsJson = False,
    config: options.Config = None,
) -> None:
    """Write notifications and what they say of payments into a file, newest first. It is in the audit trail."""
    from workers import export as exports
    from workers.cli.acting import actor, audited
    from workers.ledger import queries

    form = exports.Format(options.one_of("jsonl" if as_json else format_, list(exports.Format), "--format") or "csv")
    wanted = options.wanted(queries.NOTIFICATION_STATES, state, provider, facility, since, until, search, limit)
    with audited(config) as (engine, trail):
        _write(exports.export(engine, trail, actor(), wanted, form, reason), to)


def _write(lines: Iterable[bytes], to: Path | None) -> None:
    if to is None:
        for line in lines:
            sys.stdout.buffer.write(line)
        sys.stdout.flush()
        return
    try:
        # Customers' names and references: for the eyes of whoever made it.
        with open(os.open(to, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.writelines(lines)
    except OSError as error:
        raise typer.BadParameter(f"--output: {to} cannot be written ({error.strerror}).") from None
