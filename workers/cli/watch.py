"""`postback watch`: what comes, as it comes."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from workers.cli import options, output
from workers.cli.acting import require_ledger

_LOOK_EVERY = 0.5
_BEFORE = 10
_COLOURS = {"processed": "green", "failed": "red", "quarantined": "yellow", "held": "cyan"}


def register(app: typer.Typer) -> None:
    app.command()(watch)


def watch(
    state: Annotated[str | None, typer.Option(help="processed, failed, quarantined or held.")] = None,
    provider: options.Provider = None,
    facility: options.Facility = None,
    count: Annotated[int | None, typer.Option(min=1, help="End after so many lines.")] = None,
    as_json: options.AsJson = False,
    config: options.Config = None,
) -> None:
    """Show notifications and refusals as they come; Ctrl-C ends it."""
    from redis.exceptions import RedisError
    from rich.console import Console

    from receiver.connection import connect
    from receiver.errors import LedgerAway
    from workers.ledger import queries
    from workers.ledger.database import open_engine, url
    from workers.tail import MOST, Tail

    settings = options.settings(config)
    wanted = options.wanted(queries.NOTIFICATION_STATES, state, provider, facility, None, None, None, MOST)
    require_ledger(settings)
    engine = open_engine(url(settings))
    redis = connect(settings) if state is None else None
    tail, left = Tail(engine, redis, wanted), count
    console = Console(highlight=False, soft_wrap=True)
    away = False
    try:
        found = tail.begin(0 if as_json else _BEFORE)
        while True:
            for each in found if left is None else found[:left]:
                _show(console, each, as_json)
            if left is not None and (left := left - len(found)) <= 0:
                return
            time.sleep(_LOOK_EVERY)
            try:
                found, away = tail.news(), False
            except (LedgerAway, RedisError, OSError) as error:
                found = []
                if not away:
                    typer.echo(f"postback: {type(error).__name__}: waiting for it to come back.", err=True)
                away = True
    except KeyboardInterrupt:
        return
    finally:
        engine.dispose()


def _show(console: Any, item: dict[str, Any], as_json: bool) -> None:
    from rich.text import Text

    if as_json:
        output.json_lines([item])
        return
    refused = item["kind"] == "refusal"
    state = "refused" if refused else item["state"]
    at = item["at"] if refused else item["received_at"]
    line = Text(f"{output.readable(at)}  ")
    line.append(f"{state:11}", style="magenta" if refused else _COLOURS.get(state, ""))
    # Of a request that reached no endpoint: whatever its sender asked for.
    line.append(f"  {output.readable(item['provider'])}/{output.readable(item['facility'])}  ")
    if refused:
        said = f"{item['reason']} from {item['source']}: {item['detail']}"
    else:
        times = f"  {item['deliveries']} times" if item["deliveries"] > 1 else ""
        said = f"{item['event_type']}  {item['dedupe_key']}{times}  {item['reason'] or ''}"
    # What a sender wrote is data: never a control sequence of the terminal.
    line.append(output.readable(said).rstrip())
    console.print(line)
