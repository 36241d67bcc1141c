"""What `postback doctor` says of this machine: whether it has what the settings ask of it."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from receiver.settings import Settings, host_and_port
from receiver.signing import Secret
from workers.cli.finding import Finding
from workers.cli.processes import OTHER_FILES


def examine(settings: Settings, folder: Path) -> Iterator[Finding]:
    """`folder` is that of the configuration file, where the paths of secrets start."""
    yield from _addresses(settings)
    yield from _processes(settings)
    yield from _secret_files(settings, folder)
    yield from _settlement_folders(settings)
    yield from _console(settings)


def _addresses(settings: Settings) -> Iterator[Finding]:
    """Only notes: a configuration may be shared with the machine whose address it is."""
    taken: dict[str, str] = {}
    for place, bind in (
        ("receive.bind", settings.receive.bind),
        ("work.metrics_bind", settings.work.metrics_bind),
        ("console.bind", settings.console.bind),
    ):
        if bind is None:
            continue
        if bind in taken:
            yield Finding("addresses", "note", f"{place}: is the same as {taken[bind]}; only one of them can listen")
        elif not _is_here(bind, place):
            yield Finding("addresses", "note", f"{place}: {bind} is no address of this machine")
        taken.setdefault(bind, place)


def _is_here(bind: str, place: str) -> bool:
    host, port = host_and_port(bind, place)
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((address[0], 0))
    except OSError:
        return False
    return True


def _processes(settings: Settings) -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0))
    if settings.receive.processes > cores:
        text = f"receive.processes: {settings.receive.processes} on {cores} cores; more than cores bring nothing"
        yield Finding("processes", "note", text)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard < settings.receive.max_connections + OTHER_FILES:
        text = f"receive.max_connections: here a process may have {hard} files open, less than it needs"
        yield Finding("processes", "note", text)


def _secret_files(settings: Settings, folder: Path) -> Iterator[Finding]:
    for origin in sorted({secret.origin for secret in secrets_of(settings) if secret.origin.startswith("file:")}):
        mode = (folder / origin.removeprefix("file:")).stat().st_mode
        if mode & stat.S_IWOTH:
            yield Finding("secrets", "fault", f"{origin}: every user of this machine may write it; chmod o= takes that")
        elif mode & stat.S_IROTH:
            yield Finding("secrets", "note", f"{origin}: every user of this machine may read it; chmod o= takes that")


def secrets_of(value: Any) -> Iterator[Secret]:
    """Those of the whole configuration, or of a part of it."""
    if isinstance(value, Secret):
        yield value
    elif isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            yield from secrets_of(getattr(value, name))
    elif isinstance(value, tuple):
        for each in value:
            yield from secrets_of(each)


def _settlement_folders(settings: Settings) -> Iterator[Finding]:
    for endpoint in settings.endpoint:
        watched: Path | None = getattr(endpoint, "settlement_folder", None)
        if watched is None:
            continue
        if not watched.is_dir():
            yield Finding(endpoint.path, "fault", f"settlement_folder: {watched} is no folder")
        elif not os.access(watched, os.R_OK | os.W_OK | os.X_OK):
            yield Finding(endpoint.path, "fault", f"settlement_folder: this user may not write in {watched}")


def _console(settings: Settings) -> Iterator[Finding]:
    if not settings.security.operators:
        text = "security.operators: there is none, so nobody can sign in; `postback operator add` makes one"
        yield Finding("console", "note", text)
    free = shutil.disk_usage(tempfile.gettempdir()).free
    if free < settings.console.max_upload:
        text = f"console.max_upload: {free >> 20} MiB free in {tempfile.gettempdir()}, less than that"
        yield Finding("console", "note", text)
