"""What systemd hands to a service and hears from it: a socket that outlives it (LISTEN_FDS), and when it is ready
(NOTIFY_SOCKET). Without systemd nothing of it is there, and nothing happens."""

from __future__ import annotations

import os
import socket
from contextlib import suppress

from receiver.errors import ConfigurationError
from receiver.settings import host_and_port

FIRST_FD = 3
"""By the protocol, where the sockets begin."""


def handed_socket(bind: str, place: str) -> socket.socket | None:
    """The listening socket that this process was started with, None when there is none. It stays open when the process
    ends, so that whoever comes meanwhile waits for the next one.

    Raises `ConfigurationError` that names `place` when it is not the address `bind`: a setting that has no effect.
    """
    given = {name: os.environ.pop(f"LISTEN_{name}", "") for name in ("PID", "FDS", "FDNAMES")}
    # It may be meant for a process that started this one.
    if given["PID"] != str(os.getpid()):
        return None
    if given["FDS"] != "1":
        raise ConfigurationError(f"{place}: the service manager hands over {given['FDS'] or 'no'} sockets, not one.")
    try:
        handed = socket.socket(fileno=FIRST_FD)
    except OSError as error:
        raise ConfigurationError(
            f"{place}: what the service manager hands over is no socket: {error.strerror}."
        ) from None
    if handed.family not in (socket.AF_INET, socket.AF_INET6) or not _listens(handed):
        raise ConfigurationError(f"{place}: the service manager must hand over a TCP socket that listens.")
    host, port = handed.getsockname()[:2]
    if (host, port) not in _addresses(bind, place):
        at = f"[{host}]:{port}" if handed.family == socket.AF_INET6 else f"{host}:{port}"
        raise ConfigurationError(f"{place}: is {bind}, but the service manager listens on {at}.")
    handed.set_inheritable(True)
    return handed


def tell(state: str) -> None:
    """Tells the service manager, when there is one that listens: ``READY=1``. Never ``STOPPING=1``: one process of
    several would say it for all, and all would be killed when its time is over."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.sendto(state.encode(), address.replace("@", "\0", 1) if address.startswith("@") else address)


def _listens(handed: socket.socket) -> bool:
    return handed.type == socket.SOCK_STREAM and bool(handed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _addresses(bind: str, place: str) -> set[tuple[str, int]]:
    host, port = host_and_port(bind, place)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        return set()
    return {(str(address[0]), int(address[1])) for *_, address in found}
