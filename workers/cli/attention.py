"""`postback attention`: what needs a person, and what was settled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from workers.cli import options, output
from workers.cli.acting import actor, attending

if TYPE_CHECKING:
    from workers.attention import Subject

app = typer.Typer(help="What needs a person: what it means, and what can be done.", no_args_is_help=True)

Subjects = Annotated[list[str], typer.Argument(help="Ids of notifications; with --kind mismatch those of payments.")]
Reason = Annotated[str, typer.Option(help="Why; it stays in the audit trail.")]
Kind = Annotated[str, typer.Option(help="failed, quarantined, held, conflict or mismatch.")]
_COLUMNS = ("at", "provider", "facility", "reason", "subject")
_SETTLED = ("at", "provider", "facility", "subject", "verdict", "operator", "why")
_SHOWN = 20


@app.command("list")
def list_(
    kind: Annotated[str | None, typer.Option(help="failed, quarantined, held, conflict or mismatch.")] = None,
    provider: options.Provider = None,
    facility: options.Facility = None,
    settled: Annotated[bool, typer.Option("--settled", help="What was resolved or ignored, and why.")] = False,
    limit: options.Limit = None,
    as_json: options.AsJson = False,
    config: options.Config = None,
) -> None:
    """List what needs attention, newest first, kind by kind."""
    from dataclasses import asdict

    from workers import attention
    from workers.cli.ledger import opened

    options.one_of(kind, [each.value for each in attention.Kind], "--kind")
    options.provider_name(provider)
    nothing = True
    with opened(config) as connection:
        counts = attention.counts(connection)
        for each in [attention.Kind(kind)] if kind else attention.Kind:
            if as_json:
                for item in attention.every(connection, each, provider, facility, settled, limit):
                    output.json_lines([item | asdict(attention.MEANINGS[each])])
                continue
            page = attention.page(
                connection, each, provider=provider, facility=facility, settled=settled, limit=limit or _SHOWN
            )
            if page.items:
                nothing = False
                print(f"{each.value.capitalize()} ({counts[each]} open): {attention.MEANINGS[each].means}")
                print(f"What to do: {attention.MEANINGS[each].do}")
                output.table(map(_flat, page.items), _SETTLED if settled else _COLUMNS, empty="")
                print()
    if nothing and not as_json:
        print("Nothing was settled yet." if settled else "Nothing needs attention.")


@app.command()
def resolve(
    subjects: Subjects,
    kind: Kind,
    reason: Reason,
    provider: options.Provider = None,
    facility: options.Facility = None,
    config: options.Config = None,
) -> None:
    """Say that it is dealt with, and how; it counts no more in `health`."""
    _settle(subjects, kind, "resolved", reason, provider, facility, config)


@app.command()
def ignore(
    subjects: Subjects,
    kind: Kind,
    reason: Reason,
    provider: options.Provider = None,
    facility: options.Facility = None,
    config: options.Config = None,
) -> None:
    """Say that nothing is to be done, and why."""
    _settle(subjects, kind, "ignored", reason, provider, facility, config)


@app.command()
def reopen(
    subjects: Subjects,
    kind: Kind,
    reason: Reason,
    provider: options.Provider = None,
    facility: options.Facility = None,
    config: options.Config = None,
) -> None:
    """Say that it needs attention after all."""
    with attending(config) as attention:
        attention.reopen(actor(), _subjects(subjects, kind, provider, facility), reason)
    print(f"{len(subjects)} reopened.")


def _flat(item: dict[str, Any]) -> dict[str, Any]:
    resolution = item["resolution"] or {"verdict": None, "operator": None, "reason": None}
    return item | {
        "verdict": resolution["verdict"],
        "operator": resolution["operator"],
        "why": resolution["reason"],
    }


def _settle(
    subjects: list[str],
    kind: str,
    verdict: str,
    reason: str,
    provider: str | None,
    facility: str | None,
    config: options.Config,
) -> None:
    from workers.attention import Verdict

    with attending(config) as attention:
        attention.settle(actor(), _subjects(subjects, kind, provider, facility), Verdict(verdict), reason)
    print(f"{len(subjects)} {verdict}.")


def _subjects(subjects: list[str], kind: str, provider: str | None, facility: str | None) -> list[Subject]:
    from workers import attention

    options.one_of(kind, [each.value for each in attention.Kind], "--kind")
    options.provider_name(provider)
    return [attention.Subject(attention.Kind(kind), each, provider, facility) for each in subjects]
