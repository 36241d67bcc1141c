"""Simulated senders: for demonstrations, load and tests. Each module here has the name of its provider."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module

from receiver.providers import PROVIDERS
from workers.simulator.base import Sender


class _Senders(Mapping[str, Sender]):
    """The sender of each provider, imported when it is asked for. The only list is `PROVIDERS`."""

    def __getitem__(self, name: str) -> Sender:
        if name not in PROVIDERS:
            raise KeyError(name)
        sender: Sender = import_module(f"{__name__}.{name}").SENDER
        return sender

    def __iter__(self) -> Iterator[str]:
        return iter(PROVIDERS)

    def __len__(self) -> int:
        return len(PROVIDERS)


SENDERS = _Senders()
