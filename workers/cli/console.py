"""`postback console`: the operators' pages, a process of its own."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from workers.cli import options

if TYPE_CHECKING:
    from receiver.settings import Settings

MOST_CONNECTIONS = 1000
"""A browser has six."""


def register(app: typer.Typer) -> None:
    app.command()(console)


def console(
    config: options.Config = None,
    fd: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Run the operators' console."""
    import signal
    import socket

    from receiver import settings as configuration
    from workers.cli import processes

    settings = configuration.load(configuration.find(config))
    processes.share_metrics(settings)
    from receiver import logs

    logs.configure("console")
    processes.require_schema(settings)
    import uvicorn

    from receiver.door import Door
    from receiver.server import configured
    from receiver.settings import networks
    from receiver.source import TrustedProxies
    from workers.console.app import build

    proxies = TrustedProxies(networks(settings.console.trusted_proxies, "console.trusted_proxies"))
    door = Door(processes.files_for(MOST_CONNECTIONS), MOST_CONNECTIONS // 2, proxies.trusts)
    application = build(settings)
    listening = socket.socket(fileno=fd) if fd is not None else processes.listen(settings.console.bind, "console.bind")
    server = uvicorn.Server(configured(application, door))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    server.run(sockets=[listening])
    if not server.started:
        sys.exit(1)


def address(settings: Settings) -> str:
    """Where a browser finds it."""
    return (settings.console.public_url or f"http://{settings.console.bind}").rstrip("/")
