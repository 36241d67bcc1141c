"""`postback alarms`: what somebody was told of, and saying that it is known."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from workers.cli import options, output
from workers.cli.acting import actor, audited
from workers.cli.finding import Finding

if TYPE_CHECKING:
    from receiver.settings import Settings

app = typer.Typer(help="What somebody was told of: list it, and say that it is known.", no_args_is_help=True)

_COLUMNS = ("alarm", "raised_at", "sentence", "acknowledged_by")
_CLEARED = ("alarm", "raised_at", "cleared_at", "sentence")


@app.command("list")
def list_(
    cleared: Annotated[bool, typer.Option("--cleared", help="The last one of each that is over.")] = False,
    as_json: options.AsJson = False,
    config: options.Config = None,
) -> None:
    """List the alarms now, the oldest first, with what each means and what to do; exit 1 when there are any. While the
    ledger is away: those that this machine knows, if it looks after them."""
    from receiver.errors import LedgerAway
    from workers.alarms import desk, store
    from workers.cli.ledger import opened_with

    settings = options.settings(config)
    try:
        with opened_with(settings) as connection:
            found = desk.listed(connection, cleared=cleared)
    except LedgerAway:
        found = [] if cleared else [desk.shown(alarm) for alarm in store.remembered(settings.data_dir)]
        if not found:
            raise
    if as_json:
        output.json_lines(found)
    else:
        output.table(found, _CLEARED if cleared else _COLUMNS, empty="There is none." if cleared else "All is calm.")
        for each in [] if cleared else found:
            print(f"\n{each['alarm']}: {each['means']}\nWhat to do: {each['do']}")
    sys.exit(1 if found and not cleared else 0)


@app.command()
def acknowledge(
    alarm: Annotated[str, typer.Argument(help="Its name in the list.")],
    reason: Annotated[str, typer.Option(help="Why; it stays in the audit trail.")],
    config: options.Config = None,
) -> None:
    """Say that it is known: it is not told again before it is over, or grows worse."""
    from workers.alarms.desk import Desk

    with audited(config) as (engine, audit):
        Desk(engine, audit).acknowledge(actor(), alarm, reason)
    print(f"{alarm} acknowledged.")


@app.command("test")
def try_(config: options.Config = None) -> None:
    """Send a test message by every channel; exit 1 when one does not take it."""
    from datetime import UTC, datetime

    from workers.alarms.sending import Undelivered, channels
    from workers.alarms.trial import trial

    settings = options.settings(config)
    found = channels(settings)
    if not found:
        print("There is neither alarms.email nor alarms.webhook.")
    failed = False
    for name, channel in found.items():
        try:
            now = datetime.now(UTC)
            channel.send(trial(name, now, settings.console.public_url), now)
            print(f"{name}: sent")
        except Undelivered as undelivered:
            print(f"{name}: not taken: {undelivered}")
            failed = True
    sys.exit(1 if failed or not found else 0)


def examine(settings: Settings) -> Iterator[Finding]:
    """For `postback doctor`: whether alarms could be told. Nothing is sent."""
    from datetime import UTC, datetime

    from receiver.errors import ConfigurationError
    from receiver.settings import public_address
    from workers.alarms import certificate, conditions
    from workers.alarms.sending import Undelivered, channels

    alarms = settings.alarms
    try:
        conditions.holidays_of(alarms.holidays)
    except ConfigurationError as error:
        yield Finding("alarms", "fault", str(error))
    found = channels(settings)
    if not found:
        said = "alarms.email, alarms.webhook: there is neither, so alarms are seen in the console and in health only"
        yield Finding("alarms", "note", said)
    for name, channel in found.items():
        try:
            channel.reach()
            yield Finding(f"alarms.{name}", "ok", "reached; nothing was sent")
        except Undelivered as undelivered:
            yield Finding(f"alarms.{name}", "fault", f"alarms.{name}: cannot be reached ({undelivered})")
    if alarms.public_name is not None:
        wrong = certificate.problems(*public_address(alarms.public_name), datetime.now(UTC))
        for problem in wrong:
            yield Finding("public name", "fault", f"alarms.public_name: {problem.sentence}")
        if not wrong:
            yield Finding("public name", "ok", f"{alarms.public_name} has a good certificate")
