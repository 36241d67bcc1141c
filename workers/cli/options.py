"""Options that several commands share, and how their values are read."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from receiver.settings import Settings
    from workers.ledger.pages import Page
    from workers.ledger.queries import Filter

Config = Annotated[
    Path | None, typer.Option("--config", help="Configuration file (else POSTBACK_CONFIG, else ./postback.toml).")
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON Lines: one object a line.")]
Provider = Annotated[str | None, typer.Option(help="Only this provider.")]
Facility = Annotated[str | None, typer.Option(help="Only this facility.")]
Since = Annotated[str | None, typer.Option(help="From this time on: 2026-11-22 or 2026-11-22T10:00:00Z (UTC).")]
Until = Annotated[str | None, typer.Option(help="Before this time.")]
Search = Annotated[str | None, typer.Option(help="How an id, a key, a receipt or a reference begins; or an amount.")]
Limit = Annotated[int | None, typer.Option(min=1, help="At most so many, newest first.")]


def settings(config: Path | None) -> Settings:
    """Raises `ConfigurationError`."""
    from receiver import settings as configuration

    return configuration.load(configuration.find(config))


def wanted(
    states: list[str],
    state: str | None,
    provider: str | None,
    facility: str | None,
    since: str | None,
    until: str | None,
    search: str | None,
    limit: int | None,
) -> Filter:
    """What a list is asked for. Wrong use for a state or a provider that does not exist, and for an unreadable time."""
    from workers.ledger.queries import Filter

    return Filter(
        state=one_of(state, states, "--state"),
        provider=provider_name(provider),
        facility=facility,
        since=moment(since, "--since"),
        until=moment(until, "--until"),
        search=search,
        limit=limit,
    )


def tell_of_more(page: Page) -> None:
    """On standard error: what is listed is not all."""
    if page.cut:
        print("The search matches too much to look at all of it: write more of what you look for.", file=sys.stderr)
    elif page.next is not None:
        print("There are more: --limit, --until and --json show them.", file=sys.stderr)


def moment(text: str | None, option: str) -> datetime | None:
    """An aware UTC time; a text without a zone is UTC. Wrong use for anything else."""
    if text is None:
        return None
    try:
        value = datetime.fromisoformat(text)
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    except (ValueError, OverflowError):
        # The first and the last hours of the calendar have no UTC in some zones.
        raise typer.BadParameter(f"{option} must be a time such as 2026-11-22 or 2026-11-22T10:00:00Z.") from None


def one_of(value: str | None, allowed: list[str], option: str) -> str | None:
    if value is not None and value not in allowed:
        raise typer.BadParameter(f"{option} must be one of {', '.join(allowed)}.")
    return value


def provider_name(value: str | None) -> str | None:
    from receiver.providers import PROVIDERS

    return one_of(value, list(PROVIDERS), "--provider")
