"""`postback purge`: takes out what is over its time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from workers.cli import options, output

if TYPE_CHECKING:
    from redis import Redis

    from receiver.settings import Settings
    from workers.ledger.ledger import Ledger

_COLUMNS = ("what", "before", "overdue", "purged")


def register(app: typer.Typer) -> None:
    app.command()(purge)


def purge(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count what is over its time.")] = False,
    as_json: options.AsJson = False,
    config: options.Config = None,
) -> None:
    """Purge what is over the time that [retention] gives it. Records of notifications and payments stay for ever."""
    from receiver import logs
    from receiver.connection import connect
    from workers.cli.ledger import opened_with
    from workers.ledger.ledger import open_ledger
    from workers.retention import overdue

    settings = options.settings(config)
    logs.configure("purge")
    with opened_with(settings):
        # Raises for a ledger that does not exist: a purge must not make an empty one.
        ledger = open_ledger(settings)
    redis = connect(settings)
    try:
        found: list[dict[str, Any]] = [
            {"what": step.what, "before": step.before, "overdue": step.purged, "purged": 0}
            for step in overdue(settings, ledger, redis)
        ]
        if not dry_run:
            _purge(settings, ledger, redis, {row["what"]: row for row in found})
    finally:
        ledger.engine.dispose()
        redis.close()
    if as_json:
        output.json_lines(found)
    else:
        output.table(found, _COLUMNS, empty="Nothing has a period in [retention], so all is kept.")


def _purge(settings: Settings, ledger: Ledger, redis: Redis, rows: dict[str, dict[str, Any]]) -> None:
    """Counts in `rows` what goes. What was done is said also when the rest fails or is stopped."""
    from rich.console import Console
    from rich.progress import Progress

    from workers.retention import operator, purge, say

    actor = operator()
    try:
        with Progress(console=Console(stderr=True), transient=True) as progress:
            tasks = {what: progress.add_task(what, total=row["overdue"]) for what, row in rows.items()}
            for step in purge(settings, ledger, redis, actor):
                rows[step.what]["purged"] += step.purged
                progress.advance(tasks[step.what], step.purged)
    finally:
        say(actor, {what: row["purged"] for what, row in rows.items() if row["purged"]})
