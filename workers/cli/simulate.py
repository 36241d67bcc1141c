"""`postback simulate`: a sender that signs as the real one and sends again by its documented rule."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from workers.cli import options

if TYPE_CHECKING:
    from receiver.providers.base import Endpoint
    from receiver.settings import Settings
    from workers.simulator.base import Outgoing, Sender


def register(app: typer.Typer) -> None:
    app.command()(simulate)


def simulate(
    provider: Annotated[str, typer.Argument(help="quickstream, checkout, debitsuccess or paymentz.")],
    facility: Annotated[str | None, typer.Option(help="Which endpoint; needed when there are several.")] = None,
    count: Annotated[int, typer.Option(min=1, help="Payments to send.")] = 10,
    rate: Annotated[
        float | None, typer.Option(min=0.001, help="Payments per second; as fast as possible without.")
    ] = None,
    format: Annotated[str | None, typer.Option(help="form or xml (QuickStream).")] = None,
    chaos: Annotated[
        bool, typer.Option("--chaos", help="Also duplicates, another order and truncated bodies.")
    ] = False,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same payments.")] = None,
    speed: Annotated[float, typer.Option(min=0.001, help="Divides the sender's retry delays.")] = 1.0,
    back: Annotated[
        bool, typer.Option("--return", help="Also print the address with which each customer's browser comes back.")
    ] = False,
    url: Annotated[str | None, typer.Option(help="The receiver; receive.bind without.")] = None,
    cash_applied_file: Annotated[
        Path | None, typer.Option(help="Write the settlement file of what was sent (QuickStream).")
    ] = None,
    difference: Annotated[
        list[str] | None, typer.Option(help="One difference of this kind in it, such as amount_differs; repeatable.")
    ] = None,
    config: options.Config = None,
) -> None:
    """Send invented payments as the provider would."""
    import asyncio
    import sys

    from rich.console import Console
    from rich.progress import Progress

    from workers.simulator import SENDERS
    from workers.simulator.run import NotRegistered, Summary, run

    settings = options.settings(config)
    options.provider_name(provider)
    options.one_of(format, ["form", "xml"], "--format")
    if format is not None and provider != "quickstream":
        raise typer.BadParameter("--format is for quickstream only.")
    endpoint = endpoint_of(settings, provider, facility)
    if back:
        _require_return(endpoint)
    sender, write_file = _with_file(SENDERS[provider], cash_applied_file, difference or [], seed)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(f"{provider}/{endpoint.facility}", total=count)

        def report(summary: Summary) -> None:
            progress.update(task, completed=summary.payments)

        try:
            summary = asyncio.run(
                run(
                    sender,
                    endpoint,
                    base_url=url or base_url(settings),
                    count=count,
                    rate=rate,
                    format=format,
                    chaos=chaos,
                    api_key=settings.security.api_keys[-1] if settings.security.api_keys else None,
                    speed=speed,
                    seed=seed,
                    report=report,
                    back=back,
                )
            )
        except NotRegistered as error:
            print(f"postback: {error}", file=sys.stderr)
            sys.exit(1)
    statuses = ", ".join(f"{status or 'no answer'}: {number}" for status, number in sorted(summary.by_status.items()))
    print(
        f"{summary.payments} payments, {summary.sent} requests in {summary.seconds:.1f} s ({statuses}); "
        f"{summary.acknowledged} acknowledged, {summary.duplicates_sent} sent twice, "
        f"{summary.refused_as_meant} refused as meant, {summary.gave_up} given up."
    )
    for address in summary.back:
        print(address)
    write_file()
    sys.exit(1 if summary.gave_up else 0)


def _require_return(endpoint: Endpoint) -> None:
    from receiver.providers.base import ReturnEndpoint

    if not isinstance(endpoint, ReturnEndpoint):
        raise typer.BadParameter("--return is for quickstream and debitsuccess only.")
    if not getattr(endpoint, "hmac_passwords", True):
        raise typer.BadParameter("--return needs hmac_passwords at the endpoint, to sign as the payment page does.")


def _with_file(
    sender: Sender, path: Path | None, differences: list[str], seed: int | None
) -> tuple[Sender, Callable[[], None]]:
    """The sender, and what writes the settlement file when all is sent."""
    if path is None:
        if differences:
            raise typer.BadParameter("--difference is for --cash-applied-file.")
        return sender, lambda: None
    if sender.name != "quickstream":
        raise typer.BadParameter("--cash-applied-file is for quickstream only.")
    from workers.reconcile.compare import Kind
    from workers.simulator import cash_applied

    for name in differences:
        options.one_of(name, [kind.value for kind in Kind], "--difference")
    sent: list[Outgoing] = []

    def write() -> None:
        try:
            rows = cash_applied.with_differences(cash_applied.rows_of(sent), map(Kind, differences), seed)
            path.write_bytes(cash_applied.file_of(rows))
        except cash_applied.NoSuchRow as fault:
            raise typer.BadParameter(f"{fault}; send more payments.") from None
        except OSError as error:
            raise typer.BadParameter(f"{path} cannot be written: {error.strerror}.") from None

    return cash_applied.listened_to(sender, sent), write


def endpoint_of(settings: Settings, provider: str, facility: str | None) -> Endpoint:
    """The endpoint to send to: the named one, or the provider's first."""
    found = [e for e in settings.endpoint if e.provider == provider and facility in (None, e.facility)]
    if not found:
        raise typer.BadParameter("there is no such endpoint in the configuration.")
    endpoint: Endpoint = found[0]
    return endpoint


def base_url(settings: Settings) -> str:
    from receiver.settings import host_and_port

    host, port = host_and_port(settings.receive.bind, "receive.bind")
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
