"""`postback replays`, and `postback notifications replay`: doing again what went wrong."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workers.cli import options, output
from workers.cli.acting import actor, replays_of, workers_alive

if TYPE_CHECKING:
    from workers.replay import Chosen, Replays

app = typer.Typer(help="Doing again what went wrong, with today's code.", no_args_is_help=True)

Reason = Annotated[str, typer.Option(help="Why; it stays in the audit trail.")]
_COLUMNS = ("id", "state", "created_at", "created_by", "total", "done", "outcomes", "reason", "approved_by")
_RESULTS = ("notification_id", "outcome", "was", "now", "payment_id", "before", "after", "why")
_SHOWN = 50
_LOOK_EVERY = 0.2
_FAILING = ("still_fails", "not_recorded", "missing")
_NO_WORKER_AFTER = 3.0


def replay(
    ids: Annotated[list[str] | None, typer.Option(help="These notifications, with commas or several times.")] = None,
    state: Annotated[str | None, typer.Option(help="processed, failed, quarantined or held.")] = None,
    provider: options.Provider = None,
    facility: options.Facility = None,
    since: options.Since = None,
    until: options.Until = None,
    search: options.Search = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would change, and change nothing.")] = False,
    reason: Annotated[str, typer.Option(help="Why; it stays in the audit trail.")] = "",
    background: Annotated[bool, typer.Option("--background", help="Do not wait for the end.")] = False,
    as_json: options.AsJson = False,
    config: options.Config = None,
) -> None:
    """Interpret stored notifications again; many need a second operator (`postback replays approve`)."""
    chosen = _chosen(ids, state, provider, facility, since, until, search)
    with replays_of(config) as found:
        if dry_run:
            sys.exit(_say_what_would_change(found, chosen, as_json))
        made = found.create(actor(), chosen, reason)
        sys.exit(_started(found, made, config, background, as_json))


@app.command("list")
def list_(
    state: Annotated[str | None, typer.Option(help="waiting, running, paused, done or cancelled.")] = None,
    limit: options.Limit = None,
    as_json: options.AsJson = False,
    config: options.Config = None,
) -> None:
    """List replays, newest first."""
    from workers.cli.ledger import opened
    from workers.ledger import replays

    options.one_of(state, [each.value for each in replays.State], "--state")
    with opened(config) as connection:
        found = replays.listed(connection, state, limit=limit or (1_000_000 if as_json else _SHOWN))
    if as_json:
        output.json_lines(found)
    else:
        output.table(found, _COLUMNS, empty="No replays.")


@app.command()
def show(
    replay_id: str,
    outcome: Annotated[str | None, typer.Option(help="Only results such as still_fails or new_payment.")] = None,
    as_json: options.AsJson = False,
    config: options.Config = None,
) -> None:
    """Show one replay, and what it did to each notification."""
    from workers.cli.ledger import opened
    from workers.ledger import replays
    from workers.rerun import Outcome

    options.one_of(outcome, [each.value for each in Outcome], "--outcome")
    with opened(config) as connection:
        found = replays.replay(connection, replay_id)
        if found is None:
            raise typer.BadParameter("there is no replay with this id.")
        if as_json:
            output.json_lines([found])
            output.json_lines(replays.every_result(connection, replay_id, outcome))
            return
        output.details(found)
        print()
        output.table(
            map(_readable, replays.results(connection, replay_id, outcome, limit=_SHOWN)),
            _RESULTS,
            empty="Nothing was done yet.",
        )


@app.command()
def approve(replay_id: str, reason: Reason, as_json: options.AsJson = False, config: options.Config = None) -> None:
    """Let a waiting replay run; whoever asked for it may not."""
    with replays_of(config) as found:
        _tell(found.approve(actor(), replay_id, reason), as_json)


@app.command()
def pause(replay_id: str, reason: Reason = "", as_json: options.AsJson = False, config: options.Config = None) -> None:
    """Stop a running replay for a while."""
    with replays_of(config) as found:
        _tell(found.pause(actor(), replay_id, reason), as_json)


@app.command()
def resume(replay_id: str, reason: Reason = "", as_json: options.AsJson = False, config: options.Config = None) -> None:
    """Let a paused replay go on."""
    with replays_of(config) as found:
        _tell(found.resume(actor(), replay_id, reason), as_json)


@app.command()
def cancel(replay_id: str, reason: Reason, as_json: options.AsJson = False, config: options.Config = None) -> None:
    """Stop a replay for good; what it did stays done."""
    with replays_of(config) as found:
        _tell(found.cancel(actor(), replay_id, reason), as_json)


@app.command()
def wait(replay_id: str, as_json: options.AsJson = False, config: options.Config = None) -> None:
    """Watch a replay until it ends; exit 1 when something still fails."""
    with replays_of(config) as found:
        sys.exit(_until_the_end(found, replay_id, config, as_json))


def _chosen(
    ids: list[str] | None,
    state: str | None,
    provider: str | None,
    facility: str | None,
    since: str | None,
    until: str | None,
    search: str | None,
) -> Chosen:
    from workers.ledger import queries
    from workers.replay import Chosen

    given = tuple(part.strip() for each in ids or () for part in each.split(",") if part.strip())
    wanted = options.wanted(queries.NOTIFICATION_STATES, state, provider, facility, since, until, search, None)
    filters = {name: getattr(wanted, name) for name in ("state", "provider", "facility", "since", "until", "search")}
    if bool(given) == any(value is not None for value in filters.values()):
        raise typer.BadParameter(
            "choose either --ids, or by --state, --provider, --facility, --since, --until, --search."
        )
    return Chosen(ids=given, **filters)


def _say_what_would_change(found: Replays, chosen: Chosen, as_json: bool) -> int:
    import msgspec

    ids = found.choose(chosen)
    counts: dict[str, int] = {}

    def results() -> Iterator[dict[str, Any]]:
        for result in _counting(found.previews(ids), len(ids)):
            counts[result.outcome.value] = counts.get(result.outcome.value, 0) + 1
            yield msgspec.to_builtins(result)

    if as_json:
        output.json_lines(results())
    else:
        shown = []
        for number, result in enumerate(results()):
            if number < _SHOWN:
                shown.append(_readable(result))
        output.table(shown, _RESULTS, empty="")
        print(f"\nNothing was changed. A replay of these {len(ids)} notifications would be: {_summary(counts)}.")
        if len(ids) > len(shown):
            print(f"The first {len(shown)} are shown; --json prints all.")
        if len(ids) > found.approve_above:
            print(f"It would need a second operator, as it has more than {found.approve_above}.")
    return _verdict(counts)


def _started(found: Replays, made: dict[str, Any], config: Path | None, background: bool, as_json: bool) -> int:
    if made["state"] == "waiting" or background:
        _tell(made, as_json)
        if made["state"] == "waiting" and not as_json:
            print(f"A second operator must approve it: postback replays approve {made['id']} --reason ...")
        return 0
    if not as_json:
        print(f"Replay {made['id']} of {made['total']} notifications.")
    return _until_the_end(found, made["id"], config, as_json)


def _until_the_end(found: Replays, replay_id: str, config: Path | None, as_json: bool) -> int:
    """Ctrl-C ends the watching, not the replay."""
    state = found.show(replay_id)
    with output.bar(state["total"], "Replaying") as bar:
        began = time.monotonic()
        while state["state"] in ("running", "waiting"):
            bar(state["done"])
            if not state["done"] and time.monotonic() - began > _NO_WORKER_AFTER and not workers_alive(config):
                print("No worker is alive; the replay runs as soon as one is.", file=sys.stderr)
                break
            time.sleep(_LOOK_EVERY)
            state = found.show(replay_id)
        bar(state["done"])
    _tell(state, as_json)
    return _verdict(state["outcomes"])


def _counting(results: Iterable[Any], total: int) -> Iterator[Any]:
    with output.bar(total, "Trying") as bar:
        for number, result in enumerate(results, 1):
            yield result
            bar(number)


def _tell(state: dict[str, Any], as_json: bool) -> None:
    if as_json:
        output.json_lines([state])
        return
    done = f"{state['done']} of {state['total']} done" + (
        f": {_summary(state['outcomes'])}" if state["outcomes"] else ""
    )
    print(f"Replay {state['id']} is {state['state']}, {done}.")


def _summary(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {outcome.replace('_', ' ')}" for outcome, count in sorted(counts.items()))


def _verdict(counts: dict[str, int]) -> int:
    return 1 if any(counts.get(outcome) for outcome in _FAILING) else 0


def _readable(result: dict[str, Any]) -> dict[str, Any]:
    def payment(columns: dict[str, Any] | None) -> str:
        return f"{columns['state']} {columns['amount'] or ''} {columns['currency'] or ''}".strip() if columns else ""

    before, after = result.get("payment_before"), result.get("payment_after")
    return {**result, "before": payment(before), "after": payment(after)}
